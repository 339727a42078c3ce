"""Planted rectangles are found, order and seed decide what comes first, and boxes are in the image's own pixels."""

import numpy as np
import pytest
import torch

from detkit.boxes import box_iou
from detkit.proposals.selective_search import VIEWS, hierarchies, selective_search

RECTANGLES = torch.tensor(
    [[20.0, 15, 70, 60], [90, 20, 150, 50], [30, 80, 60, 115], [80, 70, 170, 110], [100, 80, 130, 105]]
)
COLORS = ([220, 30, 30], [30, 200, 40], [40, 60, 230], [240, 220, 20], [150, 20, 200])


def planted(noise: float = 4.0, seed: int = 0) -> torch.Tensor:
    """Colored rectangles, one of them inside another, on gray, with a little noise: uint8 (3, 125, 190)."""
    image = torch.full((3, 125, 190), 128.0)
    for (x1, y1, x2, y2), color in zip(RECTANGLES.int().tolist(), COLORS, strict=True):
        image[:, y1:y2, x1:x2] = torch.tensor(color, dtype=torch.float32)[:, None, None]
    image += noise * torch.randn(image.shape, generator=torch.Generator().manual_seed(seed))
    return image.clamp(0, 255).to(torch.uint8)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("mode", "count"), [("single", 4), ("fast", 5)])
@pytest.mark.slow
def test_every_planted_rectangle_is_found(mode, count):
    """A single view need not find the rectangle inside another; the fast mode does."""
    boxes, _ = selective_search(planted(), mode=mode, width=None, generator=seeded())
    assert box_iou(RECTANGLES[:count], boxes).max(dim=1).values.min() >= 0.95


@pytest.mark.slow(2)
def test_quality_finds_them_too_at_another_width():
    boxes, _ = selective_search(planted(), mode="quality", width=250, generator=seeded())
    assert box_iou(RECTANGLES, boxes).max(dim=1).values.min() >= 0.95


@pytest.mark.slow
def test_boxes_lie_in_the_image_are_distinct_and_best_first():
    boxes, scores = selective_search(planted(), width=300, generator=seeded())
    assert boxes.dtype == scores.dtype == torch.float32
    assert len(boxes) == len(scores) == len(boxes.unique(dim=0)) > 20
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] <= torch.tensor([190.0, 125.0]) + 1e-4).all()
    assert (scores.diff() <= 0).all()
    assert scores.min() > 0
    assert scores.max() <= 1


def test_the_whole_image_is_the_last_merge_of_every_hierarchy():
    found = list(hierarchies(planted().permute(1, 2, 0).numpy() / 255.0, mode="fast"))
    assert len(found) == 8
    for hierarchy in found:
        count = int((hierarchy.levels == 1).sum())
        assert len(hierarchy.boxes) == 2 * count - 1
        assert hierarchy.boxes[-1].tolist() == [0, 0, 190, 125]


def test_the_modes_have_the_views_of_the_original_software():
    assert {mode: np.prod([len(part) for part in views]) for mode, views in VIEWS.items()} == {
        "single": 1,
        "fast": 8,
        "quality": 80,
    }


