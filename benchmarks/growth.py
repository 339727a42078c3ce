"""``python -m benchmarks growth``: CPU time and peak memory of the parts behind the trunk as what they are given grows.

One thread, against torchvision, results compared first; the picture goes to docs/images/growth.png. Sizes where
torchvision alone takes more than a few seconds end a curve.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchvision.models.detection import RetinaNet
from torchvision.models.detection._utils import Matcher
from torchvision.ops import box_iou, sigmoid_focal_loss

from benchmarks.inputs import uniform_boxes
from benchmarks.peak import ALONE, peak_of
from detkit.anchors import ThresholdMatcher, gather_assigned
from detkit.boxes import DeltaCoder
from detkit.detectors import LevelwisePostprocess
from detkit.detectors.dense import DenseOutputs, detect
from detkit.losses import RetinaNetLoss
from detkit.structures import Anchors, DensePredictions, Target, pad_targets

HERE = Path(__file__).parent
_USUAL = {"objects": 20, "anchors": 10_000, "classes": 20, "batch": 2}
_GROWN = {
    "objects": (1, 10, 100, 1000, 4000),
    "anchors": (1000, 10_000, 100_000, 500_000),
    "classes": (1, 20, 80, 365, 1203),
    "batch": (1, 2, 8, 32),
}
_PARTS = {
    "matching": ("objects", "anchors", "batch"),
    "losses": ("objects", "anchors", "classes", "batch"),
    "post-processing": ("anchors", "classes", "batch"),
}
_SECONDS = 0.5  # of measuring one side of one point
_LONG = 6.0  # a curve ends where torchvision took longer
_SLACK = {"ms": 0.1, "MB": 1.0}  # what no ratio is made of


class Point(NamedTuple):
    """Time and memory of both sides for one size of one part."""

    part: str
    axis: str
    size: int
    ms: tuple[float, float]
    MB: tuple[float, float]


class Batch(NamedTuple):
    """What all parts are given, from one seed."""

    anchors: Tensor
    boxes: list[Tensor]
    labels: list[Tensor]
    logits: Tensor
    deltas: Tensor

    @classmethod
    def of(cls, *, objects: int, anchors: int, classes: int, batch: int) -> "Batch":
        """Seeded boxes and noise."""
        torch.manual_seed(0)
        return cls(
            uniform_boxes(anchors),
            [uniform_boxes(objects, seed=i + 1) for i in range(batch)],
            [torch.randint(classes, (objects,)) for _ in range(batch)],
            torch.randn(batch, anchors, classes) - 3,
            torch.randn(batch, anchors, 4) / 10,
        )


def study(words: Sequence[str]) -> str:
    """The table of the parts and axes that contain all ``words``; without words the picture, too."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.growth", *words]
    with subprocess.Popen(command, env={**os.environ, **ALONE}, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        points = [Point(**json.loads(line)) for line in process.stdout]
    assert process.returncode == 0
    if not words:
        _draw(points, HERE.parent / "docs" / "images" / "growth.png")
    rows = [
        "| part | grows | to | torchvision ms | detkit ms | torchvision MB | detkit MB | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    rows += [
        f"| {p.part} | {p.axis} | {p.size:,} | {p.ms[1]:.2f} | {p.ms[0]:.2f} | {p.MB[1]:.1f} | {p.MB[0]:.1f} "
        f"| {' '.join(unit for unit in _SLACK if _crosses(p, unit))} |"
        for p in points
    ]
    return "\n".join(rows)


def _crosses(point: Point, unit: str) -> bool:
    ours, theirs = getattr(point, unit)
    return ours > theirs + _SLACK[unit]


def _points(words: Sequence[str]) -> Iterator[Point]:
    torch.set_num_threads(1)
    for part, axes in _PARTS.items():
        for axis in axes:
            if not all(word in f"{part} {axis}" for word in words):
                continue
            for size in _GROWN[axis]:
                point = _measured(part, axis, size)
                yield point
                if point.ms[1] > _LONG * 1e3:
                    break


def _measured(part: str, axis: str, size: int) -> Point:
    given = Batch.of(**{**_USUAL, axis: size})
    ours, theirs, agree = _SIDES[part](given)
    agree(ours(), theirs())
    times: tuple[list[float], list[float]] = ([], [])
    end = time.process_time() + 2 * _SECONDS
    while len(times[0]) < 2 or (time.process_time() < end and len(times[0]) < 30):
        for run, own in zip((ours, theirs), times, strict=True):
            start = time.process_time()
            run()
            own.append(1e3 * (time.process_time() - start))
    return Point(part, axis, size, (min(times[0]), min(times[1])), (peak_of(ours)[0], peak_of(theirs)[0]))


Sides = tuple[Callable[[], Any], Callable[[], Any], Callable[[Any, Any], None]]


def _matching(given: Batch) -> Sides:
    targets = _targets(given)
    ours, theirs = ThresholdMatcher(), Matcher(0.5, 0.4, allow_low_quality_matches=True)
    return (
        lambda: ours(given.anchors, targets).matched,
        lambda: torch.stack([theirs(box_iou(boxes, given.anchors)) for boxes in given.boxes]),
        lambda mine, other: torch.testing.assert_close(mine, other, rtol=0, atol=0),
    )


def _losses(given: Batch) -> Sides:
    """RetinaNet's two losses and their gradients, of anchors that are matched already."""
    targets, coder, criterion = _targets(given), DeltaCoder(), RetinaNetLoss()
    assignment = ThresholdMatcher()(given.anchors, targets)

    def ours() -> Tensor:
        logits, deltas = given.logits.detach().requires_grad_(), given.deltas.detach().requires_grad_()
        assigned = gather_assigned(assignment, targets)
        losses = criterion(DensePredictions(logits, deltas), assigned, given.anchors, coder)
        total = losses["classification"] + losses["box"]
        total.backward()
        return total.detach()

    def theirs() -> Tensor:
        logits, deltas = given.logits.detach().requires_grad_(), given.deltas.detach().requires_grad_()
        losses = []
        for i, matched in enumerate(assignment.matched):
            positive, judged = matched >= 0, matched != -2
            wanted = torch.zeros_like(logits[i])
            wanted[positive, given.labels[i][matched[positive]]] = 1
            count = max(1, int(positive.sum()))
            losses.append(sigmoid_focal_loss(logits[i][judged], wanted[judged], reduction="sum") / count)
            boxes = coder.encode(given.boxes[i][matched[positive]], given.anchors[positive])
            losses.append((deltas[i][positive] - boxes).abs().sum() / count)
        total = torch.stack(losses).sum() / len(given.boxes)
        total.backward()
        return total.detach()

    return ours, theirs, lambda mine, other: torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)


