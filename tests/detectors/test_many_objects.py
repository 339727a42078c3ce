"""A training step on an image with thousands of objects holds little more than one with a single object."""

import pytest
import torch
from allocations import allocations
from families import CLASSES, FAMILIES, SIDE

OBJECTS = 4000


@pytest.mark.parametrize("name", ["yolo v3", "faster rcnn", "denoising detr", "d fine", "pix2seq"])
def test_an_object_takes_ten_kilobytes_at_most(name):
    detector = FAMILIES[name]().train()
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(OBJECTS, 2, generator=generator) * (SIDE - 8)
    target = {"boxes": torch.cat((corner, corner + 2 + corner % 6), 1), "labels": torch.arange(OBJECTS) % CLASSES}

    def step(count: int) -> None:
        given = {key: values[:count] for key, values in target.items()}
        total = torch.stack([*detector([torch.rand(3, SIDE, SIDE)], [given]).values()]).sum()
        assert torch.isfinite(total)
        total.backward()

    one, all_of_them = (allocations(lambda count=count: step(count)) for count in (1, OBJECTS))
    assert all_of_them.peak < one.peak + 0.01 * OBJECTS
