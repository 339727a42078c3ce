"""Labels out of range are named, whatever loss they reach."""

import inspect
import math

import pytest
import torch
from strategies import refusal
from torch import nn

from detkit.losses import MultiBoxLoss, RCNNLoss, RPNLoss, quality_focal_loss, sigmoid_focal_loss
from detkit.losses.fcos import FCOSLoss
from detkit.losses.labels import check_dense_shapes, check_labels
from detkit.losses.retinanet import DeltaL1, RetinaNetLoss
from detkit.structures import IGNORED, NEGATIVE

PRINTED = {  # every loss over rows of logits and deltas, and how it prints itself with nothing set
    FCOSLoss: "FCOSLoss(alpha=0.25, gamma=2.0, box_weight=1.0, centerness_weight=1.0)",
    RPNLoss: "RPNLoss(box_weight=1.0, beta=0.1111)",
    RCNNLoss: "RCNNLoss(box_weight=1.0, beta=0.1111)",
    RetinaNetLoss: (
        "RetinaNetLoss(\n  alpha=0.25, gamma=2.0, box_weight=1.0, scope='image'\n  (box_cost): DeltaL1(beta=0.0)\n)"
    ),
    MultiBoxLoss: (
        "MultiBoxLoss(\n  box_weight=1.0, beta=1.0, label_smoothing=0.0\n"
        "  (sampler): HardNegativeSampler(3.0, scope='image', minimum=0)\n)"
    ),
}
every_loss = pytest.mark.parametrize("kind", PRINTED)


def built(kind: type[nn.Module], **settings: float) -> nn.Module:
    return kind(DeltaL1(), **settings) if kind is RetinaNetLoss else kind(**settings)


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
    logits, deltas, labels = torch.zeros(2, 6, 3), torch.zeros(2, 6, 4), torch.zeros(2, 6, dtype=torch.int64)
    good = {"logits": logits, "deltas": deltas, "labels": labels, "delta_targets": deltas}
    check_dense_shapes("f", **good, weights=None)
    check_dense_shapes("f", **good, weights=torch.zeros(2, 6))
    for name, short in good.items():
        changed = {**good, name: short[:, 1:]}
        shapes = ", ".join(f"{key} {tuple(rows.shape)}" for key, rows in changed.items())
        assert refusal(check_dense_shapes, "f", **changed, weights=None, outputs=outputs) == (
            f"f: {shapes}; allowed is (B, N, {outputs}), (B, N, 4), (B, N), (B, N, 4)"
        )
    assert refusal(check_dense_shapes, "f", **good, weights=torch.zeros(2, 5)) == (
        "f: weights have shape (2, 5); allowed is that of labels, (2, 6)"
    )


@every_loss
def test_every_loss_over_rows_prints_its_settings(kind):
    assert repr(built(kind)) == PRINTED[kind]


@every_loss
def test_every_loss_over_rows_names_itself_and_the_shapes_it_takes(kind):
    outputs = {FCOSLoss: "C", RetinaNetLoss: "C", MultiBoxLoss: "C + 1"}.get(kind, "outputs")
    logits, deltas, labels = torch.zeros(1, 2, 1), torch.zeros(1, 2, 4), torch.tensor([[-1, -1]])
    centers = (torch.zeros(1, 2),) if kind is FCOSLoss else ()
    assert refusal(kind.forward, built(kind), logits, deltas[:, 1:], *centers, labels, deltas) == (
        f"{kind.__name__}: logits (1, 2, 1), deltas (1, 1, 4), labels (1, 2), delta_targets (1, 2, 4); "
        f"allowed is (B, N, {outputs}), (B, N, 4), (B, N), (B, N, 4)"
    )
    assert refusal(kind.forward, built(kind), logits, deltas, *centers, labels, deltas, torch.ones(1, 3)) == (
        f"{kind.__name__}: weights have shape (1, 3); allowed is that of labels, (1, 2)"
    )


@every_loss
def test_every_loss_over_rows_takes_no_weight_below_0_and_none_without_end(kind):
    names = {"box_weight", "centerness_weight", "beta"} & set(inspect.signature(kind).parameters)
    assert len(names) == (1 if kind is RetinaNetLoss else 2)
    for name in names:
        assert getattr(built(kind, **{name: 0}), name) == 0
        for bad in (-0.1, math.inf, math.nan):
            message = f"{kind.__name__}: {name}={bad} must be at least 0 and finite"
            assert refusal(built, kind, **{name: bad}) == message
