"""How similar two regions are: in color, in texture, in size, and in how well they fit together.

Uijlings et al. 2013, section 3.2.2. A region's histogram sums to 1; the histogram of a merged region is the mean of its
parts' histograms, weighted by pixels, so no pixel is read twice.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped

COLOR_BINS = 25
TEXTURE_BINS = 10
ORIENTATIONS = 8
MEASURES = "CTSF"
"""Color, texture, size, fill: a strategy is some of these letters, and adds their similarities."""


class Bins(NamedTuple):
    """The bin of each pixel, one row per channel (and orientation), which does not depend on segments."""

    color: Int[np.ndarray, "D P"]
    texture: Int[np.ndarray, "O P"]


class Regions(NamedTuple):
    """n regions: pixels (n,), xyxy boxes (n, 4) in whole pixels, and both histograms side by side.

    The first ``colors`` columns are of color, the rest of texture; each part sums to 1.
    """

    sizes: Float[np.ndarray, "n"]
    boxes: Float[np.ndarray, "n 4"]
    histograms: Float[np.ndarray, "n h"]
    colors: int


def size_similarity(
    sizes: Shaped[np.ndarray, "n"], others: Shaped[np.ndarray, "#n"], image_size: float
) -> Float[np.ndarray, "n"]:
    """1 - the fraction of the image, ``image_size`` pixels, that both take up: small regions merge early.

    >>> size_similarity(np.array([100]), np.array([200]), 10000).tolist()
    [0.97]
    """
    return 1 - (sizes + others) / image_size


def fill_similarity(
    sizes: Shaped[np.ndarray, "n"],
    others: Shaped[np.ndarray, "#n"],
    hull: Shaped[np.ndarray, "n"],
    image_size: float,
) -> Float[np.ndarray, "n"]:
    """1 - the fraction of the image that the box around both adds to them; ``hull`` is that box's area.

    >>> fill_similarity(np.array([100]), np.array([200]), np.array([600]), 10000).tolist()
    [0.97]
    """
    return 1 - (hull - sizes - others) / image_size


def histogram_similarity(
    histograms: Float[np.ndarray, "n h"], others: Float[np.ndarray, "#n h"]
) -> Float[np.ndarray, "n"]:
    """The intersection of two histograms: the sum of the lower bins; ``others`` may be a single one for all.

    >>> histogram_similarity(np.array([[0.5, 0.5, 0.0]]), np.array([[0.25, 0.25, 0.5]])).tolist()
    [0.5]
    """
    return np.minimum(histograms, others).sum(axis=-1)


def pixel_bins(pixels: Float[np.ndarray, "H W D"]) -> Bins:
    """The color bin of each pixel, 25 a channel over [0, 1]; and 10 for each of 8 directions of the derivative.

    Derivatives are those of a Gaussian of one pixel; falling is 0. Texture bins reach up to the steepest
    derivative of the channel.

    >>> bins = pixel_bins(np.random.default_rng(0).random((6, 5, 3)))
    >>> bins.color.shape, bins.texture.shape, int(bins.color.max()) < 25, int(bins.texture.max())
    ((3, 30), (24, 30), True, 9)
    """
    channels = np.moveaxis(pixels, 2, 0).astype(np.float32)
    color = np.minimum(channels * COLOR_BINS, COLOR_BINS - 1).astype(np.int64).reshape(len(channels), -1)
    return Bins(color, np.concatenate([_texture_bins(channel) for channel in channels]))


def _texture_bins(channel: Float[np.ndarray, "H W"]) -> Int[np.ndarray, "O P"]:
    from scipy import ndimage

    steps = (ndimage.gaussian_filter1d(channel, 1.0, axis=axis, order=1) for axis in (0, 1))
    down, right = (ndimage.gaussian_filter1d(step, 1.0, axis=1 - axis).ravel() for axis, step in enumerate(steps))
    angles = 2 * np.pi * np.arange(ORIENTATIONS // 2) / ORIENTATIONS
    slopes = np.cos(angles)[:, None] * right + np.sin(angles)[:, None] * down
    rising = np.maximum(np.concatenate((slopes, -slopes)), 0)
    steepest = max(float(rising.max()), 1e-6)
    return np.minimum(rising * (TEXTURE_BINS / steepest), TEXTURE_BINS - 1).astype(np.int64)


def describe(labels: Int[np.ndarray, "H W"], bins: Bins) -> Regions:
    """Size, box and histograms of the segments ``labels`` 0..n-1; each has at least one pixel.

    >>> labels = np.array([[0, 0, 1], [0, 1, 1]])
    >>> regions = describe(labels, pixel_bins(np.zeros((2, 3, 1))))
    >>> regions.sizes.tolist(), regions.boxes.tolist(), regions.histograms.shape
    ([3.0, 3.0], [[0.0, 0.0, 2.0, 2.0], [1.0, 0.0, 3.0, 2.0]], (2, 105))
    """
    from scipy import ndimage

    count = int(labels.max()) + 1
    color = _histograms(labels.ravel(), bins.color, COLOR_BINS, count)
    texture = _histograms(labels.ravel(), bins.texture, TEXTURE_BINS, count)
    found = ndimage.find_objects(labels + 1)
    boxes = np.array([(x.start, y.start, x.stop, y.stop) for y, x in found], np.float64)
    sizes = np.bincount(labels.ravel(), minlength=count).astype(np.float64)
    return Regions(sizes, boxes, np.concatenate((color, texture), axis=1), color.shape[1])


def _histograms(
    labels: Int[np.ndarray, "P"], bins: Int[np.ndarray, "O P"], width: int, count: int
) -> Float[np.ndarray, "n h"]:
    """Counts per region and bin, all rows of ``bins`` side by side, divided by their sum."""
    base = labels * width
    rows = [np.bincount(base + row, minlength=count * width).reshape(count, width) for row in bins]
    counts = np.concatenate(rows, axis=1).astype(np.float64)
    return counts / counts.sum(axis=1, keepdims=True)
