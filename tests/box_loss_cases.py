"""Box losses by kernels give what the torch form gives: collected in the interpreter and on a GPU.

``device`` is where the kernels run: the fixture of the folder that collects this.
"""

from functools import partial

import pytest
import torch
from loss_forms import assert_equal, with_gradients
from torch import Tensor

from detkit import kernels, losses
from detkit.boxes.measures import ciou, diou, giou, iou, unsquared_diou
from detkit.kernels import box_loss, switch
from detkit.losses.regression import _box_loss

BOX_LOSSES = {m.__name__: partial(_box_loss, m, weights=None, function=m.__name__) for m in (iou, giou, diou, ciou)}
BOX_LOSSES["unsquared diou"] = partial(_box_loss, unsquared_diou, weights=None, function="diou")
every_box_loss = pytest.mark.parametrize("loss", BOX_LOSSES.values(), ids=BOX_LOSSES)


@pytest.fixture(autouse=True)
def kernels_run(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the interpreter few programs, each of many rows."""
    if "device" in request.fixturenames and request.getfixturevalue("device") == "cpu":
        monkeypatch.setattr(box_loss, "PAIRS", 4096)
        monkeypatch.setattr(switch, "DEVICES", {"cpu"})


def random_boxes(count: int, *, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(count, 2, generator=generator) * 100
    return torch.cat((low, low + torch.rand(count, 2, generator=generator) * 50), 1)


def whole_boxes(scale: float = 1) -> tuple[Tensor, Tensor]:
    """On a small grid: many edges coincide, many boxes are equal, empty or inverted."""
    first, second = torch.randint(-3, 4, (2, 4000, 4), generator=torch.Generator().manual_seed(1)).float() * scale
    second[::8] = first[::8]
    return first, second


@every_box_loss
@pytest.mark.parametrize("count", [0, 1, 4097])
def test_box_losses_are_those_of_the_torch_form(device, loss, count):
    assert_equal(device, loss, random_boxes(count, seed=1), random_boxes(count, seed=2))


@every_box_loss
@pytest.mark.parametrize("scale", [1, 2.0**-60, 2.0**-75, 2.0**50, 1e30, 1e38])
def test_where_edges_coincide_and_boxes_have_no_area_gradients_are_those_of_the_torch_form(device, loss, scale):
    assert_equal(device, loss, *whole_boxes(scale))


@every_box_loss
def test_near_boxes_are_told_apart_as_in_the_torch_form(device, loss):
    boxes = random_boxes(2000, seed=3)
    assert_equal(
        device, loss, boxes, boxes * (1 + 1e-6 * torch.rand(2000, 4, generator=torch.Generator().manual_seed(0)))
    )


@every_box_loss
def test_boxes_that_are_no_numbers_spoil_their_own_pair_only(device, loss):
    first, second = whole_boxes()
    bad = torch.tensor([torch.nan, torch.inf, -torch.inf])
    for column in range(4):
        first[12 * column : 12 * column + 3, column] = second[12 * column + 6 : 12 * column + 9, column] = bad
    found = with_gradients(device, loss, first, second)
    with kernels.disabled():
        expected = with_gradients(device, loss, first, second)
    for one, other in zip(found, expected, strict=True):
        numbers = ~(first.isnan() | second.isnan()).any(1).to(device)
        torch.testing.assert_close(one[numbers], other[numbers], rtol=1e-5, atol=1e-6)
    assert found[0][~numbers].isnan().all()


@every_box_loss
def test_strided_broadcast_half_and_double_boxes(device, loss):
    first, second = random_boxes(60, seed=1), random_boxes(60, seed=2)
    assert_equal(device, loss, first.T.contiguous().T, second[::2].repeat_interleave(2, 0))
    assert_equal(device, loss, first[:, None], second[None, :7])
    assert_equal(device, loss, first.bfloat16(), second.half())
    assert_equal(device, loss, first.double(), second.double())


def test_only_gradients_that_are_needed_are_written(device):
    boxes = random_boxes(5, seed=0).to(device)
    settings = {"measure": "giou", "limit": 1e18, "smallest": 1e-36}
    for needs in ((False, False), (True, False), (False, True)):
        _, gradients = box_loss.one_minus(boxes, boxes + 1, needs, **settings)
        assert [gradient is not None for gradient in gradients] == list(needs)
    assert not losses.generalized_box_iou_loss(boxes, boxes + 1).requires_grad


def test_transforms_see_the_definition(device):
    first, second = random_boxes(4, seed=0).to(device), random_boxes(4, seed=1).to(device)
    gradient = torch.func.grad(lambda rows: losses.complete_box_iou_loss(rows, second).sum())(first)
    moved = first.clone().requires_grad_()
    (expected,) = torch.autograd.grad(losses.complete_box_iou_loss(moved, second).sum(), moved)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)
