"""The elementary losses under torch.compile: whole, few recompilations, values and gradients as eagerly; exported."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.export import Dim

from detkit.dist import all_reduce_mean
from detkit.losses import (
    complete_box_iou_loss,
    distance_box_iou_loss,
    distribution_focal_loss,
    generalized_box_iou_loss,
    label_smoothed_cross_entropy,
    mean_count,
    quality_focal_loss,
    sigmoid_focal_loss,
    varifocal_loss,
)
from detkit.tricks import accumulate_gradients

COUNTS = (0, 1, 2, 7, 1000, 1001)
BOX_LOSSES = [
    generalized_box_iou_loss,
    distance_box_iou_loss,
    partial(distance_box_iou_loss, variant="unsquared"),
    complete_box_iou_loss,
]


def random_rows(count: int, columns: int) -> Tensor:
    return torch.randn(count, columns, generator=torch.Generator().manual_seed(count)) * 4


def labels(count: int, classes: int = 5, lowest: int = -2) -> Tensor:
    return torch.randint(lowest, classes, (count,), generator=torch.Generator().manual_seed(count + 1))


def random_boxes(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(count + 10_000 * seed)
    corners = torch.rand(count, 2, generator=generator) * 50
    return torch.cat((corners, corners + torch.rand(count, 2, generator=generator) * 30), 1)


def by_labels(count: int) -> tuple[Tensor, Tensor]:
    return random_rows(count, 5), labels(count)


def by_numbers(count: int) -> tuple[Tensor, Tensor]:
    return random_rows(count, 5), random_rows(count, 5).sigmoid().round(decimals=1)


CASES = {
    "focal of labels": (sigmoid_focal_loss, by_labels),
    "focal without balance": (partial(sigmoid_focal_loss, alpha=None, gamma=0.5), by_labels),
    "focal of numbers": (sigmoid_focal_loss, by_numbers),
    "varifocal": (varifocal_loss, by_numbers),
    "quality focal": (quality_focal_loss, by_numbers),
    "quality focal of labels": (quality_focal_loss, by_labels),
    "distribution focal": (
        distribution_focal_loss,
        lambda count: (random_rows(count, 5), random_rows(count, 5)[:, 0].sigmoid() * 4),
    ),
    "label smoothing": (label_smoothed_cross_entropy, lambda count: (random_rows(count, 5), labels(count, lowest=0))),
    **{
        name: (loss, lambda count: (random_boxes(count, 1), random_boxes(count, 2)))
        for name, loss in zip(("generalized", "distance", "unsquared distance", "complete"), BOX_LOSSES, strict=True)
    },
}


def losses_and_gradient(function, rows: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    rows = rows.clone().requires_grad_()
    losses = function(rows, targets)
    losses.backward(torch.linspace(-1, 2, losses.numel()).reshape(losses.shape))
    return losses.detach(), rows.grad


@pytest.mark.parametrize("name", CASES)
def test_a_loss_compiles_whole_and_learns_what_it_learns_eagerly(name):
    function, inputs = CASES[name]
    torch.compiler.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(function, backend=counter, fullgraph=True)
    for count in COUNTS:
        expected = losses_and_gradient(function, *inputs(count))
        for one, other in zip(losses_and_gradient(compiled, *inputs(count)), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    assert expected[1].abs().max() > 0
    assert counter.frame_count <= 3


def test_what_inductor_makes_of_losses_is_the_losses():
    """All in one graph: a C++ compiler takes seconds for each."""
    cases = [CASES[name] for name in ("focal of labels", "focal of numbers", "generalized", "complete")]

    def all_of_them(*arguments: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        return tuple(function(*pair) for (function, _), pair in zip(cases, arguments, strict=True))

    results = []
    torch.compiler.reset()
    for run in (all_of_them, torch.compile(all_of_them, fullgraph=True)):
        arguments = [(rows.requires_grad_(), targets) for rows, targets in (inputs(1001) for _, inputs in cases)]
        losses = run(*arguments)
        torch.autograd.backward(losses, [torch.linspace(-1, 2, loss.numel()).reshape(loss.shape) for loss in losses])
        results.append([*losses, *(rows.grad for rows, _ in arguments)])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["focal of labels", "generalized"])
def test_losses_compile_in_float64_and_with_extreme_inputs(name):
    function, inputs = CASES[name]
    torch.compiler.reset()
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    rows, targets = inputs(7)
    for scale in (1.0, 1e30):
        wide = rows.double() * scale, targets.double() * scale if targets.is_floating_point() else targets
        expected = losses_and_gradient(function, *wide)
        for one, other in zip(losses_and_gradient(compiled, *wide), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)
            assert torch.isfinite(one).all()


class Loss(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, rows: Tensor, targets: Tensor) -> Tensor:
        return self.function(rows, targets)


@pytest.mark.parametrize("name", CASES)
def test_a_loss_exports_with_a_dynamic_number_of_rows(name):
    function, inputs = CASES[name]
    program = torch.export.export(
        Loss(function), inputs(9), dynamic_shapes=({0: Dim.DYNAMIC}, {0: Dim.DYNAMIC})
    ).module()
    for count in (2, 7, 1001):
        torch.testing.assert_close(program(*inputs(count)), function(*inputs(count)), rtol=1e-4, atol=1e-6)


def test_a_compiled_model_learns_a_batch_in_parts():
    """What it is told to divide by is an input of its one graph, not a constant."""
    generator, model = torch.Generator().manual_seed(0), Counted()
    traced = torch.compile(model, fullgraph=True, backend="aot_eager")
    for shift in (0, 1):  # again, with other counts
        parts = [[torch.rand(3, 2, generator=generator) + i + shift] for i in range(3)]
        accumulate_gradients(traced, parts)
        found = model.scale.grad.clone()
        model.zero_grad()
        accumulate_gradients(model, parts)
        torch.testing.assert_close(found, model.scale.grad)
        model.zero_grad()


class Counted(nn.Module):
    """Two losses, each divided by a count of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2))

    def forward(self, rows: Tensor) -> dict[str, Tensor]:
        costs = rows * self.scale.square()
        counts = mean_count(rows > 0, costs, weights=rows), all_reduce_mean(rows[:, 0].square().sum())
        return {f"loss{i}": (costs[:, i] * rows[:, 1]).sum() / count for i, count in enumerate(counts)}
