"""The box head that all levels share."""

import torch
from torch import nn

from detkit.heads import RegressionHead, flatten_levels


def test_one_tower_and_one_convolution_serve_every_level():
    tower = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())
    head = RegressionHead(4, 3, tower=tower)
    features = [torch.randn(2, 4, 6, 8), torch.randn(2, 4, 3, 4)]
    expected = flatten_levels([head.deltas(tower(level)) for level in features], 4)
    assert head(features).shape == (2, (48 + 12) * 3, 4)
    assert torch.equal(head(features), expected)


def test_boxes_start_near_their_anchors_and_every_parameter_gets_a_gradient():
    torch.manual_seed(0)
    head = RegressionHead(16, 2, tower=nn.Conv2d(16, 16, 1))
    deltas = head([torch.randn(2, 16, 4, 4)])
    assert deltas.abs().mean() < 0.2
    deltas.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in head.parameters())


def test_an_empty_batch_gives_no_deltas():
    assert RegressionHead(4, 3)([torch.zeros(0, 4, 2, 2)]).shape == (0, 12, 4)
