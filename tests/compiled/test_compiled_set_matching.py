"""Matchers that look at predictions, and ATSS: compiled whole they match as eagerly, and follow counts."""

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.export import Dim

from detkit.anchors.atss import ATSSMatcher
from detkit.anchors.hungarian import HungarianMatcher
from detkit.anchors.task_aligned import SimOTAMatcher, TaskAlignedMatcher
from detkit.structures import Anchors, Assignment, Predictions, Targets, pad_targets

COUNTS = (0, 1, 2, 7, 1000, 1001)
PREDICTING = {
    "hungarian": HungarianMatcher(),
    "focal": HungarianMatcher(class_cost="focal"),
    "aligned": TaskAlignedMatcher(),
    "simota": SimOTAMatcher(),
}


class FromTensors(nn.Module):
    """A matcher that takes plain tensors: what is exported."""

    def __init__(self, matcher: nn.Module) -> None:
        super().__init__()
        self.matcher = matcher

    def forward(self, scores: Tensor, boxes: Tensor, anchors: Tensor, truth: Tensor, labels: Tensor) -> Assignment:
        rows = torch.ones_like(labels, dtype=torch.bool)
        targets = Targets(truth, labels, rows, ~rows)
        return self.matcher(anchors, targets, Predictions(boxes, scores, logits=scores))


def rectangles(*shape: int, generator: torch.Generator) -> Tensor:
    corner, sides = torch.rand(2, *shape, 2, generator=generator).unbind()
    return torch.cat((corner, corner + sides), -1)


def inputs(count: int, images: int = 2, objects: int = 4) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Scores, boxes, anchors, and the boxes and labels of objects; everything lies in a few units around 0."""
    generator = torch.Generator().manual_seed(count)
    scores = torch.rand(images, count, 4, generator=generator)
    boxes, anchors = (rectangles(*shape, generator=generator) for shape in ((images, count), (count,)))
    truth = rectangles(images, objects, generator=generator)
    return scores, boxes, anchors, truth, torch.randint(0, 3, (images, objects), generator=generator)


def counted(function, backend: str = "eager"):
    """The function compiled whole, and the counter of its compilations; what is behind them the export shows."""
    torch.compiler.reset()
    counter = CompileCounterWithBackend(backend)
    return torch.compile(function, backend=counter, fullgraph=True), counter


def assert_same(found: Assignment, expected: Assignment) -> None:
    assert torch.equal(found.matched, expected.matched)
    torch.testing.assert_close(found.quality, expected.quality)


@pytest.mark.parametrize("name", PREDICTING)
def test_matching_predictions_follows_their_number_and_those_of_images_and_objects(name):
    compiled, counter = counted(FromTensors(PREDICTING[name]))
    for count, images, objects in zip(COUNTS, (2, 3, 5, 4, 2, 3), (4, 8, 16, 2, 4, 8), strict=True):
        arguments = inputs(count, images, objects)
        expected = FromTensors(PREDICTING[name])(*arguments)
        assert_same(compiled(*arguments), expected)
        assert count < 7 or (expected.matched >= 0).any()
    assert counter.frame_count <= 3


def test_atss_follows_the_number_of_anchors():
    def match(anchors: Tensor, truth: Tensor, labels: Tensor) -> Assignment:
        rows = torch.ones_like(labels, dtype=torch.bool)
        both = Anchors.of(torch.cat((anchors, anchors + 0.1)))._replace(counts=[anchors.shape[0]] * 2)
        return ATSSMatcher()(both, Targets(truth, labels, rows, ~rows))

    compiled, counter = counted(match, "aot_eager")
    for count in COUNTS:
        assert_same(compiled(*inputs(count)[2:]), match(*inputs(count)[2:]))
    assert counter.frame_count <= 3


def test_crowds_are_ignored_when_compiled_as_eagerly():
    generator = torch.Generator().manual_seed(0)
    truth = rectangles(4, generator=generator)
    truth[1], crowd = torch.tensor([-1.0, -1, 1.5, 3]), torch.tensor([0, 1, 0, 1])
    targets = pad_targets([{"boxes": truth, "labels": torch.tensor([0, 1, 2, 0]), "iscrowd": crowd}])
    scores, boxes, anchors, *_ = inputs(200, images=1)
    given = Predictions(boxes, scores, logits=scores)
    for matcher in (HungarianMatcher(), TaskAlignedMatcher(), ATSSMatcher()):
        compiled, _ = counted(matcher)
        arguments = Anchors.of(anchors)._replace(counts=[150, 50]), targets, given
        expected = matcher(*arguments)
        assert_same(compiled(*arguments), expected)
        assert (expected.matched == -2).any()


@pytest.mark.parametrize("name", PREDICTING)
def test_matching_predictions_exports_with_dynamic_counts(name):
    images, count, objects = Dim("images", min=2), Dim("count", min=16), Dim("objects", min=2)
    model = FromTensors(PREDICTING[name])
    batched, rows = {0: images, 1: count}, {0: images, 1: objects}
    program = torch.export.export(model, inputs(40), dynamic_shapes=(batched, batched, {0: count}, rows, rows)).module()
    for sizes in ((40, 2, 4), (16, 3, 5), (200, 5, 2)):
        assert_same(program(*inputs(*sizes)), model(*inputs(*sizes)))


def test_a_label_out_of_range_is_named_when_compiled_too():
    compiled, _ = counted(FromTensors(HungarianMatcher()))
    *arguments, labels = inputs(7)
    labels[1, 2] = 3
    with pytest.raises(ValueError, match=r"HungarianMatcher: image 1, target 2: label 3.*0\.\.2"):
        compiled(*arguments, labels)
