"""The small regions that selective search starts from: color spaces, graph segmentation, and adjacency.

Felzenszwalb and Huttenlocher's segmentation (2004) is scikit-image's, an optional dependency.
"""

import importlib
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

COLOR_SPACES = ("hsv", "lab", "rgi", "h", "i")
"""HSV, CIE Lab, normalized red and green with intensity, hue alone, intensity alone."""
SMOOTHING = 0.8
"""Standard deviation in pixels of the Gaussian before segmentation (Felzenszwalb and Huttenlocher 2004)."""


class Segments(NamedTuple):
    """The segment of each pixel in 0..n-1, and the pairs of segments that touch, each once, the lower first."""

    labels: Int[np.ndarray, "H W"]
    pairs: Int[np.ndarray, "M 2"]


def scikit_image(module: str) -> Any:
    """A module of scikit-image; raises ModuleNotFoundError with installation instructions if it is missing.

    >>> scikit_image("segmentation").__name__
    'skimage.segmentation'
    """
    try:
        return importlib.import_module(f"skimage.{module}")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'selective_search needs scikit-image: pip install "torch-detkit[proposals]"', name=error.name
        ) from error


def to_color_space(pixels: Float[np.ndarray, "H W 3"], space: str) -> Float[np.ndarray, "H W D"]:
    """RGB in [0, 1] in another color space, its D channels scaled to [0, 1] as well (Uijlings et al. 2013, 3.2.1).

    ``space`` is one of :data:`COLOR_SPACES`. "h" and "i" have one channel. Black has r = g = 0.

    >>> to_color_space(np.array([[[0.0, 0.5, 0.0]]]), "hsv").round(3).tolist()
    [[[0.333, 1.0, 0.5]]]
    """
    color = scikit_image("color")
    if space in ("hsv", "h"):
        hsv = color.rgb2hsv(pixels)
        return hsv if space == "hsv" else hsv[..., :1]
    if space == "lab":
        return (color.rgb2lab(pixels) + np.array([0, 128, 128])) / np.array([100, 255, 255])
    intensity = color.rgb2gray(pixels)[..., None]
    total = pixels.sum(axis=-1, keepdims=True)
    return intensity if space == "i" else np.concatenate((pixels[..., :2] / np.maximum(total, 1e-9), intensity), axis=2)


def segment(pixels: Float[np.ndarray, "H W D"], *, scale: float, min_size: int) -> Segments:
    """Cut an image in [0, 1] into segments of at least ``min_size`` pixels.

    Two segments stay separate if the color difference between them is larger than the differences inside, plus
    ``scale`` / pixels, with colors in 0..255: a larger scale gives larger segments.

    >>> pixels = np.zeros((4, 6, 3))
    >>> pixels[:, 3:] = 1.0
    >>> found = segment(pixels, scale=1, min_size=8)
    >>> found.labels[0].tolist(), found.pairs.tolist()
    ([0, 0, 0, 1, 1, 1], [[0, 1]])
    """
    felzenszwalb = scikit_image("segmentation").felzenszwalb
    labels = felzenszwalb(pixels.astype(np.float64), scale=scale, sigma=SMOOTHING, min_size=min_size)
    labels = labels.astype(np.int64)
    return Segments(labels, touching(labels))


def touching(labels: Int[np.ndarray, "H W"]) -> Int[np.ndarray, "M 2"]:
    """The pairs of labels that meet at a side or a corner of a pixel, in ascending order.

    >>> touching(np.array([[0, 0, 1], [0, 2, 2]])).tolist()
    [[0, 1], [0, 2], [1, 2]]
    """
    sides = [
        (labels[:, 1:], labels[:, :-1]),
        (labels[1:], labels[:-1]),
        (labels[1:, 1:], labels[:-1, :-1]),
        (labels[1:, :-1], labels[:-1, 1:]),
    ]
    count = int(labels.max()) + 1
    codes = [np.minimum(a, b)[a != b] * count + np.maximum(a, b)[a != b] for a, b in sides]
    unique = np.unique(np.concatenate(codes))
    return np.stack((unique // count, unique % count), axis=1)
