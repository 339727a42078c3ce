"""What inputs are promoted to and read as; when values are checked, and what a message names."""

import pytest
import torch
import torchvision.tv_tensors as tv_tensors
from strategies import in_cells, random_boxes, refusal, unhooked

from detkit._inputs import (
    as_boxes,
    check_box_values,
    check_finite,
    check_fraction,
    check_not_negative,
    first_bad,
    full_checks,
    promote,
)
from detkit.boxes import (
    DeltaCoder,
    DistanceCoder,
    GridCoder,
    box_iou,
    clip_boxes_to_image,
    multiclass_nms_padded,
    nms_padded,
    paired_box_iou,
    remove_small_boxes,
)

PROMOTED = {
    torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float32: torch.float32,
    torch.float64: torch.float64,
    torch.uint8: torch.float32,
    torch.int8: torch.float32,
    torch.int16: torch.float32,
    torch.int32: torch.float64,
    torch.int64: torch.float64,
    torch.bool: torch.float32,
}


@pytest.mark.parametrize(("given", "promoted"), PROMOTED.items(), ids=str)
def test_each_type_is_promoted_to_one_that_holds_its_areas(given, promoted):
    values = promote(torch.tensor([0, 1], dtype=given))
    assert values.dtype == promoted
    assert values.tolist() == [0, 1]


@pytest.mark.parametrize("given", [torch.int32, torch.int64])
def test_wide_integers_above_two_to_the_24_keep_every_digit(given):
    assert promote(torch.tensor([2**24 + 1], dtype=given)).item() == 2**24 + 1


def test_the_empty_list_is_read_as_no_boxes():
    assert as_boxes(torch.tensor([]), function="f").shape == (0, 4)
    assert as_boxes(torch.zeros(2, 0, 4), function="f").shape == (2, 0, 4)


@pytest.mark.parametrize("shape", [(), (3,), (2, 5), (2, 0), (4, 1)])
def test_other_shapes_are_refused_by_name(shape):
    with pytest.raises(ValueError, match=r"^f: anchors has shape \(.*\); allowed is \(\.\.\., 4\)$"):
        as_boxes(torch.zeros(shape), function="f", name="anchors")


def test_tv_tensors_come_out_as_plain_tensors():
    given = tv_tensors.BoundingBoxes(torch.tensor([[0, 0, 2, 2]]), format="XYXY", canvas_size=(4, 4))
    plain = as_boxes(given, function="f")
    assert type(plain) is torch.Tensor
    assert plain.tolist() == [[0, 0, 2, 2]]


def test_values_are_looked_at_only_when_asked(monkeypatch):
    inverted = torch.tensor([[10.0, 10, 0, 0]])
    assert torch.equal(as_boxes(inverted, function="f"), inverted)
    monkeypatch.setenv("DETKIT_CHECKS", "full")
    with pytest.raises(ValueError, match=r"f: boxes\[0\]: x2 < x1 \(0 < 10\)"):
        as_boxes(inverted, function="f")
    assert torch.equal(as_boxes(inverted, function="f", form=None), inverted)
    with pytest.raises(ValueError, match=r"f: boxes\[0, 1\]=inf must be finite"):
        as_boxes(torch.tensor([[1, torch.inf, 1, 1]]), function="f", form=None)


def test_an_inverted_box_is_named_with_its_axis_numbers_and_count():
    rows = torch.tensor([[[0.0, 0, 1, 1], [0, 5, 1, 2]], [[0, 6, 1, 2], [0, 0, 0, 0]]])
    with pytest.raises(ValueError, match=r"^f: boxes\[0, 1\]: y2 < y1 \(2 < 5\); 2 boxes are inverted$"):
        check_box_values(rows, function="f")
    with pytest.raises(ValueError, match=r"^f: b\[0\]: x2 < x1 \(-1 < 0\); 1 box is inverted$"):
        check_box_values(torch.tensor([[0.0, 0, -1, 1]]), function="f", name="b")


