"""Shapes of what a network gives, without computing it, and without a trace in the network."""

import torch
from torch import nn

from detkit.backbones.meta import meta_pass


def test_shapes_are_those_of_a_real_pass_in_the_precision_of_the_weights():
    net = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.MaxPool2d(2)).double()
    found = meta_pass(net, torch.empty(2, 3, 20, 30))
    assert found.device.type == "meta"
    assert (found.shape, found.dtype) == ((2, 4, 4, 7), torch.float64)
    assert found.shape == net(torch.rand(2, 3, 20, 30, dtype=torch.float64)).shape


def test_a_network_stays_as_it_is():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).train()
    before = {name: values.clone() for name, values in net.state_dict().items()}
    meta_pass(net, torch.empty(2, 3, 8, 8))
    assert net.training
    assert all(torch.equal(values, before[name]) for name, values in net.state_dict().items())


def test_a_network_without_weights_and_one_of_several_outputs_pass_too():
    assert meta_pass(nn.MaxPool2d(2), torch.empty(2, 3, 8, 6)).shape == (2, 3, 4, 3)

    class Two(nn.Module):
        def forward(self, images):
            return {"all": images, "half": images[..., ::2]}

    assert [level.shape[-1] for level in meta_pass(Two(), torch.empty(2, 3, 8, 6)).values()] == [6, 3]
