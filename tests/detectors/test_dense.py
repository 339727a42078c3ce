"""DenseStage: how head, anchors, matcher, coder, criterion and postprocess meet, in every combination; and misfits."""

import pytest
import torch
from dense_parts import CODERS, COMBINATIONS, CRITERIA, MATCHERS, Step, dense_stage, seen, truth
from strategies import unhooked
from thorough import EVERY_TEST
from torch import Tensor, nn

from detkit.anchors import BipartiteMatcher, GridAnchors, HungarianMatcher, ShapeMatcher, TaskAlignedMatcher
from detkit.boxes import DeltaCoder, DistanceCoder, DistributionCoder, GridCoder
from detkit.detectors import DenseStage, Postprocess, dense, fpn_ssd
from detkit.detectors.dense import DenseOutputs, detect
from detkit.heads import DenseHead, FCOSHead, RegressionHead
from detkit.losses import DenseCriterion, FCOSLoss, MultiBoxLoss, QualityLoss, RetinaNetLoss
from detkit.structures import Anchors, DensePredictions, Detections, Images, Predictions, Target, Targets, pad_targets

BOXES = torch.tensor([[0.0, 0, 10, 10], [20, 20, 40, 40], [50, 50, 60, 60]])
ANCHORS = Anchors(BOXES, BOXES[:, 2:] - BOXES[:, :2], (3,))
IMAGES = Images(torch.zeros(1, 3, 64, 64), torch.tensor([[64, 64]]))


class Fixed(nn.Module):
    """Answers every call with one value."""

    def __init__(self, answer: object) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, *inputs: object) -> object:
        return self.answer


class Recorder(DenseCriterion):
    """A criterion that keeps what it is asked to judge."""

    def forward(self, predictions, assigned, anchors, coder) -> dict[str, Tensor]:
        self.seen = assigned
        return {"loss": predictions.logits.sum() * 0}

    def scores(self, predictions) -> Tensor:
        return predictions.logits.sigmoid()

    def num_classes(self, predictions) -> int:
        return predictions.logits.shape[-1]


def parts(logits: Tensor, deltas: Tensor, criterion: DenseCriterion, **settings) -> dict[str, nn.Module]:
    return {
        "head": DenseHead(Fixed(logits), Fixed(deltas)),
        "anchors": Fixed(ANCHORS),
        "matcher": BipartiteMatcher(positive_iou=0.5),
        "coder": DeltaCoder((10.0, 10.0, 5.0, 5.0)),
        "criterion": criterion,
        "postprocess": Postprocess(**settings),
    }


def stage(logits: Tensor, deltas: Tensor, criterion: DenseCriterion, **settings) -> DenseStage:
    return DenseStage(**parts(logits, deltas, criterion, **settings))


def objects(**more: Tensor) -> Targets:
    boxes = torch.tensor([[21.0, 20, 41, 40], [0, 0, 10, 10]])
    return pad_targets([Target(boxes=boxes, labels=torch.tensor([1, 0]), **more)])


def test_its_outputs_are_those_of_head_and_anchors():
    logits, deltas = torch.rand(1, 3, 2), torch.rand(1, 3, 4)
    outputs = stage(logits, deltas, Recorder())([torch.zeros(1, 1, 1, 1)], IMAGES, None)
    assert isinstance(outputs, DenseOutputs)
    assert outputs.predictions.logits is logits
    assert outputs.predictions.deltas is deltas
    assert outputs.predictions.quality is None
    assert outputs.anchors is ANCHORS


def test_its_criterion_judges_against_the_matched_objects():
    criterion = Recorder()
    dense = stage(torch.zeros(1, 3, 2), torch.zeros(1, 3, 4), criterion)
    dense.loss(dense([], IMAGES, None), objects())
    assert criterion.seen.labels.tolist() == [[0, 1, -1]]
    assert criterion.seen.boxes[0, :2].tolist() == [[0, 0, 10, 10], [21, 20, 41, 40]]
    assert criterion.seen.weights.tolist() == [[1, 1, 1]]
    assert criterion.seen.quality[0].tolist() == [1, pytest.approx(19 / 21), 0]


def test_weights_of_objects_reach_their_anchors_and_negatives_weigh_one():
    criterion = Recorder()
    dense = stage(torch.zeros(1, 3, 2), torch.zeros(1, 3, 4), criterion)
    dense.loss(dense([], IMAGES, None), objects(weights=torch.tensor([0.25, 3.0])))
    assert criterion.seen.weights.tolist() == [[3.0, 0.25, 1.0]]


