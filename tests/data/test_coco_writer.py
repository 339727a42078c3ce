"""Any data set as a COCO file, and back."""

import json

import pytest
import torch
from torch.utils.data import ConcatDataset, Subset

from detkit.data import (
    Augmented,
    CocoDataset,
    DigitScenes,
    VocDataset,
    VocFolders,
    YoloDataset,
    coco_ground_truth,
    flip_augmentation,
    save_coco,
)


def assert_same(one, other):
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert torch.equal(value, other[key]) if isinstance(value, torch.Tensor) else value == other[key], key


def test_scenes_come_back_with_pictures_masks_and_areas(tmp_path):
    scenes = DigitScenes(3, size=(40, 64), masks=True)
    save_coco(scenes, tmp_path / "digits.json", images=tmp_path / "pictures")
    read = CocoDataset(tmp_path / "pictures", tmp_path / "digits.json", masks=True)
    assert read.categories == scenes.categories
    for i in range(3):
        image, target = scenes[i]
        again, found = read[i]
        assert torch.equal(image, again)
        assert_same(target, found)
    first = json.loads((tmp_path / "digits.json").read_text())["annotations"][0]
    assert isinstance(first["segmentation"]["counts"], str), "compressed runs"


def test_a_coco_file_of_crowds_masks_and_keypoints_is_the_same_after_reading_and_writing(tmp_path):
    save_coco(DigitScenes(1, size=(40, 64), masks=True), tmp_path / "a.json", images=tmp_path)
    content = json.loads((tmp_path / "a.json").read_text())
    for number, annotation in enumerate(content["annotations"]):
        annotation |= {"iscrowd": int(number == 0), "keypoints": [1.5, 2, 2, 0, 0, 0], "area": 7.5, "id": 90 + number}
    names = {"keypoints": ["nose", "tail"]}
    content["categories"] = [{**names, **one, "id": 3 * one["id"] + 1} for one in content["categories"]]
    content["annotations"] = [{**one, "category_id": 3 * one["category_id"] + 1} for one in content["annotations"]]
    content["images"][0]["id"] = 77
    for one in content["annotations"]:
        one["image_id"] = 77
    (tmp_path / "a.json").write_text(json.dumps(content))
    first = CocoDataset(tmp_path, tmp_path / "a.json", masks=True, keypoints=True)
    save_coco(first, tmp_path / "b.json")
    second = CocoDataset(tmp_path, tmp_path / "b.json", masks=True, keypoints=True)
    assert_same(first.target(0), second.target(0))
    assert second.category_ids == first.category_ids
    assert first.target(0)["iscrowd"].sum() == 1
    assert coco_ground_truth(first) == coco_ground_truth(second)


def test_names_are_those_of_the_pictures_also_of_a_part(tmp_path):
    for name in ("Annotations", "JPEGImages"):
        (tmp_path / name).mkdir()
    save_coco(DigitScenes(4), tmp_path / "all.json", images=tmp_path)
    whole = CocoDataset(tmp_path, tmp_path / "all.json")
    save_coco(Subset(whole, [3, 1]), tmp_path / "part.json")
    names = [image["file_name"] for image in json.loads((tmp_path / "part.json").read_text())["images"]]
    assert names == ["000003.png", "000001.png"]
    assert [whole.file_name(i) for i in (3, 1)] == names


def test_difficult_objects_of_voc_are_crowds(tmp_path):
    save_coco(DigitScenes(1), tmp_path / "a.json", images=tmp_path)
    (tmp_path / "000000.xml").write_text(
        "<annotation><object><name>cat</name><difficult>1</difficult><bndbox><xmin>1</xmin><ymin>2</ymin>"
        "<xmax>30</xmax><ymax>40</ymax></bndbox></object><object><name>cat</name><bndbox><xmin>1</xmin><ymin>2</ymin>"
        "<xmax>30</xmax><ymax>40</ymax></bndbox></object></annotation>"
    )
    save_coco(VocDataset(tmp_path, None, folders=VocFolders(".", ".")), tmp_path / "voc.json")
    read = CocoDataset(tmp_path, tmp_path / "voc.json")
    assert read.target(0)["iscrowd"].tolist() == [1, 0]
    assert read.target(0)["boxes"].tolist() == [[1, 2, 30, 40]] * 2


def test_pictures_that_have_no_file_or_lie_in_several_folders_need_a_folder(tmp_path):
    with pytest.raises(ValueError, match="a DigitScenes has no files; give a folder to write them to, images="):
        save_coco(DigitScenes(1), tmp_path / "a.json")
    for name in ("one", "two"):
        save_coco(DigitScenes(1), tmp_path / f"{name}.json", images=tmp_path / name)
    both = ConcatDataset([CocoDataset(tmp_path / name, tmp_path / f"{name}.json") for name in ("one", "two")])
    with pytest.raises(ValueError, match="pictures lie in 2 folders"):
        save_coco(both, tmp_path / "both.json", image_ids="position")
    save_coco(both, tmp_path / "both.json", images=tmp_path / "both", image_ids="position")
    assert len(CocoDataset(tmp_path / "both", tmp_path / "both.json")) == 2


def test_a_picture_of_another_size_than_its_target_is_refused(tmp_path):
    wide = Augmented(DigitScenes(1), lambda image, target: (image[:, :, ::2].float() / 255, target))
    with pytest.raises(ValueError, match="image 0 is 96 x 48, its target of"):
        save_coco(wide, tmp_path / "a.json", images=tmp_path)
    save_coco(Augmented(DigitScenes(1), flip_augmentation()), tmp_path / "a.json", images=tmp_path)


def test_hotcoco_turns_what_is_written_into_yolos_text_and_back(tmp_path):
    hotcoco = pytest.importorskip("hotcoco", reason="without hotcoco no conversion was tested")
    scenes = DigitScenes(3)
    save_coco(scenes, tmp_path / "digits.json", images=tmp_path / "images")
    coco = hotcoco.COCO(str(tmp_path / "digits.json"))
    coco.to_yolo(str(tmp_path / "labels"))
    (tmp_path / "labels/data.yaml").rename(tmp_path / "data.yaml")
    read = YoloDataset(tmp_path, None)
    assert read.categories == scenes.categories
    for index in range(3):
        torch.testing.assert_close(read.target(index)["boxes"], scenes.target(index)["boxes"], rtol=0, atol=1e-3)
    assert coco.healthcheck()["errors"] == []
