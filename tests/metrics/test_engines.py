"""Both engines judge alike, and as a slow reading of COCO's rules does."""

import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detkit.metrics import CocoMetrics
from detkit.metrics.engines import AREAS, engine_name

RECALLS = np.linspace(0, 1, 101)


@st.composite
def data_sets(draw):
    """Three images; boxes on a coarse grid, so that overlaps and scores tie; crowds, ignored and empty boxes."""
    side = st.integers(0, 6)
    row = st.tuples(side, side, side, side, st.integers(0, 1))
    detections, targets = [], []
    for _ in range(3):
        found, true = (np.array(draw(st.lists(row, max_size=6)), dtype=np.int64).reshape(-1, 5) for _ in range(2))
        scores = draw(st.lists(st.sampled_from([0.2, 0.5, 0.5, 0.9]), min_size=len(found), max_size=len(found)))
        flags = [draw(st.lists(st.sampled_from([0, 0, 1]), min_size=len(true), max_size=len(true))) for _ in range(2)]
        boxes = [torch.tensor(np.c_[rows[:, :2], rows[:, :2] + rows[:, 2:4]] * 17.0) for rows in (found, true)]
        labels = [torch.tensor(rows[:, 4]) for rows in (found, true)]
        detections.append({"boxes": boxes[0], "scores": torch.tensor(scores).double(), "labels": labels[0]})
        marks = {"iscrowd": torch.tensor(flags[0]), "ignore": torch.tensor(flags[1])}
        targets.append({"boxes": boxes[1], "labels": labels[1], **marks})
    return detections, targets


def run(data, **settings):
    metrics = CocoMetrics(2, **settings)
    metrics.update(*data)
    return metrics


def overlap(found, true, crowd):
    """COCO's overlap of two xyxy boxes: over the detection alone where the truth is a crowd."""
    width = min(found[2], true[2]) - max(found[0], true[0])
    height = min(found[3], true[3]) - max(found[1], true[1])
    if width <= 0 or height <= 0:
        return 0.0
    first, second = ((box[2] - box[0]) * (box[3] - box[1]) for box in (found, true))
    return width * height / (first if crowd else first + second - width * height)


def match(detection, target, label, area_range, threshold, k):
    """(score, hit, counts) of the k best detections of one class in one image, and the number of objects."""
    low, high = area_range
    true = []
    for i in np.flatnonzero(target["labels"].numpy() == label):
        box = target["boxes"][i].tolist()
        area = (box[2] - box[0]) * (box[3] - box[1])
        out = bool(target["ignore"][i]) or bool(target["iscrowd"][i]) or not low <= area <= high
        true.append({"box": box, "crowd": bool(target["iscrowd"][i]), "out": out, "free": True})
    true.sort(key=lambda row: row["out"])
    rows = [i for i in range(len(detection["scores"])) if detection["labels"][i] == label]
    rows.sort(key=lambda i: -detection["scores"][i])
    judged = []
    for i in rows[:k]:
        box, best = detection["boxes"][i].tolist(), None
        for candidate in true:
            value = overlap(box, candidate["box"], candidate["crowd"])
            if not (candidate["free"] or candidate["crowd"]) or (best and not best[1]["out"] and candidate["out"]):
                continue
            if value >= (best[0] if best else min(threshold, 1 - 1e-10)):
                best = (value, candidate)
        area = (box[2] - box[0]) * (box[3] - box[1])
        if best:
            best[1]["free"] = False
        counts = not best[1]["out"] if best else low <= area <= high
        judged.append((float(detection["scores"][i]), best is not None, counts))
    return judged, sum(not row["out"] for row in true)


def slow_average_precision(data, area, k):
    """Mean over IoU thresholds and classes of the mean precision at 101 recalls; and the mean recall."""
    precisions, recalls = [], []
    for label in range(2):
        for threshold in np.linspace(0.5, 0.95, 10):
            parts = [match(*pair, label, AREAS[area], threshold, k) for pair in zip(*data, strict=True)]
            objects = sum(part[1] for part in parts)
            if not objects:
                continue
            rows = sorted((row for part in parts for row in part[0] if row[2]), key=lambda row: -row[0])
            hits = np.cumsum([row[1] for row in rows])
            precision = hits / np.arange(1, len(rows) + 1)
            best = [max(precision[hits / objects >= recall], default=0.0) for recall in RECALLS]
            precisions.append(np.mean(best))
            recalls.append(hits[-1] / objects if len(hits) else 0.0)
    return (np.mean(precisions), np.mean(recalls)) if precisions else (-1, -1)


