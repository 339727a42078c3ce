"""Passthrough against a loop that counts as Darknet does; it is not PixelUnshuffle."""

import pytest
import torch
from torch import nn

from detkit.layers import Passthrough


def reorganized(numbers: list[float], channels: int, height: int, width: int, stride: int) -> list[float]:
    """Darknet's order: k, j, i count what comes out, in the shape of the input; c, y, x where it is read."""
    few, found = channels // stride**2, []
    for k in range(channels):
        for j in range(height):
            for i in range(width):
                place, c = divmod(k, few)
                y, x = j * stride + place // stride, i * stride + place % stride
                found.append(numbers[(c * height * stride + y) * width * stride + x])
    return found


@pytest.mark.parametrize(
    ("channels", "height", "width", "stride"), [(4, 2, 2, 2), (8, 4, 6, 2), (9, 3, 6, 3), (3, 2, 5, 1)]
)
def test_numbers_stand_where_darknet_puts_them(channels, height, width, stride):
    numbers = torch.randperm(channels * height * width, generator=torch.Generator().manual_seed(0)).float()
    found = Passthrough(stride)(numbers.reshape(1, channels, height, width).expand(2, -1, -1, -1))
    assert found.shape == (2, channels * stride**2, height // stride, width // stride)
    expected = reorganized(numbers.tolist(), channels, height, width, stride)
    assert found[0].flatten().tolist() == found[1].flatten().tolist() == expected


def test_the_order_is_not_that_of_pixel_unshuffle():
    pixels = torch.arange(32.0).reshape(1, 8, 2, 2)
    found, other = Passthrough()(pixels), nn.PixelUnshuffle(2)(pixels)
    assert found.shape == other.shape
    assert not torch.equal(found, other)
    assert torch.equal(found.flatten().sort().values, other.flatten().sort().values)


def test_what_cannot_be_divided_is_refused():
    for shape, named in (((1, 6, 2, 2), "6 channels"), ((1, 4, 3, 2), "3 high"), ((1, 4, 2, 5), "5 wide")):
        with pytest.raises(ValueError, match=f"Passthrough: .*{named}.*multiples of 4, 2 and 2"):
            Passthrough()(torch.zeros(shape))
    with pytest.raises(ValueError, match="Passthrough: stride=0"):
        Passthrough(0)
