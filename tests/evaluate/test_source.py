"""A detector's file becomes COCO results."""

import json

import pytest
import torch
from judged_scenes import NAMES

from detkit.data import CocoDataset, DigitScenes, save_coco
from detkit.detectors import tiny_ssd
from detkit.evaluate.source import detect, match_categories
from detkit.weights import save_detector


def test_results_are_those_of_the_detector_under_the_ids_of_the_file(tmp_path):
    save_coco(DigitScenes(3), tmp_path / "truth.json", images=tmp_path)
    dataset = CocoDataset(tmp_path, tmp_path / "truth.json")
    torch.manual_seed(0)
    detector = tiny_ssd(10).eval()
    names = dataset.categories[::-1]
    save_detector(detector, tmp_path / "a.safetensors", categories=names)
    detect(tmp_path / "a.safetensors", dataset, tmp_path / "found.json", batch_size=2, device="cpu")
    rows = json.loads((tmp_path / "found.json").read_text())
    expected = detector([dataset[index][0] for index in range(3)])
    assert len(rows) == sum(len(found["scores"]) for found in expected) > 0
    for image_id, found in zip(dataset.image_ids, expected, strict=True):
        own = [row for row in rows if row["image_id"] == image_id]
        ids = {name: dataset.category_ids[label] for label, name in enumerate(dataset.categories)}
        assert [row["category_id"] for row in own] == [ids[names[label]] for label in found["labels"].tolist()]
        assert [row["score"] for row in own] == pytest.approx(found["scores"].tolist(), abs=1e-4)


def test_another_data_set_is_refused():
    with pytest.raises(ValueError, match="the detector finds 'eel', which the ground truth does not have; its categ"):
        match_categories(["ant", "eel"], NAMES, [1, 2, 3, 4])
