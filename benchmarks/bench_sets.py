"""DETR's matcher and loss, and deformable attention, against facebookresearch/detr's form and transformers.

The loss is that of a training step: 6 decoder layers, each matched anew, forward and backward. Peers of transformers
are left out where it isn't installed.
"""

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import generalized_box_iou

from benchmarks.bench_hungarian import published_matches
from benchmarks.harness import Case
from detkit.anchors import HungarianMatcher
from detkit.boxes import cxcywh_to_xyxy, pixels_to_fractions
from detkit.detectors.set_prediction import match_layers
from detkit.layers.deformable import deformable_attention
from detkit.losses.set_prediction import SetPredictionLoss
from detkit.structures import Assignment, Predictions, Targets, pad_targets

_IMAGES, _CLASSES, _LAYERS = 16, 91, 6
_WEIGHTS = {"classification": 1.0, "l1": 5.0, "giou": 2.0}


class Batch(NamedTuple):
    """What a decoder predicts, with gradients, and the objects: ours padded, theirs as a list."""

    logits: Tensor
    boxes: Tensor
    targets: Targets
    rows: list[dict[str, Tensor]]


def cases() -> Iterator[Case]:
    """16 images of 1 to 30 objects, 91 classes: 100, 300 and 900 queries; then the attention of a decoder layer."""
    installed = importlib.util.find_spec("transformers") is not None
    for queries in (100, 300, 900):
        batch, size = _batch(queries), f"{_IMAGES} images x {queries} queries"
        loss = f"{size}, {_LAYERS} layers, with gradients"
        yield Case("set loss", loss, "facebookresearch/detr", _ours(batch), _published(batch), _same_losses, 2.0)
        if installed:
            yield Case("set loss", loss, "transformers", _ours(batch), _transformers(batch), _same_losses, 2.0)
            yield Case("set matcher", size, "transformers", *_matchers(batch), _same_pairs, 2.0)
    yield from _attention_cases()


def _batch(queries: int) -> Batch:
    generator = torch.Generator().manual_seed(queries)
    logits = torch.randn(_LAYERS, _IMAGES, queries, _CLASSES + 1, generator=generator)
    boxes = torch.rand(_LAYERS, _IMAGES, queries, 4, generator=generator) * 0.5 + 0.05
    rows = []
    for count in torch.randint(1, 31, (_IMAGES,), generator=generator).tolist():
        truth = torch.rand(count, 4, generator=generator) * 0.4 + 0.1
        rows.append({"boxes": truth, "labels": torch.randint(0, _CLASSES, (count,), generator=generator)})
    targets = pad_targets([{"boxes": cxcywh_to_xyxy(row["boxes"]), "labels": row["labels"]} for row in rows])
    return Batch(logits.requires_grad_(), boxes.requires_grad_(), targets, rows)


def _step(batch: Batch, loss: Callable[[], Tensor]) -> Callable[[], tuple[Tensor, Tensor, Tensor]]:
    """The loss with its gradients."""

    def step() -> tuple[Tensor, Tensor, Tensor]:
        value = loss()
        logits, boxes = torch.autograd.grad(value, (batch.logits, batch.boxes))
        return value, logits, boxes

    return step


def _ours(batch: Batch) -> Callable[[], tuple[Tensor, Tensor, Tensor]]:
    matcher, criterion, sizes = HungarianMatcher(), SetPredictionLoss(), torch.ones(_IMAGES, 2, dtype=torch.int64)

    def loss() -> Tensor:
        targets = batch.targets._replace(boxes=pixels_to_fractions(batch.targets.boxes, sizes))
        assignment = match_layers(matcher, batch.logits, batch.boxes, targets)
        return torch.stack([*criterion(batch.logits, batch.boxes, targets, assignment).values()]).sum()

    return _step(batch, loss)


def _published(batch: Batch) -> Callable[[], tuple[Tensor, Tensor, Tensor]]:
    """Layer by layer; losses on the pairs, read by index."""
    labels, truth = (torch.cat([row[key] for row in batch.rows]) for key in ("labels", "boxes"))
    starts = torch.tensor([0, *(len(row["labels"]) for row in batch.rows)]).cumsum(0)
    weights = torch.ones(_CLASSES + 1)
    weights[-1] = 0.1

    def layer(logits: Tensor, boxes: Tensor) -> Tensor:
        pairs = published_matches(logits.detach(), boxes.detach(), batch.rows)
        image = torch.cat([torch.full_like(queries, i) for i, (queries, _) in enumerate(pairs)])
        query = torch.cat([queries for queries, _ in pairs])
        objects = torch.cat([start + found for start, (_, found) in zip(starts, pairs, strict=False)])
        wanted = torch.full(logits.shape[:2], _CLASSES)
        wanted[image, query] = labels[objects]
        entropy = F.cross_entropy(logits.transpose(1, 2), wanted, weights)
        found, expected = boxes[image, query], truth[objects]
        l1 = F.l1_loss(found, expected, reduction="none").sum() / len(labels)
        overlaps = generalized_box_iou(cxcywh_to_xyxy(found), cxcywh_to_xyxy(expected)).diag()
        return entropy + 5 * l1 + 2 * (1 - overlaps).sum() / len(labels)

    return _step(
        batch, lambda: sum((layer(*one) for one in zip(batch.logits, batch.boxes, strict=True)), torch.zeros(()))
    )


