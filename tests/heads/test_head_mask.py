"""MaskHead: torchvision's layers, sizes and first weights."""

import pytest
import torch
from torch import nn
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor

from detkit.heads.mask import MaskHead, conv_tower, kaiming_fan_out


def peer(seed: int, in_channels: int, channels: tuple[int, ...], num_classes: int, norm=None) -> nn.Sequential:
    torch.manual_seed(seed)
    tower = MaskRCNNHeads(in_channels, channels, 1, norm_layer=norm)
    return nn.Sequential(tower, MaskRCNNPredictor(channels[-1], channels[-1], num_classes))


def seeded(seed: int, *arguments, **settings) -> MaskHead:
    torch.manual_seed(seed)
    return MaskHead(*arguments, **settings)


@pytest.mark.parametrize("norm", [None, nn.BatchNorm2d])
def test_a_seed_gives_the_weights_and_the_answers_of_torchvisions_head(norm):
    head, expected = seeded(3, 6, 5, channels=(8, 8), norm=norm), peer(3, 6, (8, 8), 5, norm)
    own, other = list(head.state_dict().values()), list(expected.state_dict().values())
    assert [tuple(values.shape) for values in own] == [tuple(values.shape) for values in other]
    for one, two in zip(own, other, strict=True):
        assert torch.equal(one, two)
    pooled = torch.randn(4, 6, 7, 7)
    torch.testing.assert_close(head(pooled), expected(pooled), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("count", [0, 8, 19])
def test_what_is_enlarged_in_pieces_learns_as_torchvisions_head(count):
    head, expected = seeded(3, 6, 5, channels=(8,)).double(), peer(3, 6, (8,), 5).double()
    pooled = torch.randn(count, 6, 7, 7, dtype=torch.float64)
    for part in (head, expected):
        part(pooled).square().sum().backward()
    for one, two in zip(head.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, rtol=1e-9, atol=1e-9)


def test_what_is_picked_of_each_region_is_what_would_be_picked_of_all():
    head, pooled = seeded(0, 4, 3, channels=(5,)).double(), torch.randn(19, 4, 5, 5, dtype=torch.float64)
    labels, seen = torch.arange(19) % 3, []

    def pick(logits, rows):
        seen.append(len(rows))
        return logits[torch.arange(len(rows)), labels[rows]]

    found = []
    for masks in (head(pooled, pick), pick(head(pooled), torch.arange(19))):
        assert masks.shape == (19, 10, 10)
        found.append([masks, *torch.autograd.grad(masks.square().sum(), [*head.parameters()])])
    assert seen[:3] == [8, 8, 3]
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_the_published_head_has_torchvisions_number_of_parameters():
    expected = peer(0, 256, (256,) * 4, 90)
    assert sum(p.numel() for p in MaskHead(256, 90).parameters()) == sum(p.numel() for p in expected.parameters())


def test_masks_are_twice_as_fine_as_the_pooled_regions_and_no_regions_give_none():
    head = MaskHead(4, 3, channels=(5,))
    assert head(torch.zeros(2, 4, 9, 9)).shape == (2, 3, 18, 18)
    assert head(torch.zeros(0, 4, 9, 9)).shape == (0, 3, 18, 18)
    assert MaskHead(4, 3, channels=())(torch.zeros(2, 4, 9, 9)).shape == (2, 3, 18, 18)


def test_a_tower_has_biases_of_zero_and_he_variance_by_fan_out():
    tower = conv_tower(64, (128,))
    assert not tower[0][0].bias.any()
    assert tower[0][0].weight.std().item() == pytest.approx((2 / (128 * 9)) ** 0.5, rel=0.02)
    weight = kaiming_fan_out(torch.empty(50, 100, 3, 3))
    assert weight.std().item() == pytest.approx((2 / (50 * 9)) ** 0.5, rel=0.02)


@pytest.mark.parametrize(("arguments", "settings"), [((0, 3), {}), ((4, 0), {}), ((4, 3), {"channels": (8, 0)})])
def test_counts_below_one_are_refused(arguments, settings):
    with pytest.raises(ValueError, match=r"^MaskHead: .*=0 must be at least 1"):
        MaskHead(*arguments, **settings)
