"""LabelSetStage: which proposals learn, which classes they learn, and the codes they carry on."""

import pytest
import torch
from region_stages import IMAGES, features, learned, positives
from strategies import unhooked
from torch import Tensor, nn
from torch.nn import functional as F

from detkit.boxes import SpatialPyramidPool, box_iou
from detkit.detectors import Detector, LabelSetStage, Postprocess, Preprocess, label_sets_of, overlaps_of
from detkit.heads import EmbeddingHead
from detkit.structures import Targets, pad_targets

CLASSES = 4


def stage(**settings) -> LabelSetStage:
    torch.manual_seed(0)
    pool = SpatialPyramidPool((1, 2), stride=8)
    head = EmbeddingHead(6 * pool.cells, 5, rectified=True)
    return LabelSetStage(pool, head, nn.Linear(5, CLASSES), **{"postprocess": Postprocess(rows=True), **settings})


def truth(**more: list) -> Targets:
    """Two objects in the first image that overlap, one in the second."""
    first = {"boxes": torch.tensor([[4.0, 5, 40, 60], [10, 5, 46, 60]]), "labels": torch.tensor([2, 0])}
    second = {"boxes": torch.tensor([[5.0, 5, 70, 50]]), "labels": torch.tensor([1])}
    extra = [{name: torch.tensor(own[i]) for name, own in more.items()} for i in range(2)]
    return pad_targets([first | extra[0], second | extra[1]])


def learned_by_hand(boxes: Tensor, targets: Targets, threshold: float = 0.5) -> list[list[set[int]]]:
    """The classes of each box, in a loop."""
    rows: list[list[set[int]]] = [[set() for _ in own] for own in boxes]
    for i, t in targets.objects.nonzero().tolist():
        for k, box in enumerate(boxes[i]):
            if box_iou(box[None], targets.boxes[i, t][None]) > threshold:
                rows[i][k].add(int(targets.labels[i, t]))
    return rows


def as_sets(label_sets: Tensor) -> list[list[set[int]]]:
    return [[set(row.nonzero().flatten().tolist()) for row in image] for image in label_sets]


def test_a_proposal_learns_the_classes_of_all_objects_that_it_overlaps_by_more_than_half():
    targets, boxes = truth(), positives().boxes
    sets = label_sets_of(overlaps_of(boxes, targets) > 0, targets, CLASSES)
    assert as_sets(sets) == learned_by_hand(boxes, targets)
    assert {2, 0} in as_sets(sets)[0], "the scene has a proposal on both"


def test_an_overlap_of_exactly_the_threshold_teaches_nothing():
    targets = pad_targets([{"boxes": torch.tensor([[0.0, 0, 8, 8]]), "labels": torch.tensor([1])}])
    assert overlaps_of(torch.tensor([[[0.0, 0, 8, 4]]]), targets).item() == 0
    assert overlaps_of(torch.tensor([[[0.0, 0, 8, 4.1]]]), targets).item() > 0


def test_crowds_are_no_objects_and_label_sets_take_the_place_of_labels():
    targets = truth(iscrowd=[[0, 1], [0]], label_sets=[[[1, 1, 0, 0], [0, 0, 0, 1]], [[0, 1, 0, 1]]])
    sets = label_sets_of(overlaps_of(targets.boxes, targets) > 0, targets, CLASSES)
    assert as_sets(sets)[0] == [{0, 1}, {0, 1}]
    assert as_sets(sets)[1][0] == {1, 3}


def test_the_loss_is_the_mean_binary_cross_entropy_of_the_proposals_that_learn():
    one, targets = stage(), truth()
    outputs = one(features(), IMAGES, positives(), targets)
    wanted = learned_by_hand(positives().boxes, targets)
    costs = []
    for image, row in positives().valid.nonzero().tolist():
        if wanted[image][row]:
            label_set = torch.tensor([float(c in wanted[image][row]) for c in range(CLASSES)])
            costs.append(F.binary_cross_entropy_with_logits(outputs.logits[image, row], label_set))
    assert 0 < len(costs) < positives().valid.numel()
    torch.testing.assert_close(one.loss(outputs, targets), {"label_sets": torch.stack(costs).mean()})


