"""What flows between parts: dicts at the border, padded NamedTuples inside.

One legend for every shape in the library: B images, T padded targets of an image, N anchors or candidates, K padded
detections, C classes (background never counted), H x W pixels, P keypoints, L feature levels, D channels.
Boxes are xyxy in absolute continuous pixels, labels 0..C-1, sizes (height, width), points (x, y).
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple, NotRequired, TypedDict

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torch.nn import functional as F

NEGATIVE = -1
"""In an :class:`Assignment`: this anchor belongs to no object, and learns to say so."""
IGNORED = -2
"""In an :class:`Assignment`: this anchor takes no part in the loss."""


class Target(TypedDict):
    """Truth of one image, as torchvision's detection models take it; only boxes and labels are required.

    boxes (T, 4) xyxy pixels; labels (T,) int64 in 0..C-1; masks (T, H, W); keypoints (T, P, 3) as x, y, visibility;
    iscrowd (T,): nonzero marks a region in which nothing is learned or judged; weights (T,) scale each object's loss.
    """

    boxes: Tensor
    labels: Tensor
    masks: NotRequired[Tensor]
    keypoints: NotRequired[Tensor]
    iscrowd: NotRequired[Tensor]
    area: NotRequired[Tensor]
    weights: NotRequired[Tensor]
    image_id: NotRequired[int]


class Detection(TypedDict):
    """What a detector found in one image, best first: boxes (K, 4) xyxy pixels, scores (K,), labels (K,)."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: NotRequired[Tensor]
    keypoints: NotRequired[Tensor]
    keypoints_scores: NotRequired[Tensor]


class Images(NamedTuple):
    """A padded batch. ``sizes`` is where each image ends in its padded frame, ``original_sizes`` what came in."""

    tensors: Float[Tensor, "B D H W"]
    sizes: Shaped[Tensor, "B 2"]
    original_sizes: Shaped[Tensor, "B 2"] | None = None


class Targets(NamedTuple):
    """Truth of a padded batch. Rows with ``valid`` False are padding; rows with ``ignore`` True are crowd regions."""

    boxes: Float[Tensor, "B T 4"]
    labels: Int[Tensor, "B T"]
    valid: Bool[Tensor, "B T"]
    ignore: Bool[Tensor, "B T"]
    weights: Float[Tensor, "B T"] | None = None
    masks: Shaped[Tensor, "B T H W"] | None = None
    keypoints: Float[Tensor, "B T P 3"] | None = None
    segmentation: Shaped[Tensor, "B H W"] | None = None
    image_labels: Shaped[Tensor, "B ..."] | None = None

    @property
    def objects(self) -> Bool[Tensor, "B T"]:
        """Rows that are objects: neither padding nor crowds.

        >>> yes, no = torch.tensor([[True, True, False]]), torch.tensor([[False, True, False]])
        >>> targets = Targets(torch.zeros(1, 3, 4), torch.zeros(1, 3).long(), valid=yes, ignore=no)
        >>> targets.objects, targets.crowds
        (tensor([[ True, False, False]]), tensor([[False,  True, False]]))
        """
        return self.valid & ~self.ignore

    @property
    def crowds(self) -> Bool[Tensor, "B T"]:
        """Rows that are crowd regions and no padding."""
        return self.valid & self.ignore


class Detections(NamedTuple):
    """Boxes of a padded batch, best first. ``matched`` is set in training: the target each box was assigned."""

    boxes: Float[Tensor, "B K 4"]
    scores: Float[Tensor, "B K"]
    labels: Int[Tensor, "B K"]
    valid: Bool[Tensor, "B K"]
    matched: Int[Tensor, "B K"] | None = None
    class_scores: Float[Tensor, "B K C"] | None = None
    masks: Shaped[Tensor, "B K ..."] | None = None
    keypoints: Float[Tensor, "B K P 3"] | None = None
    keypoint_scores: Float[Tensor, "B K P"] | None = None
    embeddings: Float[Tensor, "B K D"] | None = None
    segmentation: Shaped[Tensor, "B ..."] | None = None
    image_scores: Float[Tensor, "B ..."] | None = None

    @staticmethod
    def padded(
        boxes: Float[Tensor, "B K 4"],
        scores: Float[Tensor, "B K"],
        labels: Int[Tensor, "B K"],
        valid: Bool[Tensor, "B K"],
    ) -> "Detections":
        """Detections whose rows that are not ``valid`` hold zeros.

        >>> boxes, rows = torch.ones(1, 2, 4), torch.ones(1, 2)
        >>> Detections.padded(boxes, rows, rows.long(), torch.tensor([[True, False]])).scores
        tensor([[1., 0.]])
        """
        boxes = torch.where(valid[..., None], boxes, 0)
        return Detections(boxes, torch.where(valid, scores, 0), torch.where(valid, labels, 0), valid)


