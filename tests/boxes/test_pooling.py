"""roi_pool, roi_align and spatial_pyramid_pool against torchvision, torch's adaptive pooling and the goldens."""

import math

import pytest
import torch
import torchvision
from strategies import random_boxes, unhooked
from torch.nn import functional as F

from detkit.boxes.pooling import project_to_cells, roi_align, roi_pool, spatial_pyramid_pool

OPS = pytest.mark.parametrize("op", [roi_pool, roi_align])
PEERS = {roi_pool: torchvision.ops.roi_pool, roi_align: torchvision.ops.roi_align}


def maps(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


def with_images(boxes: torch.Tensor, batch: int) -> torch.Tensor:
    images = torch.arange(len(boxes)) % batch
    return torch.cat((images[:, None].to(boxes), boxes), dim=1)


@OPS
@pytest.mark.parametrize("size", [1, 3, (2, 5)])
def test_equals_torchvision(op, size):
    features, rows = maps(3, 4, 11, 14), with_images(random_boxes(60, extent=250), 3)
    expected = PEERS[op](features, rows, size, 0.06)
    torch.testing.assert_close(op(features, rows, size, 0.06), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [-1, 1, 2, 3])
def test_roi_align_equals_torchvision_for_every_option(ratio, aligned):
    features, rows = maps(2, 3, 9, 13, dtype=torch.float64), with_images(random_boxes(40, dtype=torch.float64), 2)
    options = {"spatial_scale": 0.125, "sampling_ratio": ratio, "aligned": aligned}
    expected = torchvision.ops.roi_align(features, rows, 4, **options)
    torch.testing.assert_close(roi_align(features, rows, 4, **options), expected, rtol=0, atol=1e-12)


@OPS
def test_the_three_forms_of_boxes_agree(op):
    features, boxes = maps(2, 3, 8, 8), random_boxes(10, extent=8).reshape(2, 5, 4)
    padded = op(features, boxes, 2)
    listed = op(features, list(boxes), 2)
    images = torch.tensor([0.0, 1]).repeat_interleave(5)[:, None]
    assert torch.equal(padded, listed)
    assert torch.equal(padded, op(features, torch.cat((images, boxes.flatten(0, 1)), 1), 2))


@OPS
def test_images_may_have_different_numbers_of_boxes_and_none(op):
    features = maps(3, 2, 6, 6)
    found = op(features, [random_boxes(2, extent=6), torch.tensor([]), random_boxes(1, extent=6)], 2)
    assert found.shape == (3, 2, 2, 2)
    assert torch.equal(found[2:], op(features[2:], [random_boxes(1, extent=6)], 2))


@OPS
@pytest.mark.parametrize("boxes", [torch.zeros(0, 5), torch.tensor([]), torch.zeros(0, 4), torch.zeros(2, 0, 4)])
def test_no_boxes_give_no_results_and_a_gradient_of_zero(op, boxes):
    features = maps(2, 3, 6, 6).requires_grad_()
    found = op(features, boxes, 2)
    assert found.shape == (0, 3, 2, 2)
    found.sum().backward()
    assert features.grad is not None
    assert not features.grad.any()


@OPS
def test_integer_and_half_boxes_are_promoted_and_results_have_the_type_of_the_features(op):
    features = maps(1, 2, 9, 9)
    boxes = torch.tensor([[[16, 24, 96, 128]]])
    exact = op(features, boxes.float(), 3, 1 / 16)
    for dtype in (torch.uint8, torch.int32, torch.int64, torch.float16, torch.bfloat16, torch.float64):
        assert torch.equal(op(features, boxes.to(dtype), 3, 1 / 16), exact)
    assert op(features.half(), boxes.half(), 3, 1 / 16).dtype == torch.float16
    assert torch.equal(op((features * 9).byte(), boxes, 3, 1 / 16), op((features * 9).byte().float(), boxes, 3, 1 / 16))


@OPS
def test_a_box_that_is_not_finite_is_read_as_zero_and_leaves_the_others_alone(op):
    features, rows = maps(2, 3, 8, 8), with_images(random_boxes(4, extent=8), 2)
    expected = op(features, rows, 2)
    rows[1, 3], rows[2, 2] = math.inf, math.nan
    found = op(features, rows, 2)
    assert torch.equal(found[[0, 3]], expected[[0, 3]])
    assert not found[1:3].any()


@OPS
def test_huge_boxes_neither_hang_nor_crash(op):
    features = maps(1, 1, 6, 5)
    found = op(features, torch.tensor([[0, -1e30, -1e30, 1e30, 1e30], [0, 0, 0, 3e38, 3e38], [0, 1e30, 0, 2e30, 5]]), 1)
    assert torch.isfinite(found).all()
    assert (found <= 1).all()
    if op is roi_pool:
        assert found[0] == features.max()


@pytest.mark.parametrize("ratio", [-1, 0, 1, 2])
def test_an_inverted_box_is_read_or_empty_but_no_error(ratio):
    box = torch.tensor([[0.0, 3, 3, 1, 1]])
    found = roi_align(torch.arange(16.0).reshape(1, 1, 4, 4), box, 1, sampling_ratio=ratio, aligned=True).item()
    assert found == (7.5 if ratio > 0 else 0)


def test_roi_align_with_as_many_points_as_cells_is_torchvisions_up_to_a_map_outside():
    features = maps(1, 2, 6, 5)
    rows = torch.tensor([[0.0, -5, -6, 10, 12]])
    expected = torchvision.ops.roi_align(features, rows, 3)
    torch.testing.assert_close(roi_align(features, rows, 3), expected)
    farther = torch.tensor([[0.0, -6, -9, 11, 99]])  # is moved to there
    for ratio in (-1, 0):
        torch.testing.assert_close(roi_align(features, farther, 3, sampling_ratio=ratio), expected)


@OPS
def test_a_cell_is_a_pixel_unless_told(op):
    features, rows = maps(1, 2, 9, 9), with_images(random_boxes(5, extent=9), 1)
    assert torch.equal(op(features, rows, 3), op(features, rows, 3, 1.0))


def test_a_few_points_keep_their_places_in_boxes_that_reach_far_out_of_the_map():
    features = torch.arange(6.0).reshape(1, 1, 1, 6)
    far = 100_000.0  # the middle of the box is in the middle of cell 2, that of its first half far outside
    box = torch.tensor([[0, -far, -far, far + 2 * 40, far]])
    assert roi_align(features, box, 1, 1 / 16, sampling_ratio=1, aligned=True).item() == 2
    behind = torch.tensor([[0, -far, -far, 3 * far, 3 * far]])
    assert roi_pool(features, behind, 2, 1 / 16).tolist() == [[[[5, 0], [0, 0]]]]


def test_image_indices_outside_the_batch_are_refused_before_the_kernel_reads_there():
    rows = torch.tensor([[0.0, 0, 0, 3, 3], [2, 0, 0, 3, 3]])
    with pytest.raises(ValueError, match=r"roi_align: boxes\[1\].*image 2.*0..1; 1"):
        roi_align(maps(2, 1, 4, 4), rows, 2)


def test_goldens_of_the_slide():
    features = torch.arange(16.0).reshape(1, 1, 4, 4)
    boxes = torch.tensor([[[0, 0, 20, 20], [0, 10, 30, 30]]])
    assert roi_pool(features, boxes, 2, 0.1).tolist() == [[[[5, 6], [9, 10]]], [[[9, 11], [13, 15]]]]


@pytest.mark.parametrize("levels", [(1, 3, 6), (1, 2, 3, 6), (7, 11), (4,)])
@pytest.mark.parametrize("shape", [(13, 13), (5, 21), (1, 2)])
def test_a_pyramid_of_whole_maps_equals_adaptive_max_pooling(shape, levels):
    features = maps(2, 3, *shape)
    expected = torch.cat([F.adaptive_max_pool2d(features, level).flatten(1) for level in levels], dim=1)
    assert torch.equal(spatial_pyramid_pool(features, levels=levels), expected)


def test_a_pyramid_of_windows_equals_adaptive_max_pooling_of_each():
    features = maps(2, 3, 9, 12)
    windows = torch.tensor([[[0, 0, 12, 9], [3, 2, 4, 3]], [[5, 1, 12, 8], [0, 4, 7, 9]]])
    cut = [features[i, :, y1:y2, x1:x2] for i in (0, 1) for x1, y1, x2, y2 in windows[i].tolist()]
    expected = [torch.cat([F.adaptive_max_pool2d(m, n).flatten() for n in (1, 3, 6)]) for m in cut]
    assert torch.equal(spatial_pyramid_pool(features, windows), torch.stack(expected))
    turned = [features[i, :, x1:x2, y1:y2] for i in (0, 1) for x1, y1, x2, y2 in windows[i, 1:].tolist()]
    assert torch.equal(
        spatial_pyramid_pool(features, windows[:, 1:], (2,), transpose_xy=True),
        torch.stack([F.adaptive_max_pool2d(m, 2).flatten() for m in turned[:1]] + [turned_pool(features[1], windows)]),
    )


def turned_pool(image: torch.Tensor, windows: torch.Tensor) -> torch.Tensor:
    x1, y1, x2, y2 = windows[1, 1].tolist()
    return F.adaptive_max_pool2d(image[:, x1:x2, y1:y2], 2).flatten()


def test_windows_are_rounded_outwards_and_hold_a_cell_of_the_map():
    features = torch.arange(12.0).reshape(1, 1, 3, 4)
    boxes = torch.tensor([[[0.5, 0.5, 1.5, 1.5], [2, 1, 2, 1], [-9, -9, -5, -5], [1e30, 1e30, 2e30, 2e30]]])
    assert spatial_pyramid_pool(features, boxes, (1,)).flatten().tolist() == [5, 6, 0, 11]
    assert spatial_pyramid_pool(features, torch.tensor([[[-2.0, -9, 2, 1], [3, 2, 0, 0]]]), (1, 2)).tolist() == [
        [1, 0, 1, 0, 1],
        [11] * 5,  # an inverted window is the cell it starts in
    ]


def test_a_map_wider_than_half_precision_counts_is_read_to_its_end():
    features = torch.zeros(1, 1, 1, 2049, dtype=torch.float16)
    features[..., -1] = 1
    assert spatial_pyramid_pool(features, levels=(1,)).item() == 1


def test_256_channels_make_11776_numbers():
    assert spatial_pyramid_pool(maps(1, 256, 13, 13)).shape == (1, 11_776)


def test_the_gradient_of_a_pyramid_goes_to_the_largest_cell_once_a_bin():
    features = torch.arange(36.0).reshape(1, 1, 6, 6).requires_grad_()
    spatial_pyramid_pool(features, levels=(1, 2)).sum().backward()
    expected = torch.zeros(6, 6)
    for y, x in ((2, 2), (2, 5), (5, 2), (5, 5), (5, 5)):
        expected[y, x] += 1
    assert torch.equal(features.grad[0, 0], expected)


@pytest.mark.parametrize(
    ("box", "cells"),
    [
        ((0, 0, 640, 480), [0, 0, 13, 13]),
        ((100, 50, 300, 200), [1, 1, 7, 6]),
        ((0, 0, 10, 10), [0, 0, 1, 1]),
        ((320, 240, 321, 241), [6, 6, 7, 7]),
        ((630, 470, 640, 480), [12, 12, 13, 13]),
    ],
)
def test_goldens_of_the_projection(box, cells):
    for dtype in (torch.int64, torch.float32, torch.float64):
        assert project_to_cells(torch.tensor(box, dtype=dtype), (480, 640)).tolist() == cells


def test_each_image_may_have_its_own_size_in_the_projection():
    boxes, sizes = random_boxes(6).reshape(2, 3, 4), torch.tensor([[480, 640], [100, 120]])
    found = project_to_cells(boxes, sizes[:, None])
    for image in (0, 1):
        assert torch.equal(found[image], project_to_cells(boxes[image], tuple(sizes[image].tolist())))


def test_projected_boxes_hold_a_cell_whatever_comes_in():
    bad = [[50.0, 50, 10, 10], [-1e30, math.nan, math.inf, 5], [1e30, 1e30, 1e30, 1e30]]
    found = project_to_cells(torch.tensor(bad), (100, 100))
    assert (found[:, :2] >= 0).all()
    assert (found[:, 2:] > found[:, :2]).all()
    assert (found <= 13).all()
    assert project_to_cells(torch.tensor([math.nan] * 4), (100, 100)).tolist() == [0, 0, 1, 1]


def test_the_smallest_image_and_the_smallest_map_have_a_cell():
    whole = torch.tensor([0, 0, 1, 1])
    assert project_to_cells(whole, (1, 1)).tolist() == [0, 0, 13, 13]
    assert project_to_cells(whole, (1, 1), input_size=1, stride=1, cells=1).tolist() == [0, 0, 1, 1]


def test_boxes_without_images_are_refused():
    with pytest.raises(ValueError, match="boxes has 0 entries; allowed is one for each of 1 images"):
        unhooked(roi_pool)(maps(1, 1, 4, 4), [], 2)
    assert unhooked(roi_pool)(maps(0, 1, 4, 4), [], 2).shape == (0, 1, 2, 2)
