"""The data of a run."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from torchvision.transforms.v2.functional import to_pil_image
from training import draw_voc_folder

from detkit.data import VocFolders
from detkit.train.identity import fingerprint
from detkit.train.options import arguments
from detkit.train.sets import datasets


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


def read_by(files: dict[str, list[Path]], *options: str) -> list[list[int]]:
    """The gray values of the pictures of each split."""
    named = [word for split, paths in files.items() for word in (f"--{split}-json", *map(str, paths))]
    *sets, names = datasets(arguments(["--data", "coco", *named, *options, "--output", "out"]))
    assert names == ["cell"]
    return [[int(part[i][0].max()) for i in range(len(part))] for part in sets]


def test_a_category_that_only_groups_others_is_no_class_on_request(tmp_path):
    path = in_coco_layout(tmp_path, "one", pictures=Path("train"), annotations=Path("train"), number=1)
    content = json.loads(path.read_text())
    content["categories"] = [{"id": 0, "name": "cells", "supercategory": "none"}] + [
        category | {"supercategory": "cells"} for category in content["categories"]
    ]
    path.write_text(json.dumps(content))
    read_by({split: [path] for split in ("train", "val", "test")}, "--tidy-categories")  # names are ["cell"]


@pytest.mark.parametrize("layout", ["beside the pictures", "one folder a split", "one folder for all", "one a file"])
def test_pictures_are_found_beside_their_json_or_in_the_folder_of_their_split(layout, tmp_path):
    beside = layout == "beside the pictures"
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
    assert read_by(files, *options) == [[1, 2], [3], [4]]
    del files["test"]
    assert read_by(files, *options) == [[1, 2], [3], [3]]


def test_a_voc_folder_without_lists_is_shared_out_by_seed(tmp_path):
    draw_voc_folder(tmp_path)
    shutil.rmtree(tmp_path / "ImageSets")

    def drawn(*options: str):
        options = ("--data", "voc", "--root", str(tmp_path), "--output", str(tmp_path / "out"), *options)
        return datasets(arguments([*options]))

    data, val, test, classes = drawn("--val-fraction", "0.4")
    assert (len(data), len(val), test) == (4, 2, val)
    assert sorted(data.indices + val.indices) == list(range(6))
    assert classes == data.dataset.categories
    assert drawn("--val-fraction", "0.4")[1].indices == val.indices
    assert fingerprint(data, []) != fingerprint(drawn("--val-fraction", "0.4", "--seed", "1")[0], [])
    with pytest.raises(ValueError, match=r"--val-fraction 0\.95 of 6 images leaves none to train on"):
        drawn("--val-fraction", "0.95")


@pytest.mark.parametrize("folders", [("Annotations", "JPEGImages"), ("annotations", "images"), (".", ".")])
def test_the_folders_of_voc_are_found_whichever_tool_wrote_them(tmp_path, folders):
    drawn, root = tmp_path / "drawn", tmp_path / "root"
    draw_voc_folder(drawn)
    for name, kind in zip(folders, ("Annotations", "JPEGImages"), strict=True):
        shutil.copytree(drawn / kind, root / name, dirs_exist_ok=True)
    options = ["--data", "voc", "--root", str(root), "--val-fraction", "0.4", "--output", str(tmp_path / "out")]
    data, val, _, _ = datasets(arguments(options))
    assert (len(data), len(val)) == (4, 2)


def test_xml_in_folders_of_pascals_folder_and_in_capitals_is_found(tmp_path):
    (tmp_path / "Annotations" / "day").mkdir(parents=True)
    (tmp_path / "Annotations" / "day" / "one.XML").touch()
    assert VocFolders.find(tmp_path) == VocFolders()
    (tmp_path / "Annotations" / "day" / "one.XML").rename(tmp_path / "one.XML")
    assert VocFolders.find(tmp_path) == VocFolders(".", ".", ".")
    (tmp_path / "one.XML").unlink()
    assert VocFolders.find(tmp_path) is None


def test_a_voc_folder_without_lists_is_refused_with_the_option_that_needs_none(tmp_path):
    args = arguments(["--data", "voc", "--root", str(tmp_path), "--output", str(tmp_path / "out")])
    with pytest.raises(FileNotFoundError, match=r"no list .*train\.txt: --folders .* --val-fraction needs none$"):
        datasets(args)


def test_a_voc_folder_without_a_test_list_is_tested_on_its_validation_images(tmp_path):
    draw_voc_folder(tmp_path)
    (tmp_path / "ImageSets" / "Main" / "test.txt").unlink()
    args = arguments(["--data", "voc", "--root", str(tmp_path), "--output", str(tmp_path / "out")])
    _, val, test, _ = datasets(args)
    assert test.names == val.names


def test_a_share_of_one_coco_file_validates_and_a_test_file_still_tests(tmp_path):
    path = in_coco_layout(tmp_path, "one", pictures=Path("train"), annotations=Path("train"), number=1)
    content = json.loads(path.read_text())
    content["images"] += [{**content["images"][0], "id": number} for number in range(2, 11)]
    path.write_text(json.dumps(content))
    options = ["--data", "coco", "--train-json", str(path), "--val-fraction", "0.3", "--output", "out"]
    train, val, test, names = datasets(arguments(options))
    assert (len(train), len(val), test, names) == (7, 3, val, ["cell"])
    assert len(datasets(arguments([*options, "--test-json", str(path)]))[2]) == 10


def test_tables_have_the_classes_of_the_first(tmp_path):
    for name in ("a", "b"):
        to_pil_image(torch.zeros(3, 8, 8, dtype=torch.uint8)).save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.csv").write_text(f"ImageId,PredictionString\n{name},cell 1 1 5 5\n")
    files = ["--train-csv", str(tmp_path / "a.csv"), "--val-csv", str(tmp_path / "b.csv")]
    train, val, test, names = datasets(arguments(["--data", "csv", *files, "--output", "out"]))
    assert (len(train), len(val), test, names) == (1, 1, val, ["cell"])
