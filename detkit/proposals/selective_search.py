"""Selective search: boxes of regions that grow from segments, under many views of the same image.

Uijlings et al. 2013, "Selective Search for Object Recognition"; the proposals that R-CNN and Fast R-CNN trained on.
"""

from collections.abc import Iterator
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn import functional as F

from detkit._door import door
from detkit._inputs import white_of
from detkit._ranges import Count, NotNegative
from detkit.proposals.hierarchy import Hierarchy, group
from detkit.proposals.segments import segment, to_color_space
from detkit.proposals.similarity import describe, pixel_bins

MAX_PIXELS = 1 << 24
"""An image that would be enlarged beyond is refused: every pixel takes some 300 bytes."""
Mode = Literal["single", "fast", "quality"]
Order = Literal["paper", "opencv"]


class _Views(NamedTuple):
    """Every color space at every scale of the segmentation is grouped by every combination of measures."""

    color_spaces: tuple[str, ...]
    scales: tuple[int, ...]
    measures: tuple[str, ...]


VIEWS = {
    "single": _Views(("hsv",), (200,), ("CTSF",)),
    "fast": _Views(("hsv", "lab"), (50, 100), ("CTSF", "TSF")),
    "quality": _Views(("hsv", "lab", "rgi", "h", "i"), (50, 100, 150, 300), ("CTSF", "TSF", "F", "S")),
}
"""The modes: "fast" and "quality" as in the software that R-CNN used, with 8 and 80 hierarchies; "single" has one."""


@door
def selective_search(
    image: Shaped[Tensor, "3 H W"],
    *,
    mode: Mode = "fast",
    order: Order = "paper",
    width: Count | None = 500,
    min_size: Count | None = None,
    min_side: NotNegative = 20.0,
    max_proposals: Count | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Float[Tensor, "N 4"], Float[Tensor, "N"]]:
    """Boxes (N, 4) xyxy in the image's pixels that may hold an object, best first, and their scores (N,) in (0, 1].

    image: RGB (3, H, W), uint8 or floating in [0, 1]; it is resized to ``width`` pixels, as in R-CNN, or kept as it is
    with None. min_size: pixels of the smallest segment, by default the segmentation's scale. min_side: boxes with a
    smaller side, in pixels of the resized image, are left out. max_proposals: how many of the best to return.

    A region's rank is its position times a random number from ``generator`` (section 3.3). With order="paper" the
    position is counted from the whole image down the hierarchy, so large regions tend to come first; with "opencv" it
    is the region's level, as in OpenCV, so small ones do. The score is 1 / (1 + rank); among equal boxes the best is
    kept. Boxes and scores are on the CPU.

    Raises ValueError for another image or option, and for an image that ``width`` would enlarge beyond
    :data:`MAX_PIXELS`; ModuleNotFoundError without scikit-image.

    >>> image = torch.zeros(3, 60, 80, dtype=torch.uint8)
    >>> image[0, 10:40, 20:60] = 255
    >>> boxes, scores = selective_search(image, mode="single", width=None, generator=torch.Generator().manual_seed(0))
    >>> sorted(boxes.tolist())
    [[0.0, 0.0, 80.0, 60.0], [20.0, 10.0, 60.0, 40.0]]
    """
    _check(image, mode, order)
    pixels = _resized(image, width)
    ranked = [_ranked(hierarchy, order, generator) for hierarchy in hierarchies(pixels, mode=mode, min_size=min_size)]
    boxes = np.concatenate([rows for rows, _ in ranked])
    ranks = np.concatenate([rows for _, rows in ranked])
    best = _best_of_equal(boxes, ranks)
    best = best[(boxes[best, 2:] - boxes[best, :2] >= min_side).all(axis=1)][:max_proposals]
    back = np.array([image.shape[2] / pixels.shape[1], image.shape[1] / pixels.shape[0]] * 2)
    return torch.from_numpy((boxes[best] * back).astype(np.float32)), torch.from_numpy(
        (1 / (1 + ranks[best])).astype(np.float32)
    )


def hierarchies(pixels: Float[np.ndarray, "H W 3"], *, mode: Mode, min_size: int | None = None) -> Iterator[Hierarchy]:
    """Yield the hierarchy of each view of ``mode`` on RGB in [0, 1].

    >>> len(list(hierarchies(np.zeros((30, 40, 3)), mode="fast")))
    8
    """
    views = VIEWS[mode]
    for space in views.color_spaces:
        channels = to_color_space(pixels, space)
        bins = pixel_bins(channels)
        for scale in views.scales:
            segments = segment(channels, scale=scale, min_size=scale if min_size is None else min_size)
            regions = describe(segments.labels, bins)
            for measures in views.measures:
                yield group(regions, segments.pairs, measures=measures)


def _ranked(
    hierarchy: Hierarchy, order: str, generator: torch.Generator | None
) -> tuple[Float[np.ndarray, "R 4"], Float[np.ndarray, "R"]]:
    """The boxes of a hierarchy and the rank of each: low is good."""
    count = len(hierarchy.boxes)
    positions = np.arange(count, 0, -1) if order == "paper" else hierarchy.levels
    return hierarchy.boxes, positions * torch.rand(count, dtype=torch.float64, generator=generator).numpy()


def _best_of_equal(boxes: Float[np.ndarray, "R 4"], ranks: Float[np.ndarray, "R"]) -> np.ndarray:
    """Indices of the lowest rank of each box, lowest first."""
    order = np.argsort(ranks, kind="stable")
    _, first = np.unique(boxes[order], axis=0, return_index=True)
    return order[np.sort(first)]


def _resized(image: Shaped[Tensor, "3 H W"], width: int | None) -> Float[np.ndarray, "h w 3"]:
    """RGB in [0, 1], channels last."""
    pixels = image.detach().cpu().to(torch.float32) / white_of(image.dtype, where="selective_search: image")
    if width is not None and width != image.shape[2]:
        size = (max(1, round(image.shape[1] * width / image.shape[2])), width)
        if size[0] * width > max(MAX_PIXELS, image[0].numel()):
            raise ValueError(
                f"selective_search: an image of {image.shape[1]} x {image.shape[2]} (height x width) would become "
                f"{size[0]} x {width}; allowed are {MAX_PIXELS} pixels: choose a smaller width, or width=None"
            )
        pixels = F.interpolate(pixels[None], size=size, mode="bilinear", antialias=True)[0].clamp(0, 1)
    return np.ascontiguousarray(pixels.permute(1, 2, 0).numpy())


def _check(image: Tensor, mode: str, order: str) -> None:
    for name, value, allowed in (("mode", mode, get_args(Mode)), ("order", order, get_args(Order))):
        if value not in allowed:
            raise ValueError(f"selective_search: {name}={value!r}; allowed are {allowed}")
    if image.ndim != 3 or image.shape[0] != 3 or image.numel() == 0:
        raise ValueError(f"selective_search: image has shape {tuple(image.shape)}; allowed is RGB (3, height, width)")
    white_of(image.dtype, where="selective_search: image")
    if image.is_floating_point() and not (float(image.min()) >= 0 and float(image.max()) <= 1):
        raise ValueError(
            f"selective_search: image is {image.dtype} from {float(image.min()):g} to {float(image.max()):g}; "
            "allowed are floats in [0, 1], uint8, uint16 and bool"
        )
