"""examples/train.py as its users run it: several processes equal one; killed and resumed equals uninterrupted.

Everything here starts real processes on the built-in scenes.
"""

import importlib.util
import json
import shutil
import time
from pathlib import Path
from types import ModuleType

import processes
import pytest
import torch
import torch.distributed as torch_dist
from PIL import Image
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torchvision.transforms.v2.functional import to_pil_image

from detkit.data import DigitScenes, collate
from detkit.detectors import fpn_ssd
from detkit.weights import load_checkpoint, load_detector, save_checkpoint, save_weights

ROOT = Path(__file__).parent.parent
OPTIONS = ["--data", "scenes", "--scenes", "24", "--size", "64", "64", "--batch-size", "4", "--warmup", "4"]
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
    options = ("--epochs", "4", "--checkpoint-steps", "1", "--accumulate", "2", "--batch-size", "2")
    options = (*options, "--random-scale", "0.5", "1.5")
    run(tmp_path / "whole", *options)
    kill_within_an_epoch(tmp_path / "killed", options)
    run(tmp_path / "killed", *options, "--resume")
    whole, killed = (load_checkpoint(tmp_path / name / "checkpoint.pt") for name in ("whole", "killed"))
    assert whole["epoch"] == 4
    assert_equal_states(whole, killed)
    assert records(tmp_path / "whole") == records(tmp_path / "killed")
    assert (tmp_path / "whole" / "result.json").read_text() == (tmp_path / "killed" / "result.json").read_text()


@pytest.mark.slow(6)
@pytest.mark.parametrize("norm", ["--group-norm", "--sync-bn"])
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


def draw_voc_folder(root: Path) -> None:
    """Digit scenes as a VOC data set: PNG images, XML annotations, split lists."""
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    scenes = DigitScenes(6, size=(64, 64))
    for i in range(6):
        image, target = scenes[i]
        to_pil_image(image).save(root / "JPEGImages" / f"{i}.jpg")
        objects = "".join(
            f"<object><name>digit {label}</name><difficult>0</difficult><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin>"
            f"<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
            for (x1, y1, x2, y2), label in zip(target["boxes"].tolist(), target["labels"].tolist(), strict=True)
        )
        size = "<size><width>64</width><height>64</height><depth>3</depth></size>"
        xml = f"<annotation><filename>{i}.jpg</filename>{size}{objects}</annotation>"
        (root / "Annotations" / f"{i}.xml").write_text(xml)
    for split in ("train", "val", "test"):
        # Validation repeats training here: every class must occur among those that train names.
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{i}\n" for i in range(6)))


