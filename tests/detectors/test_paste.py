"""Pasting masks into images: torchvision's rule, for any box."""

import pytest
import torch
from strategies import random_boxes, unhooked
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image

from detkit.detectors.paste import paste_masks

PARTLY_OUTSIDE = torch.tensor([[-9.0, -7, 12, 15], [40.0, 30, 77, 69], [-5, -5, 70, 60]])
SMALL = torch.tensor([[5.2, 5.3, 5.6, 5.4], [8.0, 8, 8, 8], [0, 0, 0.5, 0.5], [59.5, 49.5, 60, 50], [3, 4, 3.5, 40]])


def random_masks(count: int, cells: int, *, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(count, cells, cells, generator=torch.Generator().manual_seed(count)).to(dtype)


@pytest.mark.parametrize("cells", [1, 7, 28])
@pytest.mark.parametrize("boxes", [random_boxes(20, extent=50), PARTLY_OUTSIDE, SMALL, torch.zeros(0, 4)])
def test_it_draws_what_torchvision_draws(boxes, cells):
    masks = random_masks(len(boxes), cells)
    expected = paste_masks_in_image(masks[:, None], boxes, (50, 60))[:, 0]
    found = paste_masks(masks, boxes, (50, 60), threshold=None)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    clear = (expected - 0.5).abs() > 1e-6
    assert torch.equal(paste_masks(masks, boxes, (50, 60), threshold=0.5)[clear], (expected >= 0.5)[clear])


def test_large_boxes_on_large_images_agree_too():
    boxes, masks = torch.tensor([[3.7, 20.1, 799.2, 590.6], [-200.5, 100, 1500, 300.3]]), random_masks(2, 28)
    expected = paste_masks_in_image(masks[:, None], boxes, (600, 800))[:, 0]
    torch.testing.assert_close(paste_masks(masks, boxes, (600, 800), threshold=None), expected, rtol=1e-6, atol=2e-6)


def test_a_probability_that_reaches_the_threshold_is_inside():
    masks, boxes = torch.full((1, 28, 28), 0.75), torch.tensor([[10.0, 10, 40, 30]])
    assert paste_masks(masks, boxes, (50, 60), threshold=0.75)[0, 15:25, 15:35].all()
    assert not paste_masks(masks, boxes, (50, 60), threshold=0.76).any()


def test_nothing_is_drawn_for_boxes_outside_or_inverted_or_not_finite():
    boxes = torch.tensor(
        [
            [100.0, 10, 120, 30],
            [-90, 10, -70, 30],
            [10, -90, 30, -70],
            [30, 30, 10, 10],
            [torch.nan, 0, 9, 9],
            [0, 0, torch.inf, 9],
        ]
    )
    assert not paste_masks(torch.ones(6, 7, 7), boxes, (50, 60)).any()


def test_a_box_as_large_as_can_be_takes_no_more_memory_than_the_image():
    found = paste_masks(torch.ones(2, 7, 7), torch.tensor([[-1e9, -1e9, 1e9, 1e9], [-1e30, 0, 1e30, 9]]), (50, 60))
    assert found[0].all()
    assert found.shape == (2, 50, 60)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_half_precision_is_promoted_and_double_kept(dtype):
    masks, boxes = random_masks(3, 7, dtype=dtype), random_boxes(3, extent=50)
    found = paste_masks(masks, boxes.double(), (50, 60), threshold=None)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    expected = paste_masks_in_image(masks.double()[:, None], boxes.double(), (50, 60))[:, 0]
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)


def test_an_image_without_pixels_has_masks_without_pixels():
    assert paste_masks(torch.ones(2, 3, 3), torch.tensor([[0.0, 0, 4, 4]] * 2), (0, 5)).shape == (2, 0, 5)


def test_shapes_that_disagree_are_refused():
    with pytest.raises(ValueError, match=r"^paste_masks: masks \(2, 3, 3\).*boxes \(1, 4\).*\(K, S, S\)"):
        unhooked(paste_masks)(torch.zeros(2, 3, 3), torch.zeros(1, 4), (5, 5))
    with pytest.raises(ValueError, match=r"^paste_masks: masks \(2, 3, 4\)"):
        unhooked(paste_masks)(torch.zeros(2, 3, 4), torch.zeros(2, 4), (5, 5))
    with pytest.raises(ValueError, match=r"^paste_masks: size\[0\]=-1"):
        paste_masks(torch.zeros(2, 3, 3), torch.zeros(2, 4), (-1, 5))
