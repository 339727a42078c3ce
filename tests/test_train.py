"""python -m detkit.train as its users run it: several processes equal one; killed and resumed equals uninterrupted.

Everything here starts real processes on the built-in scenes.
"""

import json
import time
from pathlib import Path

import processes
import pytest
import torch
import torch.distributed as torch_dist
from PIL import Image
from thorough import mostly
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from training import OPTIONS, draw_voc_folder

from detkit.data import DigitScenes, collate
from detkit.detectors import fpn_ssd
from detkit.weights import load_checkpoint, load_detector

ROOT = Path(__file__).parent.parent
TRAIN = ROOT / "examples" / "train.py"


def started(output: Path, *options: str, rank: int = 0, **environment: str) -> processes.Started:
    output.mkdir(exist_ok=True)
    arguments = (*OPTIONS, *options, "--output", str(output))
    printed = output / f"printed by {rank}.txt"
    return processes.start(processes.script, TRAIN, *arguments, printed=printed, CUDA_VISIBLE_DEVICES="", **environment)


def run(output: Path, *options: str) -> None:
    processes.end(started(output, *options))


def run_in_two_processes(output: Path, *options: str) -> None:
    """As torchrun starts them: each is told its rank, and where the store lies at which they meet."""
    store = torch_dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    told = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(store.port), "WORLD_SIZE": "2"}
    told |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
    ranks = [started(output, *options, rank=i, **told, RANK=str(i), LOCAL_RANK=str(i)) for i in range(2)]
    processes.end(*ranks)