def script() -> ModuleType:
    """examples/train.py as a module of this process."""
    spec = importlib.util.spec_from_file_location("train_script", ROOT / "examples" / "train.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def begun(train: ModuleType, output: Path, *options: str):
    """A run of the script in this process, before its first step."""
    args, identity = identified(train, output, *options)
    return train.Run(args, train.build(args, 10), 24, identity)


def identified(train: ModuleType, output: Path, *options: str, scenes: DigitScenes | None = None):
    """The command line of a run on scenes, and what makes it the one that it is."""
    args = train.arguments([*OPTIONS, "--epochs", "2", *options, "--output", str(output)])
    data = scenes or DigitScenes(4, size=(64, 64))
    return args, train.identity(args, data.categories, {"train": data})


def test_random_sizes_are_multiples_of_32_in_the_ratio_of_the_size_to_judge_at(tmp_path):
    train = script()
    first = begun(train, tmp_path, "--size", "64", "96", "--random-scale", "0.5", "2")
    assert first.shapes.sizes == ((32, 64), (64, 96), (96, 128), (128, 192))
    assert begun(train, tmp_path).shapes is None
    first.model.preprocess.size = first.shapes(0)
    assert first.average.module.preprocess.size == (64, 96)


@pytest.mark.parametrize(("size", "reason"), [((64, 64), "no multiple of 32"), (800, "no size")])
def test_a_scale_that_leaves_no_size_is_refused(size, reason):
    detector = fpn_ssd(10, size=(64, 64), channels=16)
    detector.preprocess.size = size
    with pytest.raises(ValueError, match=rf"--random-scale.*{reason}"):
        script().batch_shapes((0.6, 0.8), detector, 0)


@pytest.mark.parametrize("scale", [("1.5", "0.5"), ("nan", "1"), ("0.5", "inf"), ("-1", "1"), ("0", "1")])
def test_a_scale_that_is_none_is_refused(tmp_path, capsys, scale):
    with pytest.raises(SystemExit):
        claimed(tmp_path, "--random-scale", *scale)
    assert "allowed are two numbers between 0 and 100, the lower first" in capsys.readouterr().err


class Renamed(DigitScenes):
    """Scenes whose classes have other names, or stand in another order."""

    names: tuple[str, ...] = ()
    categories = property(lambda self: list(self.names))


def test_a_run_of_the_same_options_goes_on_and_one_of_others_is_refused_as_it_is_loaded(tmp_path):
    train = script()
    begun(train, tmp_path).save(1)
    assert begun(train, tmp_path, "--resume").load() == 1
    with pytest.raises(
        ValueError, match=r"^--resume: .*checkpoint.pt is of another run: --recipe was 'fpn_ssd', is 's"
    ):
        begun(train, tmp_path, "--resume", "--recipe", "small_fcos").load()


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        (("--epochs", "4"), "--epochs was 2, is 4"),
        (("--group-norm",), "--group-norm was False, is True"),
        (("--size", "64", "96"), r"--size was \[64, 64\], is \[64, 96\]"),
        (("--lr", "0.1", "--augment", "ssd"), "--augment was 'flip', is 'ssd'; --lr was 0.002, is 0.1"),
    ],
)
def test_other_options_are_refused_by_their_names_and_values(options, difference, tmp_path):
    train = script()
    _, saved = identified(train, tmp_path)
    _, own = identified(train, tmp_path, *options)
    with pytest.raises(
        ValueError, match=rf"^--resume: a is of another run: {difference}\. Only these may change: --im"
    ):
        train.check_same_run(saved, own, Path("a"))


def test_other_classes_and_pictures_are_refused_and_free_options_are_not(tmp_path):
    train = script()
    _, saved = identified(train, tmp_path)
    scenes = Renamed(4, size=(64, 64))
    for names in ([f"digit {i}" for i in range(10)], list("9876543210"), list("012345678")):
        scenes.names = tuple(names)
        _, own = identified(train, tmp_path, scenes=scenes)
        with pytest.raises(ValueError, match=r"classes was \['0', '1'.*, is \['" + names[0]):
            train.check_same_run(saved, own, tmp_path)
    for other in (DigitScenes(4, size=(64, 64), split="val"), DigitScenes(3, size=(64, 64))):
        _, own = identified(train, tmp_path, scenes=other)
        with pytest.raises(ValueError, match=r"train data was '4 images, \w+', is '[34] images, \w+'\. Only"):
            train.check_same_run(saved, own, tmp_path)
    free = ("--workers", "1", "--nonfinite", "skip", "--evaluate-every", "2", "--checkpoint-steps", "1", "--resume")
    _, own = identified(train, tmp_path / "moved", *free)
    train.check_same_run(saved, own, tmp_path)


def test_a_checkpoint_of_an_older_script_is_refused(tmp_path):
    train = script()
    save_checkpoint({"epoch": 1}, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match=r"--resume: .* of another run: --data was None, is 'scenes'"):
        begun(train, tmp_path, "--resume").load()


def test_a_run_resumed_with_another_number_of_threads_says_that_it_is_not_the_same_bit_for_bit(tmp_path):
    train = script()
    begun(train, tmp_path).save(1)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        with pytest.warns(UserWarning, match=f"--resume with {threads} threads before and {threads + 1} now"):
            assert begun(train, tmp_path, "--resume").load() == 1
    finally:
        torch.set_num_threads(threads)


def in_coco_layout(root: Path, name: str, *, pictures: Path, annotations: Path, number: int) -> Path:
    """One picture of ``number`` in gray, with one object, and its annotation file."""
    for folder in (pictures, annotations):
        (root / folder).mkdir(parents=True, exist_ok=True)
    to_pil_image(torch.full((3, 8, 8), number, dtype=torch.uint8)).save(root / pictures / f"{name}.png")
    content = {
        "images": [{"id": 1, "file_name": f"{name}.png", "height": 8, "width": 8}],
        "categories": [{"id": 1, "name": "cell"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 4, 4], "area": 16, "iscrowd": 0}],
    }
    path = root / annotations / f"{name}.json"
    path.write_text(json.dumps(content))
    return path


