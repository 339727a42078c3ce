"""Color spaces by hand, segments on flat colors, and who touches whom."""

import sys

import numpy as np
import pytest

from detkit.proposals.segments import COLOR_SPACES, scikit_image, segment, to_color_space, touching


def quarters(size: int = 40) -> np.ndarray:
    """Four flat colors."""
    pixels = np.zeros((size, size, 3))
    pixels[: size // 2, size // 2 :] = (1, 0, 0)
    pixels[size // 2 :, : size // 2] = (0, 1, 0)
    pixels[size // 2 :, size // 2 :] = (1, 1, 1)
    return pixels


@pytest.mark.parametrize("space", COLOR_SPACES)
def test_every_color_space_stays_in_0_to_1(space):
    pixels = np.concatenate((np.random.default_rng(0).random((20, 20, 3)), quarters(20)))
    channels = to_color_space(pixels, space)
    assert channels.shape == (40, 20, 1 if space in "hi" else 3)
    assert channels.min() >= 0
    assert channels.max() <= 1 + 1e-6
    assert np.isfinite(channels).all()


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        ("hsv", [2 / 3, 0.5, 0.8]),
        ("h", [2 / 3]),
        ("rgi", [0.25, 0.25, 0.2125 * 0.4 + 0.7154 * 0.4 + 0.0721 * 0.8]),
        ("i", [0.2125 * 0.4 + 0.7154 * 0.4 + 0.0721 * 0.8]),
        ("lab", [0.4707, (22.53 + 128) / 255, (-56.89 + 128) / 255]),
    ],
)
def test_a_blue_is_what_it_should_be_in_each_space(space, expected):
    blue = np.array([[[0.4, 0.4, 0.8]]])
    if space == "lab":  # CIE 1976 by its formula, D65
        linear = ((blue[0, 0] + 0.055) / 1.055) ** 2.4
        xyz = np.array([[0.412453, 0.35758, 0.180423], [0.212671, 0.71516, 0.072169], [0.019334, 0.119193, 0.950227]])
        x, y, z = np.cbrt(xyz @ linear / np.array([0.95047, 1.0, 1.08883]))
        expected = [(116 * y - 16) / 100, (500 * (x - y) + 128) / 255, (200 * (y - z) + 128) / 255]
    np.testing.assert_allclose(to_color_space(blue, space)[0, 0], expected, atol=1e-3)


def test_flat_colors_are_the_segments():
    labels, pairs = segment(quarters(), scale=1, min_size=50)
    for rows in (slice(0, 20), slice(20, 40)):
        for columns in (slice(0, 20), slice(20, 40)):
            values, counts = np.unique(labels[rows, columns], return_counts=True)
            assert counts.max() >= 0.95 * 400
            assert (labels == values[counts.argmax()]).sum() <= 1.05 * 400
    assert len(np.unique(labels)) == 4
    assert len(pairs) == 6, "at the center all four meet, two of them at a corner only"


def test_no_segment_is_smaller_than_asked_and_a_larger_scale_has_fewer():
    noise = np.random.default_rng(0).random((60, 80, 3))
    counts = []
    for scale in (10, 100, 1000):
        labels, _ = segment(noise, scale=scale, min_size=30)
        assert np.bincount(labels.ravel()).min() >= 30
        counts.append(int(labels.max()) + 1)
    assert counts[0] > counts[1] > counts[2] >= 1


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (2, 2)])
def test_an_image_of_a_few_pixels_is_one_segment(shape):
    labels, pairs = segment(np.full((*shape, 3), 0.5), scale=50, min_size=50)
    assert labels.tolist() == np.zeros(shape).tolist()
    assert pairs.shape == (0, 2)


def test_touching_pairs_are_those_of_a_loop_over_pixels():
    labels = np.random.default_rng(0).integers(0, 12, (9, 7))
    slow = set()
    for y in range(9):
        for x in range(7):
            for other in labels[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2].ravel():
                if other != labels[y, x]:
                    slow.add((min(int(other), int(labels[y, x])), max(int(other), int(labels[y, x]))))
    assert list(map(tuple, touching(labels).tolist())) == sorted(slow)


def test_without_scikit_image_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage.segmentation", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "torch-detkit\[proposals\]"'):
        scikit_image("segmentation")
