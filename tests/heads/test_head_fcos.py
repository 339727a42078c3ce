"""FCOS's box head: the order of its points, and distances that are never negative."""

import torch
from torch import nn

from detkit.heads.fcos import FCOSHead


def test_points_come_level_by_level_row_by_row():
    head = FCOSHead(2)
    with torch.no_grad():
        for layer, first in ((head.distances, 0), (head.center, 1)):
            layer.weight.zero_()
            layer.bias.zero_()
            layer.weight[:, first, 1, 1] = 1  # every output repeats one channel
    maps = [torch.arange(12.0).reshape(1, 2, 2, 3), torch.full((1, 2, 1, 1), 50.0)]
    distances, logits = head(maps)
    assert distances[0, :, 0].tolist() == distances[0, :, 3].tolist() == [0, 1, 2, 3, 4, 5, 50]
    assert logits[0].tolist() == [6, 7, 8, 9, 10, 11, 50]


def test_distances_are_not_negative_and_logits_may_be():
    torch.manual_seed(0)
    distances, logits = FCOSHead(4)([torch.randn(2, 4, 5, 5)])
    assert distances.min() == 0
    assert distances.max() > 0
    assert logits.min() < 0


def test_one_tower_serves_all_levels_and_both_outputs():
    tower = nn.Conv2d(4, 4, 1)
    head = FCOSHead(4, tower=tower)
    head([torch.randn(1, 4, 3, 3)])[1].sum().backward()
    assert tower.weight.grad.abs().sum() > 0
    assert len([name for name, _ in head.named_parameters() if name.startswith("tower.")]) == 2
