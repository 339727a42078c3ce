"""LocalizationStage: L2 to the largest object, and one box for all detections of an image."""

import pytest
import torch

from detkit.detectors import Detector, LocalizationStage, Preprocess
from detkit.detectors.localization import LocalizationOutputs
from detkit.heads import ImageHead
from detkit.losses import distance_box_iou_loss
from detkit.structures import Detections, Images, pad_targets

IMAGES = Images(torch.zeros(2, 3, 64, 100), torch.tensor([[50, 100], [64, 80]]))
BOXES = torch.tensor([[0.5, 0.4, 0.2, 0.6], [0.25, 0.5, 0.5, 0.25]])  # cx, cy, w, h in fractions


def stage(**settings) -> LocalizationStage:
    return LocalizationStage(ImageHead(8, 4, cells=2), **settings)


def target(*boxes, **more):
    labels = torch.zeros(len(boxes), dtype=torch.int64)
    return {"boxes": torch.tensor(boxes).reshape(-1, 4), "labels": labels, **more}


def loss(targets, boxes=BOXES, **settings):
    (found,) = stage(**settings).loss(LocalizationOutputs(boxes, IMAGES, None), pad_targets(targets)).values()
    return found


def test_a_perfect_box_costs_nothing():
    exact = [target([40.0, 5, 60, 35]), target([0.0, 24, 40, 40])]
    torch.testing.assert_close(loss(exact), torch.tensor(0.0))


def test_it_is_the_mean_squared_difference_of_center_and_size_in_fractions_of_the_image():
    first, second = [0.0, 0, 100, 50], [0.0, 24, 40, 40]
    expected = ((0.0**2 + 0.1**2 + 0.8**2 + 0.4**2) / 4 + 0) / 2
    torch.testing.assert_close(loss([target(first), target(second)]), torch.tensor(expected))
    torch.testing.assert_close(loss([target(first), target(second)], weight=3.0), torch.tensor(3 * expected))


def test_images_count_by_the_weight_of_their_object_and_one_alone_is_divided_by_1_at_least():
    first, second = [0.0, 0, 100, 50], [0.0, 24, 40, 40]
    cost = (0.0**2 + 0.1**2 + 0.8**2 + 0.4**2) / 4
    half, triple = (target(first, weights=torch.tensor([weight])) for weight in (0.5, 3.0))
    torch.testing.assert_close(loss([half, target(second)]), torch.tensor(0.5 * cost / 1.5))
    torch.testing.assert_close(loss([triple, target(second)]), torch.tensor(3 * cost / 4))
    torch.testing.assert_close(loss([half, target(second, weights=torch.zeros(1))]), torch.tensor(0.5 * cost))


def test_of_several_objects_the_largest_counts_and_crowds_do_not():
    small, large, crowd = [0.0, 0, 9, 9], [40.0, 5, 60, 35], [0.0, 0, 100, 50]
    targets = [target(small, large, crowd, iscrowd=torch.tensor([0, 0, 1])), target()]
    torch.testing.assert_close(loss(targets), torch.tensor(0.0))


def test_images_without_objects_are_left_out_of_the_mean():
    first = target([0.0, 0, 100, 50])
    torch.testing.assert_close(loss([first, target()]), loss([first, target([0.0, 24, 40, 40])]) * 2)


def test_what_is_not_finite_costs_nothing_where_there_is_no_object():
    boxes = BOXES.clone()
    boxes[1] = torch.nan
    boxes.requires_grad_()
    cost = loss([target([0.0, 0, 100, 50]), target()], boxes)
    cost.backward()
    assert torch.isfinite(cost)
    assert boxes.grad[1].tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("outputs", [1, 5])
def test_a_head_of_other_than_four_numbers_is_refused(outputs):
    wrong = LocalizationStage(ImageHead(8, outputs))
    with pytest.raises(ValueError, match=rf"LocalizationStage: the head returns \(2, {outputs}\); allowed is \(B, 4\)"):
        wrong([torch.zeros(2, 8, 8, 13)], IMAGES, detected())


