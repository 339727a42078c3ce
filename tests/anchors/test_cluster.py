"""Anchor shapes from a data set: overlap of shapes against box_iou, and what k-means must hold whatever it draws."""

import json

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import assert_refused

from detkit.anchors import cluster as module
from detkit.anchors.cluster import cluster_anchors, mean_shape_iou, shape_iou
from detkit.boxes import box_iou

YOLO_V3 = torch.tensor(
    [(10, 13), (16, 30), (33, 23), (30, 61), (62, 45), (59, 119), (116, 90), (156, 198), (373, 326)]
).float()


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def blobs(*centers: tuple[float, float], each: int = 40, spread: float = 0.03) -> torch.Tensor:
    """Sizes scattered by a few percent around each center."""
    noise = 1 + spread * torch.randn(len(centers), each, 2, generator=seeded(1))
    return (torch.tensor(centers)[:, None] * noise).reshape(-1, 2)


def side_lengths(low: float = 1.0, high: float = 500.0):
    return st.floats(low, high, width=32)


def size_lists(least: int = 1, most: int = 25):
    sizes = st.lists(st.tuples(side_lengths(), side_lengths()), min_size=least, max_size=most)
    return sizes.map(lambda rows: torch.tensor(rows, dtype=torch.float32))


# Overlap of shapes


def test_objects_go_to_the_anchors_of_yolo_v3_that_its_table_names():
    overlaps = shape_iou(torch.tensor([[12.0, 14], [50, 50], [120, 100], [400, 300]]), YOLO_V3)
    assert overlaps.argmax(1).tolist() == [0, 4, 6, 8]
    torch.testing.assert_close(overlaps.amax(1), torch.tensor([0.7738, 0.7401, 0.87, 0.8628]), rtol=0, atol=5e-5)


@given(sizes=size_lists(), shapes=size_lists())
def test_overlap_of_shapes_is_that_of_boxes_with_one_corner(sizes, shapes):
    def boxes(rows):
        return torch.cat((torch.zeros_like(rows), rows), dim=1)

    torch.testing.assert_close(shape_iou(sizes, shapes), box_iou(boxes(sizes), boxes(shapes)), rtol=1e-5, atol=1e-6)


