"""Images in groups, the best object of an anchor, and when searching is worth it."""

import pytest
import torch
from strategies import random_boxes

from detkit.anchors.search import groups as module
from detkit.anchors.search.groups import best_fit, image_groups, worth_searching


@pytest.mark.parametrize(
    ("most", "expected"), [(1, [(0, 1), (1, 3), (3, 4)]), (3, [(0, 3), (3, 5)]), (4, [(0, 3), (3, 5)]), (99, [(0, 5)])]
)
def test_groups_hold_consecutive_images_and_all_their_objects(monkeypatch, most, expected):
    monkeypatch.setattr(module, "_OBJECTS_TOGETHER", most)
    objects = torch.zeros(5, 4).bool()
    objects[0, :2] = objects[2, 1:3] = objects[3, 0] = True
    boxes = random_boxes(20).view(5, 4, 4)
    groups = list(image_groups(boxes, objects))
    assert [(group.images.start, group.images.stop) for group in groups] == expected
    found = [(g.images.start + i, row) for g in groups for i, row in zip(g.image.tolist(), g.row.tolist(), strict=True)]
    assert found == [(0, 0), (0, 1), (2, 1), (2, 2), (3, 0)]
    assert torch.equal(torch.cat([group.sides.x2 for group in groups]), boxes[objects][:, 2])


def test_images_without_objects_are_in_no_group():
    assert list(image_groups(torch.zeros(3, 2, 4), torch.zeros(3, 2).bool())) == []


def test_an_anchor_fits_the_object_with_the_highest_overlap_then_the_lower_row():
    cells, rows = torch.tensor([0, 0, 0, 3, 3, 5]), torch.tensor([4, 2, 7, 1, 0, 9])
    overlaps = torch.tensor([0.5, 0.5, 0.4, 0.1, 0.2, 1e-30])
    highest, row = best_fit(cells, rows, overlaps, torch.full((6,), -1))
    assert row.tolist() == [2, 2, 2, 0, 0, 9]
    assert torch.equal(highest, overlaps[[0, 0, 0, 4, 4, 5]])


def test_searching_is_worth_it_for_many_pairs_with_shared_anchors():
    objects = torch.ones(2, 64).bool()
    assert worth_searching(objects, torch.zeros(8192, 4))
    assert not worth_searching(objects, torch.zeros(8191, 4))
    assert not worth_searching(objects, torch.zeros(2, 8192, 4))
    assert not worth_searching(objects.to("meta"), torch.zeros(8192, 4, device="meta"))
