"""Focal loss by kernels on a GPU, and what they decline anywhere."""

import pytest
import torch

pytest.importorskip("triton")

from focal_cases import *  # noqa: F403

from detkit.kernels import focal
from detkit.losses import sigmoid_focal_loss

pytestmark = pytest.mark.cuda


def test_a_step_does_not_wait(device, no_wait):
    logits = torch.zeros(300, 20, device=device, requires_grad=True)
    targets = torch.arange(300, device=device) % 22 - 2
    sigmoid_focal_loss(logits, targets).sum().backward()  # compiles
    with no_wait:
        sigmoid_focal_loss(logits, targets).sum().backward()


def test_double_precision_is_declined_without_a_launch():
    logits = torch.zeros(3, 4, dtype=torch.float64)
    assert focal.focal(logits, logits, (True, False), scales=(1.0, 1.0), gamma=2.0) is NotImplemented
