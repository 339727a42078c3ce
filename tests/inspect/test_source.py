"""A data set of every form, by its path alone."""

import pytest
from PIL import Image
from training import draw_voc_folder

from detkit.data import CocoDataset, CsvDataset, DigitScenes, VocDataset, YoloDataset, save_coco
from detkit.inspect.source import open_source


def test_scenes_files_and_folders_are_told_apart(tmp_path):
    assert isinstance(open_source("scenes"), DigitScenes)
    save_coco(DigitScenes(1), tmp_path / "a.json", images=tmp_path / "pictures")
    assert isinstance(open_source(str(tmp_path / "a.json"), images=tmp_path / "pictures"), CocoDataset)
    (tmp_path / "pictures" / "a.csv").write_text("000000.png,1,2,30,40,cat")
    assert isinstance(open_source(str(tmp_path / "pictures" / "a.csv")), CsvDataset)


def test_folders_of_roboflow_have_all_splits_or_one(tmp_path):
    for number, split in enumerate(("train", "valid"), 1):
        save_coco(DigitScenes(number), tmp_path / f"{split}.json", images=tmp_path / split)
        (tmp_path / f"{split}.json").rename(tmp_path / split / "_annotations.coco.json")
    assert len(open_source(str(tmp_path))) == 3
    assert len(open_source(str(tmp_path), split="valid")) == 2
    assert len(open_source(str(tmp_path / "train"))) == 1


def test_folders_of_voc_and_yolo(tmp_path):
    draw_voc_folder(tmp_path / "voc")
    whole, part = open_source(str(tmp_path / "voc")), open_source(str(tmp_path / "voc"), split="val")
    assert isinstance(whole, VocDataset)
    assert len(whole) == len(part) == 6
    (tmp_path / "yolo").mkdir()
    Image.new("RGB", (20, 10)).save(tmp_path / "yolo" / "a.png")
    (tmp_path / "yolo" / "a.txt").write_text("0 .5 .5 .2 .4")
    (tmp_path / "yolo" / "classes.txt").write_text("cat")
    assert isinstance(open_source(str(tmp_path / "yolo")), YoloDataset)
    (tmp_path / "yolo" / "a.xml").write_text(
        "<annotation><object><name>cat</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
        "</object></annotation>"
    )
    assert isinstance(open_source(str(tmp_path / "yolo")), VocDataset)


def test_what_is_no_data_set_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file or folder"):
        open_source(str(tmp_path / "nothing"))
    (tmp_path / "notes.md").touch()
    with pytest.raises(ValueError, match=r"notes\.md: allowed are a COCO \.json, a \.csv, and folders"):
        open_source(str(tmp_path / "notes.md"))
    with pytest.raises(FileNotFoundError, match="is a folder without labels in Roboflow's, VOC's or YOLO's form"):
        open_source(str(tmp_path))
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "1.txt").touch()
    with pytest.raises(FileNotFoundError, match=r"YoloDataset: .* has no data\.yaml"):
        open_source(str(tmp_path))
