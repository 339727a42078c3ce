"""Training at the scale of objects: the published example, and the rule said slowly."""

import pytest
import torch
from batches import assert_in_step, batches, copied, same
from hypothesis import given
from hypothesis import strategies as st
from strategies import assert_refused
from torchvision.transforms.v2 import functional as v2

from detkit.structures.rows import complete_rows
from detkit.tricks import RandomObjectScale
from detkit.tricks.samples import uniform


def expected_size(target, size, numbers, *, low=72.0, high=128.0, shortest=100, longest=1000):
    """(height, width) of the image by the rule in words."""
    sides = [min(x2 - x1, y2 - y1) for x1, y1, x2, y2 in target["boxes"].tolist()]
    crowds = target.get("iscrowd", torch.zeros(len(sides))).tolist()
    objects = [side for side, crowd in zip(sides, crowds, strict=True) if not crowd and side > 0]
    wanted = low + (high - low) * numbers[1]
    factor = wanted / objects[int(numbers[0] * len(objects))] if objects else 1.0
    short = max(round(factor * min(size)), shortest)
    factor = min(short / min(size), longest / max(size))
    return tuple(max(1, round(side * factor)) for side in size)


def test_the_published_example():
    """480 x 640, a side of 60 that becomes 96, capped at 1000."""
    target = {"boxes": torch.tensor([[10.0, 10, 70, 200]]), "labels": torch.tensor([3])}
    (image,), (found,) = RandomObjectScale(96, 96)([torch.zeros(3, 480, 640)], [target])
    assert image.shape == (3, 750, 1000)
    torch.testing.assert_close(found["boxes"], target["boxes"] * 1000 / 640)
    (uncapped,), _ = RandomObjectScale(96, 96, longest=2000)([torch.zeros(3, 480, 640)], [target])
    assert uncapped.shape == (3, 768, 1024)


@given(batch=batches(), seed=st.integers(0, 99))
def test_an_image_is_resized_whole_as_one_of_its_objects_asks(batch, seed):
    images, targets = batch
    before = copied(targets)
    scale = RandomObjectScale(4, 9, shortest=6, longest=50)
    found, moved = scale(images, targets, generator=torch.Generator().manual_seed(seed))
    assert same(targets, before)
    complete, _ = complete_rows(targets, where="f")
    for image, new, target, result, (_, *numbers) in zip(
        images, found, complete, moved, uniform((len(images), 3), torch.Generator().manual_seed(seed)), strict=True
    ):
        limits = {"low": 4, "high": 9, "shortest": 6, "longest": 50}
        size = expected_size(target, image.shape[1:], numbers, **limits)
        assert tuple(new.shape[1:]) == size
        assert new.dtype == image.dtype
        assert_in_step(targets, result)
        assert result["image_id"] == target["image_id"]
        factors = torch.tensor([size[1] / image.shape[2], size[0] / image.shape[1]]).repeat(2)
        limit = torch.tensor([size[1], size[0]]).repeat(2)
        rows = [int((target["labels"] == label).nonzero()) for label in result["labels"]]
        expected = (target["boxes"][rows].float() * factors).clamp(min=0).minimum(limit)
        torch.testing.assert_close(result["boxes"].float(), expected, rtol=1e-4, atol=1e-3)


def test_pixels_are_those_of_torchvision():
    image = torch.rand(3, 40, 60)
    target = {"boxes": torch.tensor([[0.0, 0, 20, 30]]), "labels": torch.tensor([0])}
    (found,), _ = RandomObjectScale(30, 30, shortest=1)([image], [target])
    torch.testing.assert_close(found, v2.resize(image, [60, 90], antialias=True))


def test_without_objects_only_the_bounds_count():
    scale = RandomObjectScale(1, 2, shortest=30, longest=90)
    images = [torch.zeros(3, 40, 60), torch.zeros(3, 20, 30), torch.zeros(3, 60, 180)]
    found, _ = scale(images, [{}, {}, {"boxes": [[0, 0, 9, 9]], "labels": [0], "iscrowd": [1]}])
    assert [tuple(image.shape[1:]) for image in found] == [(40, 60), (30, 45), (30, 90)]


def test_an_object_of_weight_0_is_not_chosen():
    target = {"boxes": [[0, 0, 9, 9], [0, 0, 20, 20]], "labels": [0, 0], "weights": [0, 1]}
    found, _ = RandomObjectScale(10, 10, shortest=1)([torch.zeros(3, 40, 60)] * 20, [target] * 20)
    assert {image.shape[1] for image in found} == {20}


@pytest.mark.slow
def test_every_size_between_the_two_comes():
    target = {"boxes": torch.tensor([[0.0, 0, 10, 40]]), "labels": torch.tensor([0])}
    scale = RandomObjectScale(5, 15, shortest=1)
    found, _ = scale([torch.zeros(1, 40, 50)] * 400, [target] * 400, generator=torch.Generator().manual_seed(0))
    heights = {image.shape[1] for image in found}
    assert heights == set(range(20, 61))


def test_what_labels_the_whole_image_stays():
    target = {"image_labels": torch.tensor([1, 0])}
    _, (found,) = RandomObjectScale()([torch.zeros(3, 200, 200)], [target])
    assert found["image_labels"].tolist() == [1, 0]


@pytest.mark.parametrize(
    ("message", "settings"),
    [
        ("RandomObjectScale: low, high 9, 4", {"low": 9, "high": 4}),
        ("RandomObjectScale: shortest, longest 900, 400", {"shortest": 900, "longest": 400}),
        ("RandomObjectScale: low=0 0", {"low": 0}),
    ],
)
def test_settings_that_make_no_sense_are_refused(message, settings):
    assert_refused(message, RandomObjectScale, **settings)


def test_printing_shows_the_settings():
    shown = "RandomObjectScale(low=24, high=48, shortest=100, longest=1000, probability=1.0)"
    assert repr(RandomObjectScale(24, 48)) == shown
