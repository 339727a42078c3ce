"""R-CNN: external region proposals, each cropped, warped and classified by a network."""

from jaxtyping import Float
from torch import Tensor, nn

from detkit._ranges import Count, Whole
from detkit.boxes import DeltaCoder
from detkit.detectors.detector import Detector
from detkit.detectors.postprocess import Postprocess
from detkit.detectors.preprocess import Preprocess
from detkit.detectors.recipe import recipe
from detkit.detectors.region import RegionFeatures, RegionStage


@recipe
def rcnn(
    num_classes: Count,
    backbone: nn.Module,
    *,
    feature_size: Count,
    size: Count = 227,
    context: Whole = 16,
    grid: Count | None = 1,
    preprocess: Preprocess | None = None,
) -> Detector:
    """R-CNN on any network: train it with ``fit_rcnn``, run it as ``detector(images, proposals=)``.

    ``backbone`` maps crops (M, 3, size, size) to vectors or feature maps; maps are average-pooled to ``grid`` x
    ``grid`` cells, ``feature_size`` numbers in all. Each crop shows ``context`` pixels around the box. Images are not
    resized unless ``preprocess`` does it. NMS within a class at IoU 0.3 keeps the best 100 detections of an image.
    Source: Girshick et al. 2014, "Rich feature hierarchies". Raises ValueError for settings out of range.

    >>> import torch
    >>> from detkit.backbones import SmallBackbone
    >>> from detkit.proposals import pad_proposals
    >>> detector = rcnn(2, SmallBackbone((8, 16)), feature_size=16, size=32, context=2).eval()
    >>> proposals = pad_proposals([{"boxes": torch.tensor([[4.0, 4, 20, 30]]), "scores": torch.ones(1)}])
    >>> detector([torch.zeros(3, 40, 40)], proposals=proposals)[0]["scores"]
    tensor([0.5000, 0.5000])
    """
    describe = RegionFeatures(backbone, feature_size=feature_size, size=size, context=context, grid=grid)
    region = RegionStage(
        describe,
        num_classes=num_classes,
        coder=DeltaCoder(),
        postprocess=Postprocess(score_threshold=0.0, iou_threshold=0.3, max_detections=100, candidates_per_class=None),
    )
    return Detector(_Pixels(), preprocess=preprocess or Preprocess(None), region=region)


class _Pixels(nn.Module):
    """The trunk of a detector whose stages read the pixels themselves."""

    def forward(self, images: Float[Tensor, "B D H W"]) -> list[Tensor]:
        """The images as the only level."""
        return [images]