def test_an_anchor_in_a_crowd_is_ignored():
    criterion = Recorder()
    dense = stage(torch.zeros(1, 3, 2), torch.zeros(1, 3, 4), criterion)
    dense.loss(dense([], IMAGES, None), objects(iscrowd=torch.tensor([1, 0])))
    assert criterion.seen.labels.tolist() == [[0, -2, -1]]


def test_it_finds_decoded_boxes_with_the_scores_of_the_criterion():
    logits = torch.tensor([[[-9.0, 2.0], [1.0, -9.0], [-9.0, -9.0]]])
    deltas = torch.zeros(1, 3, 4)
    deltas[0, 1] = torch.tensor([5.0, 0, 0, 5 * 0.6931472])  # half a width to the right, twice as high
    dense = stage(logits, deltas, Recorder(), score_threshold=0.5)
    found = dense.detections(dense([], IMAGES, None), IMAGES)
    assert found.labels[found.valid].tolist() == [1, 0]
    torch.testing.assert_close(found.scores[found.valid], torch.tensor([2.0, 1.0]).sigmoid())
    torch.testing.assert_close(found.boxes[found.valid], torch.tensor([[0.0, 0, 10, 10], [30, 10, 50, 50]]))


def test_perfect_predictions_cost_next_to_nothing_and_find_the_objects():
    targets = objects()
    matched = torch.tensor([1, 0, 0])
    logits = torch.full((1, 3, 3), -20.0)
    logits[0, torch.arange(3), torch.tensor([0, 1, 2])] = 20.0
    deltas = DeltaCoder((10.0, 10.0, 5.0, 5.0)).encode(targets.boxes[0, matched], BOXES)[None]
    dense = stage(logits, deltas, MultiBoxLoss())
    outputs = dense([], IMAGES, None)
    assert all(loss < 1e-6 for loss in dense.loss(outputs, targets).values())
    found = dense.detections(outputs, IMAGES)
    torch.testing.assert_close(found.boxes[found.valid], torch.tensor([[0.0, 0, 10, 10], [21, 20, 41, 40]]))
    assert found.labels[found.valid].tolist() == [0, 1]


def test_it_prints_its_parts():
    text = repr(fpn_ssd(2, channels=8))
    names = "DenseStage", "DenseHead", "BipartiteMatcher", "DeltaCoder", "Postprocess", "MultiBoxLoss"
    assert all(part in text for part in names)


@pytest.mark.parametrize("label", [-1, 2, 7])
def test_an_object_whose_label_is_no_class_is_named_and_not_learned_as_background(label):
    wrong = Target(boxes=torch.tensor([[0.0, 0, 10, 10], [20, 20, 40, 40]]), labels=torch.tensor([1, label]))
    for criterion, width in ((MultiBoxLoss(), 3), (RetinaNetLoss(), 2)):
        dense = stage(torch.zeros(1, 3, width), torch.zeros(1, 3, 4), criterion)
        with pytest.raises(ValueError, match=rf"DenseStage: targets.labels\[0, 1\]={label}.*0..1"):
            dense.loss(dense([], IMAGES, None), pad_targets([wrong]))
        ignored = wrong | {"iscrowd": torch.tensor([0, 1])}
        assert dense.loss(dense([], IMAGES, None), pad_targets([ignored]))


# Predictions for matchers


class Watcher(BipartiteMatcher):
    """A matcher that keeps the predictions it is shown."""

    def forward(self, anchors, targets, predictions=None):
        self.seen: Predictions | None = predictions
        return super().forward(anchors, targets)


def test_predictions_are_decoded_only_for_a_matcher_that_looks_at_them():
    logits, deltas = torch.randn(1, 3, 2, requires_grad=True), torch.randn(1, 3, 4, requires_grad=True)
    dense = DenseStage(**parts(logits, deltas, Recorder()) | {"matcher": Watcher()})
    dense.loss(dense([], IMAGES, None), objects())
    assert dense.matcher.seen is None
    dense.matcher.reads_predictions = True
    dense.loss(dense([], IMAGES, None), objects())
    boxes, scores, seen_logits = dense.matcher.seen
    torch.testing.assert_close(boxes, dense.coder.decode(deltas, ANCHORS))
    torch.testing.assert_close(scores, logits.sigmoid())
    assert torch.equal(seen_logits, logits)
    assert not boxes.requires_grad
    assert not scores.requires_grad


def test_a_matcher_of_ones_own_needs_nothing_but_the_call():
    class First(nn.Module):
        def forward(self, anchors, targets, predictions=None):
            matched = torch.full((targets.boxes.shape[0], len(anchors.boxes)), -1)
            matched[:, 0] = 0
            return BipartiteMatcher()(anchors, targets)._replace(matched=matched)

    criterion = Recorder()
    dense = DenseStage(**parts(torch.zeros(1, 3, 2), torch.zeros(1, 3, 4), criterion) | {"matcher": First()})
    dense.loss(dense([], IMAGES, None), objects())
    assert criterion.seen.labels.tolist() == [[1, -1, -1]]


