"""Target assignment and losses of YOLO v3, YOLOX and SSD300: 16 images of 20 objects in 80 classes.

The peers of YOLO v3 and YOLOX are their rules in plain torch, as one writes them: a loop over images, within it no loop
and no padding. SSD's is torchvision. Losses are measured with their gradients, on equal assignments.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection._utils import SSDMatcher
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD
from torchvision.ops import box_iou

from benchmarks.bench_losses import agree
from benchmarks.harness import Case
from detkit.anchors import BipartiteMatcher, DefaultBoxes, GridAnchors, ShapeMatcher, SimOTAMatcher, gather_assigned
from detkit.boxes import DeltaCoder, GridCoder, box_centers, points_in_boxes
from detkit.detectors import square_anchors
from detkit.losses import DenseCriterion, MultiBoxLoss, ObjectnessLoss, YOLOLoss
from detkit.structures import (
    IGNORED,
    NEGATIVE,
    Anchors,
    Assignment,
    DensePredictions,
    Images,
    Predictions,
    Target,
    Targets,
    pad_targets,
)

IMAGES, OBJECTS, CLASSES = 16, 20, 80
V3 = ((10, 13), (16, 30), (33, 23)), ((30, 61), (62, 45), (59, 119)), ((116, 90), (156, 198), (373, 326))
PLAIN = "the rule in plain torch, image by image"


class Scene(NamedTuple):
    """What a stage hands to its matcher and its criterion."""

    anchors: Anchors
    targets: Targets
    truth: list[Target]
    predictions: DensePredictions
    coder: Any


def cases() -> Iterator[Case]:
    """Assignment, then loss with gradient, of each of the three."""
    v3 = scene(GridAnchors(shapes=V3, strides=(8, 16, 32)), 416, (8, 16, 32), GridCoder())
    yield matching("YOLO v3 matching", v3, ShapeMatcher(), YOLOLoss(), plain_shapes, PLAIN)
    yield loss("YOLO v3 loss", v3, ShapeMatcher(), YOLOLoss(), plain_yolo_loss, PLAIN)
    yolox = scene(square_anchors((8, 16, 32), times=1), 640, (8, 16, 32), DeltaCoder())
    yield matching("YOLOX matching", yolox, SimOTAMatcher(), ObjectnessLoss(), plain_simota, PLAIN)
    yield loss("YOLOX loss", yolox, SimOTAMatcher(), ObjectnessLoss(), plain_objectness_loss, PLAIN)
    sizes = [(21, 45), (45, 99), (99, 153), (153, 207), (207, 261), (261, 315)]
    boxes = DefaultBoxes(sizes, aspect_ratios=[(2,), (2, 3), (2, 3), (2, 3), (2,), (2,)])
    ssd = scene(boxes, 300, (8, 16, 32, 64, 100, 300), DeltaCoder((10.0, 10.0, 5.0, 5.0)), background=1)
    matcher, criterion = BipartiteMatcher(greedy=False), MultiBoxLoss()
    yield matching("SSD300 matching", ssd, matcher, criterion, torchvision_ssd, "torchvision SSDMatcher, each image")
    yield loss("SSD300 loss", ssd, matcher, criterion, torchvision_ssd_loss, "torchvision SSD.compute_loss", shift=1)


def scene(generator: Any, frame: int, strides: tuple[int, ...], coder: Any, *, background: int = 0) -> Scene:
    """Anchors on an image of ``frame`` pixels, objects of 10 to 300 pixels, and predictions as of a young net."""
    random = torch.Generator().manual_seed(0)
    features = [torch.zeros(1, 1, -(-frame // stride), -(-frame // stride)) for stride in strides]
    anchors = generator(features, Images(torch.zeros(1, 3, frame, frame), torch.tensor([[frame, frame]])))
    truth = []
    for _ in range(IMAGES):
        sides = torch.exp(torch.rand(OBJECTS, 2, generator=random) * 3.4 + 2.3).clamp(max=frame - 2)
        corner = torch.rand(OBJECTS, 2, generator=random) * (frame - sides)
        labels = torch.randint(CLASSES, (OBJECTS,), generator=random)
        truth.append(Target(boxes=torch.cat((corner, corner + sides), dim=1), labels=labels))
    shape = IMAGES, len(anchors.boxes)
    logits = torch.randn(*shape, CLASSES + background, generator=random) - 2 * (1 - background)
    deltas, quality = torch.randn(*shape, 4, generator=random) / 4, torch.randn(*shape, generator=random) - 2
    predictions = DensePredictions(logits, deltas, None if background else quality)
    return Scene(anchors, pad_targets(truth), truth, predictions, coder)


def matching(
    name: str, scene: Scene, matcher: Any, criterion: DenseCriterion, peer: Callable[..., Any], who: str
) -> Case:
    """A whole batch at once against the rule for each image; both are handed scores and decoded boxes."""
    boxes = scene.coder.decode(scene.predictions.deltas, scene.anchors)
    scores = criterion.scores(scene.predictions)
    seen = Predictions(boxes, scores)
    reads = getattr(matcher, "reads_predictions", False)

    def same(ours: Assignment, theirs: Tensor) -> None:
        assert (theirs >= 0).any()
        assert torch.equal(ours.matched, theirs)

    return Case(
        name,
        f"{IMAGES} x {len(scene.anchors.boxes):,} x {CLASSES}, {OBJECTS} objects",
        who,
        lambda: matcher(scene.anchors, scene.targets, seen if reads else None),
        lambda: torch.stack([peer(scene.anchors, *one) for one in zip(scene.truth, boxes, scores, strict=True)]),
        same,
        1.0,
    )


def loss(
    name: str,
    scene: Scene,
    matcher: Any,
    criterion: DenseCriterion,
    peer: Callable[..., Any],
    who: str,
    *,
    shift: int = 0,
) -> Case:
    """The sum of the losses and its gradients by all predictions; the peer's classes begin ``shift`` later."""
    seen = Predictions(scene.coder.decode(scene.predictions.deltas, scene.anchors), criterion.scores(scene.predictions))
    given = matcher(scene.anchors, scene.targets, seen)
    assigned = gather_assigned(given, scene.targets)

    def step(function: Callable[[DensePredictions], Tensor], shift: int = 0) -> Callable[[], list[Tensor]]:
        logits, deltas, quality, *_ = scene.predictions
        leaves = [logits.roll(shift, -1), deltas.clone(), *([] if quality is None else [quality.clone()])]
        leaves = [leaf.requires_grad_() for leaf in leaves]

        def run() -> list[Tensor]:
            total = function(DensePredictions(*leaves))
            return [total.detach(), *torch.autograd.grad(total, leaves)]

        return run

    def same(ours: list[Tensor], theirs: list[Tensor]) -> None:
        theirs[1] = theirs[1].roll(-shift, -1)
        for part, wanted in zip(ours[1:], theirs[1:], strict=True):
            agree((ours[0], part), (theirs[0], wanted))

    return Case(
        f"{name}, forward + backward",
        f"{IMAGES} x {len(scene.anchors.boxes):,} x {CLASSES}",
        who,
        step(lambda found: sum(criterion(found, assigned, scene.anchors, scene.coder).values(), torch.zeros(()))),
        step(lambda found: peer(found, given, scene), shift),
        same,
        1.0,
    )


