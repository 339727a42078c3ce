"""Seeded boxes of the sizes and crowding that detectors meet."""

import torch
from torch import Tensor


def uniform_boxes(count: int, *, seed: int = 0, frame: float = 1000) -> Tensor:
    """(count, 4) boxes of 10 to 100 pixels, anywhere in the frame: few overlap much."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * frame
    return torch.cat((corner, corner + 10 + torch.rand(count, 2, generator=generator) * 90), dim=1)


def detector_boxes(count: int, *, objects: int = 150, seed: int = 0, frame: float = 1000) -> Tensor:
    """(count, 4) boxes scattered around ``objects`` objects of 12 to 245 pixels, as a dense detector's are."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.rand(objects, 2, generator=generator) * frame
    sides = torch.exp(torch.rand(objects, 2, generator=generator) * 3 + 2.5)
    owner = torch.randint(objects, (count,), generator=generator)
    center = centers[owner] + torch.randn(count, 2, generator=generator) * sides[owner] * 0.35
    half = sides[owner] * torch.exp(torch.randn(count, 2, generator=generator) * 0.35) / 2
    return torch.cat((center - half, center + half), dim=1)


def scores_of(count: int, *, seed: int = 1) -> Tensor:
    """(count,) scores in [0, 1)."""
    return torch.rand(count, generator=torch.Generator().manual_seed(seed))


def labels_of(count: int, classes: int, *, seed: int = 2) -> Tensor:
    """(count,) labels below ``classes``."""
    return torch.randint(classes, (count,), generator=torch.Generator().manual_seed(seed))