# Combinations


@pytest.mark.slow
@pytest.mark.parametrize("names", COMBINATIONS[:: 1 if EVERY_TEST else 4], ids=", ".join)
def test_in_every_combination_it_learns_and_finds_what_it_learned(names):
    dense, (features, images), targets = dense_stage(*names), seen(), truth()
    step, optimizer = Step(dense), torch.optim.Adam(dense.parameters(), lr=0.02)
    totals = []
    for _ in range(25):
        optimizer.zero_grad()
        losses = step(features, images, targets)
        total = sum(losses.values())
        total.backward()
        assert all(torch.isfinite(parameter.grad).all() for parameter in dense.parameters())
        optimizer.step()
        totals.append(total.item())
    assert sum(totals[-3:]) < 0.8 * sum(totals[:3])
    found = dense.detections(dense(features, images, None), images)
    assert found.valid.any()
    assert torch.isfinite(found.boxes).all()


@pytest.mark.parametrize("names", COMBINATIONS, ids=", ".join)
def test_in_every_combination_a_batch_without_objects_is_finite_and_reaches_every_parameter(names):
    dense, (features, images) = dense_stage(*names), seen()
    losses = Step(dense)(features, images, truth(objects=False))
    sum(losses.values()).backward()
    assert losses["box"] == 0
    for name, parameter in dense.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def test_every_part_stands_in_some_combination():
    for place, known in enumerate((MATCHERS, CODERS, CRITERIA)):
        assert {names[place] for names in COMBINATIONS} == set(known)
    assert len(COMBINATIONS) == 8 * (3 * 7 - 2)


# Misfits are refused where they are handed over


class Wrong(nn.Module):
    """A part with a call of its own."""

    def forward(self, only: Tensor) -> Tensor:
        return only

    encode = decode = forward


QUALITY = DenseHead(Fixed(None), FCOSHead(8))
CLIPPED = GridAnchors([(8.0,)], aspect_ratios=(1.0,), strides=(8,), clip=True)
BOX = DenseHead(Fixed(None), RegressionHead(8, 1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"anchors": Wrong()}, r"anchors is a Wrong, .* anchors\(features, images\)"),
        ({"matcher": Wrong()}, r"matcher is a Wrong, .* matcher\(anchors, targets, predictions\)"),
        ({"coder": Wrong()}, r"coder is a Wrong, .* coder\.encode\(boxes, anchors\)"),
        ({"head": None}, r"head is a NoneType, .* head\(features\)"),
        ({"anchors": BOXES}, r"anchors is a Tensor, .* anchors\(features, images\)"),
        ({"matcher": lambda anchors: None}, r"matcher is a function, .* matcher\(anchors, targets, predictions\)"),
        (
            {"matcher": lambda anchors, targets, predictions: None},
            "matcher is a function, .* give it reads_predictions = True, or the default predictions=None",
        ),
        ({"matcher": BipartiteMatcher}, r"matcher is a type, .* matcher\(anchors, targets, predictions\)"),
        ({"coder": nn.Identity()}, r"coder is a Identity, .* coder\.encode\(boxes, anchors\)"),
        ({"postprocess": Wrong()}, r"postprocess is a Wrong, .* postprocess\(scores, boxes, sizes, counts\)"),
        ({"criterion": nn.Identity()}, "criterion is a Identity; give a DenseCriterion"),
        ({"matcher": HungarianMatcher()}, "HungarianMatcher matches boxes as fractions .* give a matcher of anchors"),
        ({"criterion": FCOSLoss(), "head": BOX}, "FCOSLoss reads a quality, .* give DenseHead a quality_head"),
        ({"criterion": RetinaNetLoss(), "head": QUALITY}, "predicts a quality that RetinaNetLoss does not read"),
        (
            {"matcher": ShapeMatcher(), "anchors": CLIPPED},
            "ShapeMatcher places boxes in .* give GridAnchors clip=False",
        ),
        ({"coder": GridCoder(), "anchors": CLIPPED}, "GridCoder places boxes in .* give GridAnchors clip=False"),
        (
            {"coder": DistributionCoder(DistanceCoder()), "head": BOX},
            "DenseHead predicts 4 numbers for a box and DistributionCoder decodes 68; give the box head outputs=68",
        ),
        (
            {"criterion": QualityLoss(distribution_weight=1.0)},
            "QualityLoss and DeltaCoder disagree .* DistributionCoder",
        ),
        (
            {"coder": DistributionCoder(DistanceCoder())},
            "MultiBoxLoss and DistributionCoder disagree on whether boxes are distributions",
        ),
    ],
)
def test_parts_that_do_not_fit_are_refused_with_the_repair(changes, message):
    good = parts(torch.zeros(1, 3, 3), torch.zeros(1, 3, 4), MultiBoxLoss())
    DenseStage(**good)
    with pytest.raises(ValueError, match=rf"^DenseStage: .*{message}"):
        unhooked(DenseStage.__init__)(DenseStage.__new__(DenseStage), **good | changes)


