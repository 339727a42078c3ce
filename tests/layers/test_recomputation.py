"""Recomputed steps: the same values and gradients, from less that is kept."""

import copy
from functools import partial

import torch
from torch import nn

from detkit.layers import conv_tower
from detkit.layers.recomputation import lean_tower, recomputed


def test_gradients_dropout_and_running_statistics_are_those_of_a_plain_pass():
    for momentum in (0.1, None):
        plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=momentum), nn.ReLU(True), nn.Dropout(0.3))
        other = copy.deepcopy(plain)
        again = partial(recomputed, other, parts=[*other.modules()])
        for run in (plain, again):
            for seed in range(2):
                torch.manual_seed(seed)
                run(torch.rand(2, 3, 8, 8)).square().sum().backward()
        for ours, theirs in zip(other.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=0)
        for name, value in plain.named_buffers():
            assert torch.equal(value, other.get_buffer(name)), name
        assert other[1].momentum == momentum


def test_a_lean_tower_learns_the_same_and_keeps_the_outputs_of_its_convolutions_alone():
    torch.manual_seed(0)
    tower, features = conv_tower(8, depth=3), torch.rand(2, 8, 16, 16)
    found = []
    for run in (tower, lambda values: lean_tower(tower, values)):
        kept = {}

        def pack(tensor, kept=kept):
            if tensor.shape == features.shape:
                kept[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        given = features.clone().requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            result = run(given)
        found.append((result, *torch.autograd.grad(result.square().sum(), [given, *tower.parameters()]), len(kept)))
    *ours, kept = found[1]
    *theirs, before = found[0]
    assert kept < before == 7  # images, three convolutions, three activations; what steps are given is not counted
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)
