"""DenseStage: how heads, anchors, matcher, coder, loss and postprocess meet."""

import pytest
import torch
from torch import Tensor, nn

from detkit.anchors import BipartiteMatcher
from detkit.boxes import DeltaCoder
from detkit.detectors import DenseCriterion, DenseOutputs, DenseStage, Postprocess, fpn_ssd
from detkit.losses import MultiBoxLoss
from detkit.losses.retinanet import DeltaL1, RetinaNetLoss
from detkit.structures import Images, Target, Targets, pad_targets

ANCHORS = torch.tensor([[0.0, 0, 10, 10], [20, 20, 40, 40], [50, 50, 60, 60]])
IMAGES = Images(torch.zeros(1, 3, 64, 64), torch.tensor([[64, 64]]))


class Fixed(nn.Module):
    """Answers every call with one tensor."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, *inputs: object) -> Tensor:
        return self.answer


class Recorder(nn.Module):
    """A criterion that keeps what it is asked to judge."""

    def forward(
        self, logits: Tensor, deltas: Tensor, labels: Tensor, delta_targets: Tensor, weights: Tensor | None = None
    ) -> dict[str, Tensor]:
        self.seen = (labels, delta_targets, weights)
        return {"loss": logits.sum() * 0}

    def scores(self, logits: Tensor) -> Tensor:
        return logits.sigmoid()


def stage(logits: Tensor, deltas: Tensor, criterion: DenseCriterion, **settings) -> DenseStage:
    return DenseStage(
        class_head=Fixed(logits),
        box_head=Fixed(deltas),
        anchors=Fixed(ANCHORS),
        matcher=BipartiteMatcher(positive_iou=0.5),
        coder=DeltaCoder((10.0, 10.0, 5.0, 5.0)),
        criterion=criterion,
        postprocess=Postprocess(**settings),
    )


def truth(**more: Tensor) -> Targets:
    boxes = torch.tensor([[21.0, 20, 41, 40], [0, 0, 10, 10]])
    return pad_targets([Target(boxes=boxes, labels=torch.tensor([1, 0]), **more)])


def test_its_outputs_are_those_of_heads_and_anchors():
    logits, deltas = torch.rand(1, 3, 2), torch.rand(1, 3, 4)
    outputs = stage(logits, deltas, Recorder())([torch.zeros(1, 1, 1, 1)], IMAGES, None)
    assert isinstance(outputs, DenseOutputs)
    assert outputs.logits is logits
    assert outputs.deltas is deltas
    assert outputs.anchors is ANCHORS


def test_its_criterion_judges_against_the_labels_and_deltas_of_the_matched_objects():
    criterion = Recorder()
    dense = stage(torch.zeros(1, 3, 2), torch.zeros(1, 3, 4), criterion)
    dense.loss(dense([], IMAGES, None), truth())
    labels, delta_targets, weights = criterion.seen
    assert labels.tolist() == [[0, 1, -1]]
    torch.testing.assert_close(delta_targets[0, :2], torch.tensor([[0.0, 0, 0, 0], [0.5, 0, 0, 0]]))
    assert weights is None


def test_weights_of_objects_reach_their_anchors_and_negatives_weigh_one():
    criterion = Recorder()
    dense = stage(torch.zeros(1, 3, 2), torch.zeros(1, 3, 4), criterion)
    dense.loss(dense([], IMAGES, None), truth(weights=torch.tensor([0.25, 3.0])))
    assert criterion.seen[2].tolist() == [[3.0, 0.25, 1.0]]


def test_an_anchor_in_a_crowd_is_ignored():
    criterion = Recorder()
    dense = stage(torch.zeros(1, 3, 2), torch.zeros(1, 3, 4), criterion)
    dense.loss(dense([], IMAGES, None), truth(iscrowd=torch.tensor([1, 0])))
    assert criterion.seen[0].tolist() == [[0, -2, -1]]


def test_it_finds_decoded_boxes_with_the_scores_of_the_criterion():
    logits = torch.tensor([[[-9.0, 2.0], [1.0, -9.0], [-9.0, -9.0]]])
    deltas = torch.zeros(1, 3, 4)
    deltas[0, 1] = torch.tensor([5.0, 0, 0, 5 * 0.6931472])  # half a width to the right, twice as high
    dense = stage(logits, deltas, Recorder(), score_threshold=0.5)
    found = dense.detections(dense([], IMAGES, None), IMAGES)
    assert found.labels[found.valid].tolist() == [1, 0]
    torch.testing.assert_close(found.scores[found.valid], torch.tensor([2.0, 1.0]).sigmoid())
    torch.testing.assert_close(found.boxes[found.valid], torch.tensor([[0.0, 0, 10, 10], [30, 10, 50, 50]]))


def test_the_loss_of_ssd_and_a_loss_of_ones_own_are_dense_criteria():
    assert isinstance(MultiBoxLoss(), DenseCriterion)
    assert isinstance(Recorder(), DenseCriterion)
    assert not isinstance(nn.Linear(1, 1), DenseCriterion)


def test_perfect_predictions_cost_next_to_nothing_and_find_the_objects():
    targets = truth()
    matched = torch.tensor([1, 0, 0])
    logits = torch.full((1, 3, 3), -20.0)
    logits[0, torch.arange(3), torch.tensor([0, 1, 2])] = 20.0
    deltas = DeltaCoder((10.0, 10.0, 5.0, 5.0)).encode(targets.boxes[0, matched], ANCHORS)[None]
    dense = stage(logits, deltas, MultiBoxLoss())
    outputs = dense([], IMAGES, None)
    assert all(loss < 1e-6 for loss in dense.loss(outputs, targets).values())
    found = dense.detections(outputs, IMAGES)
    torch.testing.assert_close(found.boxes[found.valid], torch.tensor([[0.0, 0, 10, 10], [21, 20, 41, 40]]))
    assert found.labels[found.valid].tolist() == [0, 1]


def test_it_prints_its_parts():
    text = repr(fpn_ssd(2, channels=8))
    assert all(part in text for part in ("DenseStage", "BipartiteMatcher", "DeltaCoder", "Postprocess", "MultiBoxLoss"))


@pytest.mark.parametrize("label", [-1, 2, 7])
def test_an_object_whose_label_is_no_class_is_named_and_not_learned_as_background(label):
    objects = Target(boxes=torch.tensor([[0.0, 0, 10, 10], [20, 20, 40, 40]]), labels=torch.tensor([1, label]))
    for criterion, width in ((MultiBoxLoss(), 3), (RetinaNetLoss(DeltaL1()), 2)):
        dense = stage(torch.zeros(1, 3, width), torch.zeros(1, 3, 4), criterion)
        with pytest.raises(ValueError, match=rf"DenseStage: targets.labels\[0, 1\]={label} must lie in 0..1"):
            dense.loss(dense([], IMAGES, None), pad_targets([objects]))
        ignored = objects | {"iscrowd": torch.tensor([0, 1])}
        assert dense.loss(dense([], IMAGES, None), pad_targets([ignored]))