def plain_shapes(anchors: Anchors, target: Target, boxes: Tensor, scores: Tensor) -> Tensor:
    """YOLO v3: each object's best shape of nine in the cell of its center, the later object first; others by IoU."""
    truth, cells = target["boxes"], anchors.strides
    here = (box_centers(anchors.boxes) / cells).floor() == (box_centers(truth)[:, None] / cells).floor()
    sides, shapes = (rows[:, 2:] - rows[:, :2] for rows in (truth, anchors.boxes))
    shared = torch.minimum(sides[:, None], shapes).prod(-1)
    fit = shared / (sides.prod(-1)[:, None] + shapes.prod(-1) - shared)
    claims = torch.where(here.all(-1), fit, -1).argmax(1)
    overlap = box_iou(truth, boxes).amax(0)
    matched = torch.where(overlap > 0.7, IGNORED, NEGATIVE)
    for i, place in enumerate(claims.tolist()):
        matched[place] = i
    return matched


def plain_yolo_loss(found: DensePredictions, given: Any, scene: Scene) -> Tensor:
    """Binary cross-entropies, and half the squared errors of log-sides; all classes of the objects in a cell."""
    total = torch.zeros(())
    quality = found.quality
    assert quality is not None
    for i, target in enumerate(scene.truth):
        matched = given.matched[i]
        positive = (matched >= 0).nonzero()[:, 0]
        hot = torch.zeros(len(matched), CLASSES)
        hot[given.claims[i, :OBJECTS], target["labels"]] = 1
        judged = matched != IGNORED
        total = total + F.binary_cross_entropy_with_logits(
            quality[i][judged], (matched[judged] >= 0).float(), reduction="sum"
        )
        total = total + F.binary_cross_entropy_with_logits(found.logits[i, positive], hot[positive], reduction="sum")
        anchors, cells = scene.anchors.boxes[positive], scene.anchors.strides[positive]
        boxes = target["boxes"][matched[positive]]
        sides, place = boxes[:, 2:] - boxes[:, :2], box_centers(boxes) / cells
        wanted = (sides / (anchors[:, 2:] - anchors[:, :2])).log()
        deltas = found.deltas[i, positive]
        places = F.binary_cross_entropy_with_logits(deltas[:, :2], place - place.floor(), reduction="none")
        weight = 2 - sides.prod(-1) / 416**2
        total = total + (weight[:, None] * (places + (deltas[:, 2:] - wanted).square() / 2)).sum()
    return total / IMAGES


