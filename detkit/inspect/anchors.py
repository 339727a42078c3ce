"""Which objects the anchors of a detector fit: those of a data set, and the smallest that it fits anywhere."""

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from detkit._inputs import promote
from detkit.boxes import box_iou
from detkit.detectors import Detector
from detkit.detectors.detector import branch_of
from detkit.structures import Anchors, Images, Target

_PLACES, _SHARE, _LARGEST = 64, 0.9, 512
_ENOUGH = 0.5  # RPN asks for .7, and takes the best anchor of an object that has none


class Fit(NamedTuple):
    """The objects of one image in the pixels of the detector's input (T, 4), and how well the best anchor fits each.

    ``overlap`` (T,) is the IoU with it, or without ``positive_iou`` 1 where the center of a cell lies inside, else 0;
    ``fits`` (T,) whether that is enough; ``rows`` (T,) are their places in the target.
    """

    boxes: Tensor
    overlap: Tensor
    fits: Tensor
    rows: Tensor


class AnchorFit:
    """The anchors of a detector's first stage that has some, at every size of its input.

    Raises ValueError for a detector without anchors, as those of sets and sequences are.

    >>> from detkit.detectors import fpn_ssd
    >>> anchors = AnchorFit(fpn_ssd(2, size=(96, 96), channels=8))
    >>> target = {"boxes": torch.tensor([[10.0, 10, 40, 40], [50, 50, 53, 53]]), "labels": torch.tensor([0, 1])}
    >>> anchors.fit(target, (96, 96)).fits
    tensor([ True, False])
    """

    def __init__(self, detector: Detector) -> None:
        self.detector = copy.deepcopy(detector).cpu().eval()
        self.detector.preprocess.degenerate = "drop"
        name = next((name for name, stage in detector.stages.items() if hasattr(stage, "anchors")), None)
        if name is None:
            raise ValueError(f"a detector of the stages {list(detector.stages)} has no anchors: it takes any size")
        self.stage: Any = self.detector.stages[name]
        self.name = name
        asked = getattr(self.stage.matcher, "positive_iou", None)
        self.positive_iou: float | None = None if asked is None else min(asked, _ENOUGH)
        self._known: dict[tuple[int, ...], Anchors] = {}

    @torch.no_grad()
    def anchors(self, images: Images) -> Anchors:
        """The anchors of a batch, which only depend on its size."""
        size = tuple(images.tensors.shape[-2:])
        if size not in self._known:
            one = images._replace(tensors=images.tensors[:1], sizes=images.sizes[:1])
            features: Any = self.detector.trunk(one.tensors)
            self._known[size] = self.stage.anchors(branch_of(features, self.name, self.stage), one)
        return self._known[size]

    def fit(self, target: Target, size: Sequence[int]) -> Fit:
        """The objects of a target of an image of ``size`` (height, width); crowds are none."""
        blank = torch.zeros(3, 1, 1).expand(3, *size)
        batch, padded = self.detector.preprocess([blank], [target])
        rows = (padded.valid & ~padded.ignore)[0].nonzero()[:, 0]  # pyright: ignore
        boxes = promote(padded.boxes[0, rows])  # pyright: ignore
        return Fit(boxes, *self._fit(self.anchors(batch), boxes), rows)

    def smallest(self, size: Sequence[int]) -> int | None:
        """The side of the smallest square, in pixels of the input, that has an anchor in nine of ten places."""
        blank = torch.zeros(3, 1, 1).expand(3, *size)
        batch, _ = self.detector.preprocess([blank])
        anchors, frame = self.anchors(batch), batch.tensors.shape[-2:]
        places = torch.rand(_PLACES, 2, generator=torch.Generator().manual_seed(0))
        for side in range(1, min(_LARGEST, *frame)):
            low = places * (torch.tensor([frame[1], frame[0]]) - side)
            if self._fit(anchors, torch.cat((low, low + side), 1))[1].float().mean() >= _SHARE:
                return side
        return None

    def _fit(self, anchors: Anchors, boxes: Tensor) -> tuple[Tensor, Tensor]:
        if self.positive_iou is not None:
            overlap = box_iou(boxes, anchors.boxes).amax(1) if len(boxes) else boxes.new_zeros(0)
            return overlap, overlap >= self.positive_iou
        centers = (anchors.boxes[:, :2] + anchors.boxes[:, 2:]) / 2
        inside = ((centers > boxes[:, None, :2]) & (centers < boxes[:, None, 2:])).all(-1).any(1)
        return inside.float(), inside
