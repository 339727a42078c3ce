"""A matcher with a third answer: anchors that overlap an object, but not well, are a category of their own."""

from collections.abc import Sequence

import torch
from torch import nn

from detkit._door import door
from detkit._ranges import Fraction
from detkit.anchors.assigned import in_crowd
from detkit.anchors.matcher import AnchorBoxes, read_boxes
from detkit.anchors.threshold import ThresholdMatcher
from detkit.structures import GRAY, IGNORED, NEGATIVE, Assignment, Predictions, Targets

_TOUCHING = torch.finfo(torch.float32).tiny


class GrayMatcher(nn.Module):
    """What ``matcher`` leaves IGNORED becomes GRAY where the highest IoU with an object lies within ``gray``.

    Positives and negatives are those of ``matcher``, and so is the quality, which is 0 for GRAY anchors. Both bounds of
    ``gray``, (lowest, highest), belong to it. Anchors with more than half their area in a crowd stay IGNORED. With
    ``negatives_touch`` NEGATIVE anchors that touch no object are IGNORED: the background learned then lies beside
    objects. A criterion that knows GRAY, such as :class:`~detkit.losses.HourglassLoss`, gives it a logit of its own.

    The slides of the source give no thresholds; those of the authors' code are the defaults here, with
    ``ThresholdMatcher(positive_iou=0.6, negative_iou=0.15, low_quality=False)``. That code clips anchors to the image,
    which would make them depend on the batch, and it has ``negatives_touch``.

    Raises ValueError for bounds outside [0, 1], in the wrong order or not two.
    Source: Li et al. 2016, "Do We Really Need More Training Data For Object Localization", remark (c).

    >>> from detkit.structures import pad_targets
    >>> anchors = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 4], [0, 0, 10, 2], [50, 50, 60, 60]])
    >>> targets = pad_targets([{"boxes": torch.tensor([[0.0, 0, 10, 10]]), "labels": torch.tensor([7])}])
    >>> matcher = ThresholdMatcher(positive_iou=0.6, negative_iou=0.15, low_quality=False)
    >>> GrayMatcher(matcher)(anchors, targets).matched
    tensor([[ 0, -3, -2, -1]])
    """

    gives_gray = True

    @door
    def __init__(
        self, matcher: nn.Module, *, gray: Sequence[Fraction] = (0.25, 0.49), negatives_touch: bool = False
    ) -> None:
        super().__init__()
        if len(gray) != 2 or gray[0] > gray[1]:
            raise ValueError(f"GrayMatcher: gray={tuple(gray)}; allowed are two numbers, (lowest, highest)")
        self.matcher, self.gray, self.negatives_touch = matcher, (gray[0], gray[1]), negatives_touch
        lowest = _TOUCHING if negatives_touch else max(gray[0], _TOUCHING)
        self.overlaps = ThresholdMatcher(positive_iou=lowest, negative_iou=lowest, low_quality=False)

    @property
    def reads_predictions(self) -> bool:
        """Whether ``matcher`` does."""
        return getattr(self.matcher, "reads_predictions", False)

    @door
    @torch.no_grad()
    def forward(self, anchors: AnchorBoxes, targets: Targets, predictions: Predictions | None = None) -> Assignment:
        """Match ``anchors`` with the objects of B images, as ``matcher`` does but for GRAY and what touches nothing."""
        matched, quality, *_ = self.matcher(anchors, targets, predictions)
        touched, overlap = self.overlaps(anchors, targets)
        boxes, truth = read_boxes("GrayMatcher", anchors, targets)
        lowest, highest = self.gray
        gray = (matched == IGNORED) & (touched >= 0) & (overlap >= lowest) & (overlap <= highest)
        gray &= ~in_crowd(boxes, truth.boxes, truth.crowds)
        matched = torch.where(gray, GRAY, matched)
        if self.negatives_touch:
            matched = torch.where((matched == NEGATIVE) & (touched < 0), IGNORED, matched)
        return Assignment(matched, quality)

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        return f"gray={self.gray}, negatives_touch={self.negatives_touch}"
