"""ClassificationStage: what an image learns, and what it hands on."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detkit.detectors import ClassificationStage
from detkit.detectors.classification import ClassificationOutputs, image_boxes
from detkit.heads import ImageHead
from detkit.structures import Images, pad_targets

IMAGES = Images(torch.zeros(3, 3, 64, 96), torch.tensor([[64, 96], [40, 96], [64, 50]]))


def stage(**settings) -> ClassificationStage:
    return ClassificationStage(ImageHead(8, 4), **settings)


def target(labels, *, boxes=None, **more):
    boxes = [[0.0, 0, 8, 8]] * len(labels) if boxes is None else boxes
    return {"boxes": torch.tensor(boxes).reshape(-1, 4), "labels": torch.tensor(labels, dtype=torch.int64), **more}


def logits(seed=0) -> Tensor:
    return torch.randn(3, 4, generator=torch.Generator().manual_seed(seed))


def loss(values, targets, **settings) -> Tensor:
    (found,) = stage(**settings).loss(ClassificationOutputs(values), pad_targets(targets)).values()
    return found


def test_an_image_learns_its_class():
    targets = [{"image_labels": torch.tensor(label)} for label in (2, 0, 3)]
    expected = F.cross_entropy(logits(), torch.tensor([2, 0, 3]))
    torch.testing.assert_close(loss(logits(), targets), expected)
    torch.testing.assert_close(loss(logits(), targets, weight=0.5), expected / 2)


def test_an_image_label_of_minus_one_teaches_nothing():
    targets = [{"image_labels": torch.tensor(label)} for label in (2, -1, 3)]
    rows = torch.tensor([0, 2])
    torch.testing.assert_close(loss(logits(), targets), F.cross_entropy(logits()[rows], torch.tensor([2, 3])))


def test_without_image_labels_the_classes_of_its_objects_share_an_image():
    distribution = torch.tensor([[2 / 3, 1 / 3, 0, 0], [0, 0, 0, 1]])
    expected = F.cross_entropy(logits()[:2], distribution)
    torch.testing.assert_close(loss(logits(), [target([0, 1, 0]), target([3]), target([])]), expected)


def test_objects_share_an_image_by_weight_and_it_counts_as_much_as_they_weigh_but_no_more_than_1():
    heavy, light = target([0, 1], weights=torch.tensor([0.5, 2.0])), target([3], weights=torch.tensor([0.25]))
    costs = -logits().log_softmax(1)
    expected = ((0.5 * costs[0, 0] + 2 * costs[0, 1]) / 2.5 + 0.25 * costs[1, 3] + costs[2, 2]) / 2.25
    torch.testing.assert_close(loss(logits(), [heavy, light, target([2])]), expected)
    torch.testing.assert_close(loss(logits(), [target([]), light, target([])]), 0.25 * costs[1, 3])


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_an_object_in_two_parts_equals_it_whole(share):
    whole = [target([2, 1]), target([3]), target([])]
    parts = torch.tensor([share, 1, 1 - share]), torch.tensor([1 - share, share])
    halves = [target([2, 1, 2], weights=parts[0]), target([3, 3], weights=parts[1]), target([])]
    torch.testing.assert_close(loss(logits(), halves), loss(logits(), whole))


def test_the_best_classes_lie_in_the_box_of_the_image_and_all_scores_are_kept():
    values = torch.tensor([[0.0, 3, 1, 2], [5, 0, 5, 1], [0, 0, 0, 9]])
    found = stage(max_detections=3).detections(ClassificationOutputs(values), IMAGES)
    assert found.labels.tolist() == [[1, 3, 2], [0, 2, 3], [3, 0, 1]]
    torch.testing.assert_close(found.image_scores, values.softmax(1))
    torch.testing.assert_close(found.scores, values.softmax(1).gather(1, found.labels))
    assert found.boxes[:, 2].tolist() == [[0, 0, 96, 64], [0, 0, 96, 40], [0, 0, 50, 64]]
    assert found.valid.all()


def test_there_are_no_more_detections_than_classes():
    assert stage(max_detections=9).detections(ClassificationOutputs(logits()), IMAGES).labels.shape == (3, 4)


def test_a_class_without_a_number_is_none_and_spoils_no_other_image():
    values = logits()
    values[1, 2] = torch.nan
    found = stage().detections(ClassificationOutputs(values), IMAGES)
    assert found.valid.all(1).tolist() == [True, False, True]
    assert not found.boxes[1].any()


def test_the_box_of_an_image_in_a_letterbox_is_where_it_lies():
    images = IMAGES._replace(offsets=torch.tensor([[0, 0], [24, 0], [0, 46]]))
    assert image_boxes(images).tolist() == [[0, 0, 96, 64], [0, 24, 96, 40], [46, 0, 50, 64]]


@pytest.mark.parametrize("values", [[0.5, 0.5, 0.5], [[1, 0], [0, 1], [1, 1]]])
def test_image_labels_of_another_kind_are_refused(values):
    targets = [{"image_labels": torch.tensor(value)} for value in values]
    with pytest.raises(ValueError, match=r"ClassificationStage: image_labels have shape .*allowed is one whole number"):
        loss(logits(), targets)


@pytest.mark.parametrize("label", [4, -1])
def test_labels_out_of_range_are_refused(label):
    with pytest.raises(ValueError, match=rf"ClassificationStage: .*{label}"):
        loss(logits(), [target([0]), target([label]), target([])])


def test_a_head_that_returns_no_rows_of_logits_is_refused():
    class Whole(nn.Module):
        def forward(self, features, images):
            return features[0]

    wrong = ClassificationStage(Whole())
    with pytest.raises(ValueError, match=r"ClassificationStage: the head returns \(3, 4, 8, 12\); allowed is \(B, C\)"):
        wrong([torch.zeros(3, 4, 8, 12)], IMAGES, None)