def read_by(train: ModuleType, files: dict[str, list[Path]], *options: str) -> list[list[int]]:
    """The gray values of the pictures of each split."""
    named = [word for split, paths in files.items() for word in (f"--{split}-json", *map(str, paths))]
    *sets, names = train.datasets(train.arguments(["--data", "coco", *named, *options, "--output", "out"]))
    assert names == ["cell"]
    return [[int(part[i][0].max()) for i in range(len(part))] for part in sets]


def test_a_category_that_only_groups_others_is_no_class_on_request(tmp_path):
    train = script()
    path = in_coco_layout(tmp_path, "one", pictures=Path("train"), annotations=Path("train"), number=1)
    content = json.loads(path.read_text())
    content["categories"] = [{"id": 0, "name": "cells", "supercategory": "none"}] + [
        category | {"supercategory": "cells"} for category in content["categories"]
    ]
    path.write_text(json.dumps(content))
    read_by(train, {split: [path] for split in ("train", "val", "test")}, "--tidy-categories")  # names are ["cell"]


@pytest.mark.parametrize("layout", ["beside the pictures", "one folder a split", "one folder for all", "one a file"])
def test_pictures_are_found_beside_their_json_or_in_the_folder_of_their_split(layout, tmp_path):
    train, beside = script(), layout == "beside the pictures"
    names = {"train": ["one", "two"], "val": ["one"], "test": ["one"]}
    shared = Path("images") if layout == "one folder for all" else None
    folders = {
        (split, name): shared or Path(split, name if layout == "one a file" else "")
        for split in names
        for name in names[split]
    }
    numbers = {place: number for number, place in enumerate(folders, start=1)}
    files = {
        split: [
            in_coco_layout(
                tmp_path,
                f"{split}_{name}" if shared else name,
                pictures=folders[split, name],
                annotations=folders[split, name] if beside else Path("annotations", split),
                number=numbers[split, name],
            )
            for name in names[split]
        ]
        for split in names
    }
    options = ["--images", str(tmp_path / shared)] if shared else []
    if layout in ("one folder a split", "one a file"):
        for split in names:
            places = dict.fromkeys(str(tmp_path / folders[split, name]) for name in names[split])
            options += [f"--{split}-images", *places]
    assert read_by(train, files, *options) == [[1, 2], [3], [4]]
    del files["test"]
    assert read_by(train, files, *options) == [[1, 2], [3], [3]]


def test_folders_that_fit_no_number_of_files_are_refused(tmp_path, capsys):
    words = ["--data", "coco", "--train-json", "a", "b", "c", "--val-json", "d", "--output", str(tmp_path)]
    with pytest.raises(SystemExit):
        script().arguments([*words, "--train-images", "x", "y"])
    assert "--train-images names 2 folders for 3 files of --train-json" in capsys.readouterr().err


def test_a_voc_folder_without_lists_is_shared_out_by_seed(tmp_path):
    draw_voc_folder(tmp_path)
    shutil.rmtree(tmp_path / "ImageSets")
    train = script()

    def drawn(*options: str):
        options = ("--data", "voc", "--root", str(tmp_path), "--output", str(tmp_path / "out"), *options)
        return train.datasets(train.arguments([*options]))

    data, val, test, classes = drawn("--val-share", "0.4")
    assert (len(data), len(val), test) == (4, 2, val)
    assert sorted(data.indices + val.indices) == list(range(6))
    assert classes == data.dataset.categories
    assert data.target(3)["boxes"].tolist() == data[3][1]["boxes"].tolist()
    assert drawn("--val-share", "0.4")[1].indices == val.indices
    assert train.fingerprint(data, []) != train.fingerprint(drawn("--val-share", "0.4", "--seed", "1")[0], [])
    with pytest.raises(ValueError, match=r"--val-share 0\.95 of 6 images leaves none to train on"):
        drawn("--val-share", "0.95")


def test_a_voc_folder_without_lists_is_refused_with_the_option_that_needs_none(tmp_path):
    args = script().arguments(["--data", "voc", "--root", str(tmp_path), "--output", str(tmp_path / "out")])
    with pytest.raises(FileNotFoundError, match=r"no list .*train\.txt: --folders .* --val-share needs none"):
        script().datasets(args)