class Anchors(NamedTuple):
    """Where a detector looks, the same in all images: boxes in pixels, level after level.

    ``strides`` are the width and height of the cell that each stands in, ``counts`` the number of anchors of each
    level: together N. What takes Anchors takes plain boxes, too: see :meth:`of`.
    """

    boxes: Float[Tensor, "N 4"]
    strides: Float[Tensor, "N 2"]
    counts: Sequence[Any]

    @staticmethod
    def of(boxes: "Anchors | Shaped[Tensor, '*B N 4']") -> "Anchors":
        """Anchors as they are; plain boxes as those of one level, each in a cell of its own size.

        >>> Anchors.of(torch.tensor([[0.0, 0, 8, 4]]))
        Anchors(boxes=tensor([[0., 0., 8., 4.]]), strides=tensor([[8., 4.]]), counts=(1,))
        """
        if isinstance(boxes, Anchors):
            return boxes
        return Anchors(boxes, boxes[..., 2:] - boxes[..., :2], (boxes.shape[-2],))


class DensePredictions(NamedTuple):
    """What a dense head says of every anchor: class logits, numbers that a coder reads as a box, and perhaps one more.

    ``quality`` is one logit for each anchor: objectness, centerness or IoU, as the criterion takes it.
    """

    logits: Float[Tensor, "B N Q"]
    deltas: Float[Tensor, "B N D"]
    quality: Float[Tensor, "B N"] | None = None


class Predictions(NamedTuple):
    """What matchers that look at predictions look at, detached: boxes, and scores or logits of every anchor or query.

    Boxes are xyxy, in the unit of the targets. ``scores`` lie in [0, 1]; ``logits`` are as the network gave them.
    """

    boxes: Float[Tensor, "B N 4"]
    scores: Float[Tensor, "B N C"] | None = None
    logits: Float[Tensor, "B N Q"] | None = None


class Assignment(NamedTuple):
    """Which target each anchor learns: its index in the image, NEGATIVE or IGNORED; and how good the match is."""

    matched: Int[Tensor, "B N"]
    quality: Float[Tensor, "B N"]


def take_rows(values: Shaped[Tensor, "B N ..."], rows: Int[Tensor, "B K"]) -> Shaped[Tensor, "B K ..."]:
    """The rows (B, K, ...) of ``values`` (B, N, ...) that the indices ``rows`` (B, K) name, image by image.

    >>> take_rows(torch.tensor([[[1.0, 2], [3, 4]]]), torch.tensor([[1, 1, 0]]))
    tensor([[[3., 4.],
             [3., 4.],
             [1., 2.]]])
    """
    return values.gather(
        1, rows.reshape(*rows.shape, *(1 for _ in values.shape[2:])).expand(*rows.shape, *values.shape[2:])
    )


