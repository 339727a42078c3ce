"""What a sequence stage learns: objects in an order, noise behind them, as tokens to read and tokens to say."""

import math
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from detkit._inputs import check_not_negative, first_bad, full_checks, promote
from detkit._noise import uniform_like
from detkit.anchors import gather_assigned
from detkit.anchors.matcher import check_rows
from detkit.boxes import clip_boxes_to_image, cxcywh_to_xyxy
from detkit.boxes.tokens import TOKENS_PER_BOX, TokenCoder
from detkit.structures import NEGATIVE, Assignment, Targets, take_rows

Order = Literal["random", "area", "dist2ori"]
JITTER, JITTER_LIMIT = 0.05, 0.1
"""Standard deviation of a duplicate's corners, in its width and height, and how far they may go."""
RANDOM_SIDE, LARGEST_SIDE = 0.5, 1.0
"""The same for the sides of random boxes, in those of the image."""


class SequenceTargets(NamedTuple):
    """For every step: the token read, the one to say next, its weight in the mean, and by what its cost scales."""

    inputs: Int[Tensor, "B L"]
    tokens: Int[Tensor, "B L"]
    weights: Float[Tensor, "B L"]
    scales: Float[Tensor, "B L"]


class NoiseBoxes(NamedTuple):
    """Boxes that are no objects, and which of them are jittered copies of one."""

    boxes: Float[Tensor, "B N 4"]
    duplicate: Bool[Tensor, "B N"]


