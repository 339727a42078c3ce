"""Focal losses by kernels give what the torch form gives: collected in the interpreter and on a GPU.

``device`` is where the kernels run: the fixture of the folder that collects this.
"""

import warnings
from functools import partial

import pytest
import torch
from loss_forms import assert_equal, with_gradients
from torch import Tensor

from detkit.kernels import focal, switch
from detkit.losses import sigmoid_focal_loss


@pytest.fixture(autouse=True)
def kernels_run(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the interpreter few programs, each of many rows."""
    if "device" in request.fixturenames and request.getfixturevalue("device") == "cpu":
        monkeypatch.setattr(focal, "LOGITS", 8192)
        monkeypatch.setattr(switch, "DEVICES", {"cpu"})


ENDS = [0.0, -0.0, 1e-30, 0.3, -0.3, 18.0, -18.0, 90.0, -90.0, 200.0, -200.0, 6e4, -6e4, torch.inf, -torch.inf]
SETTINGS = [(0.25, 2.0), (None, 0.5), (0.9, 0.0), (1.0, 1.0), (0.0, 3.7)]


def logits_of(count: int) -> Tensor:
    return torch.randn(count, 7, generator=torch.Generator().manual_seed(count)) * 6


@pytest.mark.parametrize(("alpha", "gamma"), SETTINGS)
def test_focal_loss_of_classes_is_that_of_the_torch_form(device, alpha, gamma):
    for logits in (*map(logits_of, (0, 1, 4097)), torch.tensor(ENDS[:-2]).repeat(7, 1).T):
        labels = torch.arange(len(logits)) % 9 - 2  # IGNORED, NEGATIVE, and every class
        for kind in (torch.int64, torch.int16):
            assert_equal(
                device, partial(sigmoid_focal_loss, targets=labels.to(device, kind), alpha=alpha, gamma=gamma), logits
            )


@pytest.mark.parametrize(("alpha", "gamma"), SETTINGS)
def test_focal_loss_of_numbers_is_that_of_the_torch_form(device, alpha, gamma):
    generator = torch.Generator().manual_seed(0)
    for logits in (*map(logits_of, (0, 1, 4097)), torch.tensor(ENDS[:-2]).repeat(7, 1).T):
        targets = (torch.rand(logits.shape, generator=generator) * 1.4 - 0.2).clamp(0, 1)
        # Where p is near y the slope cancels: what is left of it is rounding, in both forms.
        assert_equal(
            device,
            partial(sigmoid_focal_loss, targets=targets.to(device), alpha=alpha, gamma=gamma),
            logits,
            least=1e-5,
        )


def test_focal_loss_of_one_class_of_many_and_of_strided_and_half_precision_logits(device):
    for logits in (logits_of(30)[:, :1], logits_of(12).repeat(1, 300), logits_of(30).bfloat16(), logits_of(9).half()):
        labels = torch.arange(len(logits)) % (logits.shape[1] + 2) - 2
        assert_equal(device, partial(sigmoid_focal_loss, targets=labels.to(device)), logits)
        assert_equal(
            device,
            partial(sigmoid_focal_loss, targets=torch.rand(logits.shape).to(device, logits.dtype)),
            logits,
            least=1e-5,
        )
    assert_equal(
        device,
        partial(sigmoid_focal_loss, targets=torch.zeros(4, dtype=torch.int64, device=device)),
        logits_of(4).double(),
    )


def test_logits_that_are_no_numbers_stay_in_their_place_and_ignored_ones_cost_nothing(device):
    logits = torch.tensor([torch.nan, torch.inf, -torch.inf, 1.0]).repeat(4, 3)
    labels = torch.tensor([-2, -1, 0, 11], device=device)
    with warnings.catch_warnings(action="ignore"):  # NumPy's, of arithmetic with them
        found = with_gradients(device, partial(sigmoid_focal_loss, targets=labels), logits)
    assert not any(rows[0].any() for rows in found)
    assert all(torch.isfinite(rows[:, 3::4]).all() for rows in found)
    assert found[0][1:, 0::4].isnan().all()


def test_slopes_that_are_not_needed_are_not_written(device):
    logits = logits_of(3).to(device)
    losses, slopes = focal.focal(logits, logits / 90, (False, False), scales=(1, 1), gamma=2)
    assert losses.shape == (3, 7)
    assert slopes == (None, None)
