"""The fixed shapes around the kernel of suppression: right with a slow stand-in for it, and without a wait."""

from importlib import import_module
from unittest.mock import Mock

import pytest
import torch
from strategies import random_boxes
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton")
from detkit.boxes import batched_nms, nms_padded, padded, segments
from detkit.boxes.measures import diou, iou
from detkit.boxes.suppression import survivors

nms = import_module("detkit.boxes.nms").nms
WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "repeat_interleave.Tensor", "is_nonzero")
BY_INDEX = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default, torch.ops.aten.index_put_.default)


class Waits(TorchDispatchMode):
    """Counts the operations for which the host would wait for a device."""

    count = 0

    def __torch_dispatch__(self, function, types, arguments=(), settings=None):
        rows = arguments[1] if function in BY_INDEX else ()
        by_mask = any(isinstance(row, Tensor) and row.dtype == torch.bool for row in rows)
        self.count += by_mask or any(name in str(function) for name in WAITS)
        return function(*arguments, **(settings or {}))


def slow_rows(boxes: Tensor, places: Tensor, given: segments.Segments, rule: segments.Rule) -> Tensor:
    keep, measure = torch.ones_like(places, dtype=torch.bool), diou if rule.centers else iou
    for start, length in zip(given.starts.tolist(), given.lengths.tolist(), strict=True):
        assert length <= given.longest
        rows = slice(start, start + length)
        assert given.owners[rows].unique().numel() <= 1
        keep[rows] = survivors(boxes[places[rows]], [length], rule.threshold, measure)
    return keep


@pytest.fixture
def crowd() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 9, (3, 60, 4), generator=generator) / 9
    scores[1, 4:7, 1] = torch.nan
    return torch.stack([random_boxes(60, seed=seed, extent=40) for seed in range(3)]), scores


@pytest.mark.parametrize("measure", ["iou", "diou"])
@pytest.mark.slow
def test_with_any_kernel_the_operators_keep_what_they_keep_without(crowd, monkeypatch, measure):
    monkeypatch.setattr(segments, "surviving_rows", slow_rows)
    boxes, scores = crowd
    groups, one = torch.arange(60).expand(3, -1) % 5 - 2, scores[..., 0]
    found = segments.nms(boxes[0], one[0], groups[0], 0.4, measure, False)
    assert torch.equal(found, batched_nms(boxes[0], one[0], groups[0], 0.4, measure=measure))
    assert torch.equal(
        segments.nms(boxes[0], one[0], None, 0.4, measure, True), nms(boxes[0], one[0], 0.4, measure=measure)
    )
    valid = scores[..., 1] > 0.2
    for most in (4, 100):
        pairs = (
            (
                segments.nms_padded(boxes, one, 0.4, groups, valid, most, measure),
                nms_padded(boxes, one, 0.4, groups=groups, valid=valid, max_detections=most, measure=measure),
            ),
            (
                segments.multiclass_nms_padded(boxes, scores, 0.4, 0.2, 30, most, measure),
                torch.ops.detkit.multiclass_nms_padded(boxes, scores, 0.4, 0.2, 30, most, measure),
            ),
        )
        assert all(torch.equal(*both) for found, expected in pairs for both in zip(found, expected, strict=True))


def test_padded_suppression_never_waits_and_that_of_a_set_once(crowd, monkeypatch):
    monkeypatch.setattr(segments, "surviving_rows", lambda boxes, places, *_: torch.ones_like(places, dtype=torch.bool))
    monkeypatch.setattr(segments, "round_down", lambda threshold, dtype: threshold)  # looks at a number of the host
    boxes, scores = crowd
    groups, scores = torch.arange(60).expand(3, -1) % 5, scores.nan_to_num(0)
    with Waits() as waits:
        segments.nms_padded(boxes, scores[..., 0], 0.4, groups, scores[..., 1] > 0, 20, "iou")
        segments.multiclass_nms_padded(boxes, scores, 0.4, 0.2, 10, 20, "iou")
        segments.multiclass_nms_padded(boxes, scores, 0.4, 0.2, None, 20, "iou")
    assert waits.count == 0
    lists = Mock(side_effect=Tensor.tolist)
    monkeypatch.setattr(Tensor, "tolist", lambda values: lists(values))  # an operation on a device only
    with Waits() as waits:
        segments.nms(boxes[0], scores[0, :, 0], groups[0], 0.4, "iou", False)
    assert (waits.count, lists.call_count) == (0, 1)
    with Waits() as waits:
        padded._multiclass_nms_padded(boxes, scores, 0.4, 0.2, None, 20, "iou")
    assert waits.count > 5  # of the torch form


def test_numbers_in_float64_are_left_to_the_torch_form(crowd):
    boxes, scores = (values.double() for values in crowd)
    assert segments.nms(boxes[0], scores[0, :, 0], None, 0.4, "iou", True) is NotImplemented
    assert segments.nms_padded(boxes, scores[..., 0], 0.4, None, None, 5, "iou") is NotImplemented
    assert segments.multiclass_nms_padded(boxes.float(), scores, 0.4, 0.2, None, 5, "iou") is NotImplemented