def _postprocessing(given: Batch) -> Sides:
    scores, boxes = given.logits, DeltaCoder().decode(given.deltas, given.anchors)
    images = len(boxes)
    sizes = torch.tensor([[1000, 1000]] * images)
    outputs = DenseOutputs(DensePredictions(scores, boxes), Anchors.of(given.anchors))
    stage = SimpleNamespace(coder=_Decoded(), criterion=RetinaNetLoss(), postprocess=LevelwisePostprocess())
    theirs: Any = RetinaNet.postprocess_detections
    model = _Settings()
    model.box_coder = _Decoded()
    return (
        lambda: detect(stage, outputs, sizes),
        lambda: theirs(
            model,
            {"cls_logits": [scores], "bbox_regression": [boxes]},
            [[given.anchors]] * images,
            [(1000, 1000)] * images,
        ),
        _found_equal,
    )


class _Settings:
    score_thresh, topk_candidates, nms_thresh, detections_per_img = 0.05, 1000, 0.5, 300
    box_coder: Any


class _Decoded:
    """torchvision decodes the best anchors only; here the boxes are given to both."""

    def decode_single(self, boxes: Tensor, _: Any) -> Tensor:
        return boxes

    decode = decode_single


def _found_equal(mine: Any, other: Any) -> None:
    for i, found in enumerate(other):
        count = len(found["scores"])
        assert int(mine.valid[i].sum()) == count
        torch.testing.assert_close(mine.scores[i, :count], found["scores"])


def _targets(given: Batch) -> Any:
    pairs = zip(given.boxes, given.labels, strict=True)
    return pad_targets([Target(boxes=boxes, labels=labels) for boxes, labels in pairs])


_SIDES: dict[str, Callable[[Batch], Sides]] = {
    "matching": _matching,
    "losses": _losses,
    "post-processing": _postprocessing,
}


def _draw(points: Sequence[Point], path: Path) -> None:
    import matplotlib.figure

    columns = list(_GROWN)
    figure = matplotlib.figure.Figure(figsize=(14, 15), layout="constrained")
    axes = figure.subplots(2 * len(_PARTS), len(columns), squeeze=False)
    for row, (part, unit) in enumerate((part, unit) for part in _PARTS for unit in _SLACK):
        for column, axis in enumerate(columns):
            curve = [point for point in points if (point.part, point.axis) == (part, axis)]
            plot = axes[row, column]
            if not curve:
                plot.set_axis_off()
                continue
            for side, (label, style) in enumerate((("detkit", "o-"), ("torchvision", "s--"))):
                values = [max(getattr(point, unit)[side], _SLACK[unit] / 10) for point in curve]
                plot.loglog([point.size for point in curve], values, style, label=label)
            plot.set_title(f"{part}: {'CPU time' if unit == 'ms' else 'peak memory'}", fontsize=10)
            plot.set_xlabel(axis)
            plot.set_ylabel(unit)
            plot.grid(alpha=0.3)
    axes[0, 0].legend()
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    for found in _points(sys.argv[1:]):
        print(json.dumps(found._asdict()), flush=True)