class SequenceTargetBuilder(nn.Module):
    """Turns padded targets into the input and target sequences of Pix2Seq, a whole batch at once.

    The first ``max_objects`` objects of an image in ``order`` (see :func:`object_order`) are written by ``coder``. With
    ``noise`` the rest is filled with noise (:func:`noise_boxes`): their coordinates weigh 0, their class, which is the
    noise token, ``noise_weight``; and every class that is *read* is at even odds a random one or the noise token, also
    for real objects, so that none can be copied. Without, the rest is ``end`` tokens that weigh ``end_weight``. Tokens
    of objects weigh 1, their classes ``class_weight``: more helps where no pretrained trunk tells classes apart.
    Crowd regions, boxes without area, NaN and infinite ones are left out. Sequences have L = 5 * max_objects steps.
    Raises ValueError for another order, no objects, negative weights; and, naming image and target, for an object whose
    label is no class (on accelerators, where it is left out, with ``DETKIT_CHECKS=full``).
    Source: Chen et al. 2022, "Pix2seq", sections 2.1 to 2.3, with the weights of the release.

    >>> from detkit.structures import pad_targets
    >>> targets = pad_targets([{"boxes": torch.tensor([[0.0, 0, 5, 10]]), "labels": torch.tensor([1])}])
    >>> build = SequenceTargetBuilder(TokenCoder(2, bins=11, vocabulary="paper"), max_objects=2, noise=False)
    >>> found = build(targets, torch.tensor([[10, 10]]))
    >>> found.inputs.tolist(), found.tokens.tolist()
    ([[15, 1, 1, 11, 6, 13, 0, 0, 0, 0]], [[1, 1, 11, 6, 13, 0, 0, 0, 0, 0]])
    """

    def __init__(
        self,
        coder: TokenCoder,
        *,
        max_objects: int = 100,
        order: Order = "random",
        noise: bool = True,
        noise_weight: float = 1.0,
        end_weight: float = 0.1,
        class_weight: float = 1.0,
    ) -> None:
        super().__init__()
        _check_order(order, "SequenceTargetBuilder")
        if max_objects < 1:
            raise ValueError(f"SequenceTargetBuilder: max_objects={max_objects} must be at least 1")
        check_not_negative(
            "SequenceTargetBuilder", noise_weight=noise_weight, end_weight=end_weight, class_weight=class_weight
        )
        self.coder, self.max_objects, self.noise = coder, max_objects, noise
        self.order: Order = order
        self.noise_weight, self.end_weight, self.class_weight = noise_weight, end_weight, class_weight

    @torch.no_grad()
    def forward(
        self, targets: Targets, sizes: Shaped[Tensor, "B 2"], *, generator: torch.Generator | None = None
    ) -> SequenceTargets:
        """Sequences (B, L) for ``targets`` of images of ``sizes`` (height, width).

        Rows that are not valid change nothing but, with ``generator``, which numbers it draws. Under fullgraph
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
        labels, boxes, scales, _ = gather_assigned(assignment, targets)
        if self.noise:
            boxes = torch.where(real[..., None], boxes, noise_boxes(boxes, real, sizes, generator=generator).boxes)
        tokens = self.coder.encode(boxes, labels, sizes, valid=None if self.noise else real)
        read = self._disguised(tokens, generator) if self.noise else tokens
        return self._sequences(read, tokens, real, scales)

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        names = ("max_objects", "order", "noise", "noise_weight", "end_weight", "class_weight")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)

    def _known(self, targets: Targets) -> Bool[Tensor, "B T"]:
        """Rows whose label is a class; an object of none is named: on a CPU, elsewhere with ``DETKIT_CHECKS=full``."""
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
        """``tokens`` (B, N, 5) with each class a random one, or the noise token."""
        lots = uniform_like(tokens[..., :2].float(), generator)
        classes = (lots[..., 0] * self.coder.num_classes).long().clamp(max=self.coder.num_classes - 1)
        read = torch.where(lots[..., 1] < 0.5, classes + self.coder.first_class, self.coder.noise)
        return torch.cat((tokens[..., :4], read[..., None]), dim=-1)

    def _sequences(self, read: Tensor, tokens: Tensor, real: Tensor, scales: Tensor) -> SequenceTargets:
        start = torch.full_like(read[:, :1, 0], self.coder.start)
        inputs = torch.cat((start, read.flatten(1)[:, :-1]), dim=1)
        behind = [0.0] * 4 + [self.noise_weight] if self.noise else [self.end_weight] * TOKENS_PER_BOX
        rows = [torch.tensor(row, device=real.device) for row in ([1.0] * 4 + [self.class_weight], behind)]
        weights = torch.where(real[..., None], *rows).flatten(1)
        return SequenceTargets(inputs, tokens.flatten(1), weights, scales.repeat_interleave(TOKENS_PER_BOX, dim=1))


@torch.no_grad()
def object_order(
    boxes: Float[Tensor, "B T 4"],
    valid: Bool[Tensor, "B T"],
    *,
    order: Order = "random",
    generator: torch.Generator | None = None,
) -> Int[Tensor, "B T"]:
    """In which order the objects of each image are said: indices (B, T), the valid first.

    boxes xyxy in pixels. ``"random"`` is a new one at each call; ``"area"`` from the largest down; ``"dist2ori"`` by
    the distance in pixels of the upper left corner from that of the image. Ties keep their order; NaN comes last of
    the valid. Raises ValueError for another order. Source: Chen et al. 2022, "Pix2seq", section 2.1 and appendix.

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
    """As many boxes as there are rows, clipped to images of ``sizes``, to stand where no object is ``real``.

    ``real`` rows come first in each image. Of the others, 0 to n (the number of objects, evenly) are
    duplicates: an object whose corners are shifted by a normal deviate of .05 of its sides, at most .1. The rest are
    bad boxes: at even odds an object moved anywhere, or a box of random size; without objects, the latter. Objects to
    copy are drawn with replacement, where the release tiles and shuffles them.

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
    """True for 0..n of the rows that are not real, n the number that are; both by lot."""
    objects = real.sum(1, keepdim=True)
    count = (share * (objects + 1)).long().minimum(objects)
    rank = torch.where(real, 2.0, lots).argsort(dim=1).argsort(dim=1)
    return (rank < count) & ~real


def _truncated_normal(lots: Tensor, deviation: float, limit: float) -> Tensor:
    """Normal deviates that lie within ``limit``, made of uniform ``lots`` by the inverse of their distribution."""
    tail = 0.5 * math.erfc(limit / deviation / math.sqrt(2))
    return (torch.special.ndtri(tail + lots * (1 - 2 * tail)) * deviation).clamp(-limit, limit)


def _has_area(boxes: Tensor) -> Tensor:
    boxes = promote(boxes)
    return (boxes[..., 2:] > boxes[..., :2]).all(-1) & torch.isfinite(boxes).all(-1)


def _exactly(rows: Tensor, count: int) -> Tensor:
    """``rows`` (B, T) cut or padded with its first row's index to (B, count)."""
    short = max(count - rows.shape[1], 0)
    return torch.cat((rows[:, :count], rows[:, :1].expand(-1, short)), dim=1)


def _check_order(order: str, function: str) -> None:
    if order not in ("random", "area", "dist2ori"):
        raise ValueError(f"{function}: order={order!r}; allowed is 'random', 'area' or 'dist2ori'")
