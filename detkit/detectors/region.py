"""R-CNN's only stage: it warps every proposal, computes its features with a network, and applies linear models.

The linear models are not trained by gradient descent: :func:`detkit.fitting.rcnn.fit_rcnn` fits them.
"""

from collections.abc import Sequence
from typing import NamedTuple, NoReturn

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from detkit._door import door
from detkit._inputs import promote
from detkit._ranges import Count, Whole
from detkit.boxes import DeltaCoder
from detkit.boxes.crop import crop_and_resize
from detkit.detectors.detector import Stage
from detkit.detectors.postprocess import Postprocess
from detkit.structures import Detections, Images, Targets


class RegionOutputs(NamedTuple):
    """The SVM decision value and the refined box for every proposal and class."""

    decisions: Float[Tensor, "B K C"]
    boxes: Float[Tensor, "B K C 4"]
    valid: Bool[Tensor, "B K"]


class RegionFeatures(nn.Module):
    """Computes one feature vector per box: warps the box and its context to a square and runs a network on it.

    ``backbone`` is any module that takes crops (M, 3, size, size); if it returns several maps, the last is used. Maps
    (M, D, h, w) are average-pooled to ``grid`` x ``grid`` cells (None: not pooled), then flattened to ``feature_size``
    numbers (D for grid 1). ``context`` pixels on each side of a crop show the surroundings (Girshick et al. 2014: 16 of
    227). ``crops_at_once`` bounds the memory. Vectors are multiplied by ``scale``, which fit_rcnn sets.
    Raises ValueError for settings below 1.

    >>> from detkit.backbones import SmallBackbone
    >>> describe = RegionFeatures(SmallBackbone((8, 16)), feature_size=64, size=32, context=2, grid=2).eval()
    >>> describe(torch.zeros(2, 3, 50, 60), torch.tensor([[[5.0, 5, 20, 30]], [[0, 0, 60, 50]]])).shape
    torch.Size([2, 1, 64])
    """

    scale: Tensor

    @door
    def __init__(
        self,
        backbone: nn.Module,
        *,
        feature_size: Count,
        size: Count = 227,
        context: Whole = 16,
        grid: Count | None = 1,
        crops_at_once: Count = 256,
    ) -> None:
        super().__init__()
        if not 2 * context < size:
            raise ValueError(f"RegionFeatures: context={context} must be less than half of {size=}")
        self.backbone, self.feature_size, self.size, self.context = backbone, feature_size, size, context
        self.grid, self.crops_at_once = grid, crops_at_once
        self.register_buffer("scale", torch.ones(()))

    @door
    def forward(
        self, pixels: Float[Tensor, "B D H W"], boxes: Float[Tensor, "B K 4"], sizes: Tensor | None = None
    ) -> Float[Tensor, "B K F"]:
        """Vectors of boxes (B, K, 4) in padded images whose content has ``sizes`` (B, 2).

        Raises ValueError if the backbone does not return ``feature_size`` values.
        """
        batch, count = boxes.shape[:2]
        if torch.compiler.is_compiling():
            return self._describe(pixels, boxes, sizes)
        if batch * count == 0:
            return pixels.new_zeros(batch, count, self.feature_size)
        parts = boxes.split(max(1, self.crops_at_once // batch), dim=1)
        return torch.cat([self._describe(pixels, part, sizes) for part in parts], dim=1)

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        names = "feature_size", "size", "context", "grid", "crops_at_once"
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)

    def _describe(self, pixels: Tensor, boxes: Tensor, sizes: Tensor | None) -> Tensor:
        crops = crop_and_resize(pixels, boxes, self.size, context=self.context, image_sizes=sizes)
        maps = self.backbone(crops)
        if isinstance(maps, Sequence):
            maps = maps[-1]
        if maps.ndim == 4 and self.grid is not None:
            maps = F.adaptive_avg_pool2d(maps, self.grid)
        vectors = maps.flatten(1)
        if vectors.shape[1] != self.feature_size:
            raise ValueError(
                f"RegionFeatures: the backbone gives {tuple(maps.shape[1:])} values for a crop; "
                f"feature_size={self.feature_size}"
            )
        return vectors.unflatten(0, boxes.shape[:2]) * self.scale


class RegionStage(Stage):
    """R-CNN: a linear SVM and a linear box regression for each class, on the vector of each proposal.

    ``describe`` is a :class:`RegionFeatures`; the trunk passes the pixels through. The score of a detection is the
    sigmoid of the SVM's decision value: it lies in [0, 1], is 0.5 on the decision boundary, and keeps the order as far
    as float32 can (it is 1 from 17 on).
    ``coder`` decodes the regressed deltas; R-CNN's settings of ``postprocess`` are IoU 0.3 and the best 100. The linear
    models are zero until :func:`~detkit.fitting.rcnn.fit_rcnn` fits them, and are part of the ``state_dict``. Proposals
    come from the caller, ``detector(images, proposals=)``.
    Source: Girshick et al. 2014, sections 2.2 and 2.3, appendix C.

    >>> from detkit.detectors import rcnn
    >>> stage = rcnn(2, nn.Flatten(), feature_size=3 * 8 * 8, size=8, context=1).region
    >>> stage.svm, stage.regression
    (Linear(in_features=192, out_features=2, bias=True), Linear(in_features=192, out_features=8, bias=True))
    """

    @door
    def __init__(
        self,
        describe: RegionFeatures,
        *,
        num_classes: Count,
        coder: DeltaCoder,
        postprocess: Postprocess,
        branch: str | None = None,
    ) -> None:
        super().__init__(branch=branch)
        self.describe, self.coder, self.postprocess = describe, coder, postprocess
        self.num_classes = num_classes
        self.svm = nn.Linear(describe.feature_size, num_classes)
        self.regression = nn.Linear(describe.feature_size, 4 * num_classes)
        for machine in (self.svm, self.regression):
            nn.init.zeros_(machine.weight)
            nn.init.zeros_(machine.bias)

    @door
    def forward(
        self, features: list[Tensor], images: Images, detections: Detections | None, targets: Targets | None = None
    ) -> RegionOutputs:
        """Decision values and refined boxes of all proposals; raises ValueError for ``targets``: see fit_rcnn."""
        if targets is not None:
            _refuse_to_learn()
        if detections is None:
            raise ValueError("RegionStage: got no proposals; give detector(images, proposals=[...])")
        vectors = self.describe(features[0], detections.boxes, images.sizes)
        deltas = self.regression(vectors).unflatten(-1, (self.num_classes, 4))
        boxes = self.coder.decode(deltas, detections.boxes[:, :, None])
        return RegionOutputs(self.svm(vectors), boxes, detections.valid)

    @door
    def loss(self, outputs: RegionOutputs, targets: Targets) -> dict[str, Tensor]:
        """Always raises ValueError, naming fit_rcnn: the stage has no loss to minimize."""
        _refuse_to_learn()

    @door
    def detections(self, outputs: RegionOutputs, images: Images) -> Detections:
        """The best detections of all classes, after suppression within each class."""
        scores = torch.where(outputs.valid[..., None], promote(outputs.decisions).sigmoid(), 0)
        return self.postprocess(scores, outputs.boxes, images.sizes)


def _refuse_to_learn() -> NoReturn:
    raise ValueError(
        "RegionStage: has no loss; its SVMs and box regressions are fitted by fit_rcnn(detector, data, proposals), "
        "and its backbone is trained beforehand, as a classifier of crops"
    )
