"""Matchers compile whole and follow the numbers of anchors, images and objects with few recompilations; and export."""

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.export import Dim

from detkit.anchors import BipartiteMatcher
from detkit.anchors.threshold import ThresholdMatcher
from detkit.structures import Targets, pad_targets

COUNTS = (0, 1, 2, 7, 1000, 1001, 40_000)  # the last by search instead of the matrix
OBJECTS = ((2, 1), (3, 8), (5, 16), (4, 32), (2, 4))  # images, objects of each
MATCHERS = [ThresholdMatcher(), BipartiteMatcher(), BipartiteMatcher(greedy=False)]


def random_boxes(count: int, seed: int = 0) -> Tensor:
    corners = torch.rand(2, count, 2, generator=torch.Generator().manual_seed(seed)) * 200
    return torch.cat((corners.amin(0), corners.amax(0) + 1), dim=1)


def targets(images: int, objects: int) -> Targets:
    crowds = torch.arange(objects) % 4 == 3
    return pad_targets(
        [
            {"boxes": random_boxes(objects, seed=i), "labels": torch.arange(objects), "iscrowd": crowds}
            for i in range(images)
        ]
    )


def assert_compiles(matcher: nn.Module, inputs: list[tuple[Tensor, Targets]]) -> None:
    torch.compiler.reset()
    counter = CompileCounterWithBackend("eager")  # what is behind it: see the export
    compiled = torch.compile(matcher, backend=counter, fullgraph=True)
    for arguments in inputs:
        found, expected = compiled(*arguments), matcher(*arguments)
        assert torch.equal(found.matched, expected.matched)
        assert torch.equal(found.quality, expected.quality)
    assert counter.frame_count <= 3


@pytest.mark.parametrize("matcher", MATCHERS, ids=str)
def test_matching_follows_the_numbers_of_anchors_images_and_objects(matcher):
    sizes = zip(COUNTS, (*OBJECTS, *OBJECTS[1:3]), strict=True)
    assert_compiles(matcher, [(random_boxes(count, seed=9), targets(*others)) for count, others in sizes])


@pytest.mark.parametrize("matcher", MATCHERS, ids=str)
def test_matching_exports_with_all_sizes_dynamic(matcher):
    class FromTensors(nn.Module):
        def forward(self, anchors: Tensor, boxes: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
            labels = torch.zeros_like(valid, dtype=torch.int64)
            return tuple(matcher(anchors, Targets(boxes, labels, valid, torch.zeros_like(valid))))

    dynamic = ({0: Dim.DYNAMIC}, {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}, {0: Dim.DYNAMIC, 1: Dim.DYNAMIC})
    example = targets(3, 5)
    arguments = (random_boxes(70), example.boxes, example.valid)
    program = torch.export.export(FromTensors(), arguments, dynamic_shapes=dynamic).module()
    for count, (images, objects) in zip((5, 300, 20_000), OBJECTS[1:], strict=False):
        anchors, truth = random_boxes(count, seed=4), targets(images, objects)
        for found, expected in zip(
            program(anchors, truth.boxes, truth.valid), FromTensors()(anchors, truth.boxes, truth.valid), strict=True
        ):
            assert torch.equal(found, expected)


@pytest.mark.parametrize("shape", [(6, 4), (2, 6, 4)])
def test_operators_keep_the_rules_of_custom_operators(shape):
    truth, anchors = targets(2, 4), random_boxes(12).view(2, 6, 4)[: len(shape) - 1].reshape(-1, 6, 4)
    anchors = anchors[0] if len(shape) == 2 else anchors
    rows = (truth.boxes, truth.valid, truth.ignore, anchors)
    torch.library.opcheck(torch.ops.detkit.match_threshold, (*rows, 0.5, 0.4, True))
    torch.library.opcheck(torch.ops.detkit.match_bipartite, (*rows, 0.5, 0.4, True, False))
    torch.library.opcheck(torch.ops.detkit.in_crowd, (anchors, truth.boxes, truth.ignore))
    torch.library.opcheck(torch.ops.detkit.nearest_points, (anchors[..., :2], truth.boxes[..., 2:], [2, 0, 4], 3))
