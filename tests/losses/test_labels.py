"""Labels out of range are named, whatever loss they reach."""

import pytest
import torch

from detkit.losses import MultiBoxLoss, quality_focal_loss, sigmoid_focal_loss
from detkit.losses.labels import check_dense_shapes, check_labels
from detkit.structures import IGNORED, NEGATIVE


@pytest.mark.parametrize("label", [0, 2, NEGATIVE, IGNORED])
def test_classes_and_the_special_labels_pass(label):
    check_labels(torch.tensor([[label]]), 3, lowest=NEGATIVE, function="f", name="labels")


@pytest.mark.parametrize(("label", "lowest"), [(3, -1), (7, -1), (-3, -1), (-1, 0)])
def test_others_are_named_with_place_range_and_count(label, lowest):
    special = "NEGATIVE (-1) or IGNORED (-2)" if lowest < 0 else "IGNORED (-2)"
    with pytest.raises(ValueError, match="f: labels") as caught:
        check_labels(torch.tensor([[0, 1], [label, label]]), 3, lowest=lowest, function="f", name="labels")
    assert str(caught.value) == f"f: labels[1, 0]={label} must lie in 0..2, or be {special}; 2 of 4 do not"


@pytest.mark.parametrize("label", [2, 3, 7, -3])
def test_multibox_refuses_a_label_that_is_no_class_not_even_that_of_background(label):
    with pytest.raises(ValueError, match=rf"^MultiBoxLoss: labels\[0, 0\]={label} must lie in 0..1, or be NEGATIVE"):
        MultiBoxLoss()(torch.zeros(1, 2, 3), torch.zeros(1, 2, 4), torch.tensor([[label, 0]]), torch.zeros(1, 2, 4))


@pytest.mark.parametrize("loss", [sigmoid_focal_loss, quality_focal_loss])
def test_bytes_are_labels_too(loss):
    logits = torch.tensor([[0.3, -1.0], [2.0, 0.5]])
    assert torch.equal(loss(logits, torch.tensor([1, 0], dtype=torch.uint8)), loss(logits, torch.tensor([1, 0])))
    with pytest.raises(ValueError, match=r"targets\[0\]=254 must lie in 0..1"):
        loss(logits, torch.tensor([254, 0], dtype=torch.uint8))


@pytest.mark.parametrize("outputs", ["C", "C + 1"])
def test_rows_of_logits_deltas_and_labels_must_fit_together(outputs):
    logits, deltas, labels = torch.zeros(2, 6, 3), torch.zeros(2, 5, 4), torch.zeros(2, 6, dtype=torch.int64)
    with pytest.raises(ValueError, match="f: logits") as caught:
        check_dense_shapes("f", logits, deltas, labels, deltas, None, outputs=outputs)
    assert str(caught.value) == (
        "f: logits (2, 6, 3), deltas (2, 5, 4), labels (2, 6), delta_targets (2, 5, 4); "
        f"allowed is (B, N, {outputs}), (B, N, 4), (B, N), (B, N, 4)"
    )
    with pytest.raises(ValueError, match=r"f: weights have shape \(2, 5\); allowed is that of labels, \(2, 6\)$"):
        check_dense_shapes("f", logits, torch.zeros(2, 6, 4), labels, torch.zeros(2, 6, 4), torch.zeros(2, 5))