def test_a_box_that_is_not_finite_is_named_before_one_that_is_inverted():
    rows = torch.tensor([[9.0, 0, 1, 1], [0, 0, torch.nan, 1]])
    assert refusal(check_box_values, rows, function="f") == "f: boxes[1, 2]=nan must be finite; 1 of 8 values is not"


def test_zero_size_boxes_are_not_inverted():
    check_box_values(torch.tensor([[5.0, 5, 5, 5], [-0.0, 0.0, 0.0, -0.0]]), function="f")


def test_the_first_number_that_is_not_finite_is_named():
    with pytest.raises(ValueError, match=r"^f: scores\[1\]=nan must be finite; 2 of 3 values are not$"):
        check_finite(torch.tensor([0, torch.nan, torch.inf]), function="f", name="scores")
    with pytest.raises(ValueError, match=r"^f: scores\[0, 1\]=-inf must be finite; 1 of 2 values is not$"):
        check_finite(torch.tensor([[0, -torch.inf]]), function="f", name="scores")
    check_finite(torch.empty(0), function="f", name="scores")


@pytest.mark.parametrize(
    ("message", "call"),
    [
        (r"paired_box_iou: boxes1 \(3, 4\) and boxes2 \(2, 4\) do not broadcast; allowed is a partner for each box",
         lambda: unhooked(paired_box_iou)(random_boxes(3), random_boxes(2))),
        (r"box_iou: boxes1 \(3,\) and boxes2 \(2,\) do not broadcast; allowed is leading dimensions that do",
         lambda: unhooked(box_iou)(random_boxes(6).view(3, 2, 4), random_boxes(2).view(2, 1, 4))),
        (r"DeltaCoder.encode: boxes \(3, 4\) and anchors \(2, 4\) do not broadcast; allowed is an anchor for each",
         lambda: unhooked(DeltaCoder.encode)(DeltaCoder(), random_boxes(3), random_boxes(2))),
        (r"DeltaCoder.decode: deltas \(3, 4\) and anchors \(2, 4\) do not broadcast",
         lambda: unhooked(DeltaCoder.decode)(DeltaCoder(), random_boxes(3), random_boxes(2))),
        (r"DeltaCoder.decode: deltas has shape \(3, 1\); allowed is \(..., 4\)",
         lambda: unhooked(DeltaCoder.decode)(DeltaCoder(), torch.zeros(3, 1), random_boxes(3))),
        (r"DistanceCoder.decode: distances has shape \(3, 3\); allowed is \(..., 4\)",
         lambda: unhooked(DistanceCoder.decode)(DistanceCoder(), torch.zeros(3, 3), random_boxes(3))),
        (r"GridCoder.decode: deltas has shape \(3, 3\); allowed is \(..., 4\)",
         lambda: unhooked(GridCoder.decode)(GridCoder(), torch.zeros(3, 3), in_cells(random_boxes(3), 8))),
        (r"clip_boxes_to_image: size is \(1, 2, 3\); allowed is \(height, width\), or a tensor \(..., 2\)",
         lambda: unhooked(clip_boxes_to_image)(random_boxes(3), (1, 2, 3))),
        (r"clip_boxes_to_image: size is \(3,\); allowed is",
         lambda: unhooked(clip_boxes_to_image)(random_boxes(3), torch.ones(3))),
        (r"remove_small_boxes: boxes has shape \(1, 3, 4\); allowed is \(N, 4\)",
         lambda: unhooked(remove_small_boxes)(random_boxes(3)[None], 1)),
        (r"nms_padded: groups has type torch.float32; allowed are integers",
         lambda: unhooked(nms_padded)(random_boxes(3)[None], torch.ones(1, 3), 0.5, groups=torch.ones(1, 3),
                                      max_detections=1)),
        (r"multiclass_nms_padded: score_threshold=nan must be finite",
         lambda: unhooked(multiclass_nms_padded)(random_boxes(3)[None], torch.ones(1, 3, 2), 0.5,
                                                 score_threshold=float("nan"), max_detections=1)),
    ],
)  # fmt: skip
def test_arguments_that_do_not_fit_each_other_are_refused_by_name(message, call):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()


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