def _transformers(batch: Batch) -> Callable[[], tuple[Tensor, Tensor, Tensor]]:
    peer = _peer()
    matcher = peer.HungarianMatcher(class_cost=1, bbox_cost=5, giou_cost=2)
    criterion = peer.ImageLoss(matcher, _CLASSES, 0.1, ["labels", "boxes"])
    wanted = [{"class_labels": row["labels"], "boxes": row["boxes"]} for row in batch.rows]
    weights = {"loss_ce": 1.0, "loss_bbox": 5.0, "loss_giou": 2.0}

    def loss() -> Tensor:
        layers = [
            {"logits": logits, "pred_boxes": boxes} for logits, boxes in zip(batch.logits, batch.boxes, strict=True)
        ]
        losses = criterion({**layers[-1], "auxiliary_outputs": layers[:-1]}, wanted)
        return sum((weights["_".join(name.split("_")[:2])] * value for name, value in losses.items()), torch.zeros(()))

    return _step(batch, loss)


def _matchers(batch: Batch) -> tuple[Callable[[], Assignment], Callable[[], list[tuple[Tensor, Tensor]]]]:
    logits, boxes = batch.logits[-1].detach(), batch.boxes[-1].detach()
    wanted = [{"class_labels": row["labels"], "boxes": row["boxes"]} for row in batch.rows]
    own, other = HungarianMatcher(), _peer().HungarianMatcher(class_cost=1, bbox_cost=5, giou_cost=2)

    def ours() -> Assignment:
        return own(None, batch.targets, Predictions(cxcywh_to_xyxy(boxes), logits=logits))

    return ours, lambda: other({"logits": logits, "pred_boxes": boxes}, wanted)


def _peer() -> Any:
    return importlib.import_module("transformers.loss.loss_for_object_detection")


def _same_losses(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> None:
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-6)


def _same_pairs(ours: Assignment, theirs: list[tuple[Tensor, Tensor]]) -> None:
    for matched, (queries, objects) in zip(ours.matched, theirs, strict=True):
        assert matched[queries].tolist() == objects.tolist()
        assert int((matched >= 0).sum()) == len(queries)


# Deformable attention, as a decoder of 300 queries uses it on the four levels of an 800 x 1066 image.


def device_cases(device: str) -> Iterator[Case]:
    """Deformable attention of a decoder, and of an encoder: a query for each cell."""
    for queries in (300, 17_821):
        yield from _attention_cases(device, queries, targets=(2.0, 2.0))


def _attention_cases(
    device: str = "cpu", queries: int = 300, *, targets: tuple[float, float] = (3.0, 1.0)
) -> Iterator[Case]:
    shapes = [(100, 134), (50, 67), (25, 34), (13, 17)]
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(2, sum(rows * columns for rows, columns in shapes), 8, 32, generator=generator)
    locations = torch.rand(2, queries, 8, 16, 2, generator=generator)
    weights = torch.rand(2, queries, 8, 16, generator=generator)
    given = [rows.to(device).requires_grad_() for rows in (values, locations, weights)]

    def forward(function: Callable[..., Tensor]) -> Callable[[], Tensor]:
        return torch.no_grad()(lambda: function(given[0], shapes, *given[1:]))

    def both(function: Callable[..., Tensor]) -> Callable[[], tuple[Tensor, ...]]:
        return lambda: torch.autograd.grad(function(given[0], shapes, *given[1:]).square().sum(), given)

    name, size = "deformable attention", f"2 images x {queries:,} queries, 4 levels of 800 x 1066"
    ours, theirs = (forward(function) for function in (deformable_attention, _sampled))
    yield Case(name, f"{size}, forward", "grid_sample", ours, theirs, _same, targets[0])
    ours, theirs = (both(function) for function in (deformable_attention, _sampled))
    yield Case(name, f"{size}, forward and backward", "grid_sample", ours, theirs, _each, targets[1])
    if device != "cpu":
        half = [given[0].detach().bfloat16(), *given[1:]]
        ours = torch.no_grad()(lambda: deformable_attention(half[0], shapes, *half[1:]))
        theirs = forward(_sampled)
        yield Case(f"{name}, bfloat16 values", f"{size}, forward", "grid_sample", ours, theirs, _near, targets[0])


def _sampled(values: Tensor, shapes: list[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """One ``grid_sample`` for each level, as Zhu et al. publish for a CPU."""
    images, _, heads, depth = values.shape
    total, first = torch.zeros(()), 0
    for level, (rows, columns) in enumerate(shapes):
        cells = values[:, first : first + rows * columns].permute(0, 2, 3, 1).reshape(-1, depth, rows, columns)
        points = slice(4 * level, 4 * level + 4)
        grid = (2 * locations[:, :, :, points] - 1).transpose(1, 2).flatten(0, 1)
        found = F.grid_sample(cells, grid, align_corners=False)  # (B heads, depth, Q, points)
        share = weights[:, :, :, points].transpose(1, 2).flatten(0, 1)[:, None]
        total, first = total + (found * share).sum(-1), first + rows * columns
    return total.unflatten(0, (images, heads)).permute(0, 3, 1, 2).flatten(2)


def _same(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def _near(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours.float(), theirs, rtol=0.02, atol=0.05)


def _each(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> None:
    # Locations have a kink at every cell border, where the two may differ: a share of their gradients is compared.
    for own, other in zip(ours, theirs, strict=True):
        near = torch.isclose(own, other, rtol=1e-2, atol=1e-2)
        assert near.float().mean() > 0.999
