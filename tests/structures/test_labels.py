"""Labels out of range are named, whatever loss they reach."""

import pytest
import torch

from detkit.losses import quality_focal_loss, sigmoid_focal_loss
from detkit.structures import IGNORED, NEGATIVE
from detkit.structures.labels import check_labels


@pytest.mark.parametrize("label", [0, 2, NEGATIVE, IGNORED])
def test_classes_and_the_special_labels_pass(label):
    check_labels(torch.tensor([[label]]), 3, lowest=NEGATIVE, function="f", name="labels")


@pytest.mark.parametrize(("label", "lowest"), [(3, -1), (7, -1), (-3, -1), (-1, 0)])
def test_others_are_named_with_place_range_and_count(label, lowest):
    special = "NEGATIVE (-1) or IGNORED (-2)" if lowest < 0 else "IGNORED (-2)"
    with pytest.raises(ValueError, match="f: labels") as caught:
        check_labels(torch.tensor([[0, 1], [label, label]]), 3, lowest=lowest, function="f", name="labels")
    assert str(caught.value) == f"f: labels[1, 0]={label} must lie in 0..2, or be {special}; 2 of 4 do not"


def test_values_are_not_looked_at_where_that_costs_a_sync_or_cannot_be_traced(monkeypatch):
    check_labels(torch.tensor([9], device="meta"), 3, lowest=NEGATIVE, function="f", name="labels")
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    check_labels(torch.tensor([9]), 3, lowest=NEGATIVE, function="f", name="labels")


@pytest.mark.parametrize("loss", [sigmoid_focal_loss, quality_focal_loss])
def test_bytes_are_labels_too(loss):
    logits = torch.tensor([[0.3, -1.0], [2.0, 0.5]])
    assert torch.equal(loss(logits, torch.tensor([1, 0], dtype=torch.uint8)), loss(logits, torch.tensor([1, 0])))
    with pytest.raises(ValueError, match=r"targets\[0\]=254.*0..1"):
        loss(logits, torch.tensor([254, 0], dtype=torch.uint8))