@given(sizes=size_lists(), scale=st.sampled_from([1e-30, 1e-3, 2.0, 1e30]))
def test_overlap_of_shapes_does_not_notice_a_scale_and_is_symmetric_and_one_with_itself(sizes, scale):
    overlaps = shape_iou(sizes, sizes)
    torch.testing.assert_close(shape_iou(sizes * scale, sizes * scale), overlaps, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(overlaps, overlaps.T, rtol=1e-6, atol=0)
    assert (overlaps.diagonal() == 1).all()
    assert ((overlaps > 0) & (overlaps <= 1)).all()


def test_shapes_without_area_overlap_nothing_and_have_finite_gradients():
    sizes = torch.tensor([[0.0, 0], [0, 5], [-3, -3], [4, 4]], requires_grad=True)
    shapes = torch.tensor([[0.0, 0], [2, 8], [3e38, 3e38]], requires_grad=True)
    overlaps = shape_iou(sizes, shapes)
    assert overlaps[:3].tolist() == [[0, 0, 0]] * 3
    torch.testing.assert_close(overlaps[3, :2], torch.tensor([0, 1 / 3]))
    overlaps.sum().backward()
    assert torch.isfinite(sizes.grad).all()
    assert torch.isfinite(shapes.grad).all()


def test_overlap_of_shapes_has_right_gradients_and_broadcasts():
    sizes = torch.tensor([[3.0, 5], [8, 2]], dtype=torch.float64, requires_grad=True)
    shapes = torch.tensor([[4.0, 4], [9, 1], [2, 7]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(shape_iou, (sizes, shapes))
    assert torch.equal(shape_iou(torch.stack((sizes, sizes * 2)), shapes)[1], shape_iou(sizes * 2, shapes))
    assert torch.equal(shape_iou(sizes, torch.stack((shapes, shapes * 2)))[1], shape_iou(sizes, shapes * 2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8])
def test_shapes_of_every_type_overlap_as_their_promoted_numbers(dtype):
    sizes, shapes = torch.tensor([[200, 3], [7, 7]]).to(dtype), torch.tensor([[9, 200]]).to(dtype)
    wide = torch.float64 if dtype in (torch.float64, torch.int64) else torch.float32
    overlaps = shape_iou(sizes, shapes)
    assert overlaps.dtype == wide
    torch.testing.assert_close(overlaps, shape_iou(sizes.to(wide), shapes.to(wide)))


def test_mean_overlap_takes_the_best_shape_of_each_size():
    sizes = torch.tensor([[10.0, 10], [10, 20], [40, 10]])
    assert mean_shape_iou(sizes, torch.tensor([[10.0, 10], [20, 10]])).item() == pytest.approx((1 + 0.5 + 0.5) / 3)


# k-means


@pytest.mark.parametrize("seed", range(5))
def test_planted_clusters_are_found_and_sorted_by_area(seed):
    centers = [(100.0, 20), (12, 10), (40, 90), (300, 280), (15, 60)]
    found = cluster_anchors(blobs(*centers), 5, generator=seeded(seed))
    expected = torch.tensor(sorted(centers, key=lambda shape: shape[0] * shape[1]))
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0)


@given(sizes=size_lists(2), count=st.integers(1, 4), seed=st.integers(0, 99))
def test_whatever_is_drawn_shapes_are_sorted_within_the_data_and_the_same_again(sizes, count, seed):
    assume(len(sizes.unique(dim=0)) >= count)
    found = cluster_anchors(sizes, count, restarts=3, generator=seeded(seed))
    assert found.shape == (count, 2)
    assert (found.prod(1).diff() >= -1e-3 * found.prod(1)[1:]).all()
    assert (found >= sizes.amin(0) * (1 - 1e-6)).all()
    assert (found <= sizes.amax(0) * (1 + 1e-6)).all()
    assert torch.equal(found, cluster_anchors(sizes, count, restarts=3, generator=seeded(seed)))


@given(sizes=size_lists(2), seed=st.integers(0, 99))
def test_as_many_shapes_as_different_sizes_are_the_sizes(sizes, seed):
    distinct = sizes.unique(dim=0)
    found = cluster_anchors(torch.cat((sizes, sizes)), len(distinct), restarts=1, generator=seeded(seed))
    assert torch.equal(found.unique(dim=0), distinct)
    assert mean_shape_iou(sizes, found) == 1


@given(sizes=size_lists(4), count=st.integers(2, 4), seed=st.integers(0, 99))
def test_no_start_is_better_than_where_it_settles_and_every_start_has_different_sizes(sizes, count, seed):
    distinct, times = sizes.double().unique(dim=0, return_counts=True)
    assume(len(distinct) >= count)
    weights = times / len(sizes)
    start = module._spread(distinct, weights.double(), count, seeded(seed))
    assert len(start.unique(dim=0)) == count
    fit, centers = module._settle(distinct, weights.double(), start, 50)
    assert fit >= mean_shape_iou(sizes.double(), start) - 1e-6  # float32 shapes
    assert fit == pytest.approx(mean_shape_iou(sizes.double(), centers).item())


def cluster_fit(sizes: torch.Tensor, count: int, seed: int, **options) -> float:
    return mean_shape_iou(sizes, cluster_anchors(sizes, count, generator=seeded(seed), **options)).item()


@given(sizes=size_lists(6), count=st.integers(2, 4), seed=st.integers(0, 99))
def test_more_restarts_are_never_worse(sizes, count, seed):
    assume(len(sizes.unique(dim=0)) >= count)
    fits = [cluster_fit(sizes, count, seed, restarts=restarts) for restarts in (1, 3, 8)]
    assert fits[0] <= fits[1] + 1e-6 <= fits[2] + 2e-6


def test_a_round_moves_every_center_to_the_weighted_mean_of_its_sizes():
    sizes = torch.tensor([[10.0, 10], [12, 12], [100, 100]], dtype=torch.float64)
    weights = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
    nearest, overlaps = torch.tensor([0, 0, 1]), torch.ones(3, dtype=torch.float64)
    means = module._means(sizes, weights, nearest, overlaps, 2)
    torch.testing.assert_close(means[0], torch.tensor([32 / 3, 32 / 3], dtype=torch.float64))
    assert means[1].tolist() == [100, 100]


def test_centers_without_sizes_move_to_the_sizes_that_fit_worst_each_to_another():
    sizes = torch.tensor([[10.0, 10], [12, 12], [90, 10], [100, 100]], dtype=torch.float64)
    overlaps = torch.tensor([0.9, 0.8, 0.1, 0.3], dtype=torch.float64)
    means = module._means(sizes, torch.full((4,), 0.25).double(), torch.ones(4).long(), overlaps, 3)
    assert means.tolist() == [[90, 10], [53, 33], [100, 100]]


def test_a_settled_start_stops_and_a_start_off_the_means_goes_on_for_the_rounds_allowed():
    sizes = torch.tensor([[10.0, 10], [14, 14], [90, 90], [110, 110]], dtype=torch.float64)
    weights, start = torch.full((4,), 0.25).double(), torch.tensor([[10.0, 10], [14, 14]], dtype=torch.float64)
    fits = [module._settle(sizes, weights, start, rounds)[0] for rounds in (0, 1, 2, 50)]
    assert fits[0] == pytest.approx(mean_shape_iou(sizes, start).item())
    assert fits == sorted(fits)
    assert fits[-1] > 0.7 > fits[0]


def test_sizes_are_drawn_by_their_chance_and_never_without_one():
    chances, generator = torch.tensor([0.0, 1, 3, 0], dtype=torch.float64), seeded()
    drawn = torch.tensor([module._draw(chances, generator) for _ in range(2000)])
    share = drawn.bincount(minlength=4) / 2000
    assert share[0] == share[3] == 0
    assert share[2].item() == pytest.approx(0.75, abs=0.04)


@pytest.mark.parametrize(("chances", "only"), [([5e-324, 0], 0), ([0, 5e-324], 1)])
def test_the_only_size_with_a_chance_is_drawn_even_where_the_place_is_rounded_to_an_end(chances, only):
    generator = seeded()
    assert {module._draw(torch.tensor(chances, dtype=torch.float64), generator) for _ in range(20)} == {only}


def test_sizes_too_large_to_be_told_apart_are_not_drawn_twice():
    sizes = torch.tensor([[2.0**600, 2.0**600], [2.0**601, 2.0**601]], dtype=torch.float64)
    assert shape_iou(sizes, sizes).tolist() == [[1, 1], [1, 1]]
    start = module._spread(sizes, torch.tensor([0.5, 0.5], dtype=torch.float64), 2, seeded())
    assert len(start.unique(dim=0)) == 2


def test_frequent_sizes_weigh_more():
    rare, frequent = torch.tensor([[10.0, 10], [30, 30]]), torch.tensor([[20.0, 20]])
    found = cluster_anchors(torch.cat((rare, frequent.expand(50, 2))), 1, generator=seeded())
    assert found.tolist() == [[20, 20]]


def test_large_boxes_weigh_no_more_than_small_ones():
    sizes = blobs((8.0, 8), (16, 16), (500, 500), (600, 600))
    found = cluster_anchors(sizes, 3, generator=seeded()).tolist()
    assert found[0][0] < 10 < found[1][0] < 20 < 500 < found[2][0]  # plain distances would split 500 from 600


def test_equal_areas_are_sorted_by_width():
    found = cluster_anchors(torch.tensor([[40.0, 10], [10, 40], [20, 20]]), 3, generator=seeded())
    assert found.tolist() == [[10, 40], [20, 20], [40, 10]]


def test_without_a_generator_the_global_seed_decides():
    sizes = blobs((10.0, 10), (40, 90), (300, 280), spread=0.3)
    results = []
    for _ in range(2):
        torch.manual_seed(3)
        results.append(cluster_anchors(sizes, 4, restarts=1))
    assert torch.equal(*results)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64, torch.int64, torch.uint8])
