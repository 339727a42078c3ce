"""What flows between the parts of a detector: padded batches, as NamedTuples of tensors."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from detkit._door import door
from detkit._inputs import as_tensor

NEGATIVE = -1
"""In an :class:`Assignment`: this anchor belongs to no object, and learns to say so."""
IGNORED = -2
"""In an :class:`Assignment`: this anchor takes no part in the loss."""
GRAY = -3
"""In an :class:`Assignment`: this anchor is neither object nor background, and learns to say so; few losses know it."""


class Images(NamedTuple):
    """A padded batch. ``sizes`` is where each image ends in its padded frame, ``original_sizes`` what came in.

    ``offsets`` (top, left) is where each image begins, None at (0, 0): see ``letterbox`` of
    :class:`~detkit.detectors.Preprocess`.
    """

    tensors: Float[Tensor, "B D H W"]
    sizes: Shaped[Tensor, "B 2"]
    original_sizes: Shaped[Tensor, "B 2"] | None = None
    offsets: Shaped[Tensor, "B 2"] | None = None


class Targets(NamedTuple):
    """Ground truth of a padded batch. Rows with ``valid`` False are padding, those with ``ignore`` True crowd regions.

    The others are the entries of :class:`Target`, padded as :data:`FIELDS` says. An object of weight 0 is treated as if
    it were padding.
    """

    boxes: Float[Tensor, "B T 4"]
    labels: Int[Tensor, "B T"]
    valid: Bool[Tensor, "B T"]
    ignore: Bool[Tensor, "B T"]
    weights: Float[Tensor, "B T"] | None = None
    masks: Shaped[Tensor, "B T H W"] | None = None
    keypoints: Float[Tensor, "B T P 3"] | None = None
    identities: Int[Tensor, "B T"] | None = None
    label_sets: Shaped[Tensor, "B T C"] | None = None
    segmentation: Int[Tensor, "B H W"] | None = None
    image_labels: Shaped[Tensor, "B ..."] | None = None

    @property
    def present(self) -> Bool[Tensor, "B T"]:
        """Rows that training sees: objects of a weight other than 0, and crowds of any weight.

        >>> yes, no = torch.tensor([[True, True, False]]), torch.tensor([[False, True, False]])
        >>> targets = Targets(torch.zeros(1, 3, 4), torch.zeros(1, 3).long(), valid=yes, ignore=no)
        >>> targets.present, targets._replace(weights=torch.zeros(1, 3)).present
        (tensor([[ True,  True, False]]), tensor([[False,  True, False]]))
        """
        if self.weights is None:
            return self.valid
        return self.valid & (self.ignore | (self.weights != 0))  # NaN is not 0, and is refused where it is read

    @property
    def objects(self) -> Bool[Tensor, "B T"]:
        """Rows that are objects to learn: neither padding nor crowds nor of weight 0.

        >>> yes, no = torch.tensor([[True, True, False]]), torch.tensor([[False, True, False]])
        >>> targets = Targets(torch.zeros(1, 3, 4), torch.zeros(1, 3).long(), valid=yes, ignore=no)
        >>> targets.objects, targets.crowds
        (tensor([[ True, False, False]]), tensor([[False,  True, False]]))
        """
        return self.present & ~self.ignore

    @property
    def crowds(self) -> Bool[Tensor, "B T"]:
        """Rows that are crowd regions and no padding."""
        return self.valid & self.ignore


class Detections(NamedTuple):
    """Boxes of a padded batch, best first, and what else stages found: the entries of :class:`Detection`.

    ``matched`` is set in training: the target that each box was assigned; what that one has, its identity say, is
    ``take_rows(targets.identities, matched)``. ``rows`` says which anchor or query each was, where a postprocess was
    asked for it: what a head says of these besides is ``take_rows(values, rows)``. ``segmentation`` covers the padded
    frame of the batch, at any resolution: classes (B, h, w), or their scores (B, C, h, w).
    """

    boxes: Float[Tensor, "B K 4"]
    scores: Float[Tensor, "B K"]
    labels: Int[Tensor, "B K"]
    valid: Bool[Tensor, "B K"]
    matched: Int[Tensor, "B K"] | None = None
    rows: Int[Tensor, "B K"] | None = None
    class_scores: Float[Tensor, "B K C"] | None = None
    masks: Shaped[Tensor, "B K ..."] | None = None
    keypoints: Float[Tensor, "B K P 3"] | None = None
    keypoint_scores: Float[Tensor, "B K P"] | None = None
    embeddings: Float[Tensor, "B K D"] | None = None
    segmentation: Shaped[Tensor, "B ..."] | None = None
    image_scores: Float[Tensor, "B ..."] | None = None

    @staticmethod
    @door
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
    @door
    def of(boxes: "Anchors | Shaped[Tensor, '*B N 4']") -> "Anchors":
        """Anchors as they are; plain boxes as those of one level, each in a cell of its own size.

        Raises TypeError for what is no tensor, and ValueError for another shape.

        >>> Anchors.of(torch.tensor([[0.0, 0, 8, 4]]))
        Anchors(boxes=tensor([[0., 0., 8., 4.]]), strides=tensor([[8., 4.]]), counts=(1,))
        """
        if isinstance(boxes, Anchors):
            return boxes
        boxes = as_tensor(boxes, function="Anchors.of", name="boxes", form="XYXY")
        if boxes.ndim < 2 or boxes.shape[-1] != 4:
            raise ValueError(f"Anchors.of: boxes have shape {tuple(boxes.shape)}; allowed is (N, 4) or (B, N, 4)")
        return Anchors(boxes, boxes[..., 2:] - boxes[..., :2], (boxes.shape[-2],))


class DensePredictions(NamedTuple):
    """What a dense head says of every anchor: class logits, numbers that a coder reads as a box, and perhaps one more.

    ``quality`` is one logit for each anchor: objectness, centerness or IoU, as the criterion takes it. ``embeddings``
    are for a later stage, which learns and describes by them.
    """

    logits: Float[Tensor, "B N Q"]
    deltas: Float[Tensor, "B N D"]
    quality: Float[Tensor, "B N"] | None = None
    embeddings: Float[Tensor, "B N E"] | None = None


class Predictions(NamedTuple):
    """What matchers that look at predictions look at, detached: boxes, and scores or logits of every anchor or query.

    Boxes are xyxy, in the unit of the targets. ``scores`` lie in [0, 1]; ``logits`` are as the network gave them.
    """

    boxes: Float[Tensor, "B N 4"]
    scores: Float[Tensor, "B N C"] | None = None
    logits: Float[Tensor, "B N Q"] | None = None


class Assignment(NamedTuple):
    """Which target each anchor learns: its index in the image, NEGATIVE, IGNORED or GRAY; and how good the match is."""

    matched: Int[Tensor, "B N"]
    quality: Float[Tensor, "B N"]


class ClaimedAssignment(NamedTuple):
    """An Assignment by a matcher that gives each object one anchor, and that anchor, or NEGATIVE.

    ``claims`` says it also of objects that are not matched, since another object claims the same anchor.
    """

    matched: Int[Tensor, "B N"]
    quality: Float[Tensor, "B N"]
    claims: Int[Tensor, "B T"]


@door
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
