"""Suppression that rescores or fuses compiles without a graph break, follows the number of boxes, and exports."""

import importlib

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.export import Dim

from detkit.boxes.fusion import weighted_boxes_fusion
from detkit.boxes.matrix_nms import matrix_nms
from detkit.boxes.soft_nms import soft_nms, soft_nms_padded

module = importlib.import_module("detkit.boxes.soft_nms")  # the package's name is the function's
COUNTS = (0, 1, 2, 7, 1000, 1001)


def detections(count: int, *, images: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(count)
    shape = (count,) if images is None else (images, count)
    corners = torch.rand(2, *shape, 2, generator=generator) * 96
    boxes = torch.cat((corners.amin(0), corners.amax(0)), dim=-1)
    return boxes, torch.rand(shape, generator=generator), torch.randint(0, 3, shape, generator=generator)


def assert_follows_counts(function, inputs) -> None:
    """Compiled whole, the function gives what it gives eagerly for every count, with at most 2 recompilations."""
    torch.compiler.reset()
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(function, backend=counter, fullgraph=True)
    for count in COUNTS:
        arguments = inputs(count)
        for found, expected in zip(compiled(*arguments), function(*arguments), strict=True):
            assert found.dtype == expected.dtype
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert counter.frame_count <= 3


@pytest.mark.parametrize("method", ["linear", "gaussian"])
@pytest.mark.parametrize("limit", [None, 20])
def test_soft_nms_follows_the_number_of_boxes(method, limit):
    def suppress(boxes: Tensor, scores: Tensor, groups: Tensor) -> tuple[Tensor, ...]:
        return soft_nms(boxes, scores, groups=groups, method=method, max_detections=limit)

    assert_follows_counts(suppress, detections)


def test_padded_soft_nms_follows_the_number_of_boxes():
    def suppress(boxes: Tensor, scores: Tensor, groups: Tensor) -> tuple[Tensor, ...]:
        return soft_nms_padded(boxes, scores, groups=groups, valid=scores > 0.1, max_detections=20)

    assert_follows_counts(suppress, lambda count: detections(count, images=2))


@pytest.mark.parametrize("method", ["linear", "gaussian"])
def test_matrix_nms_follows_the_number_of_boxes_and_needs_no_op(method):
    def suppress(boxes: Tensor, scores: Tensor, groups: Tensor) -> tuple[Tensor]:
        return (matrix_nms(boxes, scores, groups=groups, method=method),)

    assert_follows_counts(suppress, detections)


def test_fusion_follows_the_number_of_boxes():
    def fuse(boxes: Tensor, scores: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        return weighted_boxes_fusion([boxes, boxes + 1], [scores, scores / 2], [labels, labels], weights=[2.0, 1.0])

    assert_follows_counts(fuse, detections)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_values_are_refused_at_run_time_too(bad):
    compiled = torch.compile(lambda boxes, scores: soft_nms(boxes, scores), backend="eager", fullgraph=True)
    boxes, scores, _ = detections(5)
    boxes[3, 1] = bad
    with pytest.raises(ValueError, match=rf"soft_nms: boxes\[3, 1\]={bad:g}"):
        compiled(boxes, scores)


class Padded(nn.Module):
    def forward(self, boxes: Tensor, scores: Tensor, groups: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        found = soft_nms_padded(boxes, scores, groups=groups, max_detections=20)
        return (*found, matrix_nms(boxes, scores, groups=groups))


def test_batches_export_with_dynamic_sizes():
    dynamic = ({0: Dim.DYNAMIC, 1: Dim.DYNAMIC},) * 3
    program = torch.export.export(Padded(), detections(30, images=2), dynamic_shapes=dynamic).module()
    for images, count in ((2, 30), (3, 50), (4, 100)):
        arguments = detections(count, images=images)
        for found, expected in zip(program(*arguments), Padded()(*arguments), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_fake_kernels_tell_the_truth_about_the_ops():
    boxes, scores, groups = detections(12)
    options = ("gaussian", 0.5, 0.3, 0.001)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(module._soft_nms, (boxes, scores, groups, *options, None, False), test_utils=checks)
    batch = boxes.double()[None], scores.half()[None], None, None
    torch.library.opcheck(module._soft_nms_padded, (*batch, *options, 5), test_utils=checks)
    fused = boxes, scores, groups, [5, 7], [1.0, 2.0], 0.55, 0.0, False, False
    torch.library.opcheck(torch.ops.detkit.weighted_boxes_fusion.default, fused, test_utils=checks)