def records(output: Path) -> list[dict[str, float]]:
    """metrics.jsonl without the times."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def assert_equal_states(first: object, second: object, place: str = "state") -> None:
    assert type(first) is type(second), place
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second), place
    elif isinstance(first, dict):
        assert first.keys() == second.keys(), place
        for key in first.keys() - {"seconds"}:
            assert_equal_states(first[key], second[key], f"{place}.{key}")
    elif isinstance(first, list | tuple):
        assert len(first) == len(second), place
        for i, (one, other) in enumerate(zip(first, second, strict=True)):
            assert_equal_states(one, other, f"{place}[{i}]")
    else:
        assert first == second, place


def kill_within_an_epoch(output: Path, options: tuple[str, ...]) -> None:
    """Start a run, and kill -9 it once a checkpoint from the middle of its second epoch lies there."""
    process, _ = started(output, *options)
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and process.is_alive():
        checkpoint = output / "checkpoint.pt"
        if checkpoint.exists():
            state = load_checkpoint(checkpoint)
            if state["epoch"] == 1 and state["sampler"]["position"] > 0:
                break
        time.sleep(0.01)
    assert process.is_alive(), "the run ended before it could be killed"
    process.kill()
    process.join()


@pytest.mark.slow(10)
def test_a_run_killed_by_signal_9_and_resumed_equals_the_uninterrupted_run_bit_for_bit(tmp_path):
    options = ("--epochs", "3", "--checkpoint-steps", "1", "--accumulate", "2", "--batch-size", "2")
    options = (*options, "--random-scale", "0.5", "1.5")
    run(tmp_path / "whole", *options)
    kill_within_an_epoch(tmp_path / "killed", options)
    run(tmp_path / "killed", *options, "--resume")
    whole, killed = (load_checkpoint(tmp_path / name / "checkpoint.pt") for name in ("whole", "killed"))
    assert whole["epoch"] == 3
    assert_equal_states(whole, killed)
    assert records(tmp_path / "whole") == records(tmp_path / "killed")
    assert (tmp_path / "whole" / "result.json").read_text() == (tmp_path / "killed" / "result.json").read_text()


@pytest.mark.slow(6)
@pytest.mark.parametrize(
    "norm", mostly(("--group-norm", "--sync-bn"), ("--group-norm",), "group norm was NOT tried in two processes")
)
def test_two_processes_train_to_the_losses_and_the_ap_of_one(norm, tmp_path):
    options = ("--epochs", "2", norm, "--lr", "0.0005")
    run(tmp_path / "one", *options)
    run_in_two_processes(tmp_path / "two", *options, "--batch-size", "2")
    first, *later = zip(records(tmp_path / "one"), records(tmp_path / "two"), strict=True)
    assert first[1] == pytest.approx(first[0], rel=1e-4, abs=1e-4)
    for one, two in later:  # Adam soon turns a rounding into a step: the test below holds the gradients in float64
        assert two == pytest.approx(one, rel=2e-2, abs=2e-3)


def detector_and_batch() -> tuple[nn.Module, list[torch.Tensor], list]:
    torch.manual_seed(0)
    detector = fpn_ssd(10, size=(64, 64), channels=16, norm=lambda channels: nn.GroupNorm(4, channels)).double()
    images, targets = collate([DigitScenes(4)[i] for i in range(4)])
    targets[1] = {key: value[:0] if isinstance(value, torch.Tensor) else value for key, value in targets[1].items()}
    return detector, images, targets


def one_rank(rank: int, folder: str) -> None:
    torch_dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    detector, images, targets = detector_and_batch()
    mine = [0, 2, 3] if rank == 0 else [1]  # uneven, and the second process sees no object at all
    model = DistributedDataParallel(detector)
    losses = model([images[i] for i in mine], [targets[i] for i in mine])
    sum(losses.values()).backward()
    gradients = {name: parameter.grad for name, parameter in detector.named_parameters()}
    torch.save({"losses": {k: v.detach() for k, v in losses.items()}, "gradients": gradients}, f"{folder}/{rank}.pt")
    torch_dist.destroy_process_group()


@pytest.mark.slow(3)
def test_loss_and_gradients_of_two_uneven_processes_equal_one(tmp_path):
    processes.end(
        *(processes.start(one_rank, rank, str(tmp_path), printed=tmp_path / f"{rank}.txt") for rank in range(2))
    )
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    detector, images, targets = detector_and_batch()
    losses = detector(images, targets)
    sum(losses.values()).backward()
    for name, loss in losses.items():
        torch.testing.assert_close(sum(rank["losses"][name] for rank in ranks) / 2, loss.detach(), rtol=1e-6, atol=0)
    for name, parameter in detector.named_parameters():
        for rank in ranks:
            torch.testing.assert_close(rank["gradients"][name], parameter.grad, rtol=1e-6, atol=1e-9)


def first_images(annotations: Path, count: int, path: Path) -> Path:
    """The first images of a COCO file, with their annotations, as a file of its own."""
    whole = json.loads(annotations.read_text())
    images = whole["images"][:count]
    kept = {image["id"] for image in images}
    part = {**whole, "images": images, "annotations": [a for a in whole["annotations"] if a["image_id"] in kept]}
    path.write_text(json.dumps(part))
    return path


@pytest.mark.slow(2)
def test_it_reads_coco_files_and_reports_every_class_of_real_blood_cells(detkit_data, tmp_path):
    folder = detkit_data / "bccd" / "annotations"
    files = {split: first_images(folder / f"instances_{split}.json", 4, tmp_path / split) for split in ("train", "val")}
    options = ["--data", "coco", "--images", str(detkit_data / "bccd" / "images"), "--train-json", str(files["train"])]
    options += ["--val-json", str(files["val"]), "--test-json", str(files["val"]), "--size", "64", "96"]
    run(tmp_path / "out", *options, "--batch-size", "2", "--epochs", "1", "--augment", "flips", "--bf16")
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert {"RBC", "WBC", "Platelets"} <= result.keys()
    assert result["RBC"]["objects"] > 0


@pytest.mark.slow
def test_it_reads_voc_folders(tmp_path):
    draw_voc_folder(tmp_path / "data")
    run(tmp_path / "out", "--data", "voc", "--root", str(tmp_path / "data"), "--epochs", "1", "--batch-size", "2")
    assert (tmp_path / "out" / "pictures.png").stat().st_size > 0


@pytest.mark.slow
def test_it_reads_yolo_folders_and_its_weights_say_what_they_are(tmp_path):
    for split in ("train", "val"):
        for folder in ("images", "labels"):
            (tmp_path / "data" / folder / split).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (96, 96)).save(tmp_path / f"data/images/{split}/{number}.png")
            (tmp_path / f"data/labels/{split}/{number}.txt").write_text(f"{number} 0.5 0.5 0.4 0.4")
    (tmp_path / "data/classes.txt").write_text("cat\ndog\n")
    options = ("--data", "yolo", "--root", str(tmp_path / "data"), "--epochs", "1", "--batch-size", "2")
    run(tmp_path / "out", *options, "--size", "64", "64")
    assert load_detector(tmp_path / "out/weights.safetensors").categories == ("cat", "dog")
