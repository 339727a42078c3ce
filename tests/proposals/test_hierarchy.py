"""Grouping against a slow loop that looks at every pair in every step, on real and on random regions."""

import numpy as np
import pytest

from detkit.proposals.hierarchy import group
from detkit.proposals.segments import touching
from detkit.proposals.similarity import Regions, describe, pixel_bins


def random_scene(seed: int, count: int = 12) -> tuple[np.ndarray, Regions, np.ndarray]:
    """Cells nearest to random points in random colors: labels, regions, and who touches whom."""
    random = np.random.default_rng(seed)
    points = random.random((count, 2)) * (30, 40)
    y, x = np.mgrid[:30, :40]
    nearest = ((y[..., None] - points[:, 0]) ** 2 + (x[..., None] - points[:, 1]) ** 2).argmin(-1)
    labels = np.unique(nearest, return_inverse=True)[1].reshape(30, 40)
    pixels = random.random((count, 3))[labels] * 0.9 + 0.1 * random.random((30, 40, 3))
    return labels, describe(labels, pixel_bins(pixels)), touching(labels)


def slow_boxes(labels: np.ndarray, regions: Regions, measures: str) -> list[list[float]]:
    """The boxes in the order of merging, from pixel masks, without a heap."""
    masks = [labels == i for i in range(len(regions.sizes))]
    histograms = list(regions.histograms)
    alive, area = set(range(len(masks))), labels.size
    boxes = [box_of(mask) for mask in masks]
    while len(alive) > 1:
        best, pair = -np.inf, (0, 0)
        for a in sorted(alive):
            for b in sorted(alive):
                if a < b and touch(masks[a], masks[b]):
                    x1, y1, x2, y2 = box_of(masks[a] | masks[b])
                    both = masks[a].sum() + masks[b].sum()
                    common = np.minimum(histograms[a], histograms[b])
                    values = {
                        "C": common[: regions.colors].sum(),
                        "T": common[regions.colors :].sum(),
                        "S": 1 - both / area,
                        "F": 1 - ((x2 - x1) * (y2 - y1) - both) / area,
                    }
                    score = sum(values[letter] for letter in measures)
                    if score > best + 1e-12:
                        best, pair = score, (a, b)
        a, b = pair
        sizes = masks[a].sum(), masks[b].sum()
        histograms.append((sizes[0] * histograms[a] + sizes[1] * histograms[b]) / sum(sizes))
        masks.append(masks[a] | masks[b])
        boxes.append(box_of(masks[-1]))
        alive = alive - {a, b} | {len(masks) - 1}
    return boxes


def box_of(mask: np.ndarray) -> list[float]:
    y, x = np.nonzero(mask)
    return [float(x.min()), float(y.min()), float(x.max() + 1), float(y.max() + 1)]


def touch(one: np.ndarray, other: np.ndarray) -> bool:
    padded = np.pad(one, 1)
    height, width = one.shape
    return any((padded[y : y + height, x : x + width] & other).any() for y in range(3) for x in range(3))


@pytest.mark.parametrize("measures", ["CTSF", "TSF", "CT", "C", "T", "S", "F"])
@pytest.mark.parametrize("seed", [0, 1])
def test_grouping_is_that_of_the_slow_loop(measures, seed):
    labels, regions, pairs = random_scene(seed)
    assert group(regions, pairs, measures=measures).boxes.tolist() == slow_boxes(labels, regions, measures)


@pytest.mark.parametrize("seed", range(5))
def test_n_segments_make_2n_minus_1_regions_and_the_last_is_the_image(seed):
    _, regions, pairs = random_scene(seed, count=30)
    hierarchy = group(regions, pairs)
    count = len(regions.sizes)
    assert len(hierarchy.boxes) == 2 * count - 1
    assert hierarchy.boxes[-1].tolist() == [0, 0, 40, 30]
    parents = hierarchy.parents
    assert parents[-1] == 2 * count - 2
    assert np.bincount(parents[:-1], minlength=2 * count - 1).tolist() == [0] * count + [2] * (count - 1)
    assert (parents[:-1] > np.arange(2 * count - 2)).all()


def test_a_region_is_one_level_above_its_higher_part():
    _, regions, pairs = random_scene(3)
    hierarchy = group(regions, pairs)
    for region in range(len(regions.sizes), len(hierarchy.boxes)):
        parts = np.flatnonzero(hierarchy.parents[: len(hierarchy.parents) - 1] == region)
        assert hierarchy.levels[region] == 1 + hierarchy.levels[parts].max()
    assert (hierarchy.levels[: len(regions.sizes)] == 1).all()


def test_the_lower_indices_go_first_where_pairs_are_equally_alike():
    same = Regions(np.full(4, 2.0), np.array([[i, 0.0, i + 1, 2] for i in range(4)]), np.full((4, 2), 0.5), colors=2)
    hierarchy = group(same, np.array([[0, 1], [1, 2], [2, 3]]), measures="C")
    assert hierarchy.parents.tolist() == [4, 4, 5, 5, 6, 6, 6]


def test_one_region_and_regions_that_touch_nobody_stay_as_they_are():
    alone = Regions(np.ones(2), np.array([[0.0, 0, 1, 1], [5, 5, 6, 6]]), np.ones((2, 2)) / 2, colors=1)
    nobody = np.zeros((0, 2), np.int64)
    assert group(alone, nobody).boxes.tolist() == alone.boxes.tolist()
    assert group(Regions(*(rows[:1] for rows in alone[:3]), 1), nobody).parents.tolist() == [0]


@pytest.mark.parametrize("measures", ["", "X", "CX"])
def test_unknown_measures_are_named(measures):
    _, regions, pairs = random_scene(0, count=3)
    with pytest.raises(ValueError, match=f"measures='{measures}'"):
        group(regions, pairs, measures=measures)
