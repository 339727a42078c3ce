"""RoIAlign against torchvision's: one map and a pyramid, with and without gradients, in both orders of memory."""

import math
import time
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor
from torchvision import ops

from benchmarks.harness import Case
from detkit.boxes import PyramidRoIAlign, roi_align

STRIDES, FRAME = (4, 8, 16, 32), (608, 800)
ORDERS = {"channels first": torch.contiguous_format, "channels last": torch.channels_last}


def cases() -> Iterator[Case]:
    """Box regions of training and inference, mask regions, few regions, and a small pyramid."""
    for name, order in ORDERS.items():
        yield from _pyramid("box regions", 2, 512, 7, 256, FRAME, name, order)
        yield from _pyramid("mask regions", 2, 64, 14, 256, FRAME, name, order)
        yield from _pyramid("few regions", 1, 10, 7, 256, FRAME, name, order)
        yield from _pyramid("small maps", 8, 128, 7, 64, (96, 96), name, order)
        yield from _single(1000, 7, 256, (50, 68), name, order)


def boxes_of(images: int, count: int, frame: tuple[int, int]) -> Tensor:
    """Boxes (B, K, 4) with sides from a fortieth to all of the frame's longer one, some of them over the edge."""
    generator = torch.Generator().manual_seed(0)
    sides = torch.exp(torch.rand(images, count, 2, generator=generator) * math.log(40)) / 40 * max(frame)
    centers = torch.rand(images, count, 2, generator=generator) * torch.tensor(frame).flip(0)
    return torch.cat((centers - sides / 2, centers + sides / 2), dim=-1)


def _maps(images: int, channels: int, sides: list[tuple[int, int]], order: torch.memory_format) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    found = [torch.randn(images, channels, *side, generator=generator) for side in sides]
    return [level.to(memory_format=order).requires_grad_() for level in found]


def _pyramid(
    what: str,
    images: int,
    count: int,
    size: int,
    channels: int,
    frame: tuple[int, int],
    name: str,
    order: torch.memory_format,
) -> Iterator[Case]:
    maps = _maps(images, channels, [(frame[0] // stride, frame[1] // stride) for stride in STRIDES], order)
    boxes, pool = boxes_of(images, count, frame), PyramidRoIAlign(size, strides=STRIDES)
    peer = ops.MultiScaleRoIAlign([str(stride) for stride in STRIDES], size, 2)
    named = {str(stride): level for stride, level in zip(STRIDES, maps, strict=True)}
    words = f"{what}: {images} x {count} of {size} x {size} x {channels}, {name}"
    yield from _both(
        "PyramidRoIAlign",
        words,
        "torchvision MultiScaleRoIAlign",
        lambda: pool(maps, boxes),
        lambda: peer(named, list(boxes), [frame] * images),
        maps,
    )


def _single(
    count: int, size: int, channels: int, sides: tuple[int, int], name: str, order: torch.memory_format
) -> Iterator[Case]:
    (level,) = _maps(1, channels, [sides], order)
    boxes = list(boxes_of(1, count, (16 * sides[0], 16 * sides[1])))
    words = f"{count} of {size} x {size} x {channels}, {name}"
    ours, theirs = (
        partial(function, level, boxes, size, 1 / 16, sampling_ratio=2) for function in (roi_align, ops.roi_align)
    )
    yield from _both("roi_align", words, "torchvision roi_align", ours, theirs, [level])


def _both(
    name: str, words: str, peer: str, ours: Callable[[], Tensor], theirs: Callable[[], Tensor], maps: list[Tensor]
) -> Iterator[Case]:
    """Values alone, and with the gradient of their sum of squares."""

    def learning(pool: Callable[[], Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(pool().square().sum(), maps)

    agree = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-4)
    one, other = torch.no_grad()(ours), torch.no_grad()(theirs)
    yield Case(name, words, peer, one, other, agree, 1.0, clock=time.process_time)
    one, other = partial(learning, ours), partial(learning, theirs)
    yield Case(f"{name} and gradient", words, peer, one, other, agree, 1.0, clock=time.process_time)
