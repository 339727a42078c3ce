"""The head of set prediction: its layers, its ranges, half precision."""

import pytest
import torch

from detkit.heads.set_prediction import RefinementHead, SetPredictionHead


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
    for head in (SetPredictionHead, RefinementHead):
        with pytest.raises(ValueError, match=rf"{head.__name__}: depth=0.*1"):
            head(8, num_classes=3, depth=0)
        with pytest.raises(ValueError, match=r"num_classes=0.*1"):
            head(8, num_classes=0)


def test_refinement_moves_no_box_at_first_and_then_its_logit():
    head, x = RefinementHead(8, num_classes=3).double(), torch.randn(2, 5, 8, dtype=torch.float64)
    boxes = torch.rand(2, 5, 4, dtype=torch.float64) * 0.9 + 0.05
    logits, same = head(x, boxes)
    torch.testing.assert_close(same, boxes)
    torch.testing.assert_close(logits, x @ head.logits.weight.T + head.logits.bias)
    torch.nn.init.normal_(head.boxes[-1].weight)
    moved = head(x, boxes)[1]
    torch.testing.assert_close(moved.logit() - boxes.logit(), head.boxes(x))
    assert (moved - boxes).abs().max() > 0.01


def test_refinement_of_boxes_at_the_border_is_finite_with_gradients():
    head = RefinementHead(8, num_classes=3)
    torch.nn.init.normal_(head.boxes[-1].weight)
    boxes = torch.tensor([[0.0, 1.0, 0.0, 1.0]]).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, moved = head(torch.randn(1, 8), boxes)
    assert moved.dtype == torch.float32
    moved.sum().backward()
    assert torch.isfinite(moved).all()
    assert torch.isfinite(boxes.grad).all()
    assert head.boxes[0].weight.grad.abs().sum() > 0
