"""SetPredictionStage and SetPostprocess: what meets, what padding may not change, and what is found."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import unhooked
from torch import Tensor, nn

from detkit.anchors import HungarianMatcher, ThresholdMatcher
from detkit.boxes import pixels_to_fractions
from detkit.detectors import SetPostprocess, SetPredictionStage, detr_stage
from detkit.detectors.set_prediction import SetPredictionOutputs, check_set_matcher
from detkit.structures import Assignment, Images, Predictions, Target, Targets, pad_targets

TRUTH = Target(boxes=torch.tensor([[10.0, 8, 40, 60]]), labels=torch.tensor([1]))


@pytest.fixture
def stage() -> SetPredictionStage:
    """Two layers, with weights that let queries differ."""
    torch.manual_seed(0)
    stage = detr_stage(3, 6, channels=32, hidden=20, depth=2, queries=7).double().eval()
    for parameter in stage.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.2)
    return stage


def images(*sizes: tuple[int, int], frame: tuple[int, int] = (96, 128)) -> Images:
    return Images(torch.zeros(len(sizes), 3, *frame), torch.tensor(sizes))


def cells(count: int, rows: int = 3, columns: int = 4, *, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 6, rows, columns, generator=generator, dtype=torch.float64)


def test_every_layer_predicts_with_targets_and_the_last_without(stage):
    batch, features = images((96, 128), (96, 128)), [torch.zeros(2, 1, 1, 1), cells(2)]
    targets = pad_targets([Target(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64))] * 2)
    learning, finding = stage(features, batch, None, targets), stage(features, batch, None)
    assert isinstance(learning, SetPredictionOutputs)
    assert learning.logits.shape == (2, 2, 7, 4)
    assert learning.boxes.shape == (2, 2, 7, 4)
    torch.testing.assert_close(learning.logits[-1:], finding.logits)
    torch.testing.assert_close(learning.boxes[-1:], finding.boxes)
    assert not torch.allclose(learning.logits[0], learning.logits[1])
    assert ((learning.boxes > 0) & (learning.boxes < 1)).all()


def test_what_lies_in_the_padding_is_not_looked_at(stage):
    features = cells(2)
    batch = images((96, 128), (64, 96))
    found = stage([features], batch, None)
    features[1, :, 2:], features[1, :, :, 3:] = 1e3, -1e3
    other = stage([features], batch, None)
    torch.testing.assert_close(found.logits, other.logits)
    torch.testing.assert_close(found.boxes, other.boxes)


def test_a_padded_image_gives_the_same_as_alone(stage):
    features = cells(2)
    found = stage([features], images((96, 128), (64, 96)), None)
    alone = stage([features[1:, :, :2, :3]], images((64, 96), frame=(64, 96)), None)
    torch.testing.assert_close(found.logits[:, 1:], alone.logits)
    torch.testing.assert_close(found.boxes[:, 1:], alone.boxes)
    cropped = stage([features[1:, :, :2, :3]], images((64, 90), frame=(64, 90)), None)
    torch.testing.assert_close(found.logits[:, 1:], cropped.logits)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_close(stage, dtype):
    expected = stage([cells(2)], images((96, 128), (64, 96)), None)
    found = stage.to(dtype)([cells(2).to(dtype)], images((96, 128), (64, 96)), None)
    assert found.logits.dtype == dtype
    torch.testing.assert_close(found.boxes.double(), expected.boxes, atol=0.1, rtol=0)


def test_detections_are_those_of_the_last_layer_in_pixels(stage):
    batch = images((96, 128), (64, 96))
    outputs = stage([cells(2)], batch, None)
    found = stage.detections(outputs, batch)
    scores = outputs.logits[-1].softmax(-1)[..., :-1]
    for i, (height, width) in enumerate(batch.sizes.tolist()):
        best, labels = scores[i].max(-1)
        order = best.argsort(descending=True)
        torch.testing.assert_close(found.scores[i], best[order])
        assert found.labels[i].tolist() == labels[order].tolist()
        cx, cy, w, h = outputs.boxes[-1, i][order].unbind(-1)
        corners = torch.stack((cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2), -1)
        scale = torch.tensor([width, height, width, height])
        torch.testing.assert_close(found.boxes[i], (corners * scale).clamp(min=0).minimum(scale))
    assert found.valid.all()


def test_its_loss_reads_target_boxes_in_pixels_of_each_image(stage):
    batch = images((96, 128), (64, 96))
    truth = [TRUTH] * 2
    outputs = stage([cells(2)], batch, None, pad_targets(truth))
    losses = stage.loss(outputs, pad_targets(truth))
    assert losses.keys() == {prefix + name for prefix in ("", "layer0.") for name in ("classification", "l1", "giou")}
    fractions = [
        {**one, "boxes": one["boxes"] / torch.tensor(size)}
        for one, size in zip(truth, [(128.0, 96, 128, 96), (96, 64, 96, 64)], strict=True)
    ]
    whole = outputs._replace(sizes=torch.ones(2, 2))
    for name, loss in stage.loss(whole, pad_targets(fractions)).items():
        torch.testing.assert_close(losses[name], loss, rtol=1e-6, atol=1e-8)


def test_all_layers_are_matched_in_one_call(stage, monkeypatch):
    seen, matcher = [], HungarianMatcher()

    def watched(anchors: None, targets: Targets, predictions: Predictions) -> Assignment:
        seen.append((tuple(predictions.boxes.shape), tuple(predictions.logits.shape), targets))
        return matcher(anchors, targets, predictions)

    monkeypatch.setattr(stage.matcher, "forward", watched)
    batch, targets = images((96, 128), (64, 96)), pad_targets([TRUTH] * 2)
    outputs = stage([cells(2)], batch, None, targets)
    first = outputs._replace(logits=outputs.logits.flip(0), boxes=outputs.boxes.flip(0))
    losses, flipped = stage.loss(outputs, targets), stage.loss(first, targets)
    ((boxes, logits, repeated), _) = seen
    assert (boxes, logits) == ((4, 7, 4), (4, 7, 4))
    torch.testing.assert_close(repeated.boxes, pixels_to_fractions(targets.boxes, batch.sizes).repeat(2, 1, 1))
    assert torch.equal(repeated.labels, targets.labels.repeat(2, 1))
    for name in ("classification", "l1", "giou"):
        torch.testing.assert_close(losses[name], flipped["layer0." + name])
        assert losses[name] != flipped[name]


@pytest.mark.parametrize("label", [3, -1, 7])
def test_a_label_that_is_no_class_is_named(stage, label):
    targets = pad_targets([TRUTH] * 2)
    outputs = stage([cells(2)], images((96, 128), (64, 96)), None, targets)
    targets.labels[1, 0] = label
    with pytest.raises(ValueError, match=rf"image 1, target 0: label {label} "):
        stage.loss(outputs, targets)


def test_a_matcher_of_anchors_is_refused():
    with pytest.raises(ValueError, match="SetPredictionStage: matcher is a ThresholdMatcher"):
        check_set_matcher("SetPredictionStage", ThresholdMatcher(positive_iou=0.5, negative_iou=0.4))


def test_every_parameter_learns_also_without_objects(stage):
    nothing = pad_targets([Target(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64))])
    outputs = stage.train()([cells(1)], images((96, 128)), None, nothing)
    sum(stage.loss(outputs, nothing).values()).backward()
    for name, parameter in stage.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def scored(*scores: list[float]) -> tuple[Tensor, Tensor, Tensor]:
    """One image of 100 x 200 pixels."""
    boxes = torch.tensor([[90.0 - 10 * i, 45, 110 + 10 * i, 55] for i in range(len(scores))])
    return torch.tensor([list(scores)]), boxes[None], torch.tensor([[100, 200]])


def test_each_query_is_found_once_as_its_best_class_and_overlapping_ones_stay():
    found = SetPostprocess()(*scored([0.4, 0.5], [0.9, 0.1], [0.9, 0.05]))
    torch.testing.assert_close(found.scores, torch.tensor([[0.9, 0.9, 0.5]]))
    assert found.labels.tolist() == [[0, 0, 1]]
    torch.testing.assert_close(found.boxes[0, 0], torch.tensor([80.0, 45, 120, 55]))
    torch.testing.assert_close(found.boxes[0, 1], torch.tensor([70.0, 45, 130, 55]))


def test_scores_at_the_threshold_and_bad_rows_are_not_found():
    scores, boxes, sizes = scored([0.5, 0.1], [0.6, 0.1], [math.nan, 0.9], [0.9, 0.1], [0.1, math.nan])
    boxes[0, 3, 2] = math.inf
    found = SetPostprocess(score_threshold=0.5)(scores, boxes, sizes)
    assert found.valid.tolist() == [[True, False, False, False, False]]
    assert found.scores[0, 0].item() == pytest.approx(0.6)
    for part in (found.boxes, found.scores, found.labels):
        assert not part[~found.valid].any()


def test_no_more_are_found_than_asked_for():
    given = scored([0.1, 0.2], [0.3, 0.2], [0.4, 0.2])
    assert SetPostprocess(max_detections=2)(*given).scores.tolist() == [[pytest.approx(0.4), pytest.approx(0.3)]]
    assert SetPostprocess(max_detections=9)(*given).scores.shape == (1, 3)


@given(st.integers(0, 500))
def test_boxes_lie_in_their_image_and_scores_fall(seed):
    generator = torch.Generator().manual_seed(seed)
    scores, boxes = torch.rand(2, 6, 3, generator=generator), torch.rand(2, 6, 4, generator=generator) * 80 - 20
    sizes = torch.tensor([[30, 50], [40, 20]])
    found = SetPostprocess(score_threshold=0.5, max_detections=4)(scores, boxes, sizes)
    assert (found.scores.diff() <= 0).all()
    assert ((found.boxes >= 0) & (found.boxes <= sizes.flip(1).repeat(1, 2)[:, None])).all()
    assert (found.valid == (found.scores > 0.5)).all()


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"score_threshold=1.5.*\[0, 1\]"):
        unhooked(SetPostprocess.__init__)(SetPostprocess(), score_threshold=1.5)
    with pytest.raises(ValueError, match=r"max_detections=0.*1"):
        SetPostprocess(max_detections=0)
    assert repr(SetPostprocess()) == "SetPostprocess(score_threshold=0.0, max_detections=100, every_class=False)"


def test_scores_of_queries_have_a_gradient_where_it_is_asked_for():
    scores, boxes = torch.tensor([[[0.1, 0.7]]], requires_grad=True), torch.tensor([[[0.0, 0, 4, 4]]])
    for gradients in (False, True):
        found = SetPostprocess(gradients=gradients)(scores, boxes, torch.tensor([[8, 8]]))
        assert found.scores.requires_grad is gradients
