"""Training targets of a sequence stage: ordered objects, then noise, as input tokens and target tokens."""

import math
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from detkit._door import door
from detkit._inputs import first_bad, full_checks, promote
from detkit._noise import uniform_like
from detkit._ranges import Count, NotNegative
from detkit._sent import numbers_like
from detkit.anchors import gather_assigned
from detkit.anchors.matcher import check_rows
from detkit.boxes import clip_boxes_to_image, cxcywh_to_xyxy
from detkit.boxes.tokens import TOKENS_PER_BOX, TokenCoder
from detkit.structures import NEGATIVE, Assignment, Targets, take_rows

Order = Literal["random", "area", "dist2ori"]
JITTER, JITTER_LIMIT = 0.05, 0.1
"""Standard deviation and limit of the shift of a duplicate's corners, as fractions of its width and height."""
RANDOM_SIDE, LARGEST_SIDE = 0.5, 1.0
"""Standard deviation and limit of the sides of random boxes, as fractions of the sides of the image."""


class SequenceTargets(NamedTuple):
    """For every step: the input token, the target token, and its weight in the mean."""

    inputs: Int[Tensor, "B L"]
    tokens: Int[Tensor, "B L"]
    weights: Float[Tensor, "B L"]


class NoiseBoxes(NamedTuple):
    """Boxes that are not objects, and which of them are jittered copies of an object."""

    boxes: Float[Tensor, "B N 4"]
    duplicate: Bool[Tensor, "B N"]


