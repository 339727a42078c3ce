"""Every fused form against autograd of its definition: values, gradients, gradients of gradients, torch.func."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import pytest
import torch
from strategies import random_boxes
from torch import Tensor

from detkit._gradient import with_gradient
from detkit.boxes.measures import ciou, diou, giou, iou, unsquared_diou
from detkit.losses import classification, regression
from detkit.losses.fused import classification as fused_classification
from detkit.losses.fused import regression as fused_regression

ENDS = [0.0, -0.0, 1e-30, 0.3, -0.3, 18.0, -18.0, 90.0, -90.0, 200.0, -200.0, 6e4, -6e4]  # of the range of logits


class Form(NamedTuple):
    """A loss in both forms, and rows that hurt."""

    name: str
    definition: Callable[..., Tensor]
    fused: Callable[..., tuple[Tensor, tuple[Tensor | None, ...]]]
    kinds: Callable[[], dict[str, tuple[Tensor, ...]]]

    def loss(self, *inputs: Tensor) -> Tensor:
        return with_gradient(self.definition, self.fused, *inputs)


def box_pairs() -> dict[str, tuple[Tensor, ...]]:
    """Corners on a small grid bring ties, shared edges, boxes without area and inverted ones."""
    random = random_boxes(500, seed=1, dtype=torch.float64), random_boxes(500, seed=2, dtype=torch.float64)
    first, second = torch.randint(-4, 5, (2, 5000, 4), generator=torch.Generator().manual_seed(1)).double()
    kept = away_from_kinks(first, second)
    whole = first[kept], second[kept]
    tiny, large = (tuple(rows * scale for rows in whole) for scale in (2.0**-40, 2.0**50))
    return {"random": random, "whole": whole, "tiny": tiny, "large": large}


def away_from_kinks(first: Tensor, second: Tensor) -> Tensor:
    """Pairs without a side, overlap or gap of exactly 0: ``clamp(min=0)`` bends there, and versions of torch differ."""
    low = torch.stack((first[:, :2], second[:, :2]))
    high = torch.stack((first[:, 2:], second[:, 2:]))
    sides, meet, hull = high - low, high.amin(0) - low.amax(0), high.amax(0) - low.amin(0)
    own, both, around = (spans.clamp(min=0).prod(-1) for spans in (sides, meet, hull))
    bends = torch.cat((*sides, meet, hull, (around - own.sum(0) + both)[:, None]), 1)
    return (bends != 0).all(1)


def dense_logits() -> dict[str, tuple[Tensor, ...]]:
    """Targets 0, 1 and between."""
    generator = torch.Generator().manual_seed(0)
    logits, targets = torch.randn(2, 3000, generator=generator, dtype=torch.float64)
    ends = torch.tensor(ENDS, dtype=torch.float64).repeat(3)
    at_ends = ends, torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64).repeat_interleave(len(ENDS))
    return {"random": (logits * 6, (targets + 0.5).clamp(0, 1)), "ends": at_ends}


def labeled_logits() -> dict[str, tuple[Tensor, ...]]:
    """Every class, NEGATIVE and IGNORED."""
    logits = torch.randn(600, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 6
    ends = torch.tensor(ENDS, dtype=torch.float64).repeat(4, 1).T.contiguous()
    return {"random": (logits, torch.arange(600) % 7 - 2), "ends": (ends, torch.arange(len(ENDS)) % 6 - 2)}


def forms() -> Iterator[Form]:
    for measure in (iou, giou, diou, unsquared_diou, ciou):
        both = (partial(module.one_minus, measure=measure) for module in (regression, fused_regression))
        yield Form(measure.__name__, *both, box_pairs)
    settings: dict[str, list[dict[str, float | None]]] = {
        "focal": [{"alpha": 0.25, "gamma": 2.0}, {"alpha": None, "gamma": 0.5}, {"alpha": 0.9, "gamma": 0.0}],
        "varifocal": [{"alpha": 0.75, "gamma": 2.0}, {"alpha": 0.3, "gamma": 0.5}, {"alpha": 1.0, "gamma": 0.0}],
        "quality_focal": [{"beta": 2.0}, {"beta": 0.0}, {"beta": 1.5}],
    }
    for name, kinds in (*((name, dense_logits) for name in settings), ("focal_of_labels", labeled_logits)):
        for options in settings[name.removesuffix("_of_labels")]:
            both = (partial(getattr(module, name), **options) for module in (classification, fused_classification))
            yield Form(f"{name} {options}", *both, kinds)


every_form = pytest.mark.parametrize("form", list(forms()), ids=lambda form: form.name)


def learning(inputs: tuple[Tensor, ...], form: Form, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """Copies of the inputs; those that a loss differentiates ask for it: both boxes, but logits alone."""
    copies = tuple(rows.detach().clone() for rows in inputs)
    copies = tuple(rows.to(dtype) if rows.is_floating_point() else rows for rows in copies)
    return tuple(rows.requires_grad_(form.kinds is box_pairs or place == 0) for place, rows in enumerate(copies))


def derivatives(losses: Tensor, inputs: tuple[Tensor, ...], **options: bool) -> tuple[Tensor, ...]:
    upstream = torch.rand(losses.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return torch.autograd.grad(losses, [rows for rows in inputs if rows.requires_grad], upstream.to(losses), **options)


def assert_close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    """To ``tolerance`` of each number, and of the largest, as what cancels leaves a rest of that size."""
    assert torch.isfinite(found).all()
    largest = expected.abs().max().item()
    torch.testing.assert_close(found.to(expected), expected, rtol=tolerance, atol=0.01 * tolerance * largest)


@every_form
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)], ids=str)
def test_values_and_gradients_are_those_of_the_definition(form, dtype, tolerance):
    for inputs in form.kinds().values():
        given = learning(inputs, form, dtype)
        losses, exact = form.loss(*given), learning(tuple(rows.double() for rows in given), form)
        expected = form.definition(*(rows if rows.requires_grad else inputs[i] for i, rows in enumerate(exact)))
        assert losses.dtype == dtype
        assert_close(losses.detach(), expected.detach(), tolerance)
        for found, wanted in zip(derivatives(losses, given), derivatives(expected, exact), strict=True):
            assert_close(found, wanted, tolerance)


@every_form
def test_gradients_are_differentiated_as_those_of_the_definition(form):
    inputs = tuple(rows[:40] for rows in form.kinds()["random"])
    second = []
    for function in (form.loss, form.definition):
        given = learning(inputs, form)
        first = derivatives(function(*given), given, create_graph=True)
        second.append(torch.autograd.grad(sum(rows.square().sum() for rows in first), given[0]))
    torch.testing.assert_close(second[0], second[1], rtol=1e-9, atol=1e-15)
    assert second[0][0].abs().sum() > 0


@every_form
def test_functional_transforms_see_the_definition(form):
    inputs = tuple(rows[:12] for rows in form.kinds()["random"])
    given = learning(inputs, form)
    (expected, *_) = torch.autograd.grad(form.loss(*given).sum(), given[:1])
    found = torch.func.grad(lambda *rows: form.loss(*rows).sum())(*inputs)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-15)
    one_by_one = torch.func.vmap(lambda *rows: form.loss(*(row[None] for row in rows))[0])(*inputs)
    torch.testing.assert_close(one_by_one, form.loss(*inputs), rtol=1e-9, atol=1e-15)
    tangent = torch.func.jvp(lambda rows: form.loss(rows, *inputs[1:]), (inputs[0],), (torch.ones_like(inputs[0]),))[1]
    along = expected.sum(-1) if form.kinds is box_pairs else expected
    torch.testing.assert_close(tangent, along, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("form", [form for form in forms() if form.kinds is box_pairs], ids=lambda form: form.name)
def test_one_tensor_on_both_sides_gets_both_gradients(form):
    rows = random_boxes(5, dtype=torch.float64)
    moved = torch.cat((rows, rows * 0.5)).requires_grad_()
    plain, again = (torch.autograd.grad(form.loss(moved, moved).sum(), moved, create_graph=k) for k in (False, True))
    torch.testing.assert_close(again, plain, rtol=1e-9, atol=1e-12)
    one_sided = torch.autograd.grad(form.loss(moved, moved.detach()).sum(), moved)
    other_sided = torch.autograd.grad(form.loss(moved.detach(), moved).sum(), moved)
    torch.testing.assert_close(again[0], one_sided[0] + other_sided[0], rtol=1e-9, atol=1e-12)