def plain_simota(anchors: Anchors, target: Target, boxes: Tensor, scores: Tensor) -> Tensor:
    """YOLOX: of the cells inside an object or near its center the k cheapest, k by the sum of the ten best IoUs."""
    truth, points = target["boxes"], box_centers(anchors.boxes)
    inside = points_in_boxes(points, truth[:, None])
    near = ((points - box_centers(truth)[:, None]).abs() < 2.5 * anchors.strides).all(-1)
    candidates = (inside | near).any(0).nonzero()[:, 0]
    inside, near = inside[:, candidates], near[:, candidates]
    overlap = torch.where(inside | near, box_iou(truth, boxes[candidates]), 0)
    hot = F.one_hot(target["labels"], CLASSES).float()[:, None].expand(-1, len(candidates), -1)
    predicted = scores[candidates].expand_as(hot)
    cost = F.binary_cross_entropy(predicted, hot, reduction="none").sum(-1) - 3 * (overlap + 1e-8).log()
    cost = torch.where(inside & near, cost, torch.where(inside | near, cost + 1e5, torch.inf))
    wanted = overlap.topk(10, dim=1).values.double().sum(1).long().clamp(min=1)
    taken = torch.zeros_like(cost, dtype=torch.bool)
    for i, count in enumerate(wanted.tolist()):
        taken[i, cost[i].topk(count, largest=False).indices] = True
    taken &= torch.isfinite(cost)
    price, owner = torch.where(taken, cost, torch.inf).min(0)
    matched = torch.full((len(points),), NEGATIVE)
    matched[candidates] = torch.where(torch.isfinite(price), owner, NEGATIVE)
    return matched


def plain_objectness_loss(found: DensePredictions, given: Any, scene: Scene) -> Tensor:
    """Cross-entropy of objectness, and of classes against the IoU; five times 1 - IoU of the positives."""
    total, count = torch.zeros(()), int((given.matched >= 0).sum())
    assert found.quality is not None
    for i, target in enumerate(scene.truth):
        matched = given.matched[i]
        positive = (matched >= 0).nonzero()[:, 0]
        owner = matched[positive]
        total = total + F.binary_cross_entropy_with_logits(found.quality[i], (matched >= 0).float(), reduction="sum")
        hot = F.one_hot(target["labels"][owner], CLASSES) * given.quality[i, positive, None]
        total = total + F.binary_cross_entropy_with_logits(found.logits[i, positive], hot, reduction="sum")
        anchors, deltas = scene.anchors.boxes[positive], found.deltas[i, positive]
        sides = anchors[:, 2:] - anchors[:, :2]
        center, half = box_centers(anchors) + deltas[:, :2] * sides, sides * deltas[:, 2:].exp() / 2
        low, high, truth = center - half, center + half, target["boxes"][owner]
        shared = (torch.minimum(high, truth[:, 2:]) - torch.maximum(low, truth[:, :2])).clamp(min=0).prod(-1)
        union = (high - low).prod(-1) + (truth[:, 2:] - truth[:, :2]).prod(-1) - shared
        total = total + 5 * (1 - shared / union).sum()
    return total / count


def torchvision_ssd(anchors: Anchors, target: Target, boxes: Tensor, scores: Tensor) -> Tensor:
    """Torchvision's rule for one image."""
    return SSDMatcher(0.5)(box_iou(target["boxes"], anchors.boxes))


def torchvision_ssd_loss(found: DensePredictions, given: Any, scene: Scene) -> Tensor:
    """Torchvision's loss, whose background is class 0."""
    outputs = {"cls_logits": found.logits, "bbox_regression": found.deltas}
    truth = [{"boxes": target["boxes"], "labels": target["labels"] + 1} for target in scene.truth]
    losses = _ssd().compute_loss(truth, outputs, [scene.anchors.boxes] * IMAGES, list(given.matched))
    return sum(losses.values(), torch.zeros(()))


@functools.cache
def _ssd() -> SSD:
    """A detector of torchvision's with a loss, but no network."""
    return SSD(nn.Identity(), DefaultBoxGenerator([[2]]), (300, 300), CLASSES + 1, head=nn.Identity())