class SequenceTargetBuilder(nn.Module):
    """Turns padded targets into the input and target sequences of Pix2Seq, a whole batch at once.

    The first ``max_objects`` objects of an image in ``order`` (see :func:`object_order`) are encoded by ``coder``. With
    ``noise``, noise boxes (:func:`noise_boxes`) fill the rest: their coordinates weigh 0, and their class, the noise
    token, weighs ``noise_weight``; and every *input* class is with equal probability a random class or the noise token,
    for real objects too, so that none can be copied. Without noise, ``end`` tokens of weight ``end_weight`` fill the
    rest. Tokens of objects weigh as they do, 1 by default, their classes ``class_weight`` times that: a larger one
    helps without a pretrained trunk. Crowd regions, boxes without area, NaN and infinite ones are left out. Sequences
    have L = 5 * max_objects steps. Raises ValueError for another order, no objects, negative weights; and, naming image
    and target, for an object whose label is no class (on accelerators, where it is left out, with
    ``DETKIT_CHECKS=full``). Source: Chen et al. 2022, "Pix2seq", sections 2.1 to 2.3, with the weights of the release.

    >>> from detkit.structures import pad_targets
    >>> targets = pad_targets([{"boxes": torch.tensor([[0.0, 0, 5, 10]]), "labels": torch.tensor([1])}])
    >>> build = SequenceTargetBuilder(TokenCoder(2, bins=11, vocabulary="paper"), max_objects=2, noise=False)
    >>> found = build(targets, torch.tensor([[10, 10]]))
    >>> found.inputs.tolist(), found.tokens.tolist()
    ([[15, 1, 1, 11, 6, 13, 0, 0, 0, 0]], [[1, 1, 11, 6, 13, 0, 0, 0, 0, 0]])
    """

    @door
    def __init__(
        self,
        coder: TokenCoder,
        *,
        max_objects: Count = 100,
        order: Order = "random",
        noise: bool = True,
        noise_weight: NotNegative = 1.0,
        end_weight: NotNegative = 0.1,
        class_weight: NotNegative = 1.0,
    ) -> None:
        super().__init__()
        _check_order(order, "SequenceTargetBuilder")
        self.coder, self.max_objects, self.noise = coder, max_objects, noise
        self.order: Order = order
        self.noise_weight, self.end_weight, self.class_weight = noise_weight, end_weight, class_weight

    @door
    @torch.no_grad()
    def forward(
        self, targets: Targets, sizes: Shaped[Tensor, "B 2"], *, generator: torch.Generator | None = None
    ) -> SequenceTargets:
        """Sequences (B, L) for ``targets`` of images of ``sizes`` (height, width).

        Rows that are not valid only change which numbers ``generator`` draws, if it is given. Under fullgraph
        compilation ``generator`` must be None.
        """
        check_rows("SequenceTargetBuilder", targets)
        valid = targets.objects & _has_area(targets.boxes) & self._known(targets)
        chosen = object_order(targets.boxes, valid, order=self.order, generator=generator)
        chosen = _exactly(chosen, self.max_objects)
        real = torch.arange(self.max_objects, device=valid.device) < valid.sum(1, keepdim=True)
        targets = targets._replace(boxes=promote(targets.boxes))
        matched = torch.where(real, chosen, NEGATIVE)
        assignment = Assignment(matched, torch.zeros_like(matched, dtype=targets.boxes.dtype))
        labels, boxes, weights = gather_assigned(assignment, targets)[:3]
        if self.noise:
            boxes = torch.where(real[..., None], boxes, noise_boxes(boxes, real, sizes, generator=generator).boxes)
        tokens = self.coder.encode(boxes, labels, sizes, valid=None if self.noise else real)
        read = self._disguised(tokens, generator) if self.noise else tokens
        return self._sequences(read, tokens, real, weights)

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        names = ("max_objects", "order", "noise", "noise_weight", "end_weight", "class_weight")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)

    def _known(self, targets: Targets) -> Bool[Tensor, "B T"]:
        """Rows whose label is a class; raises for an object without one, on a CPU or with ``DETKIT_CHECKS=full``."""
        labels = targets.labels
        known = (labels >= 0) & (labels < self.coder.num_classes)
        bad = targets.objects & ~known
        looked_at = not torch.compiler.is_compiling() and (labels.device.type == "cpu" or full_checks())
        if looked_at and bad.any():
            (image, target), count = first_bad(bad)
            also = f"; {count} objects are wrong" if count > 1 else ""
            raise ValueError(
                f"SequenceTargetBuilder: image {image}, target {target}: label {labels[image, target].item()} must lie "
                f"in 0..{self.coder.num_classes - 1}{also}"
            )
        return known

    def _disguised(self, tokens: Tensor, generator: torch.Generator | None) -> Tensor:
        """``tokens`` (B, N, 5) with each class replaced by a random class or the noise token."""
        lots = uniform_like(tokens[..., :2].float(), generator)
        classes = (lots[..., 0] * self.coder.num_classes).long().clamp(max=self.coder.num_classes - 1)
        read = torch.where(lots[..., 1] < 0.5, classes + self.coder.first_class, self.coder.noise)
        return torch.cat((tokens[..., :4], read[..., None]), dim=-1)

    def _sequences(self, read: Tensor, tokens: Tensor, real: Tensor, weights: Tensor) -> SequenceTargets:
        start = torch.full_like(read[:, :1, 0], self.coder.start)
        inputs = torch.cat((start, read.flatten(1)[:, :-1]), dim=1)
        behind = [0.0] * 4 + [self.noise_weight] if self.noise else [self.end_weight] * TOKENS_PER_BOX
        own, others = (numbers_like(row, weights) for row in ([1.0] * 4 + [self.class_weight], behind))
        weights = torch.where(real[..., None], weights[..., None] * own, others)
        return SequenceTargets(inputs, tokens.flatten(1), weights.flatten(1))


@torch.no_grad()
def object_order(
    boxes: Float[Tensor, "B T 4"],
    valid: Bool[Tensor, "B T"],
    *,
    order: Order = "random",
    generator: torch.Generator | None = None,
) -> Int[Tensor, "B T"]:
    """The order of the objects of each image in its sequence: indices (B, T), valid ones first.

    boxes are xyxy in pixels. ``"random"`` draws a new order at each call; ``"area"`` sorts from largest to smallest;
    ``"dist2ori"`` sorts by the distance in pixels from the upper left corner of the image to that of the box. Ties keep
    their order; NaN comes last among the valid. Raises ValueError for another order.
    Source: Chen et al. 2022, "Pix2seq", section 2.1 and appendix.

    >>> boxes = torch.tensor([[[8.0, 0, 9, 9], [1, 1, 3, 3], [0, 4, 9, 9]]])
    >>> valid = torch.tensor([[True, True, True]])
    >>> object_order(boxes, valid, order="area"), object_order(boxes, valid, order="dist2ori")
    (tensor([[2, 0, 1]]), tensor([[1, 2, 0]]))
    """
    _check_order(order, "object_order")
    boxes = promote(boxes)
    if order == "random":
        keys = uniform_like(boxes[..., 0], generator)
    elif order == "area":
        keys = -(boxes[..., 2:] - boxes[..., :2]).prod(-1)
    else:
        keys = torch.hypot(boxes[..., 0], boxes[..., 1])
    last = torch.finfo(keys.dtype).max
    keys = torch.where(valid, keys.nan_to_num(nan=last), torch.inf)
    return keys.sort(dim=1, stable=True).indices


