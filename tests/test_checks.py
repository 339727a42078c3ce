"""When values are checked, and what a message names."""

import pytest
import torch

from detkit.checks import check_fraction, check_not_negative, first_bad, full_checks


@pytest.mark.parametrize(("setting", "on"), [(None, False), ("", False), ("1", False), ("Full", False), ("full", True)])
def test_full_checks_are_on_for_one_word_only(monkeypatch, setting, on):
    monkeypatch.delenv("DETKIT_CHECKS", raising=False)
    if setting is not None:
        monkeypatch.setenv("DETKIT_CHECKS", setting)
    assert full_checks() is on


def test_full_checks_are_off_while_export_traces(monkeypatch):
    class Look(torch.nn.Module):
        def forward(self, values):
            return values + (1 if full_checks() else 2)

    monkeypatch.setenv("DETKIT_CHECKS", "full")
    assert Look()(torch.zeros(1)).item() == 1
    assert torch.export.export(Look(), (torch.zeros(1),)).module()(torch.zeros(1)).item() == 2


@pytest.mark.parametrize("value", [0, 0.0, -0.0, 0.5, 1, 1.0])
def test_fractions_are_numbers_from_zero_to_one(value):
    check_fraction(value, name="iou_threshold", function="nms")


@pytest.mark.parametrize("value", [float("nan"), -1e-9, 1.0000001, 50, float("inf"), -float("inf")])
def test_other_numbers_are_refused_with_function_argument_value_and_range(value):
    with pytest.raises(ValueError, match=rf"^nms: iou_threshold={value} must lie in \[0, 1\]$"):
        check_fraction(value, name="iou_threshold", function="nms")


@pytest.mark.parametrize("value", [0, 0.0, 1e-300, 7])
def test_settings_from_zero_up_are_taken(value):
    check_not_negative("f", alpha=1.0, beta=value)


@pytest.mark.parametrize("value", [-1e-9, float("nan"), float("inf"), -float("inf")])
def test_the_first_setting_below_zero_or_not_finite_is_named(value):
    with pytest.raises(ValueError, match=rf"^f: beta={value} must be at least 0 and finite$"):
        check_not_negative("f", alpha=1.0, beta=value, gamma=-1.0)


def test_the_first_bad_index_is_the_first_in_row_order():
    bad = torch.zeros(2, 3, dtype=torch.bool)
    bad[0, 2] = bad[1, 0] = True
    assert first_bad(bad) == ((0, 2), 2)