def test_without_a_proposal_that_learns_the_loss_is_0_and_every_parameter_has_a_gradient():
    loss, gradients = learned(stage(), positives(valid=(0, 0)), truth())
    del gradients[-2]  # the pool reads the last feature map only
    assert loss == 0
    assert all(gradient is not None and bool(torch.isfinite(gradient).all()) for gradient in gradients)


def test_the_next_stage_learns_on_the_same_proposals_matched_to_what_they_overlap_most():
    one, targets = stage(), truth()
    outputs = one(features(), IMAGES, positives(), targets)
    handed = one.handover(outputs, IMAGES, targets)
    best = torch.stack([box_iou(positives().boxes[i], targets.boxes[i]).argmax(1) for i in range(2)])
    assert torch.equal(handed.matched[handed.valid], best[handed.valid])
    assert handed.embeddings.shape == (2, 4, 5)


def test_a_proposal_counts_by_the_weight_of_the_object_that_it_overlaps_most():
    one, targets = stage(), truth(weights=[[3.0, 0.5], [2.0]])
    outputs = one(features(), IMAGES, positives(), targets)
    rows = outputs.detections.valid
    costs = F.binary_cross_entropy_with_logits(outputs.logits, outputs.label_sets.to(outputs.logits), reduction="none")
    weights = targets.weights.gather(1, outputs.detections.matched)[rows]
    assert len(weights.unique()) > 1
    expected = (costs.mean(2)[rows] * weights).sum() / weights.sum()
    torch.testing.assert_close(one.loss(outputs, targets)["label_sets"], expected)


def test_detections_carry_the_scores_of_all_classes_and_their_codes():
    one = stage(postprocess=Postprocess(score_threshold=0.0, iou_threshold=1.0, max_detections=6, rows=True)).eval()
    outputs = one(features(), IMAGES, positives())
    found = one.detections(outputs, IMAGES)
    for i in range(2):
        for k in range(6):
            row = found.rows[i, k]
            torch.testing.assert_close(found.class_scores[i, k], outputs.logits[i, row].sigmoid())
            torch.testing.assert_close(found.embeddings[i, k], outputs.codes[i, row])
            assert found.scores[i, k] == found.class_scores[i, k, found.labels[i, k]]


def test_a_detector_takes_proposals_and_returns_codes():
    detector = Detector(Blurred(), preprocess=Preprocess(None), regions=stage()).eval()
    proposals = [{"boxes": torch.tensor([[4.0, 4, 40, 40]]), "scores": torch.ones(1)}]
    (found,) = detector([torch.rand(3, 64, 64)], proposals=proposals)
    assert found["embeddings"].shape == (CLASSES, 5)
    assert found["class_scores"].shape == (CLASSES, CLASSES)


class Blurred(nn.Module):
    def forward(self, images: Tensor) -> list[Tensor]:
        return [F.avg_pool2d(images, 8).repeat(1, 2, 1, 1)]


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match="postprocess does not say which proposal each detection was: rows=True"):
        stage(postprocess=Postprocess())
    with pytest.raises(ValueError, match="LabelSetStage: got no proposals"):
        stage()(features(), IMAGES, None)
    targets = truth(label_sets=[[[1, 0], [1, 1]], [[0, 1]]])
    with pytest.raises(ValueError, match="label_sets of targets have 2 classes; the classifier has 4"):
        stage()(features(), IMAGES, positives(), targets)
    with pytest.raises(ValueError, match=r"labels of targets.*2"):
        unhooked(label_sets_of)(torch.ones(2, 1, 2, dtype=torch.bool), truth(), 2)


def test_a_negative_number_in_a_label_set_takes_nothing_from_other_objects():
    boxes = torch.tensor([[0.0, 0, 8, 8]] * 2)
    sets = torch.tensor([[1, 0], [-1, 0]])
    targets = pad_targets([{"boxes": boxes, "labels": torch.tensor([0, 0]), "label_sets": sets}])
    assert label_sets_of(torch.ones(1, 1, 2, dtype=torch.bool), targets, 2).tolist() == [[[True, False]]]