def detected(count=2):
    labels = torch.arange(count).expand(2, count)
    valid = torch.tensor([[True] * count, [True] + [False] * (count - 1)])
    scores = torch.tensor([0.9, 0.5]).expand(2, count)
    return Detections.padded(torch.ones(2, count, 4), scores, labels, valid)


def boxes_found(boxes):
    return stage().detections(LocalizationOutputs(boxes, IMAGES, detected()), IMAGES)


def test_all_detections_of_an_image_get_its_box():
    found, before = boxes_found(BOXES), detected()
    torch.testing.assert_close(found.boxes[0], torch.tensor([[40.0, 5, 60, 35]] * 2))
    torch.testing.assert_close(found.boxes[1], torch.tensor([[0.0, 24, 40, 40], [0, 0, 0, 0]]))
    assert torch.equal(found.labels, before.labels)
    assert torch.equal(found.scores, before.scores)


def test_boxes_are_clipped_and_never_inverted():
    found = boxes_found(torch.tensor([[0.5, 0.5, 4.0, -1.0], [0.9, 0.5, 0.5, 0.5]]))
    assert found.boxes[0, 0].tolist() == [0, 25, 100, 25]
    assert found.boxes[1, 0].tolist() == pytest.approx([52, 16, 80, 48])


def test_a_box_that_is_not_finite_is_none_and_spoils_no_other_image():
    found = boxes_found(torch.stack((torch.full((4,), torch.inf), BOXES[1])))
    assert found.valid.tolist() == [[False, False], [True, False]]
    assert not found.boxes[0].any()


def test_it_starts_from_the_whole_image():
    torch.manual_seed(0)
    features = [torch.rand(2, 8, 8, 10)]
    outputs = stage()(features, IMAGES, detected())
    torch.testing.assert_close(outputs.boxes, torch.tensor([[0.5, 0.5, 1, 1]] * 2), rtol=0, atol=0.1)


def test_alone_it_trains_but_has_nothing_to_give_its_box_to():
    detector = Detector(_Map(), preprocess=Preprocess((64, 64)), localize=stage())
    images = [torch.rand(3, 64, 64)]
    assert detector(images, [target([0.0, 0, 32, 32])])["localize.box"] > 0
    with pytest.raises(ValueError, match=r"LocalizationStage: .*put a ClassificationStage in front"):
        detector(images)


class _Map(torch.nn.Module):
    def forward(self, images):
        return [images[:, :1].repeat(1, 8, 1, 1)]


def test_another_cost_compares_boxes_in_pixels():
    first, second = [0.0, 0, 100, 50], [0.0, 24, 40, 40]
    found = torch.tensor([[40.0, 5, 60, 35], [0, 24, 40, 40]])
    expected = distance_box_iou_loss(found, torch.tensor([first, second])).mean()
    torch.testing.assert_close(loss([target(first), target(second)], cost=distance_box_iou_loss), expected)


def test_of_another_cost_images_without_objects_have_no_part():
    boxes = BOXES.clone()
    boxes[1] = torch.nan
    boxes.requires_grad_()
    one = loss([target([0.0, 0, 100, 50]), target()], boxes, cost=distance_box_iou_loss)
    one.backward()
    expected = distance_box_iou_loss(torch.tensor([[40.0, 5, 60, 35]]), torch.tensor([[0.0, 0, 100, 50]]))[0]
    torch.testing.assert_close(one.detach(), expected)
    assert boxes.grad[0].abs().sum() > 0
    assert not boxes.grad[1].any()


def test_with_alone_its_box_is_a_detection_of_its_own():
    own = stage(alone=True)
    rows = torch.zeros(2, 3)
    before = Detections(torch.zeros(2, 3, 4), rows, rows.long(), rows.bool())
    for given in (None, before):
        found = own.detections(own([torch.zeros(2, 8, 4, 6)], IMAGES, given), IMAGES)
        assert found.boxes.shape == (2, 1, 4)
        assert (found.scores.tolist(), found.labels.tolist(), found.valid.tolist()) == (
            [[1], [1]],
            [[0], [0]],
            [[True], [True]],
        )
