"""Pascal VOC's AP: known answers, its matching rule, and a slow reading of it."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from detkit.metrics import VocMetrics, average_precision

RECALL, PRECISION = [0.2, 0.2, 0.4, 0.4, 0.6], [1, 0.5, 2 / 3, 0.5, 0.6]
BOX = (0, 0, 40, 40)


def image(found, true, **entries):
    """found: rows of (box, score, label); true: rows of (box, label)."""
    detection = {
        "boxes": torch.tensor([row[0] for row in found], dtype=torch.float64).reshape(-1, 4),
        "scores": torch.tensor([row[1] for row in found], dtype=torch.float64),
        "labels": torch.tensor([row[2] for row in found], dtype=torch.int64),
    }
    target = {
        "boxes": torch.tensor([row[0] for row in true], dtype=torch.float64).reshape(-1, 4),
        "labels": torch.tensor([row[1] for row in true], dtype=torch.int64),
    }
    return detection, target | {name: torch.tensor(value) for name, value in entries.items()}


def score(*images, classes=2, **options):
    metrics = VocMetrics(classes, **options)
    metrics.update([detection for detection, _ in images], [target for _, target in images])
    return metrics.compute()["mAP"]


@pytest.mark.parametrize(("interpolation", "wanted"), [("11point", 0.4484848), ("area", 0.4533333)])
def test_the_curve_of_five_detections_has_its_known_average(interpolation, wanted):
    assert average_precision(RECALL, PRECISION, interpolation) == pytest.approx(wanted, abs=5e-8)


@pytest.mark.parametrize("interpolation", ["area", "11point"])
def test_no_points_average_to_0_and_a_perfect_curve_to_1(interpolation):
    assert average_precision([], [], interpolation) == 0
    assert average_precision([0.5, 1.0], [1.0, 1.0], interpolation) == pytest.approx(1)


@pytest.mark.parametrize(
    ("recall", "precision", "interpolation", "message"),
    [
        ([0.1], [0.5, 0.5], "area", "allowed is"),
        ([0.5, 0.1], [0.5, 0.5], "area", "recall not falling"),
        ([0.5], [float("nan")], "area", r"in \[0, 1\]"),
        ([1.5], [0.5], "area", r"in \[0, 1\]"),
        ([0.5], [0.5], "12point", r"interpolation='12point'; allowed are \('area', '11point'\)"),
    ],
)
def test_what_is_no_curve_is_refused(recall, precision, interpolation, message):
    with pytest.raises(ValueError, match=message):
        average_precision(recall, precision, interpolation)


def test_a_second_detection_of_an_object_is_a_miss_even_where_another_object_is_free():
    close = (0, 0, 40, 36)
    both = [(BOX, 0), (close, 0)]
    found = [(BOX, 0.9, 0), ((0, 0, 40, 39), 0.8, 0)]  # overlaps BOX by 0.975, close by 0.923: BOX it is, and taken
    assert score(image(found, both)) == pytest.approx(0.5)


def test_difficult_objects_are_neither_hit_nor_miss():
    far = (50, 50, 90, 90)
    true, found = [(BOX, 0), (far, 0)], [(far, 0.9, 0), (far, 0.8, 0), (BOX, 0.7, 0)]
    assert score(image(found, true)) == pytest.approx(1 / 2 + 1 / 2 * 2 / 3)
    assert score(image(found, true, iscrowd=[0, 1])) == pytest.approx(1)
    assert score(image(found, true, ignore=[0, 1])) == pytest.approx(1)


def test_labels_are_compared_and_classes_without_objects_do_not_count():
    assert score(image([(BOX, 0.9, 1)], [(BOX, 0)])) == 0
    assert score(image([(BOX, 0.9, 0), (BOX, 0.9, 1)], [(BOX, 0)])) == pytest.approx(1)
    assert score(image([(BOX, 0.9, 1)], [])) == -1
    assert score(image([], [(BOX, 0)])) == 0


def test_an_overlap_of_just_the_threshold_counts():
    half = (0, 0, 40, 20)
    assert score(image([(half, 0.9, 0)], [(BOX, 0)])) == pytest.approx(1)
    assert score(image([(half, 0.9, 0)], [(BOX, 0)]), iou_threshold=0.51) == 0


def test_sides_of_the_devkit_include_their_last_pixel():
    pair = image([((0, 0, 1, 0), 0.9, 0)], [((0, 0, 2, 0), 0)])  # 2 and 3 pixels in a row
    assert score(pair) == 0
    assert score(pair, legacy_plus_one=True, iou_threshold=0.66) == pytest.approx(1)
    assert score(pair, legacy_plus_one=True, iou_threshold=0.67) == 0


@pytest.mark.parametrize("iou_threshold", [-0.1, 1.5, float("nan")])
def test_the_threshold_must_be_a_fraction(iou_threshold):
    with pytest.raises(ValueError, match=r"VocMetrics: iou_threshold=.*\[0, 1\]"):
        VocMetrics(1, iou_threshold=iou_threshold)


def test_each_class_has_its_row_and_reset_forgets():
    metrics = VocMetrics(["cat", "dog"])
    detection, target = image([(BOX, 0.9, 0)], [(BOX, 0), (BOX, 1)])
    metrics.update([detection], [target])
    assert [tuple(row) for row in metrics.per_class()] == [("cat", 1.0, 1), ("dog", 0.0, 1)]
    metrics.reset()
    assert metrics.compute() == {"mAP": -1}


def overlap(first, second):
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return width * height / (sum(areas) - width * height)


def slow(images, interpolation):
    """VOC's evaluation of a class, one detection after the other."""
    averages = []
    for label in range(2):
        true = [[list(row) for row in rows if row[1] == label] for _, rows in images]
        objects = sum(not difficult for rows in true for *_, difficult in rows)
        ranked = [(score, i, box) for i, (rows, _) in enumerate(images) for box, score, own in rows if own == label]
        outcomes, taken = [], set()
        for _, i, box in sorted(ranked, key=lambda row: -row[0]):
            values = [overlap(box, row[0]) for row in true[i]]
            best = int(np.argmax(values)) if values else -1
            if best < 0 or values[best] < 0.5:
                outcomes.append(0)
            elif not true[i][best][2]:
                outcomes.append(0 if (i, best) in taken else 1)
                taken.add((i, best))
        if objects:
            hits = np.cumsum(outcomes)
            points = list(zip(hits / objects, hits / np.arange(1, len(hits) + 1), strict=True))
            if interpolation == "11point":
                at = [max((p for r, p in points if r >= t), default=0.0) for t in np.arange(0, 1.1, 0.1)]
                averages.append(np.mean(at))
            else:
                steps = np.diff([0.0, *(r for r, _ in points)])
                averages.append(sum(step * max(p for _, p in points[i:]) for i, step in enumerate(steps)))
    return np.mean(averages) if averages else -1


BOXES = st.tuples(*[st.integers(0, 5)] * 4).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))
FOUND = st.lists(st.tuples(BOXES, st.sampled_from([0.1, 0.4, 0.4, 0.8]), st.integers(0, 1)), max_size=8)
TRUE = st.lists(st.tuples(BOXES, st.integers(0, 1), st.sampled_from([0, 0, 1])), max_size=6)


@pytest.mark.parametrize("interpolation", ["area", "11point"])
@given(images=st.lists(st.tuples(FOUND, TRUE), min_size=1, max_size=3))
def test_numbers_equal_a_slow_reading_of_the_rule(interpolation, images):
    built = [image(found, true, iscrowd=[row[2] for row in true]) for found, true in images]
    assert score(*built, interpolation=interpolation) == pytest.approx(slow(images, interpolation), abs=1e-12)
