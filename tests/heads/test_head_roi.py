"""BoxHead and its bodies: torchvision's outputs with the same weights, background moved to the end."""

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import faster_rcnn as peer

from detkit.heads import BoxHead, conv_body, dense_body

CLASSES = 3


def regions(count: int = 5, *, channels: int = 6, size: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, channels, size, size, generator=generator, dtype=torch.float64)


def copy_layers(ours: nn.Module, theirs: nn.Module) -> None:
    """Give the layers of ``ours`` that hold numbers the numbers of those of ``theirs``, in the order they run."""
    pairs = [[m for m in body.modules() if not list(m.children()) and m.state_dict()] for body in (ours, theirs)]
    for one, other in zip(*pairs, strict=True):
        one.load_state_dict(other.state_dict())


def shuffled_norms(body: nn.Module) -> nn.Module:
    """Batch norms that have seen something, else they would change nothing."""
    for layer in body.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
    return body


def test_the_dense_body_is_torchvisions():
    body, theirs = dense_body(6, 4, width=10).double(), peer.TwoMLPHead(6 * 4 * 4, 10).double()
    copy_layers(body, theirs)
    torch.testing.assert_close(body(regions()), theirs(regions()), rtol=0, atol=1e-12)


@pytest.mark.parametrize("norm", [None, nn.BatchNorm2d])
def test_the_convolutional_body_is_torchvisions(norm):
    torch.manual_seed(0)
    body = conv_body(6, 4, channels=(8, 5), width=10, norm=norm).double().eval()
    theirs = shuffled_norms(peer.FastRCNNConvFCHead((6, 4, 4), [8, 5], [10], norm_layer=norm)).double().eval()
    copy_layers(body, theirs)
    torch.testing.assert_close(body(regions()), theirs(regions()), rtol=0, atol=1e-12)
    convolutions = [layer for layer in body.modules() if isinstance(layer, nn.Conv2d)]
    assert [layer.bias is None for layer in convolutions] == [norm is not None] * 2


def test_without_convolutions_the_body_is_one_dense_layer():
    body = conv_body(6, 4, channels=(), width=10).double()
    (dense,) = [layer for layer in body.modules() if isinstance(layer, nn.Linear)]
    assert torch.equal(body(regions()), torch.relu(dense(regions().flatten(1))))


def test_logits_and_deltas_are_torchvisions_with_background_last():
    head, theirs = BoxHead(nn.Flatten(), 96, num_classes=CLASSES).double(), peer.FastRCNNPredictor(96, CLASSES + 1)
    theirs = theirs.double()
    with torch.no_grad():
        for name in ("weight", "bias"):
            own, other = getattr(head.logits, name), getattr(theirs.cls_score, name)
            own.copy_(torch.cat((other[1:], other[:1])))
            getattr(head.deltas, name).copy_(getattr(theirs.bbox_pred, name)[4:])
    logits, deltas = head(regions())
    expected_logits, expected_deltas = theirs(regions().flatten(1))
    torch.testing.assert_close(logits, expected_logits[:, [1, 2, 3, 0]], rtol=0, atol=1e-12)
    torch.testing.assert_close(deltas.flatten(1), expected_deltas[:, 4:], rtol=0, atol=1e-12)
    assert deltas.shape == (5, CLASSES, 4)


def test_a_class_agnostic_head_has_one_box_for_all_classes():
    logits, deltas = BoxHead(nn.Flatten(), 96, num_classes=CLASSES, class_agnostic=True).double()(regions())
    assert logits.shape == (5, CLASSES + 1)
    assert deltas.shape == (5, 1, 4)


@pytest.mark.parametrize("class_agnostic", [False, True])
@pytest.mark.parametrize("body", [dense_body(6, 4, width=10), conv_body(6, 4, channels=(8,), width=10)])
def test_no_regions_give_no_outputs_and_every_parameter_a_gradient(body, class_agnostic):
    head = BoxHead(body, 10, num_classes=CLASSES, class_agnostic=class_agnostic).double()
    logits, deltas = head(regions(0))
    assert logits.shape == (0, CLASSES + 1)
    assert deltas.shape == (0, 1 if class_agnostic else CLASSES, 4)
    (logits.sum() + deltas.sum()).backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in head.parameters())


def test_a_region_is_judged_the_same_alone():
    head = BoxHead(dense_body(6, 4, width=10), 10, num_classes=CLASSES).double()
    for one, other in zip(head(regions()), head(regions()[2:3]), strict=True):
        torch.testing.assert_close(one[2:3], other, rtol=0, atol=1e-12)
