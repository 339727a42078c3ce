"""DETR's matcher: the one-to-one assignment of queries to objects with the lowest total cost."""

from importlib.util import find_spec
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from detkit._door import door
from detkit._inputs import as_boxes, check_finite, first_bad, full_checks, promote
from detkit._ranges import Fraction, NotNegative
from detkit._sent import sent
from detkit._threads import on_one_thread
from detkit.anchors.assigned import ignore_crowds, matched_overlaps, values_of_labels
from detkit.anchors.matcher import AnchorBoxes, check_rows, read_predictions
from detkit.anchors.matrix import pairs_at_once
from detkit.boxes import xyxy_to_cxcywh
from detkit.boxes.measures import BoxSides, bounded_sides, smallest_union
from detkit.structures import IGNORED, NEGATIVE, Assignment, Predictions, Targets

ClassCost = Literal["softmax", "focal"]

_FARTHEST = 1e15  # coordinates count as at most this: costs and areas stay finite
_LARGEST_LOGIT = 1e6
_LARGEST_FRACTION = 10.0
_DEAREST = 1e6
_PAIRS_AT_ONCE = 2**22  # on the CPU, of whole images, or of layers of one; a few tables of them are held
_HAS_SOLVER = find_spec("torch_linear_assignment") is not None


class HungarianMatcher(nn.Module):
    """Bipartite matching: each object is matched with one query, so that the total cost of the image is the lowest.

    The cost of a pair is ``class_weight`` * class cost + ``l1_weight`` * L1 distance of the boxes (as cx, cy, w, h) -
    ``giou_weight`` * GIoU. The class cost is minus the probability of the object's class by a softmax with no-object
    last (``class_cost="softmax"``), or the focal loss of a positive minus that of a negative with ``alpha`` and
    ``gamma`` (``"focal"``: sigmoid, no logit for no-object). If there are more objects than queries, the cheapest are
    matched. A query with a NaN, +inf or no finite logit, or with a box that is not finite, is IGNORED: it is not
    matched, and the matches of the others are as without it. A query without object is IGNORED if more than half its
    area lies in a crowd, else NEGATIVE. ``quality`` is the IoU of the match, 0 without one.

    scipy solves it on the host, which waits once for what it needs from a device; so targets are always checked:
    ValueError for an object's label outside 0..C-1 and for a box that is not finite, inverted, or in pixels (a number
    above 10), naming image and target; also for negative weights. With ``DETKIT_CHECKS=full`` predictions are checked
    too: logits and boxes that are not finite, inverted boxes. If torch-linear-assignment is installed, it solves on
    CUDA what lies there; then targets, too, are checked only with ``DETKIT_CHECKS=full``, and otherwise an object that
    would be an error is not matched.

    Source: Carion et al. 2020, section 3.1 and appendix A.2; focal cost: Zhu et al. 2021, appendix A.4, whose code adds
    1e-8 inside the logarithms; here they are exact.

    >>> from detkit.structures import pad_targets
    >>> targets = pad_targets([{"boxes": torch.tensor([[0.0, 0, 0.5, 1]]), "labels": torch.tensor([1])}])
    >>> boxes = torch.tensor([[[0.6, 0, 1, 1], [0.05, 0, 0.55, 1]]])
    >>> HungarianMatcher()(None, targets, Predictions(boxes, logits=torch.zeros(1, 2, 3))).matched
    tensor([[-1,  0]])
    """

    reads_predictions = True
    reads_fractions = True  # boxes of queries, which a stage over anchors does not predict

    @door
    def __init__(
        self,
        *,
        class_cost: ClassCost = "softmax",
        class_weight: NotNegative = 1.0,
        l1_weight: NotNegative = 5.0,
        giou_weight: NotNegative = 2.0,
        alpha: Fraction = 0.25,
        gamma: NotNegative = 2.0,
    ) -> None:
        super().__init__()
        if class_cost not in ("softmax", "focal"):
            raise ValueError(f"HungarianMatcher: class_cost={class_cost!r}; allowed is 'softmax' or 'focal'")
        self.class_cost: ClassCost = class_cost
        self.class_weight, self.l1_weight, self.giou_weight = class_weight, l1_weight, giou_weight
        self.alpha, self.gamma = alpha, gamma

    @door
    @torch.no_grad()
    def forward(
        self, anchors: AnchorBoxes | None, targets: Targets, predictions: Predictions | None = None
    ) -> Assignment:
        """Match the queries of B images with their objects; ``matched`` and ``quality`` are (B, Q).

        Of ``predictions``, boxes (B, Q, 4) are xyxy as fractions of the image, like those of the targets; logits are
        (B, Q, C + 1) with no-object last, or (B, Q, C) for the focal cost. Anchors are not read.
        """
        boxes, logits = read_predictions("HungarianMatcher", predictions, "logits")
        _check_shapes(logits, boxes, targets, self._num_classes(logits))
        boxes = as_boxes(boxes, function="HungarianMatcher")
        if full_checks():
            check_finite(logits, function="HungarianMatcher", name="logits")
        targets = targets._replace(boxes=promote(targets.boxes))
        images, pairs = boxes.shape[0], targets.valid.shape[1] * boxes.shape[1]
        most = pairs_at_once(boxes.device, on_cpu=_PAIRS_AT_ONCE)
        if torch.compiler.is_compiling() or images * pairs <= most:  # the compiler fuses; it must not ask for counts
            return self._match(logits, boxes, targets)
        step = max(1, most // pairs)
        pieces = [slice(first, first + step) for first in range(0, images, step)]
        found = [self._match(logits[piece], boxes[piece], _images(targets, piece), piece.start) for piece in pieces]
        return Assignment(*(torch.cat(values) for values in zip(*found, strict=True)))

    def _match(self, logits: Tensor, boxes: Tensor, targets: Targets, first: int = 0) -> Assignment:
        """The matches of images that are counted from ``first``."""
        costs, overlaps, usable = self._costs(logits, boxes, targets)
        labels, num_classes = targets.labels, self._num_classes(logits)
        matched = torch.ops.detkit.assign(costs, targets.objects, usable, labels, targets.boxes, num_classes, first)
        quality = matched_overlaps(overlaps, matched).float().clamp(max=1)
        matched = ignore_crowds(matched, boxes, targets.boxes, targets.crowds)
        return Assignment(torch.where(usable, matched, IGNORED), quality)

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        weights = f"class_weight={self.class_weight}, l1_weight={self.l1_weight}, giou_weight={self.giou_weight}"
        focal = f", alpha={self.alpha}, gamma={self.gamma}" if self.class_cost == "focal" else ""
        return f"class_cost={self.class_cost!r}, {weights}{focal}"

    def _num_classes(self, logits: Tensor) -> int:
        return logits.shape[-1] - (self.class_cost == "softmax")

    def _costs(
        self, logits: Tensor, boxes: Float[Tensor, "B Q 4"], targets: Targets
    ) -> tuple[Float[Tensor, "B T Q"], Float[Tensor, "B T Q"], Bool[Tensor, "B Q"]]:
        """Cost and IoU of every pair of an image, and which queries may be matched."""
        gain, usable = self._class_gains(promote(logits), targets.labels)
        usable = usable & torch.isfinite(boxes).all(-1)
        queries, truth = boxes.clamp(-_FARTHEST, _FARTHEST), targets.boxes.clamp(-_FARTHEST, _FARTHEST)
        columns, rows = bounded_sides(queries), bounded_sides(truth)
        overlaps, waste = _overlaps(columns.map(lambda x: x[:, None]), rows.map(lambda x: x[..., None]))
        apart = _distances(xyxy_to_cxcywh(queries), xyxy_to_cxcywh(truth))
        costs = apart.mul_(self.l1_weight).sub_(gain, alpha=self.class_weight)
        return costs.sub_(overlaps, alpha=self.giou_weight).add_(waste, alpha=self.giou_weight), overlaps, usable

    def _class_gains(
        self, logits: Float[Tensor, "B Q classes"], labels: Int[Tensor, "B T"]
    ) -> tuple[Float[Tensor, "B T Q"], Bool[Tensor, "B Q"]]:
        """Minus the class cost, of the classes of the image's own objects: T columns instead of C. And usable
        queries."""
        if self.class_cost == "softmax":
            probabilities = logits.softmax(-1)
            return values_of_labels(probabilities, labels), ~torch.isnan(probabilities[..., 0])
        x = values_of_labels(logits, labels).clamp(-_LARGEST_LOGIT, _LARGEST_LOGIT)
        probability, no = x.sigmoid(), F.softplus(x)
        yes = no - x  # minus the log of the probability; ``no`` is minus that of its complement
        gain = (1 - self.alpha) * probability**self.gamma * no - self.alpha * (1 - probability) ** self.gamma * yes
        return gain, torch.isfinite(logits.amax(-1))


def _distances(queries: Float[Tensor, "B Q 4"], truth: Float[Tensor, "B T 4"]) -> Float[Tensor, "B T Q"]:
    """L1 distance of every query to every object."""
    apart = [
        (query.contiguous()[:, None] - column[..., None]).abs_()
        for query, column in zip(queries.unbind(-1), truth.unbind(-1), strict=True)
    ]
    return apart[0].add_(apart[1]).add_(apart[2]).add_(apart[3])


def _overlaps(queries: BoxSides, truth: BoxSides) -> tuple[Tensor, Tensor]:
    """IoU of pairs, and the share of the enclosing box that neither covers: GIoU is the first minus the second.

    In place: with :func:`detkit.boxes.giou` matching 900 queries with 30 objects takes twice as long.
    """
    width = torch.minimum(queries.x2, truth.x2).sub_(torch.maximum(queries.x1, truth.x1))
    height = torch.minimum(queries.y2, truth.y2).sub_(torch.maximum(queries.y1, truth.y1))
    # Along an axis the enclosing side and the shared part, negative for boxes apart, add up to both sides.
    around = ((queries.x2 - queries.x1) + (truth.x2 - truth.x1)).sub_(width).clamp_(min=0)
    around.mul_(((queries.y2 - queries.y1) + (truth.y2 - truth.y1)).sub_(height).clamp_(min=0))
    shared = width.clamp_(min=0).mul_(height.clamp_(min=0))
    union, tiny = (queries.area + truth.area).sub_(shared), smallest_union(shared.dtype)
    waste = (around - union).clamp_(min=0).div_(around.clamp_(min=tiny))
    return shared.div_(union.clamp_(min=tiny)), waste


@torch.library.custom_op("detkit::assign", mutates_args=())
@on_one_thread
def _assign(
    costs: Tensor,
    objects: Tensor,
    usable: Tensor,
    labels: Tensor,
    boxes: Tensor,
    num_classes: int,
    first: int,
) -> Tensor:
    """(B, Q): the object of each query, or NEGATIVE."""
    if costs.is_cuda and _HAS_SOLVER:
        if full_checks():
            _refuse_objects(objects & _wrong(labels, boxes, num_classes), labels, boxes, num_classes, first)
        return solve_on_device(costs, objects & ~_wrong(labels, boxes, num_classes), usable)
    from scipy.optimize import linear_sum_assignment  # half a second to import: only for who assigns

    wrong = objects & _wrong(labels, boxes, num_classes)
    *host, refused = (values.numpy() for values in _read_at_once(costs, objects, usable, wrong))
    if refused.any():
        _refuse_objects(wrong, labels, boxes, num_classes, first)
    matched = np.full(usable.shape, NEGATIVE)
    for taken, table, rows, columns in zip(matched, *host, strict=True):
        rows, columns = rows.nonzero()[0], columns.nonzero()[0]
        table = table[rows]
        best = linear_sum_assignment(table if len(columns) == table.shape[1] else table[:, columns])
        taken[columns[best[1]]] = rows[best[0]]
    return sent(torch.from_numpy(matched), usable.device)


@_assign.register_fake
def _(costs: Tensor, objects: Tensor, usable: Tensor, *rest: object) -> Tensor:
    return torch.empty_like(usable, dtype=torch.int64)


def solve_on_device(
    costs: Float[Tensor, "B T Q"], objects: Bool[Tensor, "B T"], usable: Bool[Tensor, "B Q"]
) -> Int[Tensor, "B Q"]:
    """The object of each query, or NEGATIVE, by torch-linear-assignment: nothing leaves the device.

    It cannot leave out rows or columns. So a pair with padding or with an unusable query costs more than all others
    together, which makes such pairs as few as possible; they are then dropped. Costs are clamped to 1e6 and in double
    precision, so that the expensive pairs don't round them. (The solver itself reads two flags on the host: whether
    costs are numbers, and whether it found a solution.)
    """
    from torch_linear_assignment import batch_linear_assignment  # pyright: ignore[reportMissingImports]

    count, queries = costs.shape[1:]
    pairs = objects[..., None] & usable[:, None]
    dear = 2 * _DEAREST * (min(count, queries) + 1)
    table = torch.where(pairs, costs.double().clamp(-_DEAREST, _DEAREST), dear)
    taken = batch_linear_assignment(table)  # (B, T): a query, or -1 where there are fewer
    taken = torch.where(taken < 0, queries, taken)  # a place behind the last
    taken = torch.where(F.pad(pairs, (0, 1)).gather(2, taken[..., None]).squeeze(2), taken, queries)
    matched = taken.new_full((len(costs), queries + 1), NEGATIVE)
    numbers = torch.arange(count, device=costs.device).expand_as(taken)
    return matched.scatter_(1, taken, numbers)[:, :queries]


def _wrong(labels: Tensor, boxes: Tensor, num_classes: int) -> Bool[Tensor, "B T"]:
    """Objects with a label out of range or an invalid box."""
    strange = (labels < 0) | (labels >= num_classes)
    inverted = (boxes[..., 2:] < boxes[..., :2]).any(-1)
    return strange | ~torch.isfinite(boxes).all(-1) | inverted | (boxes.abs().amax(-1) > _LARGEST_FRACTION)


def _read_at_once(costs: Tensor, *flags: Tensor) -> list[Tensor]:
    """The tensors on the host: from a device in one copy, for which it is waited once."""
    if costs.device.type == "cpu":
        return [costs, *flags]
    numbers = torch.cat([costs.flatten(), *(flag.flatten().to(costs) for flag in flags)]).cpu()
    table, *rest = numbers.split([costs.numel(), *(flag.numel() for flag in flags)])
    return [table.view(costs.shape), *(own.bool().view(flag.shape) for own, flag in zip(rest, flags, strict=True))]


def _refuse_objects(wrong: Tensor, labels: Tensor, boxes: Tensor, num_classes: int, first: int) -> None:
    """Raise ValueError for the first object that is wrong: a label out of range or an invalid box."""
    if not wrong.any():
        return
    (image, target), count = first_bad(wrong)
    where = f"HungarianMatcher: image {image + first}, target {target}"
    also = f"; {count} objects are wrong" if count > 1 else ""
    label, corners = labels[image, target].item(), boxes[image, target]
    if not 0 <= label < num_classes:
        raise ValueError(f"{where}: label {label} must lie in 0..{num_classes - 1}{also}")
    box = [round(side, 4) for side in corners.tolist()]
    if torch.isfinite(corners).all() and not (corners[2:] < corners[:2]).any():
        raise ValueError(f"{where}: box {box} must hold fractions of the image, not pixels{also}")
    raise ValueError(f"{where}: box {box} as fractions must be finite with x1 <= x2 and y1 <= y2{also}")


def _images(targets: Targets, piece: slice) -> Targets:
    return Targets._make(None if values is None else values[piece] for values in targets)


def _check_shapes(logits: Tensor, boxes: Tensor, targets: Targets, num_classes: int) -> None:
    images = targets.valid.shape[0]
    if logits.ndim != 3 or boxes.shape != (*logits.shape[:2], 4) or logits.shape[0] != images:
        raise ValueError(
            f"HungarianMatcher: logits have shape {tuple(logits.shape)}, boxes {tuple(boxes.shape)} and targets "
            f"{images} images; allowed is (B, Q, classes), (B, Q, 4) and B images"
        )
    if num_classes < 1:
        raise ValueError(f"HungarianMatcher: logits have shape {tuple(logits.shape)}, which leaves no class")
    check_rows("HungarianMatcher", targets)
