"""GridHead: the order of its channels and rows, the objectness that it starts with, and what it refuses."""

import pytest
import torch

from detkit.heads import GridHead


def test_a_channel_is_anchor_by_anchor_box_objectness_classes():
    head = GridHead((1, 1), (2, 1), num_classes=3)
    for level in head.levels:
        torch.nn.init.zeros_(level.weight)
        level.bias.data = torch.arange(len(level.bias), dtype=torch.float32)
    logits, deltas, quality, _ = head([torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 1, 1)])
    first, second = [0.0, 1, 2, 3], [8.0, 9, 10, 11]
    assert deltas[0].tolist() == [first, second, first, second, first]
    assert quality[0].tolist() == [4, 12, 4, 12, 4]
    assert logits[0, :2].tolist() == [[5, 6, 7], [13, 14, 15]]


def test_rows_follow_cells():
    head = GridHead((1,), (1,), num_classes=1)
    torch.nn.init.ones_(head.levels[0].weight)
    cells = torch.arange(6.0).reshape(1, 1, 2, 3)
    assert head([cells]).quality[0].tolist() == [0, 1, 2, 3, 4, 5]


def test_objectness_starts_at_the_prior_and_nothing_else():
    head = GridHead((4,), (2,), num_classes=3, prior=0.01)
    logits, deltas, quality, _ = head([torch.zeros(1, 4, 1, 1)])
    torch.testing.assert_close(quality.sigmoid(), torch.full((1, 2), 0.01))
    assert not logits.any()
    assert not deltas.any()


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="GridHead: 2 in_channels for 1 per_cell"):
        GridHead((4, 4), (3,), num_classes=1)
    with pytest.raises(ValueError, match="GridHead: num_classes=0"):
        GridHead((4,), (3,), num_classes=0)
    with pytest.raises(ValueError, match=r"GridHead: prior=1.0"):
        GridHead((4,), (3,), num_classes=1, prior=1.0)
    with pytest.raises(ValueError, match="GridHead: got 2 feature levels, was built for 1"):
        GridHead((4,), (3,), num_classes=1)([torch.zeros(1, 4, 1, 1)] * 2)