def test_a_share_that_is_none_is_refused(tmp_path, capsys):
    for options in (("--val-share", "0.5"), ("--val-share", "1", "--data", "voc", "--root", "x")):
        with pytest.raises(SystemExit):
            claimed(tmp_path, *options)
        assert "allowed is a number above 0 and below 1, with --data voc or yolo" in capsys.readouterr().err


def test_a_run_starts_from_weights_of_its_recipe_with_other_classes_unless_it_goes_on(tmp_path, capsys):
    train, taught = script(), fpn_ssd(3, size=(64, 64))
    save_weights(taught, path := tmp_path / "weights.safetensors")
    args = train.arguments(["--recipe", "fpn_ssd", "--weights", str(path), "--resume", "--output", str(tmp_path)])
    own, other = train.build(args, 10).state_dict(), taught.state_dict()
    fit = [key for key, value in other.items() if value.shape == own[key].shape]
    assert all(torch.equal(own[key], other[key]) for key in fit)
    assert 0 < len(own) - len(fit) < 10
    assert f"--weights: {len(own) - len(fit)} values of other shapes are learned anew: " in capsys.readouterr().out
    (tmp_path / "checkpoint.pt").touch()
    assert not all(torch.equal(train.build(args, 10).state_dict()[key], other[key]) for key in fit)


def test_a_fingerprint_depends_on_every_picture_label_and_box_and_on_the_annotation_files(tmp_path):
    fingerprint = script().fingerprint
    scenes = DigitScenes(3, size=(64, 64))
    items = [scenes[i] for i in range(3)]
    expected = fingerprint(items, [])
    assert fingerprint([scenes[i] for i in range(3)], []) == expected
    for key in ("boxes", "labels"):
        image, target = items[2]
        changed = {**target, key: target[key].clone()}
        changed[key].view(-1)[-1] += 1
        assert fingerprint([*items[:2], (image, changed)], []) != expected, key
    pixels = items[1][0].clone()
    pixels[0, 0, 0] += 1
    assert fingerprint([items[0], (pixels, items[1][1]), items[2]], []) != expected
    (tmp_path / "a.json").write_text("{}")
    first = fingerprint(items, [tmp_path / "a.json"])
    (tmp_path / "a.json").write_text("{ }")
    assert expected != first != fingerprint(items, [tmp_path / "a.json"])


def train_with_bad_losses(output: Path, monkeypatch: pytest.MonkeyPatch, *options: str, steps: set[int]):
    """One epoch of six steps, of which ``steps`` have a loss that is NaN and a BatchNorm that saw it."""
    train = script()
    run = begun(train, output, *options)
    calls, forward = [], run.model.forward

    def spoilt(images, targets):
        calls.append(None)
        bad = len(calls) in steps
        with pytest.MonkeyPatch.context() as once:
            if bad:
                trunk = run.model.trunk.forward
                once.setattr(run.model.trunk, "forward", lambda pixels: trunk(pixels * float("nan")))
            losses = forward(images, targets)
        return {name: loss * (float("nan") if bad else 1) for name, loss in losses.items()}

    monkeypatch.setattr(run.model, "forward", spoilt)
    data = train.Augmented(DigitScenes(24, size=(64, 64)), lambda image, target: (image.float() / 255, target))
    return run, lambda: train.train_epoch(run, run.model, data, 0)


def state_of(run) -> list[torch.Tensor]:
    return [*run.model.state_dict().values(), *run.average.module.state_dict().values()]


@pytest.mark.slow(2)
@pytest.mark.parametrize(("options", "steps"), [((), {2, 5}), (("--accumulate", "3"), {2})])
def test_steps_that_are_not_finite_are_left_out_of_model_average_and_means(
    options, steps, tmp_path, monkeypatch, capsys
):
    run, epoch = train_with_bad_losses(tmp_path, monkeypatch, "--nonfinite", "skip", *options, steps=steps)
    means = epoch()
    assert means.pop("skipped") == 2 + (len(options) > 0)
    assert all(value == value for value in means.values())
    assert all(value.isfinite().all() for value in state_of(run) if value.is_floating_point())
    assert all(value.isfinite().all() for slot in run.optimizer.state.values() for value in slot.values())
    printed = capsys.readouterr()
    assert "step left out: epoch 0, batch 2: loss dense." in printed.out + printed.err or options
    assert run.schedule.last_epoch == 6 // (3 if options else 1)


