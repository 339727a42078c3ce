"""Gradients of a batch that does not fit into memory, from its parts, as if it had been one batch."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from detkit import dist
from detkit._door import door


@door
def accumulate_gradients(
    model: nn.Module,
    parts: Sequence[Sequence[Any]],
    *,
    backward: Callable[[Tensor], Any] = Tensor.backward,
) -> dict[str, Tensor]:
    """Add the gradients of a batch in ``parts`` to those of ``model``, and return the losses of the whole batch.

    ``parts`` are the arguments of one call each, (images, targets) for a Detector: ``model(*part)`` gives a dict of
    losses. Those of this library divide by counts of the whole batch, so that the mean of the parts' losses is another
    one, in which objects of crowded parts count less. Here all parts are first run without gradient, for the counts,
    and then again, each divided by those of all: gradients and losses are those of the batch in one, for the time of
    one more forward pass and the memory of one part. In place of ``loss.backward()``, ``backward(loss)`` is called, as
    a gradient scaler wants it.

    Both runs draw the same random numbers, but other ones than one batch would; the first leaves buffers as they were.
    Not of the whole, but of each part, are: BatchNorm's statistics, hard negatives of ``scope="batch"`` and losses of
    pairs. A loss of your own takes part if it divides by :func:`~detkit.losses.mean_count` or
    :func:`~detkit.dist.all_reduce_mean`. Raises ValueError for no parts, for losses that are no dict, and where parts
    count different things.

    >>> from detkit.dist import all_reduce_mean
    >>> class Mean(nn.Linear):
    ...     def forward(self, rows): return {"mean": self.weight.sum() * rows.sum() / all_reduce_mean(rows.sum())}
    >>> accumulate_gradients(Mean(1, 1), [[torch.ones(1)], [torch.ones(3)]])["mean"].shape
    torch.Size([])
    """
    if not len(parts):
        raise ValueError("accumulate_gradients: got no parts; allowed is at least one, as [(images, targets), ...]")
    with torch.no_grad(), _put_back(model):
        counts = [_counts(model, part) for part in parts]
    _check_alike(counts)
    totals = [torch.stack(of_parts).sum(0) for of_parts in zip(*counts, strict=True)]
    whole: dict[str, Tensor] = {}
    for part in parts:
        with dist.means_answered(lambda mean, left=totals[::-1]: left.pop()):
            losses = _losses(model, part)
        backward(cast(Tensor, sum(losses.values())))
        whole = {name: whole.get(name, 0) + loss.detach() for name, loss in losses.items()}
    return whole


@contextmanager
def _put_back(model: nn.Module) -> Iterator[None]:
    """Afterwards, buffers and the states of random generators are what they were before."""
    kept = [buffer.clone() for buffer in model.buffers()]
    device = next(model.parameters(), torch.empty(0)).device
    with torch.random.fork_rng([] if device.type == "cpu" else [device]):
        yield
    for buffer, before in zip(model.buffers(), kept, strict=True):
        buffer.copy_(before)


def _counts(model: nn.Module, part: Sequence[Any]) -> list[Tensor]:
    """What the losses of a part divide by, in the order in which they ask for it."""
    counts: list[Tensor] = []

    def keep(mean: Tensor) -> Tensor:
        counts.append(mean.clone())
        return mean

    with dist.means_answered(keep):
        _losses(model, part)
    return counts


def _losses(model: nn.Module, part: Sequence[Any]) -> Mapping[str, Tensor]:
    losses = model(*part)
    if not isinstance(losses, Mapping):
        raise ValueError(
            f"accumulate_gradients: model gives a {type(losses).__name__}; allowed is a dict of losses, as "
            "detector(images, targets) does"
        )
    return losses


def _check_alike(counts: Sequence[Sequence[Tensor]]) -> None:
    shapes = [[tuple(count.shape) for count in part] for part in counts]
    for i, found in enumerate(shapes):
        if found != shapes[0]:
            raise ValueError(
                f"accumulate_gradients: the losses of parts[{i}] divide by {len(found)} counts {found}, those of "
                f"parts[0] by {len(shapes[0])} {shapes[0]}; allowed are parts with the same losses"
            )
