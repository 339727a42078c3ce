"""Every example runs, in seconds where it is asked to, and stays short."""

import re
from pathlib import Path

import processes
import pytest
from thorough import mostly

EXAMPLES = Path(__file__).parent.parent / "examples"
FILES = sorted(path.name for path in EXAMPLES.glob("*.py"))
LONGEST = 80
LONGER = {
    "bag_of_tricks.py": 130,
    "dozen_detectors.py": 111,
    "hourglass_components.py": 143,
    "training_order.py": 102,
}  # a table beside its loop
PARTS = sorted(str(path.relative_to(EXAMPLES)) for path in EXAMPLES.glob("*/*.py"))
LADDER = [name for name in PARTS if name.startswith("ladder")]
DATA = "DETKIT_DATA"
PACKAGES = {"train_accelerate.py": "accelerate", "train_fabric.py": "lightning_fabric"}  # of the tests alone
PACKAGES |= {"predict_many.py": "ray"}
# What makes each example take seconds; what it must leave behind; and a word that it must print.
SMALL: dict[str, tuple[list[str], list[str], str]] = {
    "bag_of_tricks.py": (
        [
            *("out", "--model", "small_faster_rcnn", "--steps", "3", "--batch-size", "2", "--seeds", "1"),
            *("--scenes", "14"),
        ],
        ["out/small_faster_rcnn.png"],
        "+ mixup",
    ),
    "compose_ssd.py": (["--steps", "2"], [], ""),
    "dozen_detectors.py": (["out", "--seconds", ".2", "--seeds", "1", "--scenes", "16"], ["out/dozen.png"], "TOOD"),
    "draw_anchors.py": (["anchors.png"], ["anchors.png"], ""),
    "draw_augmentation.py": ([f"{DATA}/coco_open", "moved.jpg"], ["moved.jpg"], "Mosaic: 2 objects, then 9"),
    "draw_attention.py": (["attention.png"], ["attention.png"], ""),
    "draw_embedding_losses.py": (["losses.png"], ["losses.png"], "a triplet at 1.0 and 0.5: 1.5"),
    "draw_losses.py": (["losses.png"], ["losses.png"], "quality focal: 0.000 at probability 0.70"),
    "draw_matching.py": (["matching.png"], ["matching.png"], "Hungarian: 4 positive, 0 ignored, of 20"),
    "draw_memory.py": (
        [f"{DATA}/coco_open/images", f"{DATA}/coco_open/annotations/instances_train.json", "m.png", "--count", "24"],
        ["m.png"],
        "shards: ",
    ),
    "draw_overlap.py": (["overlap.png"], ["overlap.png"], "GIoU: -0.429"),
    "draw_proposals.py": (["proposals.png"], ["proposals.png"], "IoU 0.99"),
    "draw_suppression.py": (["kept.png"], ["kept.png"], 'nms, measure="diou": 4 boxes'),
    "draw_two_stages.py": (["stages.png"], ["stages.png"], "sampled: 8 + 20"),
    "equal_time.py": (
        [
            *("out", "--minutes", ".01", "--size", "96", "96", "--scenes", "8", "4"),
            *("--only", "fpn_ssd", "torchvision fasterrcnn_320"),
        ],
        ["out/results.jsonl", "out/equal.png"],
        "| torchvision fasterrcnn_320 | 0.01 | 0 |",
    ),
    "evaluate_coco.py": (["--images", "4"], [], "bbox/AP"),
    "face_detectors.py": ([f"{DATA}/checkpoints", "faces.jpg"], ["faces.jpg"], "retinaface_mnet025.pth: 4 faces"),
    "find_similar.py": (
        ["similar.png", "--steps", "2", "--scenes", "3", "--score", "0"],
        ["similar.png"],
        "recall@1 of embeddings",
    ),
    "hourglass_components.py": (
        [DATA, "out", "--size", "64", "96", "--steps", "2", "--images", "3", "--seeds", "1"],
        ["out/components.png", "out/proposals.png"],
        "30 + all, 3 scales",
    ),
    "make_localization_set.py": (["--count", "1"], ["windows/train.csv", "windows/test.csv"], "train: 1"),
    "multitask.py": (
        [f"{DATA}/nuclei_multitask", "tasks.png", "--steps", "2", "--seeds", "1", "--images", "4"],
        ["tasks.png"],
        "| three, stitched |",
    ),
    "predict_many.py": (["--help"], [], "Ray Data"),  # tests/test_predict_many.py runs it
    "search_on_disk.py": (["table", "--count", "400", "--queries", "3"], ["table"], "400 vectors written"),
    "small_objects.py": (
        [
            *("out", "--minutes", ".01", "--pictures", "4", "--only", "small_tood, half the size", "--data"),
            *(f"{DATA}/bccd/images", f"{DATA}/bccd/annotations/instances_val.json"),
            f"{DATA}/bccd/annotations/instances_test.json",
        ],
        ["out/small_tood_half_the_size.png"],
        "| small_tood, half the size | ",
    ),
    "tiled_inference.py": (
        [f"{DATA}/checkpoints", "tiles.jpg"],
        ["tiles.jpg"],
        "in tiles and at once: 67 faces",
    ),
    "train.py": (
        [
            *("--scenes", "20", "--size", "64", "64", "--epochs", "1", "--batch-size", "4", "--warmup", "1"),
            *("--augment", "none", "--output", "out"),
        ],
        ["out/checkpoint.pt", "out/weights.safetensors", "out/metrics.jsonl"],
        "",
    ),
    "train_accelerate.py": (
        ["out.safetensors", "--scenes", "8", "--side", "64", "--epochs", "1", "--batch-size", "4", "--warmup", "1"],
        ["out.safetensors"],
        "'epoch': 0",
    ),
    "train_fabric.py": (
        ["out.safetensors", "--scenes", "8", "--side", "64", "--epochs", "1", "--batch-size", "4", "--warmup", "1"],
        ["out.safetensors"],
        "'epoch': 0",
    ),
    "train_localizers.py": (
        ["--count", "1", "--epochs", "1", "--picture", "localizers.png"],
        ["localizers.png"],
        "modified SSD  accuracy@1",
    ),
    "train_omniglot.py": (
        [f"{DATA}/omniglot_small/images", "omniglot.png", "--steps", "2", "--seeds", "1"],
        ["omniglot.png"],
        "| Triplet |",
    ),
    "training_order.py": (
        [DATA, "out", "--size", "64", "96", "--steps", "2", "--images", "2", "--mode", "single"],
        ["out/order.png"],
        "selective search  COCO",
    ),
    "train_region_classifier.py": (
        [DATA, "regions.png", "--images", "2", "--epochs", "1"],
        ["regions.png"],
        "| MLP + dropout |",
    ),
    "train_rcnn.py": (["--scenes", "4", "--steps", "2", "--picture", "rcnn.png"], ["rcnn.png"], "bbox/AP"),
}


