"""The truth of a data set in COCO's form gives back what was read."""

import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from detkit.data import CocoDataset, DigitScenes, coco_ground_truth


@pytest.mark.slow
def test_the_truth_of_a_coco_file_is_the_coco_file(detkit_data, monkeypatch):
    folder = detkit_data / "coco_open"
    path = folder / "annotations" / "instances_val.json"
    monkeypatch.setattr("PIL.Image.open", lambda *_, **__: pytest.fail("decoded an image"))
    truth = coco_ground_truth(CocoDataset(folder / "images", path, masks=True))
    document = json.loads(path.read_text())
    assert sorted(image["id"] for image in document["images"]) == [image["id"] for image in truth["images"]]
    assert [category["id"] for category in truth["categories"]] == [c["id"] for c in document["categories"]]
    assert [annotation["id"] for annotation in truth["annotations"]] == list(range(1, 324))
    expected = sorted(document["annotations"], key=lambda annotation: annotation["image_id"])
    for found, record in zip(truth["annotations"], expected, strict=True):
        assert found["image_id"] == record["image_id"]
        assert found["category_id"] == record["category_id"]
        assert found["iscrowd"] == record["iscrowd"]
        assert found["area"] == pytest.approx(record["area"], rel=1e-6)
        np.testing.assert_allclose(found["bbox"], record["bbox"], atol=1e-4)
    json.dumps(truth)


def test_keypoints_stand_in_the_truth_with_their_count(detkit_data, tmp_path):
    file = detkit_data / "evaluator_fixtures" / "annotations" / "keypoints_gt.json"
    for image in json.loads(file.read_text())["images"]:
        (tmp_path / image["file_name"]).touch()
    found = coco_ground_truth(CocoDataset(tmp_path, file, keypoints=True))["annotations"]
    for entry, record in zip(found, json.loads(file.read_text())["annotations"], strict=True):
        assert entry["keypoints"] == record["keypoints"]
        assert entry["num_keypoints"] == record["num_keypoints"]


def test_masks_of_scenes_are_encoded_as_runs_that_decode_to_their_area():
    truth = coco_ground_truth(DigitScenes(3, masks=True))
    assert len(truth["annotations"]) >= 3
    for annotation in truth["annotations"]:
        assert coco_mask.area(annotation["segmentation"]) == annotation["area"]
        assert coco_mask.toBbox(annotation["segmentation"]).tolist() == annotation["bbox"]