@pytest.mark.slow
@given(data_sets())
@settings(max_examples=25)
def test_numbers_equal_a_slow_reading_of_cocos_rules(data):
    numbers = run(data, max_detections=(2, 5), engine="pycocotools").compute()
    for area, suffix in (("all", ""), ("s", "s"), ("m", "m"), ("l", "l")):
        precision, recall = slow_average_precision(data, area, 5)
        assert numbers[f"bbox/AP{suffix}"] == pytest.approx(precision, abs=1e-9)
        assert numbers[f"bbox/AR{suffix or '@5'}"] == pytest.approx(recall, abs=1e-9)
    assert numbers["bbox/AR@2"] == pytest.approx(slow_average_precision(data, "all", 2)[1], abs=1e-9)


@given(data_sets(), st.booleans())
def test_hotcoco_gives_the_numbers_of_pycocotools(data, class_agnostic):
    pytest.importorskip("hotcoco")
    kinds = ("bbox", "segm")
    for found, true in zip(*data, strict=True):
        for rows in (found, true):
            rows["masks"] = torch.stack([*(paint(box) for box in rows["boxes"]), paint(torch.zeros(4))])[:-1]
    both = [
        run(data, engine=engine, iou_types=kinds, class_agnostic=class_agnostic, max_detections=(1, 3))
        for engine in ("pycocotools", "hotcoco")
    ]
    first, second = (metrics.compute() for metrics in both)
    assert first == pytest.approx(second, abs=1e-12)
    assert both[0].per_class("segm") == both[1].per_class("segm")


def paint(box):
    mask = torch.zeros(1 + 12 * 17, 1 + 12 * 17, dtype=torch.bool)
    x1, y1, x2, y2 = box.long().tolist()
    mask[y1:y2, x1:x2] = True
    return mask


@pytest.mark.parametrize("engine", ["pycocotools", "hotcoco"])
@pytest.mark.parametrize("side", [0.0, 1e-200, 5e-324])
def test_boxes_without_measurable_area_overlap_nothing(side, engine):
    if engine == "hotcoco":
        pytest.importorskip("hotcoco")
    box, one = torch.tensor([[0.0, 0, side, side]]).double(), torch.zeros(1).long()
    data = [{"boxes": box, "scores": torch.ones(1), "labels": one}], [{"boxes": box, "labels": one}]
    assert run(data, engine=engine).compute()["bbox/AP"] == 0


@pytest.mark.parametrize("engine", ["pycocotools", "hotcoco"])
def test_partly_annotated_classes_excuse_what_is_not_matched_also_for_masks_and_empty_boxes(engine):
    if engine == "hotcoco":
        pytest.importorskip("hotcoco")
    boxes = torch.tensor([[100.0, 100, 190, 190], [50, 50, 50, 60], [0, 0, 40, 40], [0, 0, 40, 40]])
    masks = torch.stack([paint(box) for box in boxes])
    found = {"boxes": boxes, "masks": masks, "scores": torch.tensor([0.9, 0.8, 0.7, 0.6]), "labels": [0, 0, 0, 1]}
    found["labels"] = torch.tensor(found["labels"])
    target = {"boxes": boxes[2:3], "masks": masks[2:3], "labels": torch.tensor([0])}

    def scores(**labels):
        metrics = CocoMetrics(2, iou_types=("bbox", "segm"), federated=True, engine=engine, max_detections=(4,))
        metrics.update([found], [target | labels])
        numbers = metrics.compute()
        return [numbers["bbox/AP"], numbers["segm/AP"]]

    assert scores() == pytest.approx([1 / 3, 1 / 3])
    assert scores(not_exhaustive_labels=torch.tensor([0])) == pytest.approx([1, 1])
    assert scores(not_exhaustive_labels=torch.tensor([1]), negative_labels=[1]) == pytest.approx([1 / 3, 1 / 3])


def test_federated_detections_of_an_image_are_capped_across_classes():
    box = torch.tensor([[0.0, 0, 40, 40]])
    found = {"boxes": box.repeat(3, 1), "scores": torch.tensor([0.5, 0.9, 0.8]), "labels": torch.tensor([0, 1, 1])}
    metrics = CocoMetrics(2, federated=True, max_detections=(2,))
    metrics.update([found], [{"boxes": box, "labels": torch.tensor([0])}])
    assert metrics.compute()["bbox/AR@2"] == 0
    kept = CocoMetrics(2, federated=True, max_detections=(3,))
    kept.update([found], [{"boxes": box, "labels": torch.tensor([0])}])
    assert kept.compute()["bbox/AR@3"] == pytest.approx(1)


def test_an_engine_is_refused_by_name_and_a_missing_one_names_the_extra(monkeypatch):
    with pytest.raises(ValueError, match=r"engine='fast'.*'pycocotools', 'hotcoco'.*None"):
        CocoMetrics(1, engine="fast")
    monkeypatch.setitem(sys.modules, "hotcoco", None)
    assert engine_name(None) == "pycocotools"
    with pytest.raises(ImportError, match=r"pip install 'torch-detkit\[fast-eval\]'"):
        CocoMetrics(1, engine="hotcoco")
