"""The head of whole images."""

import pytest
import torch
from torch import nn

from detkit.heads import ImageHead
from detkit.structures import Images


def images(*sizes, frame=(32, 32)):
    return Images(torch.zeros(len(sizes), 3, *frame), torch.tensor(sizes))


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(("cells", "expected"), [(1, 14_125), (14, 2_510_125)])
def test_three_layers_of_25_classes_have_the_parameters_of_the_source(cells, expected):
    assert parameters(ImageHead(512, 25, hidden=(25, 25), cells=cells)) == expected


def test_as_many_cells_as_the_map_has_are_the_map():
    head, features = ImageHead(2, 3, cells=4), torch.rand(2, 2, 4, 4)
    torch.testing.assert_close(head([features], images((32, 32), (32, 32))), head.layers(features.flatten(1)))


def test_one_cell_is_the_mean_of_the_last_level():
    head, features = ImageHead(2, 3), torch.rand(2, 2, 4, 4)
    found = head([torch.rand(2, 9, 8, 8), features], images((32, 32), (32, 32)))
    torch.testing.assert_close(found, head.layers(features.mean((2, 3))))


def test_padding_counts_for_nothing():
    """The second image ends in the middle of the frame: its mean is that of its own cells, whatever lies beyond."""
    head, features = ImageHead(2, 3), torch.rand(2, 2, 4, 4)
    expected = head([features[1:, :, :2, :3]], images((16, 24), frame=(16, 24)))
    features[1, :, 2:] = features[1, :, :, 3:] = torch.nan
    found = head([features], images((32, 32), (16, 24)))
    torch.testing.assert_close(found[1:], expected)
    assert torch.isfinite(found).all()


@pytest.mark.parametrize("cells", [1, 2, 3, 5])
def test_cells_divide_each_image_whatever_it_is_batched_with(cells):
    """The second image is 4 x 3 cells of a frame of 6 x 7; torch pools each by itself."""
    head, features = ImageHead(2, 3, cells=cells), torch.rand(2, 2, 6, 7)
    found = head([features], images((48, 56), (32, 24), frame=(48, 56)))
    alone = features[1:, :, :4, :3]
    expected = [nn.functional.adaptive_avg_pool2d(each, cells).flatten(1) for each in (features[:1], alone)]
    torch.testing.assert_close(found, head.layers(torch.cat(expected)))
    torch.testing.assert_close(found[1:], head([alone], images((32, 24), frame=(32, 24))))


def test_a_tower_stands_before_the_pooling():
    tower, features = nn.Conv2d(5, 2, 1), torch.rand(1, 5, 4, 4)
    head = ImageHead(2, 3, tower=tower)
    torch.testing.assert_close(head([features], images((32, 32))), head.layers(tower(features).mean((2, 3))))


def test_hidden_layers_end_in_relu_and_dropout():
    kinds = [type(layer) for layer in ImageHead(8, 3, hidden=(4,), dropout=0.5).layers]
    assert kinds == [nn.Linear, nn.ReLU, nn.Dropout, nn.Linear]
