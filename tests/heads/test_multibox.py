"""One prediction for every default box: order of numbers, counts, weights at the start."""

import pytest
import torch
from torch import nn

from detkit.heads import (
    ClassificationHead,
    FCOSHead,
    GridHead,
    MultiBoxHead,
    RegressionHead,
    RPNHead,
    flatten_levels,
    prediction_conv,
)


def test_numbers_come_by_level_row_column_box_and_output():
    boxes, outputs = (2, 3), 5
    maps = [torch.randn(2, count * outputs, *grid) for count, grid in zip(boxes, [(3, 4), (1, 2)], strict=True)]
    rows = [
        level[image, box * outputs : (box + 1) * outputs, y, x]
        for image in range(2)
        for level, count in zip(maps, boxes, strict=True)
        for y in range(level.shape[2])
        for x in range(level.shape[3])
        for box in range(count)
    ]
    assert torch.equal(flatten_levels(maps, outputs), torch.stack(rows).reshape(2, -1, outputs))


def test_each_level_has_filters_of_its_own_for_its_boxes():
    head = MultiBoxHead((4, 6), (4, 6), outputs=21)
    features = [torch.randn(2, 4, 5, 7), torch.randn(2, 6, 2, 3)]
    predictions = head(features)
    assert predictions.shape == (2, 5 * 7 * 4 + 2 * 3 * 6, 21)
    changed = head([features[0], features[1] + 1])
    assert torch.equal(changed[:, :140], predictions[:, :140])
    assert not torch.equal(changed[:, 140:], predictions[:, 140:])
    assert sum(p.numel() for p in head.parameters()) == (4 * 9 + 1) * 84 + (6 * 9 + 1) * 126


def test_each_level_has_a_convolution_of_the_kind_that_is_handed_over():
    made = []

    def convolution(before: int, after: int) -> nn.Conv2d:
        made.append((before, after))
        return nn.Conv2d(before, after, 1)

    head = MultiBoxHead((4, 6), (2, 3), outputs=5, convolution=convolution)
    assert made == [(4, 10), (6, 15)]
    assert [level.kernel_size for level in head.levels] == [(1, 1)] * 2
    assert head([torch.zeros(1, 4, 2, 2), torch.zeros(1, 6, 1, 1)]).shape == (1, 11, 5)


def test_ssd300_predicts_for_8732_boxes():
    head = MultiBoxHead((2,) * 6, (4, 6, 6, 6, 4, 4), outputs=4)
    assert head([torch.zeros(1, 2, n, n) for n in (38, 19, 10, 5, 3, 1)]).shape == (1, 8732, 4)


def test_a_batch_equals_a_loop_over_images_and_may_be_empty():
    head, features = MultiBoxHead((4,), (2,), outputs=3), torch.randn(3, 4, 5, 5)
    loop = torch.cat([head([image[None]]) for image in features])
    torch.testing.assert_close(head([features]), loop, rtol=1e-5, atol=1e-6)
    assert head([features[:0]]).shape == (0, 50, 3)


def test_levels_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="MultiBoxHead: 2 in_channels for 1 per_cell levels"):
        MultiBoxHead((4, 6), (4,), outputs=4)
    with pytest.raises(ValueError, match=r"MultiBoxHead:.*1 feature levels.*2"):
        MultiBoxHead((4, 4), (4, 4), outputs=4)([torch.zeros(1, 4, 2, 2)])


def test_weights_start_as_asked():
    torch.manual_seed(0)
    xavier, normal = prediction_conv(16, 32), prediction_conv(16, 32, std=0.01, bias=-4.5)
    bound = (6 / (16 * 9 + 32 * 9)) ** 0.5
    assert 0.95 * bound < xavier.weight.abs().max() <= bound
    assert (xavier.bias == 0).all()
    assert normal.weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert (normal.bias == -4.5).all()


def test_features_of_other_channels_as_those_before_a_neck_are_refused_by_level():
    head = MultiBoxHead([8, 8], [2, 2], outputs=4)
    with pytest.raises(ValueError, match=r"^MultiBoxHead: features\[1\] has 16 channels, was built for 8; .*neck"):
        head([torch.zeros(1, 8, 2, 2), torch.zeros(1, 16, 1, 1)])


@pytest.mark.parametrize(
    "head",
    [
        GridHead([8, 8], [3, 3], num_classes=2),
        ClassificationHead(8, 3, num_classes=2),
        RegressionHead(8, 3),
        FCOSHead(8),
        RPNHead(8, 3),
    ],
    ids=lambda head: type(head).__name__,
)
def test_every_head_refuses_a_neck_of_other_channels_by_level(head):
    name = type(head).__name__
    with pytest.raises(ValueError, match=rf"^{name}: features\[1\] has 16 channels, was built for 8; .*neck"):
        head([torch.zeros(1, 8, 2, 2), torch.zeros(1, 16, 1, 1)])


def test_channels_that_are_no_multiple_of_the_outputs_are_refused():
    with pytest.raises(ValueError, match=r"^flatten_levels: maps\[1\] has 6 channels; .* a multiple of outputs=4"):
        flatten_levels([torch.zeros(1, 8, 2, 2), torch.zeros(1, 6, 1, 1)], outputs=4)