def test_a_loss_that_is_not_finite_stops_the_run_and_is_named(tmp_path, monkeypatch):
    run, epoch = train_with_bad_losses(tmp_path, monkeypatch, steps={1})
    before = [value.clone() for value in state_of(run)]
    with pytest.raises(FloatingPointError, match=r"^epoch 0, batch 1: loss dense\.\w+ is nan, .* --nonfinite skip"):
        epoch()
    assert all(torch.equal(value, old) for value, old in zip(state_of(run), before, strict=True))


@pytest.mark.slow(2)
def test_an_epoch_in_which_no_step_was_finite_ends_the_run(tmp_path, monkeypatch):
    run, epoch = train_with_bad_losses(tmp_path, monkeypatch, "--nonfinite", "skip", steps=set(range(1, 7)))
    with pytest.raises(FloatingPointError, match="epoch 0: no loss was finite"):
        epoch()
    assert all(value.isfinite().all() for value in state_of(run))


def hold(folder: str) -> None:
    """Claim a folder as another process does, and keep it until the test kills the process."""
    with script().claim(claimed(Path(folder))):
        Path(folder, "held").touch()
        time.sleep(600)


def claimed(folder: Path, *options: str):
    return script().arguments([*OPTIONS, "--output", str(folder), *options])


@pytest.mark.slow(2)
def test_a_folder_in_use_is_refused_until_the_process_that_uses_it_is_gone(tmp_path):
    train = script()
    process, _ = processes.start(hold, str(tmp_path), printed=tmp_path / "printed.txt")
    try:
        while not (tmp_path / "held").exists() and process.is_alive():
            time.sleep(0.01)
        with pytest.raises(ValueError, match=rf"--output {tmp_path} is in use by another run"):
            train.claim(claimed(tmp_path, "--resume"))
    finally:
        process.kill()
        process.join()
    train.claim(claimed(tmp_path)).close()


def test_a_folder_with_an_earlier_run_is_resumed_or_refused_and_what_a_killed_one_left_is_swept(tmp_path):
    train = script()
    litter = [tmp_path / f".{name}.0123456789ab.tmp" for name in ("checkpoint.pt", "weights.safetensors")]
    for path in (*litter, tmp_path / "checkpoint.pt", tmp_path / "notes.tmp"):
        path.touch()
    with pytest.raises(ValueError, match=rf"--output {tmp_path} holds checkpoint.pt of an earlier run; --resume it"):
        train.claim(claimed(tmp_path))
    train.claim(claimed(tmp_path, "--resume")).close()
    assert not any(path.exists() for path in litter)
    assert (tmp_path / "notes.tmp").exists()


def test_weights_of_a_trunk_that_are_no_file_are_refused_at_once(tmp_path, capsys):
    with pytest.raises(SystemExit):
        claimed(tmp_path, "--trunk", str(tmp_path))
    assert f"--trunk {tmp_path} is no regular file" in capsys.readouterr().err


def test_a_backbone_trained_before_is_taken_out_of_another_recipes_weights(tmp_path):
    train = script()
    taught, path = fpn_ssd(10).eval(), tmp_path / "weights.safetensors"
    save_weights(taught, path)
    options = ["--trunk", str(path), "--output", str(tmp_path)]
    for recipe in ("small_pix2seq", "small_retinanet"):  # a backbone alone, and one below a neck
        trunk = train.build(train.arguments([*options, "--recipe", recipe]), 10).trunk
        own = trunk[0] if recipe == "small_retinanet" else trunk
        for key, value in own.state_dict().items():
            assert torch.equal(value, taught.trunk[0].state_dict()[key]), key
    with pytest.raises(
        ValueError, match=r"--trunk .*weights.safetensors lacks \d+ of \d+ values of the backbone: stages"
    ):
        train.build(train.arguments([*options, "--recipe", "small_detr"]), 10)


def test_a_voc_folder_without_a_test_list_is_tested_on_its_validation_images(tmp_path):
    draw_voc_folder(tmp_path)
    (tmp_path / "ImageSets" / "Main" / "test.txt").unlink()
    train = script()
    args = train.arguments(["--data", "voc", "--root", str(tmp_path), "--output", str(tmp_path / "out")])
    _, val, test, _ = train.datasets(args)
    assert test.names == val.names