def test_a_head_that_gives_no_dense_predictions_is_named():
    detector = DenseStage(**parts(torch.zeros(1, 3, 3), torch.zeros(1, 3, 4), MultiBoxLoss()))
    detector.head = Fixed(torch.zeros(1, 3, 3))
    with pytest.raises(ValueError, match=r"^DenseStage: head is a Fixed, which gives a Tensor; .*DenseHead"):
        detector([], IMAGES, None)


def test_a_head_that_gives_other_numbers_for_a_box_is_named():
    detector = DenseStage(**parts(torch.zeros(1, 3, 3), torch.zeros(1, 3, 5), MultiBoxLoss()))
    with pytest.raises(ValueError, match=r"predicts 5 numbers for a box and DeltaCoder decodes 4; .*outputs=4"):
        detector([], IMAGES, None)


def test_a_matcher_that_looks_at_predictions_says_so_when_it_gets_none():
    with pytest.raises(ValueError, match=r"^TaskAlignedMatcher: .*predictions"):
        TaskAlignedMatcher()(ANCHORS, objects())


def test_a_branch_is_named_where_the_stage_is_built():
    assert (
        DenseStage(**parts(torch.zeros(1, 3, 3), torch.zeros(1, 3, 4), MultiBoxLoss()), branch="boxes").branch
        == "boxes"
    )


def test_predictions_need_no_quality():
    assert DensePredictions(torch.zeros(1, 1, 1), torch.zeros(1, 1, 4)).quality is None


def test_a_head_for_other_anchors_is_refused_where_they_meet():
    dense = stage(torch.zeros(1, 5, 2), torch.zeros(1, 5, 4), Recorder())
    with pytest.raises(ValueError, match=r"DenseStage: head predicts for 5 anchors .* are 3; .* per_cell"):
        dense([], IMAGES, None)


def test_a_few_images_at_a_time_are_found_as_all_at_once(monkeypatch):
    given = DensePredictions(torch.randn(5, 3, 2), torch.randn(5, 3, 4) / 10, torch.randn(5, 3))
    outputs, sizes = DenseOutputs(given, ANCHORS), torch.tensor([[64, 64]] * 5)
    own, lengths = stage(given.logits, given.deltas, RetinaNetLoss(), rows=True), []
    own.postprocess.register_forward_hook(lambda module, inputs, found: lengths.append(len(found.valid)))
    whole = detect(own, outputs, sizes)
    monkeypatch.setattr(dense, "_SCORES_AT_ONCE", 13)  # those of two images
    parts = detect(own, outputs, sizes)
    assert lengths == [5, 2, 2, 1]
    for one, other in zip(whole, parts, strict=True):  # a sigmoid's last bit depends on its place in the tensor
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)
    assert detect(
        own, DenseOutputs(DensePredictions(*(rows[:0] for rows in given[:3])), ANCHORS), sizes[:0]
    ).boxes.shape == (0, 6, 4)


class Longest(nn.Module):
    """A postprocess of one's own: as many rows as the fullest image has."""

    def forward(self, scores, boxes, sizes, counts):
        best, labels = scores.max(2)
        rows = best.topk(int((best > 0.5).sum(1).max()))[1]
        boxes = boxes.gather(1, rows[..., None].expand(-1, -1, 4))
        return Detections(boxes, best.gather(1, rows), labels.gather(1, rows), best.gather(1, rows) > 0.5)


def test_a_postprocess_of_ones_own_gets_all_images_at_once(monkeypatch):
    monkeypatch.setattr(dense, "_SCORES_AT_ONCE", 1)
    logits = torch.tensor([-1.0, 1.0, 2.0])[:, None, None].expand(3, 3, 2)
    own = stage(logits, torch.zeros(3, 3, 4), RetinaNetLoss())
    own.postprocess = Longest()
    outputs = DenseOutputs(DensePredictions(logits, torch.zeros(3, 3, 4)), ANCHORS)
    assert detect(own, outputs, torch.tensor([[64, 64]] * 3)).valid.sum(1).tolist() == [0, 3, 3]
