"""Whose object a box handed over has, what it weighs, and by how many a loss is divided."""

import pytest
import torch
from region_stages import positives

from detkit.anchors import gather_assigned
from detkit.detectors.matched_boxes import (
    checked_boxes,
    matched_objects,
    refuse_objects_without,
    weighted_mean,
)
from detkit.structures import pad_targets


def test_what_boxes_match_and_weigh():
    found = positives()
    assert matched_objects(found).matched.tolist() == [[0, 1, 0, -2], [0, 0, -2, -2]]
    targets = pad_targets(
        [
            {"boxes": torch.ones(len(own), 4), "labels": torch.zeros(len(own), dtype=torch.int64), "weights": own}
            for own in (torch.tensor([0.5, 3]), torch.tensor([2.0]))
        ]
    )
    weights = gather_assigned(matched_objects(found), targets).weights
    assert weights.tolist() == [[0.5, 3, 0.5, 1], [2, 2, 1, 1]]
    costs = torch.tensor([[1.0, 2, 3, torch.nan], [4, 5, torch.nan, torch.inf]])
    assert weighted_mean(costs, weights, found.valid) == (0.5 + 6 + 1.5 + 8 + 10) / 8
    assert weighted_mean(costs, weights, torch.zeros_like(found.valid)) == 0


def test_a_box_in_two_parts_equals_it_whole():
    costs, rows = torch.tensor([3.0, 6.0]), torch.tensor([True, True])
    whole = weighted_mean(costs, torch.tensor([1.0, 2.0]), rows)
    parts = weighted_mean(costs[[0, 0, 1]], torch.tensor([0.25, 0.75, 2.0]), rows[[0, 0, 1]])
    assert whole == parts == 5


def test_the_count_is_the_mean_over_processes_and_at_least_1(monkeypatch):
    costs, ones, first = torch.tensor([3.0, 6.0]), torch.ones(2), torch.tensor([True, False])
    monkeypatch.setattr("detkit.losses.dense.all_reduce_mean", lambda count: count / 2)
    assert weighted_mean(costs, ones, first) == 3
    monkeypatch.setattr("detkit.losses.dense.all_reduce_mean", lambda count: count * 2)
    assert weighted_mean(costs, ones, first) == 1.5


def test_boxes_that_a_stage_needs_are_asked_for():
    found = positives()
    assert checked_boxes("S", found, None) is found
    with pytest.raises(ValueError, match=r"^S: got no boxes; "):
        checked_boxes("S", None, None)
    targets = pad_targets([{"boxes": torch.ones(1, 4), "labels": torch.zeros(1, dtype=torch.int64)}])
    with pytest.raises(ValueError, match=r"^S: .* no matched"):
        checked_boxes("S", found._replace(matched=None), targets)


def test_targets_without_what_a_loss_needs_pass_only_where_there_is_no_object_to_learn():
    crowd = {"boxes": torch.ones(1, 4), "labels": torch.zeros(1, dtype=torch.int64), "iscrowd": torch.ones(1).long()}
    refuse_objects_without("masks", "S", pad_targets([crowd]))
    with pytest.raises(ValueError, match=r"^S: targets have no masks"):
        refuse_objects_without("masks", "S", pad_targets([crowd | {"iscrowd": torch.zeros(1).long()}]))