@pytest.mark.slow
def test_a_seed_decides_and_another_seed_changes_only_the_order():
    one, same, other = (selective_search(planted(), width=None, generator=seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(one[0], same[0])
    assert torch.equal(one[1], same[1])
    assert not torch.equal(one[0], other[0])
    assert sorted(one[0].tolist()) == sorted(other[0].tolist())


def test_the_global_seed_decides_where_no_generator_is_given():
    found = []
    for _ in range(2):
        torch.manual_seed(3)
        found.append(selective_search(planted(), mode="single", width=None)[0])
    assert torch.equal(*found)


def mean_areas(order: str) -> tuple[float, float]:
    """Mean area of the first and of the last half, over ten seeds."""
    halves = []
    for seed in range(10):
        boxes, _ = selective_search(
            planted(), mode="single", order=order, min_side=0, width=None, generator=seeded(seed)
        )
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
        halves.append((areas[: len(areas) // 2].mean(), areas[len(areas) // 2 :].mean()))
    first, last = torch.tensor(halves).mean(dim=0).tolist()
    return first, last


@pytest.mark.slow
def test_the_papers_order_has_large_regions_first_and_opencvs_small_ones():
    first, last = mean_areas("paper")
    assert first > last
    first, last = mean_areas("opencv")
    assert first < last


def test_the_score_tells_the_rank_of_the_best_of_equal_boxes():
    """A flat image is one segment in all 8 hierarchies: eight equal boxes of position 1, so rank = the least number."""
    boxes, scores = selective_search(torch.full((3, 30, 40), 90, dtype=torch.uint8), width=None, generator=seeded())
    least = min(
        torch.rand(1, dtype=torch.float64, generator=generator).item() for generator in [seeded()] for _ in range(8)
    )
    assert boxes.tolist() == [[0, 0, 40, 30]]
    assert scores.item() == pytest.approx(1 / (1 + least))


def test_narrow_boxes_are_left_out_and_the_best_so_many_kept():
    every, _ = selective_search(planted(), mode="single", width=None, min_side=0, generator=seeded())
    large, scores = selective_search(planted(), mode="single", width=None, min_side=40, generator=seeded())
    sides = (every[:, 2:] - every[:, :2]).min(dim=1).values
    assert torch.equal(large, every[sides >= 40])
    assert 0 < len(large) < len(every)
    few, few_scores = selective_search(
        planted(), mode="single", width=None, min_side=40, max_proposals=3, generator=seeded()
    )
    assert torch.equal(few, large[:3])
    assert torch.equal(few_scores, scores[:3])


def test_a_larger_smallest_segment_means_fewer_boxes():
    counts = [
        len(selective_search(planted(), mode="single", width=None, min_side=0, min_size=size, generator=seeded())[0])
        for size in (20, 400)
    ]
    assert counts[0] > counts[1] >= 1


@pytest.mark.slow
def test_bytes_and_fractions_of_one_are_the_same_image():
    image = planted()
    boxes = [selective_search(rows, width=None, generator=seeded())[0] for rows in (image, image.double() / 255)]
    assert torch.equal(*boxes)


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (3, 2)])
def test_an_image_of_a_few_pixels_is_itself_the_only_proposal(size):
    boxes, _ = selective_search(torch.zeros(3, *size), width=None, min_side=0)
    assert boxes.tolist() == [[0, 0, size[1], size[0]]]
    assert selective_search(torch.zeros(3, *size), width=None)[0].shape == (0, 4)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(3, 5, 5) - 0.1, r"allowed are floats in \[0, 1\]"),
        (torch.full((3, 5, 5), 255.0), "from 255 to 255"),
        (torch.full((3, 5, 5), float("nan")), "from nan"),
        (torch.zeros(3, 5, 5, dtype=torch.int64), "torch.int64"),
        (torch.zeros(3, 0, 5), r"shape \(3, 0, 5\)"),
    ],
)
def test_what_is_no_rgb_image_is_refused(image, message):
    with pytest.raises(ValueError, match=f"selective_search: image .*{message}"):
        selective_search(image)


@pytest.mark.parametrize(
    "settings", [{"width": 0}, {"min_size": 0}, {"max_proposals": 0}, {"min_side": -1.0}, {"min_side": float("nan")}]
)
def test_a_wrong_setting_is_named(settings):
    ((name, value),) = settings.items()
    with pytest.raises(ValueError, match=f"selective_search: {name}={value}"):
        selective_search(planted(), **settings)


def test_a_narrow_image_is_not_enlarged_beyond_memory():
    with pytest.raises(
        ValueError, match=r"2000 x 2 \(height x width\) would become 500000 x 500; allowed are 16777216"
    ):
        selective_search(torch.zeros(3, 2000, 2))