@torch.no_grad()
def noise_boxes(
    boxes: Float[Tensor, "B N 4"],
    real: Bool[Tensor, "B N"],
    sizes: Shaped[Tensor, "B 2"],
    *,
    generator: torch.Generator | None = None,
) -> NoiseBoxes:
    """One noise box per row, clipped to images of ``sizes``, to fill the rows where no object is ``real``.

    ``real`` rows come first in each image. Of the others, a uniform number from 0 to n (the number of
    objects) are duplicates: objects with corners shifted by normal noise of .05 of their sides, at most .1. The rest
    are bad boxes: with equal probability a randomly moved object or a box of random size; without objects, always the
    latter. Objects to copy are drawn with replacement, whereas the release tiles and shuffles them.

    >>> boxes, real = torch.tensor([[[2.0, 2, 8, 8]] + [[0.0] * 4] * 3]), torch.tensor([[True, False, False, False]])
    >>> found = noise_boxes(boxes, real, torch.tensor([[10, 10]]))
    >>> found.boxes.shape, bool(found.duplicate.sum() <= 1)
    (torch.Size([1, 4, 4]), True)
    """
    lots = uniform_like(boxes.new_zeros(*real.shape, 12), generator)
    counts = real.sum(1, keepdim=True)
    limits = torch.cat((sizes, sizes), dim=-1).flip(-1).to(boxes)[:, None]
    source = (lots[..., 0] * counts).long().clamp(max=real.shape[1] - 1)  # objects come first
    source = take_rows(boxes, source)
    sides = source[..., 2:] - source[..., :2]
    duplicate = _chosen_duplicates(lots[..., 1], lots[:, :1, 2], real)
    jitter = _truncated_normal(lots[..., 4:8], JITTER, JITTER_LIMIT)
    centers = lots[..., 8:10] * limits[..., :2]
    random_sides = _truncated_normal(lots[..., 10:12], RANDOM_SIDE, LARGEST_SIDE).abs() * limits[..., :2]
    moved = (lots[..., 3:4] < 0.5) & (counts > 0)[..., None]
    bad = cxcywh_to_xyxy(torch.cat((centers, torch.where(moved, sides, random_sides)), dim=-1))
    jittered = source + jitter * torch.cat((sides, sides), dim=-1)
    return NoiseBoxes(clip_boxes_to_image(torch.where(duplicate[..., None], jittered, bad), sizes), duplicate)


def _chosen_duplicates(lots: Tensor, share: Tensor, real: Tensor) -> Tensor:
    """True for 0..n rows that are not real, where n rows are real; the number and the rows are random."""
    objects = real.sum(1, keepdim=True)
    count = (share * (objects + 1)).long().minimum(objects)
    rank = torch.where(real, 2.0, lots).argsort(dim=1).argsort(dim=1)
    return (rank < count) & ~real


def _truncated_normal(lots: Tensor, deviation: float, limit: float) -> Tensor:
    """Normal noise truncated to ``limit``, from uniform ``lots`` by inverse transform sampling."""
    tail = 0.5 * math.erfc(limit / deviation / math.sqrt(2))
    return (torch.special.ndtri(tail + lots * (1 - 2 * tail)) * deviation).clamp(-limit, limit)


def _has_area(boxes: Tensor) -> Tensor:
    boxes = promote(boxes)
    return (boxes[..., 2:] > boxes[..., :2]).all(-1) & torch.isfinite(boxes).all(-1)


def _exactly(rows: Tensor, count: int) -> Tensor:
    """``rows`` (B, T), cut to (B, count) or padded to it with the index of its first row."""
    short = max(count - rows.shape[1], 0)
    return torch.cat((rows[:, :count], rows[:, :1].expand(-1, short)), dim=1)


def _check_order(order: str, function: str) -> None:
    if order not in ("random", "area", "dist2ori"):
        raise ValueError(f"{function}: order={order!r}; allowed is 'random', 'area' or 'dist2ori'")
