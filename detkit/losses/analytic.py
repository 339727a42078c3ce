"""Losses whose gradient is computed along with their values: one pass forward, one multiplication backward.

A *formula* maps inputs to the loss of each row and its derivatives, by operations on the rows alone. Eagerly on a CPU
it runs over pieces so small that every intermediate stays in the cache, where autograd would move each through memory
twice; elsewhere, and under ``torch.compile``, which fuses it, over all rows at once.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Derivatives = tuple[Tensor | None, ...]
Formula = Callable[..., tuple[Tensor, Derivatives]]
"""(*inputs, needs) -> (losses, derivatives): ``needs`` says for each input whether its derivative is wanted."""

CHUNK = 1 << 18
"""Numbers of the first input in a piece: with a few intermediates of that size it fills the cache of a core."""


def with_gradient(formula: Formula, *inputs: Tensor) -> Tensor:
    """The losses of ``formula``, of which autograd sees only values and derivatives.

    All inputs have the same number of rows; a loss depends on its own row only. The derivatives are new tensors: they
    are scaled in place by the first backward pass and computed again by a second one through a retained graph.
    Backward with ``create_graph=True`` raises RuntimeError; the transforms of ``torch.func`` are not supported.

    >>> x = torch.tensor([1.0, 3.0], requires_grad=True)
    >>> loss = with_gradient(lambda x, needs: (x * x, (2 * x,)), x)
    >>> loss.sum().backward()
    >>> loss.tolist(), x.grad
    ([1.0, 9.0], tensor([2., 6.]))
    """
    return _WithGradient.apply(formula, *inputs)  # pyright: ignore[reportReturnType]


class _WithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, formula: Formula, *inputs: Tensor) -> Tensor:
        needs = ctx.needs_input_grad[1:]
        losses, derivatives = evaluate(formula, inputs, needs)
        ctx.compiled = torch.compiler.is_compiling()  # a traced graph runs backward once, and must not keep state
        if ctx.compiled:
            ctx.save_for_backward(*derivatives)
        else:
            ctx.save_for_backward(*inputs)
            ctx.formula, ctx.derivatives = formula, derivatives
        ctx.types = [rows.dtype for rows in inputs]
        return losses

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Derivatives:  # pyright: ignore[reportIncompatibleMethodOverride]
        if ctx.compiled:
            scaled = [None if rows is None else rows * _like(upstream, rows) for rows in ctx.saved_tensors]
        elif torch.is_grad_enabled():
            raise RuntimeError(
                "a loss of detkit is differentiated once: backward with create_graph=True is not supported"
            )
        else:
            derivatives, ctx.derivatives = ctx.derivatives, None
            if derivatives is None:
                derivatives = evaluate(ctx.formula, ctx.saved_tensors, ctx.needs_input_grad[1:])[1]
            scaled = [None if rows is None else _scale_(rows, upstream) for rows in derivatives]
        return None, *(None if rows is None else rows.to(dtype) for rows, dtype in zip(scaled, ctx.types, strict=True))


def _scale_(rows: Tensor, upstream: Tensor) -> Tensor:
    """``rows`` times ``upstream``, in place; a sum hands the same number to all of them, mostly 1."""
    if upstream.device.type != "cpu" or not upstream.numel() or any(upstream.stride()):
        return rows.mul_(_like(upstream, rows))
    factor = upstream.flatten()[0].item()
    return rows if factor == 1 else rows.mul_(factor)


def _like(upstream: Tensor, rows: Tensor) -> Tensor:
    return upstream.reshape(upstream.shape + (1,) * (rows.ndim - upstream.ndim))


def evaluate(formula: Formula, inputs: Sequence[Tensor], needs: Sequence[bool]) -> tuple[Tensor, Derivatives]:
    """Losses and derivatives of all rows: in pieces eagerly on a CPU, else at once.

    >>> evaluate(lambda x, needs: (x * x, (2 * x,)), [torch.tensor([1.0, 3.0])], [True])
    (tensor([1., 9.]), (tensor([2., 6.]),))
    """
    first = inputs[0]
    if torch.compiler.is_compiling() or first.device.type != "cpu" or first.numel() <= CHUNK:
        return formula(*inputs, needs)
    rows = max(1, CHUNK * len(first) // first.numel())
    results: list[Tensor | None] = []
    for start in range(0, len(first), rows):
        losses, derivatives = formula(*(column[start : start + rows] for column in inputs), needs)
        pieces = (losses, *derivatives)
        results = results or [
            None if piece is None else piece.new_empty(len(first), *piece.shape[1:]) for piece in pieces
        ]
        for whole, piece in zip(results, pieces, strict=True):
            if whole is not None and piece is not None:
                whole[start : start + rows] = piece
    losses, *derivatives = results
    assert losses is not None
    return losses, tuple(derivatives)
