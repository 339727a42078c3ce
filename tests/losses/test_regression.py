"""Smooth L1 against its definition and against torch."""

import pytest
import torch
from strategies import unhooked
from torch.nn import functional as F

from detkit.losses import smooth_l1_loss


@pytest.mark.parametrize("beta", [0.0, 1 / 9, 0.5, 1.0, 3.0])
def test_values_follow_the_definition_and_torch(beta):
    distance = torch.tensor([-100.0, -3, -1, -0.5, -1 / 9, -0.01, 0, 0.01, 0.5, 1, 3, 1e30], dtype=torch.float64)
    expected = [d * d / (2 * beta) if d < beta else d - beta / 2 for d in distance.abs().tolist()]
    result = smooth_l1_loss(distance, torch.zeros_like(distance), beta=beta)
    torch.testing.assert_close(result, torch.tensor(expected, dtype=torch.float64))
    peer = F.smooth_l1_loss(distance, torch.zeros_like(distance), beta=beta, reduction="none")
    torch.testing.assert_close(result, peer)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_gradients_equal_finite_differences(beta):
    predictions = torch.tensor([-3.0, -0.9, 0.2, 0.45, 2], dtype=torch.float64, requires_grad=True)
    targets = torch.full((5,), 0.05, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda p, t: smooth_l1_loss(p, t, beta=beta), (predictions, targets))


@pytest.mark.parametrize("beta", [0.0, 1e-6, 1.0])
def test_gradients_stay_finite_at_zero_and_at_huge_distances(beta):
    predictions = torch.tensor([0.0, -0.0, 1e38, -1e38, beta], requires_grad=True)
    loss = smooth_l1_loss(predictions, torch.zeros(5), beta=beta)
    assert torch.isfinite(loss).all()
    loss.sum().backward()
    assert torch.isfinite(predictions.grad).all()
    assert predictions.grad.abs().max() <= 1


def test_loss_keeps_the_shape_and_may_be_empty():
    assert smooth_l1_loss(torch.zeros(2, 3, 4), torch.zeros(2, 3, 4)).shape == (2, 3, 4)
    assert smooth_l1_loss(torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0, 4)


def test_differing_shapes_and_a_negative_beta_are_refused():
    with pytest.raises(ValueError, match=r"smooth_l1_loss: predictions have shape \(2,\) and targets \(1,\)"):
        unhooked(smooth_l1_loss)(torch.zeros(2), torch.zeros(1))
    for beta in (-1.0, float("nan")):
        with pytest.raises(ValueError, match=rf"smooth_l1_loss: beta={beta} must be at least 0"):
            smooth_l1_loss(torch.zeros(1), torch.zeros(1), beta=beta)
