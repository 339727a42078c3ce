"""The four similarities by hand, and histograms that merging keeps exact."""

import numpy as np
import pytest

from detkit.proposals.similarity import (
    describe,
    fill_similarity,
    histogram_similarity,
    pixel_bins,
    size_similarity,
)


def scene(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Random colors, and labels of six vertical stripes of different widths."""
    labels = np.repeat(np.arange(6), [2, 5, 3, 8, 4, 6])[None].repeat(20, axis=0)
    return np.random.default_rng(seed).random((20, 28, 3)), labels


def test_size_and_fill_of_the_worked_example():
    a, b, hull = np.array([100]), np.array([200]), np.array([600])
    assert size_similarity(a, b, 10000) == pytest.approx([0.97])
    assert fill_similarity(a, b, hull, 10000) == pytest.approx([0.97])


def test_two_regions_that_fill_their_box_leave_no_gap():
    assert fill_similarity(np.array([30]), np.array([70]), np.array([100]), 1000).tolist() == [1.0]


def test_histograms_have_in_common_what_the_lower_bins_hold():
    one = np.array([[0.2, 0.3, 0.5], [1.0, 0, 0]])
    assert histogram_similarity(one, one) == pytest.approx([1.0, 1.0])
    assert histogram_similarity(one, np.array([[0.0, 0.5, 0.5]])) == pytest.approx([0.8, 0.0])


def test_histograms_have_75_and_240_bins_and_each_sums_to_one():
    pixels, labels = scene()
    regions = describe(labels, pixel_bins(pixels))
    assert regions.histograms.shape == (6, 75 + 240)
    assert regions.colors == 75
    np.testing.assert_allclose(regions.histograms[:, :75].sum(1), 1)
    np.testing.assert_allclose(regions.histograms[:, 75:].sum(1), 1)


def test_the_color_histogram_is_numpys():
    pixels, labels = scene()
    found = describe(labels, pixel_bins(pixels)).histograms[3, :75]
    own = pixels[labels == 3]
    slow = [np.histogram(own[:, channel], bins=25, range=(0, 1))[0] for channel in range(3)]
    np.testing.assert_allclose(found, np.concatenate(slow) / own.size)


def test_sizes_and_boxes_are_those_of_the_pixels():
    pixels, labels = scene()
    regions = describe(labels, pixel_bins(pixels))
    assert regions.sizes.tolist() == [40, 100, 60, 160, 80, 120]
    assert regions.boxes[2].tolist() == [7, 0, 10, 20]


def test_the_weighted_mean_of_two_histograms_is_that_of_the_merged_pixels():
    pixels, labels = scene()
    bins = pixel_bins(pixels)
    apart, merged = describe(labels, bins), describe(np.maximum(labels - 1, 0), bins)
    mean = (40 * apart.histograms[0] + 100 * apart.histograms[1]) / 140
    np.testing.assert_allclose(merged.histograms[0], mean)


def test_texture_sees_the_direction_of_a_ramp():
    """A ramp to the right rises to the right and obliquely, by cos 45 degrees; nowhere else."""
    ramp = np.linspace(0, 1, 41)[None].repeat(41, axis=0)[..., None]
    inner = pixel_bins(ramp).texture.reshape(8, 41, 41)[:, 8:-8, 8:-8]
    assert [sorted(set(rows.ravel().tolist())) for rows in inner] == [[9], [7], [0], [0], [0], [0], [0], [7]]


def test_texture_and_flat_color_tell_apart_what_color_alone_does_not():
    stripes = np.full((20, 40, 3), 0.5)
    stripes[:, :20:2] = 0.5 + 0.015
    labels = np.repeat([0, 1], 20)[None].repeat(20, axis=0)
    regions = describe(labels, pixel_bins(stripes))
    first, second = regions.histograms[:1], regions.histograms[1:]
    assert histogram_similarity(first[:, :75], second[:, :75]) == pytest.approx([1.0])
    assert histogram_similarity(first[:, 75:], second[:, 75:]) < 0.95


def test_a_flat_image_has_no_texture_and_no_nan():
    regions = describe(np.zeros((4, 4), np.int64), pixel_bins(np.full((4, 4, 1), 1.0)))
    assert np.isfinite(regions.histograms).all()
    assert regions.histograms[0, 24] == 1.0
