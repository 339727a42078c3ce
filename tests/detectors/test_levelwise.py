"""LevelwisePostprocess against a loop over images, levels and classes, and its corners."""

import pytest
import torch
from strategies import unhooked
from torch import Tensor
from torchvision.ops import nms

from detkit.detectors.levelwise import LevelwisePostprocess

COUNTS = [30, 12, 5]


def predictions(generator: torch.Generator, *, images: int = 3, classes: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    scores = torch.rand(images, sum(COUNTS), classes, generator=generator)
    corners = torch.rand(2, images, sum(COUNTS), 2, generator=generator) * 60
    boxes = torch.cat((corners.amin(0), corners.amax(0) + 5), dim=-1)
    return scores, boxes, torch.tensor([[50, 40], [64, 64], [30, 60]])[:images]


def expected(scores: Tensor, boxes: Tensor, size: Tensor, *, threshold: float, iou: float, most: int, each: int):
    """(label, score, box) of one image, best first, by the definition."""
    height, width = size.tolist()
    candidates = []
    for level in torch.arange(sum(COUNTS)).split(COUNTS):
        pairs = [(scores[a, c].item(), a, c) for a in level.tolist() for c in range(scores.shape[1])]
        candidates += sorted((pair for pair in pairs if pair[0] > threshold), key=lambda pair: -pair[0])[:each]
    boxes = boxes.clamp(min=0).minimum(torch.tensor([width, height, width, height], dtype=boxes.dtype))
    kept = []
    for label in range(scores.shape[1]):
        own = [(score, anchor) for score, anchor, c in candidates if c == label]
        rows = torch.tensor([anchor for _, anchor in own], dtype=torch.int64)
        survivors = nms(boxes[rows], torch.tensor([score for score, _ in own]), iou).tolist()
        kept += [(own[i][0], label, boxes[own[i][1]].tolist()) for i in survivors]
    return sorted(kept, key=lambda row: -row[0])[:most]


@pytest.mark.parametrize(("threshold", "each", "most"), [(0.05, 1000, 300), (0.3, 7, 10), (0.6, 20, 6), (0.05, 1, 300)])
def test_it_does_what_its_definition_says(generator, threshold, each, most):
    scores, boxes, sizes = predictions(generator)
    postprocess = LevelwisePostprocess(
        score_threshold=threshold, iou_threshold=0.4, max_detections=most, candidates_per_level=each
    )
    found = postprocess(scores, boxes, sizes, counts=COUNTS)
    for i in range(3):
        rows = expected(scores[i], boxes[i], sizes[i], threshold=threshold, iou=0.4, most=most, each=each)
        assert len(rows) > 1
        assert found.valid[i].sum() == len(rows)
        assert found.labels[i][found.valid[i]].tolist() == [label for _, label, _ in rows]
        assert found.scores[i][found.valid[i]].tolist() == [score for score, _, _ in rows]
        torch.testing.assert_close(found.boxes[i][found.valid[i]], torch.tensor([box for _, _, box in rows]))
    for part in (found.boxes, found.scores, found.labels):
        assert not part[~found.valid].any()


def test_a_weak_level_is_heard_beside_a_strong_one():
    scores = torch.full((1, sum(COUNTS), 1), 0.9)
    scores[0, 42:] = 0.1
    boxes = torch.arange(47.0)[None, :, None] * 20 + torch.tensor([0.0, 0, 10, 10])
    postprocess = LevelwisePostprocess(candidates_per_level=4)
    found = postprocess(scores, boxes, torch.tensor([[1000, 1000]]), counts=COUNTS)
    assert found.scores[0].tolist() == pytest.approx([0.9] * 8 + [0.1] * 4)


def test_ties_go_to_the_lower_anchor_then_to_the_lower_class():
    scores, boxes = torch.full((1, 6, 2), 0.5), torch.arange(6.0)[None, :, None] * 20 + torch.tensor([0.0, 0, 10, 10])
    postprocess = LevelwisePostprocess(candidates_per_level=5, max_detections=5)
    found = postprocess(scores, boxes, torch.tensor([[200, 200]]), counts=[6])
    assert (found.boxes[0, :, 0] / 20).tolist() == [0, 0, 1, 1, 2]
    assert found.labels[0].tolist() == [0, 1, 0, 1, 0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_row_is_left_out_and_changes_no_other(generator, bad):
    scores, boxes, sizes = predictions(generator)
    postprocess = LevelwisePostprocess(candidates_per_level=1000)
    alone = postprocess(torch.where(torch.arange(47)[:, None] == 3, 0, scores), boxes, sizes, counts=COUNTS)
    scores[:, 3], broken = torch.nan, boxes.clone()
    found = postprocess(scores, boxes, sizes, counts=COUNTS)
    broken[:, 3] = bad
    other = postprocess(scores.nan_to_num(0.99), broken, sizes, counts=COUNTS)
    for result in (found, other):
        assert all(torch.equal(one, expected) for one, expected in zip(result[:4], alone[:4], strict=True))


def test_nothing_above_the_threshold_and_no_anchors_are_empty_results(generator):
    scores, boxes, sizes = predictions(generator)
    assert not LevelwisePostprocess(score_threshold=1.0)(scores, boxes, sizes, counts=COUNTS).valid.any()
    nothing = LevelwisePostprocess()(scores[:, :0], boxes[:, :0], sizes, counts=[0, 0])
    assert nothing.boxes.shape == (3, 0, 4)


def test_wrong_arguments_are_named():
    for name, value in (("score_threshold", 1.5), ("iou_threshold", -0.1), ("max_detections", 0)):
        with pytest.raises(ValueError, match=f"LevelwisePostprocess: {name}={value} must"):
            LevelwisePostprocess(**{name: value})
    with pytest.raises(ValueError, match=r"candidates_per_level=0.*1"):
        LevelwisePostprocess(candidates_per_level=0)


def test_it_prints_its_settings():
    assert "candidates_per_level=1000" in repr(LevelwisePostprocess())
    assert "gradients" not in repr(LevelwisePostprocess())
    assert repr(LevelwisePostprocess(class_agnostic=True, gradients=True)).endswith(
        ", class_agnostic=True, gradients=True)"
    )


def test_anchors_boxes_and_scores_must_be_equally_many(generator):
    scores, boxes, sizes = predictions(generator)
    for arguments, counts in (((scores, boxes), [30, 12]), ((scores, boxes[:, 1:]), COUNTS), ((scores, boxes), [])):
        with pytest.raises(ValueError, match="allowed are equally many, and at least one level"):
            unhooked(LevelwisePostprocess.forward)(LevelwisePostprocess(), *arguments, sizes, counts=counts)


def test_class_agnostic_suppression_and_gradients_are_options_here_too():
    boxes, scores = torch.tensor([[[0.0, 0, 9, 9], [0, 0, 9, 8]]]), torch.tensor([[[0.9, 0.2], [0.3, 0.8]]])
    scores.requires_grad_()
    sizes = torch.tensor([[10, 10]])
    found = LevelwisePostprocess(class_agnostic=True, gradients=True)(scores, boxes, sizes, [1, 1])
    assert found.labels[found.valid].tolist() == [0]
    found.scores.sum().backward()
    assert scores.grad.tolist() == [[[1, 0], [0, 0]]]
    assert not LevelwisePostprocess()(scores, boxes, sizes, [1, 1]).scores.requires_grad