def test_each_example_has_small_arguments_here():
    assert FILES
    assert set(SMALL) == set(FILES), "a new example needs its small arguments in SMALL; a removed one leaves it"


@pytest.mark.slow(3)
@pytest.mark.parametrize("name", FILES)
def test_an_example_runs(name, tmp_path, request):
    arguments, files, word = SMALL[name]
    if name in PACKAGES:
        pytest.importorskip(PACKAGES[name], reason=f"without {PACKAGES[name]} examples/{name} did NOT run")
    if any(argument.startswith(DATA) for argument in arguments):
        folder = str(request.getfixturevalue("detkit_data"))
        arguments = [argument.replace(DATA, folder) for argument in arguments]
    started = processes.start(
        processes.script, EXAMPLES / name, *arguments, printed=tmp_path / "printed.txt", cwd=tmp_path
    )
    (printed,) = processes.end(started)
    assert word in printed
    assert printed.strip() or files
    for file in files:
        assert (tmp_path / file).stat().st_size > 0


@pytest.mark.slow(5)
@pytest.mark.parametrize(
    "name", mostly(LADDER, ("ladder/09_deploy.py",), "deployment was NOT run but for what docs/runtimes.md shows")
)
def test_a_step_of_the_ladder_runs(name, tmp_path):
    text = (EXAMPLES / name).read_text(encoding="utf-8")
    program = tmp_path / Path(name).name
    program.write_text(re.sub(r"^STEPS = \d+$", "STEPS = 2", text, flags=re.MULTILINE), encoding="utf-8")
    started = processes.start(
        processes.script, program, printed=tmp_path / "printed.txt", cwd=tmp_path, MPLBACKEND="agg"
    )
    processes.end(started)
    assert re.search("^figure, ", text, flags=re.MULTILINE), f"{name} draws nothing"


@pytest.mark.parametrize("name", [*FILES, *PARTS])
def test_an_example_is_short(name):
    lines, allowed = (EXAMPLES / name).read_text(encoding="utf-8").splitlines(), LONGER.get(name, LONGEST)
    assert len(lines) <= allowed, f"{name} has {len(lines)} lines; allowed are {allowed}"