def batch_images(images: Sequence[Float[Tensor, "D _ _"]], *, multiple_of: int = 1) -> Images:
    """Stack images of different sizes into one batch, zero-padded at the right and at the bottom.

    images: B tensors (D, H, W) with one D. ``multiple_of`` rounds height and width up, for trunks that halve often.
    Raises ValueError for an empty list, differing channel counts, or an image without pixels.

    >>> batch = batch_images([torch.ones(3, 4, 6), torch.ones(3, 5, 2)], multiple_of=4)
    >>> batch.tensors.shape, batch.sizes.tolist()
    (torch.Size([2, 3, 8, 8]), [[4, 6], [5, 2]])
    """
    if not images:
        raise ValueError("batch_images: got no images; a batch needs at least one")
    for i, image in enumerate(images):
        if image.ndim != 3 or image.numel() == 0 or image.shape[0] != images[0].shape[0]:
            raise ValueError(
                f"batch_images: images[{i}] has shape {tuple(image.shape)}; allowed is (channels, height, width) "
                f"with at least one pixel and {images[0].shape[0]} channels as images[0]"
            )
    height, width = (-(-max(image.shape[d] for image in images) // multiple_of) * multiple_of for d in (1, 2))
    padded = [F.pad(image, (0, width - image.shape[2], 0, height - image.shape[1])) for image in images]
    sizes = torch.tensor([image.shape[1:] for image in images], device=images[0].device)
    return Images(torch.stack(padded), sizes, sizes)


def pad_targets(targets: Sequence[Target], *, device: torch.device | None = None) -> Targets:
    """Pad the targets of B images to one length T, the next power of two, so that compiled code sees few shapes.

    T is at least 1. Optional entries (masks, keypoints, weights) are padded where any image has them: a missing
    weight is 1; masks and keypoints must then be present in every image that has objects. Masks of one batch are
    padded to the largest height and width. Raises ValueError for an empty list, and where boxes disagree in number with
    labels or another entry, naming the image.

    >>> padded = pad_targets([{"boxes": torch.ones(3, 4), "labels": torch.tensor([0, 1, 1])},
    ...                       {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}])
    >>> padded.boxes.shape, padded.valid.sum(1).tolist()
    (torch.Size([2, 4, 4]), [3, 0])
    """
    if not targets:
        raise ValueError("pad_targets: got no targets; a batch needs those of at least one image")
    boxes = [_target_boxes(i, target) for i, target in enumerate(targets)]
    length = 1 << (max((len(rows) for rows in boxes), default=1) - 1).bit_length() if any(map(len, boxes)) else 1
    counts = torch.tensor([len(rows) for rows in boxes])
    valid = torch.arange(length) < counts[:, None]
    crowds = _pad_optional(targets, "iscrowd", length, boxes, default=0.0)
    padded = Targets(
        boxes=_pad_rows(boxes, length),
        labels=_pad_rows([target["labels"].to(torch.int64).reshape(-1) for target in targets], length),
        valid=valid.to(boxes[0].device),
        ignore=torch.zeros_like(valid).to(boxes[0].device) if crowds is None else crowds.to(torch.bool),
        weights=_pad_optional(targets, "weights", length, boxes, default=1.0),
        masks=_pad_optional(targets, "masks", length, boxes),
        keypoints=_pad_optional(targets, "keypoints", length, boxes),
    )
    return Targets._make(None if rows is None else rows.to(device) for rows in padded)


def collate(batch: Sequence[tuple[Any, Any]]) -> tuple[list[Any], list[Any]]:
    """Turn (image, target) pairs into a list of images and a list of targets; nothing is stacked or padded.

    Hand it to a DataLoader as ``collate_fn``: images of a detection batch differ in size until they are preprocessed.

    >>> collate([("a.png", {"labels": 1}), ("b.png", {"labels": 2})])
    (['a.png', 'b.png'], [{'labels': 1}, {'labels': 2}])
    """
    return [image for image, _ in batch], [target for _, target in batch]


def _target_boxes(image: int, target: Target) -> Tensor:
    boxes = torch.as_tensor(target["boxes"]).as_subclass(Tensor)
    boxes = boxes.reshape(-1, 4) if boxes.numel() == 0 else boxes
    if boxes.ndim != 2 or boxes.shape[1] != 4 or len(boxes) != target["labels"].numel():
        raise ValueError(
            f"targets[{image}]: boxes have shape {tuple(boxes.shape)} and labels {tuple(target['labels'].shape)}; "
            "allowed is boxes (T, 4) with labels (T,)"
        )
    return boxes if boxes.dtype == torch.float64 else boxes.to(torch.float32)


def _pad_rows(rows: Sequence[Tensor], length: int, fill: float = 0) -> Tensor:
    """(T_i, *S_i) each, to one (B, length, *max S)."""
    shape = [max(sizes) for sizes in zip(*(row.shape[1:] for row in rows), strict=True)]
    dtype = functools.reduce(torch.promote_types, (row.dtype for row in rows))
    padded = rows[0].new_full((len(rows), length, *shape), fill, dtype=dtype)
    for image, row in zip(padded, rows, strict=True):
        image[tuple(slice(size) for size in row.shape)] = row
    return padded


def _pad_optional(
    targets: Sequence[Target], key: str, length: int, boxes: Sequence[Tensor], default: float | None = None
) -> Tensor | None:
    present = [torch.as_tensor(target[key]).as_subclass(Tensor) for target in targets if key in target]
    if not present:
        return None
    template = max(present, key=lambda rows: rows.ndim)  # an empty list says nothing of the shape
    rows = []
    for i, target in enumerate(targets):
        own = torch.as_tensor(target.get(key, template[:0])).as_subclass(Tensor)
        if key in target and len(own) == len(boxes[i]) and own.ndim == template.ndim:
            rows.append(own)
        elif len(boxes[i]) == 0 or (key not in target and default is not None):
            rows.append(template.new_full((len(boxes[i]), *(0 for _ in template.shape[1:])), default or 0))
        else:
            found = len(target[key]) if key in target else "no"
            raise ValueError(f"targets[{i}]: {len(boxes[i])} boxes but {found} {key}; each box needs its own")
    return _pad_rows(rows, length)
