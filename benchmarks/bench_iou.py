"""The IoU matrix against torchvision's, equal bit for bit."""

from collections.abc import Iterator

import torch
import torchvision

from benchmarks.harness import Case
from benchmarks.inputs import uniform_boxes
from detkit.boxes import box_iou


def cases() -> Iterator[Case]:
    """A few objects against many anchors, and a square matrix of detections."""
    for rows, columns, target in ((100, 100_000, 9.0), (300, 300, 3.0)):
        boxes1, boxes2 = uniform_boxes(rows, seed=1), uniform_boxes(columns, seed=2)
        yield Case(
            "box_iou",
            f"{rows:,} x {columns:,}",
            "torchvision.ops.box_iou",
            lambda a=boxes1, b=boxes2: box_iou(a, b),
            lambda a=boxes1, b=boxes2: torchvision.ops.box_iou(a, b),
            _equal,
            target,
            f"{rows * columns * 4 / 1e6:.1f} MB written",
        )


def _equal(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert torch.equal(ours, theirs)
