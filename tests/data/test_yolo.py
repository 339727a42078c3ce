"""YOLO's text format: every layout that tools write, and every way in which a line can be wrong."""

import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from strategies import unhooked

from detkit.data import YoloDataset, collate

NAMES = ["cat", "dog"]


def write(root, files, *, size=(20, 10)):
    """Pictures of 20 x 10 pixels (width x height), and texts."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            Image.new("RGB", size).save(path)
        else:
            path.write_text(content, encoding="utf-8")
    return root


def boxes(dataset, index=0):
    return dataset.target(index)["boxes"].tolist()


def one(root, line, **settings):
    """A data set of one picture and the lines of its file."""
    return YoloDataset(write(root, {"a.png": None, "a.txt": line}), None, **{"classes": NAMES, **settings})


def test_a_line_is_class_center_and_size_as_fractions(tmp_path):
    dataset = one(tmp_path, "1 0.5 0.5 0.2 0.4\n\n 0 0.25 0.5 0.5 1 \n")
    image, target = dataset[0]
    assert image.shape == (3, 10, 20)
    assert target["boxes"].tolist() == [[8, 3, 12, 7], [0, 0, 10, 10]]
    assert target["labels"].tolist() == [1, 0]
    assert target["area"].tolist() == [16, 100]
    collate([dataset[0], dataset[0]])


def test_a_polygon_gives_its_hull_and_on_request_its_mask(tmp_path):
    line = "0 0.1 0.2 0.5 0.2 0.5 0.8 0.1 0.8"
    assert boxes(one(tmp_path, line)) == [[2, 2, 10, 8]]
    mask = one(tmp_path, line, masks=True).target(0)["masks"]
    expected = torch.zeros(1, 10, 20, dtype=torch.uint8)
    expected[:, 2:8, 2:10] = 1
    assert torch.equal(mask.as_subclass(torch.Tensor), expected)


def test_with_masks_an_object_that_has_only_a_box_is_left_out_and_counted(tmp_path):
    line = "0 0.1 0.2 0.5 0.2 0.5 0.8\n1 0.5 0.5 0.2 0.4"
    with pytest.warns(UserWarning, match=r"a\.txt: object 1: has a box and no polygon.*1 of 2 boxes were dropped"):
        target = one(tmp_path, line, masks=True).target(0)
    assert target["masks"].shape == (1, 10, 20)
    assert target["labels"].tolist() == [0]


LAYOUTS = {
    "images and labels": ("images/train/", "labels/train/", "train"),
    "a folder of images and one of labels": ("train/images/", "train/labels/", "train"),
    "a folder": ("train/", "train/", "train"),
    "a nested folder": ("images/train/deep/", "labels/train/deep/", "train"),
    "no split": ("images/", "labels/", None),
    "all in one place": ("", "", None),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_without_a_yaml_file_is_found(tmp_path, layout):
    pictures, labels, split = LAYOUTS[layout]
    write(tmp_path, {"classes.txt": "cat\ndog\n", f"{labels}b.txt": "1 0.5 0.5 0.2 0.4", f"{labels}a.txt": ""})
    write(tmp_path, {f"{pictures}b.png": None, f"{pictures}a.jpg": None})
    dataset = YoloDataset(tmp_path, split)
    assert dataset.names == [f"{pictures}a.jpg", f"{pictures}b.png"]
    assert (boxes(dataset, 0), boxes(dataset, 1)) == ([], [[8, 3, 12, 7]])
    assert dataset.categories == NAMES


YAMLS = {
    "Roboflow": "train: ../train/images\nval: ../valid/images\nnc: 2\nnames: ['cat', 'dog']\n",
    "Ultralytics": "path: ../datasets/pets\ntrain: train/images\nval: valid/images\nnames:\n  0: cat\n  1: dog\n",
    "of another machine": "train: /content/pets/train/images/\nval: C:\\data\\valid\\images\nnames: [cat, dog]\n",
    "lists of folders": "train: [./train/images]\nval: [valid/images]\nnames: [cat, dog]\n",
    "a list file": "train: train.txt\nval: valid/images\nnames: [cat, dog]\n",
    "no val but valid": "train: train/images\nvalid: valid/images\nnames: [cat, dog]\n",
}


@pytest.mark.parametrize("kind", YAMLS)
def test_every_yaml_file_is_understood(tmp_path, kind):
    write(tmp_path, {"train/images/a.png": None, "valid/images/b.png": None})
    write(tmp_path, {"train/labels/a.txt": "0 0.5 0.5 1 1", "valid/labels/b.txt": "1 0.5 0.5 0.2 0.4"})
    write(tmp_path, {"data.yaml": YAMLS[kind], "train.txt": "./train/images/a.png\n"})
    assert boxes(YoloDataset(tmp_path, "train")) == [[0, 0, 20, 10]]
    assert boxes(YoloDataset(tmp_path, "val")) == [[8, 3, 12, 7]]
    assert YoloDataset(tmp_path, "val").categories == NAMES


def test_a_class_may_be_written_as_a_float(tmp_path):
    write(tmp_path, {"a.png": None, "a.txt": "1.000000 0.5 0.5 0.5 0.5\n0. 0.5 0.5 0.5 0.5"})
    assert YoloDataset(tmp_path, None, classes=NAMES).target(0)["labels"].tolist() == [1, 0]


def test_a_picture_without_a_label_file_has_no_objects_but_one_of_all_must_have_one(tmp_path):
    write(tmp_path, {"a.png": None, "b.png": None, "b.txt": "0 0.5 0.5 1 1"})
    assert boxes(YoloDataset(tmp_path, None, classes=NAMES)) == []
    (tmp_path / "b.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"YoloDataset: none of 2 pictures .* has a label file; .*a\.png"):
        YoloDataset(tmp_path, None, classes=NAMES)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("2 0.5 0.5 0.2 0.4", r"a\.txt: line 1: class '2'; allowed are 0 to 1"),
        ("cat 0.5 0.5 0.2 0.4", r"class 'cat'"),
        (f"{'9' * 6000} 0.5 0.5 0.2 0.4", r"class '999"),
        ("0.5 0.5 0.5 0.2 0.4", r"class '0\.5'"),
        ("0 0.5 0.5 0.2 0.4 0.5 0.4 2 0.6 0.6 1", r"'0 0.5 0.5 0.2 0.4' has numbers from 2 on, as .* keypoints"),
        ("0 0.5 0.5 0.2", r"4 words; allowed are class cx cy w h"),
        ("0 0.5 0.5 0.2 0.4 0.9", r"6 words"),
        ("0 0.5 0.5 0.2 0.4 0.9 0.1 0.2", r"8 words"),
        ("0 8 3 12 7", r"'0 8 3 12 7' has numbers from 2 on"),
    ],
)
def test_a_line_of_another_format_is_refused_with_file_line_and_value(tmp_path, line, words):
    with pytest.raises(ValueError, match=f"YoloDataset: .*{words}"):
        one(tmp_path, line)


@pytest.mark.parametrize(
    "line", ["0 nan 0.5 0.2 0.4", "0 x 0.5 0.2 0.4", "0 0.5 0.5 0 0.4", "0 0.5 0.5 -0.2 0.4", "0 1.5 0.5 0.2 0.4"]
)
def test_an_object_that_is_none_is_dropped_with_a_warning_or_refused(tmp_path, line):
    with pytest.warns(UserWarning, match=r"YoloDataset: a\.txt: object 1: .*1 of 2 boxes were dropped"):
        assert len(boxes(one(tmp_path, f"0 0.5 0.5 1 1\n{line}"))) == 1
    with pytest.raises(ValueError, match="degenerate='drop'"):
        one(tmp_path, line, degenerate="raise")


@pytest.mark.parametrize(
    ("files", "split", "words"),
    [
        ({"data.yaml": "names: [cat"}, "train", r"data\.yaml cannot be read as yaml"),
        ({"data.yaml": "- cat"}, "train", r"data\.yaml holds a list"),
        ({"data.yaml": "train: a\nnames: {1: cat}"}, "train", r"names has the numbers \[1\]"),
        ({"data.yaml": "train: a\nnames: {a: cat, 2: dog}"}, "train", r"names has the numbers \['a', 2\]"),
        ({"data.yaml": "train: a\nnames: cat"}, "train", r"names='cat'; allowed is a list"),
        ({"data.yaml": "train: .\nnames: [cat]\nkpt_shape: [17, 3]"}, "train", r"kpt_shape"),
        ({"data.yaml": "train: .\nnames: [cat]"}, "test", r"split='test' is None .* has \['train'\]"),
        ({"a.yaml": "x: 1", "b.yaml": "x: 1"}, None, r"several yaml files"),
    ],
)
def test_what_a_yaml_file_says_wrong_is_named(tmp_path, files, split, words):
    write(tmp_path, {"a.png": None, "a.txt": "0 0.5 0.5 1 1", **files})
    with pytest.raises(ValueError, match=f"YoloDataset: .*{words}"):
        YoloDataset(tmp_path, split)


def test_what_is_missing_is_named_with_what_was_looked_for(tmp_path):
    write(tmp_path, {"a.png": None, "a.txt": ""})
    with pytest.raises(FileNotFoundError, match=r"has no data\.yaml, classes\.txt.*; give classes"):
        YoloDataset(tmp_path, None)
    with pytest.raises(FileNotFoundError, match=r"none of 'images/test', 'test/images', 'test', 'test\.txt'"):
        YoloDataset(tmp_path, "test", classes=NAMES)


def test_a_split_without_a_folder_of_its_own_is_not_taken_for_all_images(tmp_path):
    write(tmp_path, {"images/a.png": None, "labels/a.txt": ""})
    with pytest.raises(FileNotFoundError, match=r"none of 'images/train', 'train/images', 'train', 'train\.txt'"):
        YoloDataset(tmp_path, "train", classes=NAMES)


def test_one_text_is_no_list_of_classes(tmp_path):
    with pytest.raises(ValueError, match="YoloDataset: classes='ab' is one text; allowed is a list of names"):
        unhooked(YoloDataset)(tmp_path, None, classes="ab")


def test_an_empty_line_among_the_names_is_refused_since_it_would_shift_the_classes(tmp_path):
    write(tmp_path, {"a.png": None, "a.txt": "", "classes.txt": "cat\n\ndog\n\n"})
    with pytest.raises(ValueError, match=r"classes\.txt has an empty line before its last"):
        YoloDataset(tmp_path, None)


def test_a_link_that_leads_out_of_the_root_is_refused(tmp_path):
    root, other = tmp_path / "root", tmp_path / "other"
    write(other, {"a.png": None, "a.txt": "0 0.5 0.5 1 1"})
    root.mkdir()
    (root / "train").symlink_to(other)
    with pytest.raises(ValueError, match="leads out of the root"):
        YoloDataset(root, "train", classes=NAMES)


def test_boxes_equal_those_that_hotcoco_reads(tmp_path):
    hotcoco = pytest.importorskip("hotcoco", reason="hotcoco is not installed: NOT compared with another reader")
    generator = np.random.default_rng(0)
    rows = [
        f"{i % 2} " + " ".join(f"{x:.6f}" for x in (*generator.uniform(0.3, 0.7, 2), *generator.uniform(0.1, 0.5, 2)))
        for i in range(9)
    ]
    write(
        tmp_path,
        {"images/a.png": None, "labels/a.txt": "\n".join(rows), "labels/data.yaml": "nc: 2\nnames: [cat, dog]\n"},
    )
    peer = hotcoco.COCO.from_yolo(str(tmp_path / "labels"), images_dir=str(tmp_path / "images"))
    dataset = YoloDataset(tmp_path, None, classes=NAMES)
    target = dataset.target(0)
    theirs = np.array([entry["bbox"] for entry in peer.dataset["annotations"]])
    theirs[:, 2:] += theirs[:, :2]
    np.testing.assert_allclose(target["boxes"].numpy(), theirs, atol=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert target["labels"].tolist() == [entry["category_id"] - 1 for entry in peer.dataset["annotations"]]


CAPITALS = {
    "images in a folder of the split": ("Train/Images/a.png", "Train/Labels/a.txt", None),
    "splits in a folder of images": ("IMAGES/TRAIN/a.png", "IMAGES/../LABELS/TRAIN/a.txt", None),
    "pictures in capitals alone": ("Images/train/a.png", "labels/train/a.txt", None),
    "an entry of the yaml file": (
        "Train/Images/a.png",
        "Train/Labels/a.txt",
        "names: [cat, dog]\ntrain: ../train/images",
    ),
}


@pytest.mark.parametrize("name", CAPITALS)
def test_folders_may_be_in_capitals(name, tmp_path):
    picture, label, about = CAPITALS[name]
    write(tmp_path, {picture: None, label: "1 0.5 0.5 0.2 0.4", **({"data.yaml": about} if about else {})})
    assert boxes(YoloDataset(tmp_path, "train", classes=NAMES)) == [[8, 3, 12, 7]]
