"""Box losses by kernels on a GPU, and what they decline anywhere."""

import pytest
import torch

pytest.importorskip("triton")

from box_loss_cases import *  # noqa: F403
from box_loss_cases import random_boxes

from detkit.kernels import box_loss
from detkit.losses import complete_box_iou_loss

pytestmark = pytest.mark.cuda


def test_a_step_does_not_wait(device, no_wait):
    boxes = random_boxes(300, seed=0).to(device).requires_grad_()
    complete_box_iou_loss(boxes, boxes.detach() + 1).sum().backward()  # compiles
    with no_wait:
        complete_box_iou_loss(boxes, boxes.detach() + 1).sum().backward()


def test_double_precision_is_declined_without_a_launch():
    boxes = torch.zeros(3, 4, dtype=torch.float64)
    assert box_loss.one_minus(boxes, boxes, (True, True), measure="giou", limit=1e18, smallest=1e-36) is NotImplemented
