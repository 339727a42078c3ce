"""crop_and_resize: where each pixel of a crop comes from, what lies outside, and the context of R-CNN."""

import math

import pytest
import torch
from strategies import random_boxes
from torch.nn import functional as F

from detkit.boxes.crop import crop_and_resize


def ramp(height: int, width: int) -> torch.Tensor:
    """Channel 0 holds x, channel 1 y, of the middle of each pixel: crops say where they were read."""
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    return torch.stack((x, y))[None].double()


def noise(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_a_crop_of_its_own_size_is_the_part_of_the_image():
    image = noise(1, 3, 20, 30)
    crop = crop_and_resize(image, torch.tensor([[[4, 5, 12, 13]]]), 8)
    torch.testing.assert_close(crop[0], image[0, :, 5:13, 4:12])


def test_the_whole_image_is_resized_as_torch_does_without_antialiasing():
    image = noise(2, 3, 20, 30)
    whole = torch.tensor([[[0, 0, 30, 20]]]).expand(2, 1, 4)
    for size in (7, 64):
        expected = F.interpolate(image, size=(size, size), mode="bilinear", align_corners=False)
        torch.testing.assert_close(crop_and_resize(image, whole, size), expected)


def test_context_enlarges_the_box_about_its_center_by_227_of_195():
    crop = crop_and_resize(ramp(300, 400), torch.tensor([[[100.0, 80, 200, 130]]]), 227, context=16)
    width, height = 100 * 227 / (227 - 32), 50 * 227 / (227 - 32)
    steps = (torch.arange(227) + 0.5).double() / 227 - 0.5
    torch.testing.assert_close(crop[0, 0], (150 + steps * width).expand(227, 227), rtol=0, atol=1e-9)
    torch.testing.assert_close(crop[0, 1], (105 + steps * height)[:, None].expand(227, 227), rtol=0, atol=1e-9)
    # The box itself fills what the context leaves.
    assert crop[0, 0, 0, 16] > 100 > crop[0, 0, 0, 15]
    assert crop[0, 0, 0, 210] < 200 < crop[0, 0, 0, 211]


def test_what_lies_outside_the_image_is_exactly_the_fill():
    image = noise(1, 2, 8, 8) + 1
    crop = crop_and_resize(image, torch.tensor([[[-8.0, 0, 8, 16]]]), 16, fill=-3)
    assert (crop[0, :, :, :8] == -3).all()
    assert (crop[0, :, 8:] == -3).all()
    torch.testing.assert_close(crop[0, :, :8, 8:], image[0])
    assert not crop_and_resize(image, torch.tensor([[[-8.0, 0, 0, 8]]]), 16)[..., :15].any()  # 0 unless told


def test_padding_of_the_batch_is_outside_the_image():
    image = noise(1, 2, 10, 12) + 1
    padded = F.pad(image, (0, 9, 0, 7), value=99.0)
    boxes = torch.tensor([[[-3.0, 2, 14, 12], [6, 5, 12, 10]]])
    expected = crop_and_resize(image, boxes, 9, context=1)
    torch.testing.assert_close(
        crop_and_resize(padded, boxes, 9, context=1, image_sizes=torch.tensor([[10, 12]])), expected
    )
    assert (expected != 0).any()


def test_an_image_of_one_pixel_is_that_pixel_whatever_surrounds_it():
    padded = torch.full((1, 1, 3, 3), 99.0)
    padded[..., 0, 0] = 5
    crop = crop_and_resize(padded, torch.tensor([[[0.0, 0, 1, 1]]]), 3, image_sizes=torch.tensor([[1, 1]]))
    torch.testing.assert_close(crop, torch.full((1, 1, 3, 3), 5.0))


def test_a_crop_may_be_one_pixel_wide_with_or_without_context():
    boxes = torch.tensor([[[1.0, 0, 3, 4]]])
    assert crop_and_resize(ramp(4, 4)[:, :1], boxes, 1).tolist() == [[[[2]]]]
    assert crop_and_resize(ramp(4, 4)[:, 1:], boxes, 3, context=1)[0, 0, 1, 1] == 2


def test_crops_come_image_after_image():
    images, boxes = noise(2, 3, 20, 20), random_boxes(6, extent=20, dtype=torch.float64).reshape(2, 3, 4)
    together = crop_and_resize(images, boxes, 5)
    alone = [crop_and_resize(images[i : i + 1], boxes[i : i + 1, k : k + 1], 5) for i in (0, 1) for k in range(3)]
    torch.testing.assert_close(together, torch.cat(alone))


@pytest.mark.parametrize("shape", [(2, 0), (0, 3)])
def test_no_boxes_and_no_images_give_no_crops(shape):
    images = torch.zeros(shape[0], 3, 8, 8, requires_grad=True)
    crops = crop_and_resize(images, torch.zeros(*shape, 4), 6)
    assert crops.shape == (0, 3, 6, 6)
    crops.sum().backward()


def test_a_box_that_is_not_finite_is_fill_and_leaves_the_others_alone():
    image, boxes = noise(1, 2, 9, 9).requires_grad_(), random_boxes(4, extent=9, dtype=torch.float64)[None]
    expected = crop_and_resize(image, boxes, 4)
    bad = boxes.clone()
    bad[0, 1, 2], bad[0, 2, 1] = math.nan, math.inf
    crops = crop_and_resize(image, bad.requires_grad_(), 4, fill=7)
    torch.testing.assert_close(crops[[0, 3]], expected[[0, 3]])
    assert (crops[1:3] == 7).all()
    crops.sum().backward()
    assert torch.isfinite(image.grad).all()
    assert torch.isfinite(bad.grad).all()


def test_integer_images_are_promoted_and_half_ones_stay_half():
    image, boxes = (noise(1, 3, 12, 12) * 255).byte(), torch.tensor([[[1, 2, 9, 11]]])
    exact = crop_and_resize(image.float(), boxes, 5)
    assert torch.equal(crop_and_resize(image, boxes, 5), exact)
    half = crop_and_resize(image.half(), boxes.half(), 5)
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), exact, rtol=1e-3, atol=0.1)


def test_the_gradient_says_how_to_move_a_box():
    boxes = torch.tensor([[[2.0, 3, 6, 7]]], dtype=torch.float64, requires_grad=True)
    crop_and_resize(ramp(10, 10), boxes, 4)[0, 0].mean().backward()
    torch.testing.assert_close(boxes.grad, torch.tensor([[[0.5, 0, 0.5, 0]]], dtype=torch.float64))
