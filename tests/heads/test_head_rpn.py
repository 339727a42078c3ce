"""RPNHead: torchvision's outputs with the same weights, in the order of the anchors."""

import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torchvision.models.detection import rpn as peer

from detkit.heads import RPNHead


def levels(*sizes: tuple[int, int], channels: int = 6, images: int = 2) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(images, channels, *size, generator=generator, dtype=torch.float64) for size in sizes]


@pytest.mark.parametrize("depth", [1, 2])
def test_it_says_what_torchvisions_head_of_the_same_weights_says(depth):
    head, theirs = RPNHead(6, 3, depth=depth).double(), peer.RPNHead(6, 3, conv_depth=depth).double()
    own = [layer for layer in head.modules() if isinstance(layer, nn.Conv2d)]
    for one, other in zip(own, (m for m in theirs.modules() if isinstance(m, nn.Conv2d)), strict=True):
        one.load_state_dict(other.state_dict())
    features = levels((5, 7), (3, 4), (1, 1))
    logits, deltas, quality, _ = head(features)
    expected_logits, expected_deltas = peer.concat_box_prediction_layers(*theirs(features))
    torch.testing.assert_close(logits.flatten(0, 1), expected_logits, rtol=0, atol=1e-12)
    torch.testing.assert_close(deltas.flatten(0, 1), expected_deltas, rtol=0, atol=1e-12)
    assert logits.shape == (2, 105 + 36 + 3, 1)
    assert deltas.shape == (2, 105 + 36 + 3, 4)
    assert quality is None


def test_rows_stand_in_the_order_of_the_anchors():
    """A head of 1 x 1 filters that copy: anchor a of the cell (y, x) must say what its channels hold there."""
    head = RPNHead(6, 3, depth=0).double()
    with torch.no_grad():
        head.logits.weight.copy_(torch.eye(3, 6)[..., None, None])
        head.deltas.weight.copy_(torch.eye(6).repeat(2, 1)[..., None, None])
    (feature,) = levels((4, 5))
    logits, deltas, *_ = head([feature])
    for y, x, a in ((0, 0, 0), (0, 1, 2), (3, 4, 1), (2, 0, 2)):
        row = (y * 5 + x) * 3 + a
        assert torch.equal(logits[:, row, 0], feature[:, a, y, x])
        for side in range(4):
            assert torch.equal(deltas[:, row, side], feature[:, (a * 4 + side) % 6, y, x])


def test_all_levels_share_the_weights():
    (feature,) = levels((4, 4))
    for rows in RPNHead(6, 2).double()([feature, feature])[:2]:
        one, other = rows.chunk(2, dim=1)
        assert torch.equal(one, other)


def test_it_starts_as_in_the_paper_so_that_anchors_are_as_likely_objects_as_not():
    torch.manual_seed(0)
    head = RPNHead(64, 3, depth=2)
    for layer in head.modules():
        if isinstance(layer, nn.Conv2d):
            assert not layer.bias.any()
            assert layer.weight.std().item() == pytest.approx(0.01, rel=0.2)
    logits = head([torch.rand(1, 64, 8, 8)]).logits
    assert logits.sigmoid().sub(0.5).abs().max() < 0.05


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_single_anchors_read_what_all_of_them_do_and_give_the_same_gradients(depth):
    """Every anchor of every level, corners and edges among them, in an order of its own for each image."""
    head = RPNHead(6, 3, depth=depth).double()
    for layer in head.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight)
            nn.init.normal_(layer.bias)
    features = levels((5, 7), (3, 4), (1, 1))
    rows = torch.stack([torch.randperm(144)[:100], torch.arange(44, 144)])
    weights, found = torch.randn(2, 100, 5, dtype=torch.float64), []
    for single in (False, True):
        given = [level.clone().requires_grad_() for level in features]
        read = head.at(given, rows) if single else head(given)
        values = torch.cat((read.logits, read.deltas), dim=2)
        values = values if single else values.gather(1, rows[..., None].expand(-1, -1, 5))
        gradients = torch.autograd.grad((values * weights).sum(), [*given, *head.parameters()])
        found.append((values, *gradients))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


class Doubled(RPNHead):
    """A head that does something beside."""

    def forward(self, features):
        predictions = super().forward(features)
        return predictions._replace(logits=predictions.logits * 2)


def changed(head: RPNHead, how: str) -> RPNHead:
    first, relu = head.tower
    if how == "hook":
        first.register_forward_hook(lambda *given: given[-1] * 3)
    elif how == "pruned":
        prune.l1_unstructured(first, "weight", amount=0.5)
    elif how == "weight norm":
        nn.utils.parametrizations.weight_norm(first)
    else:
        towers = {
            "norm": [first, nn.GroupNorm(2, 6), relu],
            "leaky": [first, nn.LeakyReLU(0.3)],
            "depthwise": [nn.Conv2d(6, 6, 3, padding=1, groups=6), relu],
            "pointwise": [nn.Conv2d(6, 6, 1), relu],
        }
        head.tower = nn.Sequential(*towers[how])
    return head


@pytest.mark.parametrize("how", ["hook", "pruned", "weight norm", "norm", "leaky", "depthwise", "pointwise", "own"])
def test_single_anchors_of_other_heads_read_and_learn_what_all_of_them_do(how):
    head = Doubled(6, 3) if how == "own" else changed(RPNHead(6, 3), how)
    head, features, rows = head.double(), levels((5, 7), (1, 1)), torch.stack([torch.randperm(108)[:50]] * 2)
    assert RPNHead(6, 3).is_local
    assert not head.is_local
    with torch.no_grad():
        everything = head(features)  # what pruning leaves behind has no gradient
    found = head.at(features, rows)
    for part, other in zip(found[:2], everything[:2], strict=True):
        torch.testing.assert_close(part, other.gather(1, rows[..., None].expand_as(part)))
    (found.logits.sum() + found.deltas.sum()).backward()
    assert all(parameter.grad is not None for parameter in head.parameters())
