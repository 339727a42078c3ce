"""Elementary losses, forward and backward of their sum, against torchvision.ops: eagerly and under torch.compile."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torchvision
from torch import Tensor

from benchmarks.harness import Case
from detkit._gradient import evaluate
from detkit.boxes.measures import ciou, giou
from detkit.losses import complete_box_iou_loss, generalized_box_iou_loss, sigmoid_focal_loss
from detkit.losses.fused import classification as fused_logits
from detkit.losses.fused import regression as fused_boxes

Step = Callable[[], tuple[Tensor, Tensor]]
PEER = "torchvision.ops"


def cases() -> Iterator[Case]:
    """Focal loss of 100,000 x 80 logits and of RetinaNet's anchors at batch 2; box losses of 1,000,000 pairs."""
    yield from focal_cases("100,000 x 80", 100_000, (("dense", 2.2), ("labels", 5.0), ("labels, compiled", 5.5)))
    yield from focal_cases("RetinaNet: 2 x 120,087 x 80", 2 * 120_087, (("labels", 5.0),))
    first, second = random_boxes(1_000_000, seed=0).requires_grad_(), random_boxes(1_000_000, seed=1)
    for ours, eager, compiled in ((generalized_box_iou_loss, 2.5, 9.0), (complete_box_iou_loss, 2.5, 9.0)):
        peer = getattr(torchvision.ops, ours.__name__)
        theirs = step(lambda a, b, peer=peer: peer(a, b, reduction="sum"), first, second)
        for suffix, function, target in (
            ("", ours, eager),
            (", compiled", torch.compile(ours, fullgraph=True), compiled),
        ):
            run = step(partial(summed, function), first, second)
            yield case(f"{ours.__name__}{suffix}", "1,000,000 pairs", run, theirs, target, "64 bytes a pair")


def device_cases(device: str) -> Iterator[Case]:
    """Steps eagerly and compiled; and losses with their gradients alone, which read and write once what they must."""
    rows, pairs = 2 * 120_087, 1_000_000
    logits, labels, dense = (part.to(device) for part in random_logits(rows))
    logits.requires_grad_()
    peer = partial(torchvision.ops.sigmoid_focal_loss, reduction="sum")
    compiled = torch.compile(sigmoid_focal_loss, fullgraph=True)
    size = f"{rows:,} x 80"
    for suffix, function in (("", sigmoid_focal_loss), (", compiled", compiled)):
        run, theirs = step(partial(summed, function), logits, labels), step(peer, logits, dense)
        yield case(f"sigmoid_focal_loss, labels{suffix}", size, run, theirs, 5.0, "12 bytes a logit")
    yield alone(
        partial(fused_logits.focal_of_labels, alpha=0.25, gamma=2.0),
        (f"sigmoid_focal_loss, labels, {size}", peer),
        (logits, labels, dense),
        12 * logits.numel() + 8 * rows,
    )
    first, second = (random_boxes(pairs, seed=seed).to(device) for seed in (0, 1))
    first.requires_grad_()
    for loss, measure in ((generalized_box_iou_loss, giou), (complete_box_iou_loss, ciou)):
        peer = partial(getattr(torchvision.ops, loss.__name__), reduction="sum")
        for suffix, function in (("", loss), (", compiled", torch.compile(loss, fullgraph=True))):
            run, theirs = step(partial(summed, function), first, second), step(peer, first, second)
            yield case(f"{loss.__name__}{suffix}", f"{pairs:,} pairs", run, theirs, 2.5, "52 bytes a pair")
        form = partial(fused_boxes.one_minus, measure=measure)
        yield alone(form, (f"{loss.__name__}, {pairs:,} pairs", peer), (first, second, second), 52 * pairs)


def alone(
    form: Any, names: tuple[str, Callable[..., Tensor]], given: tuple[Tensor, Tensor, Tensor], moved: int
) -> Case:
    """Losses of ``given`` rows and targets (the peer has its own, the third) and their gradients, nothing summed."""
    (name, peer), (rows, targets, others) = names, given

    def ours() -> tuple[Tensor, Tensor]:
        losses, (gradient, _) = evaluate(form, (rows.detach(), targets), (True, False))
        assert gradient is not None
        return losses, gradient

    def same(ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]) -> None:
        agree((ours[0].sum(), ours[1]), theirs)

    operation, size = name.rsplit(", ", 1)
    return Case(
        f"{operation}, losses and gradients", size, PEER, ours, step(peer, rows, others), same, 5.0, moved=moved
    )


def random_logits(rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of 80 classes, labels of which a hundredth are positive, and the same one-hot."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(rows, 80, generator=generator) - 3
    labels = torch.where(torch.rand(rows, generator=generator) < 0.01, torch.arange(rows) % 80, -1)
    return logits, labels, (labels[:, None] == torch.arange(80)).float()


def focal_cases(size: str, rows: int, kinds: tuple[tuple[str, float], ...]) -> Iterator[Case]:
    """A hundredth of the rows are positive; the peer is handed its one-hot targets ready made."""
    logits, labels, dense = random_logits(rows)
    logits.requires_grad_()
    peer = partial(torchvision.ops.sigmoid_focal_loss, reduction="sum")
    for kind, target in kinds:
        function = torch.compile(sigmoid_focal_loss, fullgraph=True) if "compiled" in kind else sigmoid_focal_loss
        run = step(partial(summed, function), logits, dense if kind == "dense" else labels)
        theirs = step(peer, logits, dense)
        yield case(f"sigmoid_focal_loss, {kind}", size, run, theirs, target, "12 bytes a logit")


def summed(function: Callable[[Tensor, Tensor], Tensor], rows: Tensor, targets: Tensor) -> Tensor:
    """The sum of an unreduced loss."""
    return function(rows, targets).sum()


def step(function: Callable[[Tensor, Tensor], Tensor], rows: Tensor, targets: Tensor) -> Step:
    """A training step's share: loss and gradient."""

    def run() -> tuple[Tensor, Tensor]:
        rows.grad = None
        loss = function(rows, targets)
        loss.backward()
        assert rows.grad is not None
        return loss.detach(), rows.grad

    return run


def case(name: str, size: str, ours: Step, theirs: Step, target: float, floor: str) -> Case:
    """Forward and backward on both sides."""
    return Case(f"{name}, forward + backward", size, PEER, ours, theirs, agree, target, floor)


def agree(ours: Any, theirs: Any) -> None:
    """Sums to 2e-6, as orders of float32 addition differ; gradients to 1e-5, and 2e-6 of the largest."""
    torch.testing.assert_close(ours[0], theirs[0], rtol=2e-6, atol=0)
    largest = theirs[1].abs().max().item()
    torch.testing.assert_close(ours[1], theirs[1], rtol=1e-5, atol=2e-6 * largest)


def random_boxes(count: int, *, seed: int) -> Tensor:
    """Boxes of 1 to 51 pixels a side in a frame of 150."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, generator=generator) * 100
    return torch.cat((corners, corners + torch.rand(count, 2, generator=generator) * 50 + 1), dim=1)
