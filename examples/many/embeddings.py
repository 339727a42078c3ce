"""Embeddings of detections for detectors that learned none: the mean of the trunk's finest features in each box."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detkit.boxes import roi_align
from detkit.detectors import Detector, EmbeddingStage

SIDE = 256  # pixels, where the detector takes pictures of any size


class FinestMean(nn.Module):
    """The mean of the finest features over each box: (M, D) of boxes (B, K, 4), or of the flat ``rows`` of them."""

    def __init__(self, stride: float) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, features: list[Tensor], boxes: Tensor, rows: Tensor | None = None) -> Tensor:
        pooled = roi_align(features[0], boxes, output_size=3, spatial_scale=1 / self.stride).mean((2, 3))
        return pooled if rows is None else pooled[rows]


class UnitLength(nn.Module):
    """Embeddings of length 1, as the cosine compares them."""

    def forward(self, embeddings: Tensor) -> Tensor:
        return F.normalize(embeddings, dim=1)


@torch.no_grad()
def with_embeddings(detector: Detector) -> Detector:
    """The detector with a stage behind its own that passes on embeddings, and learns nothing."""
    size = detector.preprocess.size
    height, width = size if isinstance(size, tuple) else (SIDE, SIDE)
    features = detector.trunk(torch.zeros(1, len(detector.preprocess.mean), height, width))
    if not isinstance(features, (list, tuple)):
        raise ValueError(f"embeddings need a trunk that returns a list of features, not a {type(features).__name__}")
    stage = EmbeddingStage(UnitLength(), pool=FinestMean(width / features[0].shape[-1]))
    longer = Detector(detector.trunk, preprocess=detector.preprocess, **detector.stages, embedding=stage)
    longer.categories = detector.categories
    return longer.eval()
