"""What tests of compiled and exported detectors share: a detector of plain tensors, and batches of two sizes."""

import torch
from torch import Tensor, nn

from detkit.detectors import Detector
from detkit.structures import Images


class FromTensors(nn.Module):
    """A detector that takes and gives plain tensors: what is exported."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, tensors: Tensor, sizes: Tensor) -> list[Tensor]:
        return [column for column in self.detector(Images(tensors, sizes)) if column is not None]


def images(count: int, size: tuple[int, int] = (96, 128)) -> Images:
    """The last image ends before its frame does."""
    sizes = torch.tensor([size] * (count - 1) + [(size[0] - 33, size[1] - 20)])
    return Images(torch.rand(count, 3, *size), sizes)