def test_sizes_of_every_type_give_shapes_of_the_promoted_type(dtype):
    sizes = torch.tensor([[10, 10], [12, 12], [200, 100], [220, 100]]).to(dtype)
    found = cluster_anchors(sizes, 2, generator=seeded())
    assert found.dtype == (torch.float64 if dtype in (torch.float64, torch.int64) else torch.float32)
    assert found[1].tolist()[1] == 100


@pytest.mark.parametrize(
    ("message", "sizes", "count", "options"),
    [
        ("count=0 1", torch.ones(3, 2), 0, {}),
        ("restarts=0 1", torch.ones(3, 2), 1, {"restarts": 0}),
        ("iterations=0 1", torch.ones(3, 2), 1, {"iterations": 0}),
        ("count=2 shapes from 1 sizes", torch.ones(3, 2), 2, {}),
        ("count=1 shapes from 0 sizes", torch.ones(0, 2), 1, {}),
        ("sizes (3, 4) (N, 2)", torch.ones(3, 4), 1, {}),
        ("sizes (2,) (N, 2)", torch.ones(2), 1, {}),
        ("sizes (1, 3, 2) (N, 2)", torch.ones(1, 3, 2), 1, {}),
        (
            "sizes[1, 0]=nan 2 3 sizes",
            torch.tensor([[1, 1], [torch.nan, 0], [1, torch.inf]]),
            1,
            {},
        ),
        ("sizes[0, 1]=0 1 1 sizes", torch.tensor([[1.0, 0]]), 1, {}),
        ("sizes[0, 0]=-1 1 1 sizes", torch.tensor([[-1.0, 2]]), 1, {}),
    ],
)
def test_sizes_that_cannot_be_clustered_are_refused(message, sizes, count, options):
    assert_refused(f"cluster_anchors: {message}", cluster_anchors, sizes, count, **options)


