"""What inputs are promoted to and read as; when values are checked, and what a message names."""

import numpy as np
import pytest
import torch
import torchvision.tv_tensors as tv_tensors
from strategies import assert_refused, in_cells, random_boxes, unhooked
from torchvision.transforms import v2

from detkit._inputs import (
    as_boxes,
    as_tensor,
    check_box_values,
    check_finite,
    check_fraction,
    check_not_negative,
    finite_logits,
    first_bad,
    full_checks,
    promote,
    read_tensor,
)
from detkit.boxes import (
    DeltaCoder,
    DistanceCoder,
    GridCoder,
    TokenCoder,
    batched_nms,
    box_area,
    box_iou,
    clip_boxes_to_image,
    cxcywh_to_xyxy,
    matrix_nms,
    multiclass_nms_padded,
    nms,
    nms_padded,
    paired_box_iou,
    remove_small_boxes,
    roi_align,
    soft_nms,
    weighted_boxes_fusion,
    xywh_to_xyxy,
    xyxy_to_cxcywh,
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
    with pytest.raises(ValueError, match=r"^f: anchors.*\(.*\).*\(\.\.\., 4\)$"):
        as_boxes(torch.zeros(shape), function="f", name="anchors")


CORNERS = [[1.0, 2, 5, 10], [0, 0, 0, 3]]


def tv_boxes(form, numbers=CORNERS, dtype=torch.float32):
    """The boxes as torchvision's BoundingBoxes of a format."""
    boxes = tv_tensors.BoundingBoxes(numbers, format="XYXY", canvas_size=(20, 20), dtype=dtype)
    return v2.functional.convert_bounding_box_format(boxes, new_format=form)


@pytest.mark.parametrize("wanted", ["XYXY", "XYWH", "CXCYWH"])
@pytest.mark.parametrize("given", ["XYXY", "XYWH", "CXCYWH"])
def test_tv_tensors_come_out_as_plain_tensors_in_the_form_that_is_wanted(given, wanted):
    plain = as_boxes(tv_boxes(given), function="f", form=wanted)
    assert type(plain) is torch.Tensor
    assert plain.tolist() == tv_boxes(wanted).tolist()
    assert as_boxes(tv_boxes(given), function="f", form=None).tolist() == tv_boxes(given).tolist()


def test_whole_numbers_of_tv_tensors_are_promoted_before_they_are_converted():
    given = tv_tensors.BoundingBoxes([[4, 4, 3, 5]], format="CXCYWH", canvas_size=(9, 9), dtype=torch.int64)
    assert as_boxes(given, function="f").tolist() == [[2.5, 1.5, 5.5, 6.5]]


@pytest.mark.parametrize(("form", "numbers"), [("XYWHR", 5), ("CXCYWHR", 5), ("XYXYXYXY", 8)])
def test_rotated_boxes_are_refused_by_name(form, numbers):
    given = tv_tensors.BoundingBoxes(torch.ones(1, numbers), format=form, canvas_size=(20, 20))
    with pytest.raises(ValueError, match=rf"^box_iou: boxes2: BoundingBoxes.*format {form}.*XYXY"):
        unhooked(box_iou)(random_boxes(2), given)


def test_other_subclasses_keep_their_gradient():
    boxes = torch.nn.Parameter(torch.tensor(CORNERS))
    box_area(boxes).sum().backward()
    assert boxes.grad is not None


SCORES, ROWS = torch.tensor([0.9, 0.8]), torch.tensor(CORNERS)
OF_BOXES = {
    "box_area": lambda boxes: box_area(boxes),
    "box_iou": lambda boxes: box_iou(boxes, ROWS),
    "paired_box_iou": lambda boxes: paired_box_iou(ROWS, boxes),
    "xyxy_to_cxcywh": lambda boxes: xyxy_to_cxcywh(boxes),
    "cxcywh_to_xyxy": lambda boxes: xyxy_to_cxcywh(cxcywh_to_xyxy(boxes)),
    "xywh_to_xyxy": lambda boxes: xywh_to_xyxy(boxes),
    "clip_boxes_to_image": lambda boxes: clip_boxes_to_image(boxes, (4, 4)),
    "nms": lambda boxes: nms(boxes, SCORES, 0.5),
    "batched_nms": lambda boxes: batched_nms(boxes, SCORES, torch.zeros(2, dtype=torch.int64), 0.5),
    "soft_nms": lambda boxes: torch.cat(soft_nms(boxes, SCORES)),
    "matrix_nms": lambda boxes: matrix_nms(boxes, SCORES),
    "weighted_boxes_fusion": lambda boxes: weighted_boxes_fusion([boxes], [SCORES], [torch.arange(2)])[0],
    "roi_align": lambda boxes: roi_align(torch.arange(400.0).reshape(1, 1, 20, 20), [boxes], 2, 1.0),
    "DeltaCoder.encode": lambda boxes: DeltaCoder().encode(boxes, ROWS + 1),
    "DeltaCoder.decode": lambda boxes: DeltaCoder().decode(torch.zeros(2, 4), boxes),
    "TokenCoder.encode": lambda boxes: TokenCoder(3).encode(boxes, torch.arange(2), torch.tensor([20, 20])),
}


@pytest.mark.parametrize("form", ["XYWH", "CXCYWH"])
@pytest.mark.parametrize("function", OF_BOXES)
def test_what_takes_boxes_reads_the_format_of_tv_tensors(function, form):
    expected = "CXCYWH" if function == "cxcywh_to_xyxy" else "XYWH" if function == "xywh_to_xyxy" else "XYXY"
    plain = tv_boxes(expected).as_subclass(torch.Tensor)
    torch.testing.assert_close(OF_BOXES[function](tv_boxes(form)), OF_BOXES[function](plain))


@pytest.mark.parametrize("boxes", [CORNERS, np.array(CORNERS), None], ids=["list", "array", "none"])
@pytest.mark.parametrize(
    ("function", "name", "call"),
    [
        ("box_area", "boxes", lambda boxes: unhooked(box_area)(boxes)),
        ("nms", "boxes", lambda boxes: unhooked(nms)(boxes, SCORES, 0.5)),
        ("nms", "scores", lambda scores: unhooked(nms)(ROWS, scores, 0.5)),
        ("nms_padded", "boxes", lambda boxes: unhooked(nms_padded)(boxes, SCORES[None], 0.5, max_detections=2)),
        ("matrix_nms", "scores", lambda scores: unhooked(matrix_nms)(ROWS, scores)),
        ("soft_nms", "boxes", lambda boxes: unhooked(soft_nms)(boxes, SCORES)),
        ("DeltaCoder.encode", "boxes", lambda boxes: unhooked(DeltaCoder.encode)(DeltaCoder(), boxes, ROWS)),
        ("xyxy_to_cxcywh", "boxes", lambda boxes: unhooked(xyxy_to_cxcywh)(boxes)),
    ],
)
def test_parts_take_tensors_only(function, name, call, boxes):
    kind = type(boxes).__name__
    with pytest.raises(TypeError, match=rf"^{function}: {name} is a {kind}; give a tensor: torch\.tensor\(\.\.\.\)$"):
        call(boxes)


def test_a_plain_tensor_goes_through_the_doors_as_it_is():
    rows = torch.rand(2, 4)
    assert as_tensor(rows, function="f", name="rows") is rows
    assert as_boxes(rows, function="f") is rows
    assert read_tensor(rows, where="here").data_ptr() == rows.data_ptr()


STRIDED = np.arange(12, dtype=np.float64).reshape(3, 4)


@pytest.mark.parametrize(
    "values",
    [
        STRIDED[::-1],
        STRIDED.T,
        STRIDED.astype(">f4"),
        np.broadcast_to(np.float32(3), (2, 2)),
        np.arange(3, dtype=np.uint16),
        np.zeros(0),
        np.array([True, False]),
        [[1, 2], [3, 4]],
        [True, False],
        (1, 2),
        [np.float64(1), 2],
        [np.ones(3), np.zeros(3)],
        [],
        3,
    ],
    ids=str,
)
def test_the_border_takes_arrays_and_nested_lists_of_numbers(values):
    read = read_tensor(values, where="here")
    assert type(read) is torch.Tensor
    assert read.tolist() == np.asarray(values).tolist()


def test_fractions_in_lists_are_float32_and_arrays_keep_their_type():
    assert read_tensor([0.5, 1], where="here").dtype == torch.float32
    assert read_tensor(np.array([0.5, 1]), where="here").dtype == torch.float64
    assert read_tensor([1, 2], where="here").dtype == torch.int64


@pytest.mark.parametrize(
    "values",
    [["a"], "abc", None, {1: 2}, [[1], [2, 3]], [None], object(), np.array(["a"])],
    ids=lambda values: type(values).__name__,
)
def test_the_border_refuses_what_holds_no_numbers(values):
    with pytest.raises(
        TypeError, match=rf"^here: a {type(values).__name__} that holds no numbers; allowed is a tensor, "
    ):
        read_tensor(values, where="here")


def test_the_border_takes_the_gradient_off():
    assert not read_tensor(torch.ones(2, requires_grad=True), where="here").requires_grad


def test_values_are_looked_at_only_when_asked(monkeypatch):
    inverted = torch.tensor([[10.0, 10, 0, 0]])
    assert torch.equal(as_boxes(inverted, function="f"), inverted)
    monkeypatch.setenv("DETKIT_CHECKS", "full")
    with pytest.raises(ValueError, match=r"f: boxes\[0\]: x2 < x1 \(0 < 10\)"):
        as_boxes(inverted, function="f")
    assert torch.equal(as_boxes(inverted, function="f", form=None), inverted)
    with pytest.raises(ValueError, match=r"f: boxes\[0, 1\]=inf"):
        as_boxes(torch.tensor([[1, torch.inf, 1, 1]]), function="f", form=None)


def test_an_inverted_box_is_named_with_its_axis_numbers_and_count():
    rows = torch.tensor([[[0.0, 0, 1, 1], [0, 5, 1, 2]], [[0, 6, 1, 2], [0, 0, 0, 0]]])
    with pytest.raises(ValueError, match=r"^f: boxes\[0, 1\]: y2 < y1 \(2 < 5\); 2 boxes are inverted$"):
        check_box_values(rows, function="f")
    with pytest.raises(ValueError, match=r"^f: b\[0\]: x2 < x1 \(-1 < 0\); 1 box is inverted$"):
        check_box_values(torch.tensor([[0.0, 0, -1, 1]]), function="f", name="b")


def test_a_box_that_is_not_finite_is_named_before_one_that_is_inverted():
    rows = torch.tensor([[9.0, 0, 1, 1], [0, 0, torch.nan, 1]])
    assert_refused("f: boxes[1, 2]=nan 1 8", check_box_values, rows, function="f")


def test_zero_size_boxes_are_not_inverted():
    check_box_values(torch.tensor([[5.0, 5, 5, 5], [-0.0, 0.0, 0.0, -0.0]]), function="f")


def test_the_first_number_that_is_not_finite_is_named():
    with pytest.raises(ValueError, match=r"^f: scores\[1\]=nan.*2.*3"):
        check_finite(torch.tensor([0, torch.nan, torch.inf]), function="f", name="scores")
    with pytest.raises(ValueError, match=r"^f: scores\[0, 1\]=-inf.*1.*2"):
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
        (r"clip_boxes_to_image: size=\(1, 2, 3\) must be 2 numbers",
         lambda: unhooked(clip_boxes_to_image)(random_boxes(3), (1, 2, 3))),
        (r"clip_boxes_to_image: size=\[1.0, 1.0, 1.0\] must be 2 numbers",
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


@pytest.mark.slow
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
    with pytest.raises(ValueError, match=rf"^nms: iou_threshold={value}.*\[0, 1\]$"):
        check_fraction(value, name="iou_threshold", function="nms")


@pytest.mark.parametrize("value", [0, 0.0, 1e-300, 7])
def test_settings_from_zero_up_are_taken(value):
    check_not_negative("f", alpha=1.0, beta=value)


@pytest.mark.parametrize("value", [-1e-9, float("nan"), float("inf"), -float("inf")])
def test_the_first_setting_below_zero_or_not_finite_is_named(value):
    with pytest.raises(ValueError, match=rf"^f: beta={value}.*0"):
        check_not_negative("f", alpha=1.0, beta=value, gamma=-1.0)


def test_the_first_bad_index_is_the_first_in_row_order():
    bad = torch.zeros(2, 3, dtype=torch.bool)
    bad[0, 2] = bad[1, 0] = True
    assert first_bad(bad) == ((0, 2), 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logits_that_are_not_finite_keep_their_order_and_have_finite_differences(dtype):
    logits = torch.tensor([torch.nan, -torch.inf, -3, 0, torch.inf], dtype=dtype)
    found = finite_logits(logits)
    assert torch.isfinite(found[:, None] - found).all()
    assert found[0] == found[1]
    assert (found[1:].diff() > 0).all()
    assert found[2:4].tolist() == [-3, 0]
