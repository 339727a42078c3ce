"""The head of set prediction: its layers, its ranges, half precision."""

import pytest
import torch

from detkit.heads.set_prediction import SetPredictionHead


def test_logits_are_linear_and_boxes_come_from_a_net_of_three_layers():
    head, x = SetPredictionHead(8, num_classes=3).double(), torch.randn(2, 1, 5, 8, dtype=torch.float64)
    logits, boxes = head(x)
    torch.testing.assert_close(logits, x @ head.logits.weight.T + head.logits.bias)
    first, _, second, _, third = head.boxes
    expected = third(second(first(x).relu()).relu()).sigmoid()
    torch.testing.assert_close(boxes, expected)
    assert logits.shape == (2, 1, 5, 4)
    assert boxes.shape == (2, 1, 5, 4)


def test_its_depth_is_that_of_the_net():
    assert [layer.out_features for layer in SetPredictionHead(8, num_classes=3, depth=1).boxes] == [4]
    assert len(SetPredictionHead(8, num_classes=3, depth=2).boxes) == 3


def test_boxes_are_float32_under_autocast():
    head = SetPredictionHead(8, num_classes=3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, boxes = head(torch.randn(2, 5, 8))
    assert boxes.dtype == torch.float32


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="depth=0 and num_classes=3 must be at least 1"):
        SetPredictionHead(8, num_classes=3, depth=0)