def test_shapes_of_another_width_and_means_of_nothing_are_refused():
    some, none = torch.ones(1, 2), torch.ones(0, 2)
    for name, arguments in (("sizes", (torch.ones(1, 3), some)), ("shapes", (some, torch.ones(1, 3)))):
        assert_refused(f"shape_iou: {name} (1, 3) (N, 2)", shape_iou, *arguments)
    for name, arguments in (("sizes", (none, some)), ("shapes", (some, none))):
        assert_refused(f"mean_shape_iou: got no {name}; at least one is needed", mean_shape_iou, *arguments)


def test_blood_cells_have_three_sizes_that_beat_a_ladder_of_squares(detkit_data):
    truth = json.loads((detkit_data / "bccd" / "annotations" / "instances_train.json").read_text(encoding="utf-8"))
    sizes = torch.tensor([box["bbox"][2:] for box in truth["annotations"]])
    sizes = sizes[(sizes > 0).all(1)]
    found = cluster_anchors(sizes, 3, generator=seeded())
    ladder = torch.tensor([[32.0, 32], [64, 64], [128, 128]])
    assert mean_shape_iou(sizes, found).item() == pytest.approx(0.804, abs=0.002)
    assert mean_shape_iou(sizes, ladder) < 0.66


def test_a_start_is_never_beside_one_that_is_there_already():
    """Three pairs of near twins: the chance of a second twin is the square of a thousandth."""
    pairs = torch.tensor([[1.0, 1.0], [1.001, 1], [10, 10], [10.01, 10], [100, 100], [100.1, 100]], dtype=torch.float64)
    for seed in range(60):
        start = module._spread(pairs, torch.full((6,), 0.01, dtype=torch.float64), 3, seeded(seed))
        assert start.log10().round()[:, 0].sort().values.tolist() == [0, 1, 2]
