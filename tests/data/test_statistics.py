"""Statistics of data sets: the goldens of their definition, and what counts as an object."""

import json
import math
from collections import Counter

import pytest
import torch
from strategies import assert_refused

from detkit.data import CocoDataset, object_statistics


def target(*boxes: list[float], labels: list[int] | None = None, **more) -> dict:
    numbers = list(range(len(boxes))) if labels is None else labels
    return {"boxes": torch.tensor(boxes).reshape(-1, 4), "labels": torch.tensor(numbers, dtype=torch.int64), **more}


def test_counts_and_shares_are_those_of_the_objects():
    targets = [target([0.0, 0, 50, 50], [0, 0, 10, 50], labels=[4, 4]), target([0.0, 0, 40, 40], labels=[7]), target()]
    found = object_statistics(targets, [(100, 100), (40, 80), (10, 10)])
    assert (found.images, found.objects, found.images_per_class) == (3, 3, (1, 1))
    assert found.objects_per_image == 1
    assert found.scale == pytest.approx((0.25 + 0.05 + 0.5) / 3)
    assert found.small == pytest.approx(1 / 3)
    assert found.twisted == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("box", "small", "twisted"),
    [
        ([0.0, 0, 32, 32], 0, 0),
        ([0.0, 0, 32, 31.9], 1, 0),
        ([0.0, 0, 80, 20], 0, 0),
        ([0.0, 0, 81, 20], 0, 1),
        ([0.0, 0, 20, 81], 0, 1),
        ([5.0, 5, 5, 9], 1, 1),
        ([5.0, 5, 5, 5], 1, 0),
    ],
)
def test_the_limits_themselves_are_neither_small_nor_twisted(box, small, twisted):
    found = object_statistics([target(box)], [(100, 100)])
    assert (found.small, found.twisted) == (small, twisted)


def test_crowds_are_no_objects_and_a_label_below_zero_is_no_class():
    rows = [0.0, 0, 50, 50], [0, 0, 100, 100], [0, 0, 50, 50]
    found = object_statistics([target(*rows, labels=[2, 3, -1], iscrowd=torch.tensor([0, 1, 0]))], [(100, 100)])
    assert (found.objects, found.images_per_class, found.scale) == (2, (1, 1), 0.25)


def test_an_image_counts_once_for_a_class_however_often_it_shows_it():
    one = target([0.0, 0, 9, 9], [9, 9, 20, 20], labels=[0, 0])
    assert object_statistics([one, one, target([0.0, 0, 9, 9], labels=[1])], [(50, 50)] * 3).images_per_class == (1, 2)


@pytest.mark.parametrize("targets", [[], [target()]])
def test_without_objects_there_are_no_shares(targets):
    found = object_statistics(targets, [(10, 10)] * len(targets))
    assert (found.objects, found.images_per_class) == (0, (0, 0))
    assert math.isnan(found.scale)
    assert math.isnan(found.small)


def test_wrong_arguments_are_named():
    assert_refused("object_statistics: 1 targets 2 sizes", object_statistics, [target()], [(9, 9), (9, 9)])
    bad = {"boxes": torch.tensor([[0, 0, torch.nan, 1]]), "labels": torch.tensor([0])}
    assert_refused("object_statistics: targets[0]: boxes of objects[0, 2]=nan", object_statistics, [bad], [(9, 9)])
    assert_refused("object_statistics: sizes", object_statistics, [target()], [(0, 9)])
    assert_refused("object_statistics: targets[0]: labels", object_statistics, [{"boxes": torch.ones(1, 4)}], [(9, 9)])


@pytest.mark.slow
def test_of_real_images(detkit_data):
    folder, file = detkit_data / "bccd", detkit_data / "bccd" / "annotations" / "instances_train.json"
    cells, rows = CocoDataset(folder / "images", file), json.loads(file.read_text())["annotations"]
    shown = Counter(category for _, category in {(row["image_id"], row["category_id"]) for row in rows})
    found = object_statistics([cells.target(i) for i in range(len(cells))], [cells.image_size(i) for i in range(205)])
    assert (found.images, found.objects) == (205, 2804)
    assert found.images_per_class == (min(shown.values()), max(shown.values()))
    assert found.twisted == 0 < found.small < 0.01
