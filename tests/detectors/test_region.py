"""RegionStage: what it shows its network, how it scores, and that it refuses to be trained by gradients."""

import pytest
import torch
from contracts import pictures, target
from strategies import unhooked
from torch import nn

from detkit.boxes import DeltaCoder
from detkit.boxes.crop import crop_and_resize
from detkit.detectors import Detector, Postprocess, Preprocess, rcnn
from detkit.detectors.region import RegionFeatures, RegionOutputs, RegionStage
from detkit.proposals import pad_proposals
from detkit.structures import Detections, Images

FEATURES = 3 * 6 * 6
BOXES = torch.tensor([[4.0, 4, 20, 24], [5, 4, 20, 24], [30, 10, 50, 40]])


def flat(num_classes: int = 2, seed: int = 0) -> Detector:
    """An R-CNN whose features are the pixels of the crops, with random machines."""
    detector = rcnn(num_classes, nn.Flatten(), feature_size=FEATURES, size=6, context=1).eval()
    torch.manual_seed(seed)
    for machine in (detector.region.svm, detector.region.regression):
        nn.init.normal_(machine.weight, std=0.02)
        nn.init.normal_(machine.bias, std=0.1)
    return detector


def proposals(*boxes: torch.Tensor) -> Detections:
    return pad_proposals([{"boxes": rows, "scores": torch.ones(len(rows))} for rows in boxes])


def test_features_are_the_pixels_of_the_warped_crop_times_the_scale():
    describe = RegionFeatures(nn.Flatten(), feature_size=FEATURES, size=6, context=1)
    describe.scale.fill_(2.5)
    images = torch.stack(pictures((48, 64), (48, 64)))
    boxes = BOXES.expand(2, 3, 4)
    expected = crop_and_resize(images, boxes, 6, context=1).reshape(2, 3, FEATURES) * 2.5
    assert torch.equal(describe(images, boxes), expected)


@pytest.mark.parametrize("crops_at_once", [1, 3, 4, 100])
def test_how_many_crops_go_at_once_changes_nothing(crops_at_once):
    conv = nn.Conv2d(3, 4, 3)
    images, boxes = torch.stack(pictures((48, 64), (48, 64))), BOXES.expand(2, 3, 4)
    options = {"feature_size": 16, "size": 9, "context": 1, "grid": 2}
    found = RegionFeatures(conv, crops_at_once=crops_at_once, **options)(images, boxes)
    torch.testing.assert_close(found, RegionFeatures(conv, **options)(images, boxes))


def test_the_last_of_several_maps_is_averaged_to_the_grid():
    class TwoLevels(nn.Module):
        def forward(self, crops):
            return [crops[:, :1], crops]

    images, boxes = torch.stack(pictures((48, 64))), BOXES[None]
    crops = crop_and_resize(images, boxes, 6)
    describe = RegionFeatures(TwoLevels(), feature_size=3, size=6, context=0)
    torch.testing.assert_close(describe(images, boxes)[0], crops.mean((2, 3)))


def test_a_backbone_of_another_size_is_refused():
    describe = RegionFeatures(nn.Flatten(), feature_size=5, size=6, context=1)
    with pytest.raises(
        ValueError, match=r"the backbone gives \(3, 6, 6\) values|gives \(108,\) values.*feature_size=5"
    ):
        describe(torch.zeros(1, 3, 48, 64), BOXES[None])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"feature_size": 0}, "feature_size=0 must be at least 1"),
        ({"size": 0}, "size=0 must be at least 1"),
        ({"grid": 0}, "grid=0 must be at least 1"),
        ({"size": 6, "context": 3}, "context=3 must be less than half of size=6"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        RegionFeatures(nn.Flatten(), **{"feature_size": 3, **settings})


def test_a_stage_of_no_classes_is_refused():
    describe = RegionFeatures(nn.Flatten(), feature_size=FEATURES, size=6, context=1)
    with pytest.raises(ValueError, match="num_classes=0 must be at least 1"):
        RegionStage(describe, num_classes=0, coder=DeltaCoder(), postprocess=Postprocess())


def test_scores_and_boxes_are_those_of_the_linear_machines():
    detector, image = flat(), pictures((48, 64))[0]
    (found,) = detector([image], proposals=proposals(BOXES))
    batch, _ = detector.preprocess([image])
    features = crop_and_resize(batch.tensors, BOXES[None], 6, context=1).flatten(1)
    scores = (features @ detector.region.svm.weight.T + detector.region.svm.bias).sigmoid()
    deltas = (features @ detector.region.regression.weight.T + detector.region.regression.bias).reshape(3, 2, 4)
    boxes = DeltaCoder().decode(deltas, BOXES[:, None])
    expected = Postprocess(score_threshold=0, iou_threshold=0.3, max_detections=100, candidates_per_class=None)(
        scores[None], boxes[None], torch.tensor([[48, 64]])
    )
    assert 2 < len(found["scores"]) < 6, "the two boxes that overlap are suppressed in a class, not across classes"
    for key in ("boxes", "scores", "labels"):
        torch.testing.assert_close(found[key], getattr(expected, key)[expected.valid])


def test_each_image_has_its_own_proposals_and_padding_is_never_found():
    detector, images = flat(), pictures((48, 64), (30, 80))
    together = detector(images, proposals=proposals(BOXES, BOXES[:1]))
    for image, boxes, found in zip(images, (BOXES, BOXES[:1]), together, strict=True):
        (alone,) = detector([image], proposals=proposals(boxes))
        for key in found:
            torch.testing.assert_close(found[key], alone[key])
    assert len(together[1]["labels"]) == 2


def test_an_image_without_proposals_has_no_detections():
    (found,) = flat()(pictures((48, 64)), proposals=proposals(BOXES[:0]))
    assert found["boxes"].shape == (0, 4)


def test_a_batch_without_room_for_proposals_has_no_detections():
    empty = Detections(torch.zeros(1, 0, 4), torch.zeros(1, 0), torch.zeros(1, 0).long(), torch.zeros(1, 0).bool())
    (found,) = flat()(pictures((48, 64)), proposals=empty)
    assert found["boxes"].shape == (0, 4)


def test_at_most_100_are_found_in_an_image():
    corner = torch.rand(300, 2, generator=torch.Generator().manual_seed(0)) * 200
    (found,) = flat()(pictures((240, 240)), proposals=proposals(torch.cat((corner, corner + 10), 1)))
    assert len(found["scores"]) == 100


def test_without_proposals_the_error_says_where_to_get_them():
    with pytest.raises(ValueError, match=r"got no proposals; give detector\(images, proposals="):
        flat()(pictures((48, 64)))


def test_training_by_gradients_is_refused_with_the_name_of_the_way_to_train():
    targets = [target([[4, 4, 20, 24]], [0])]
    with pytest.raises(ValueError, match="fit_rcnn"):
        flat()(pictures((48, 64)), targets, proposals(BOXES))
    with pytest.raises(ValueError, match="fit_rcnn"):
        unhooked(RegionStage.loss)(flat().region, None, None)


def test_resized_images_take_proposals_in_pixels_of_the_batch():
    detector = flat()
    resized = Detector(detector.trunk, preprocess=Preprocess((96, 128)), region=detector.region)
    (found,) = resized(pictures((48, 64)), proposals=proposals(BOXES * 2))
    assert (found["boxes"] <= torch.tensor([64.0, 48, 64, 48])).all()


def test_scores_under_autocast_are_told_apart_as_in_single_precision():
    stage = rcnn(2, nn.Flatten(), feature_size=3 * 4, size=2, context=0).region
    outputs = RegionOutputs(
        torch.tensor([[[4.0, 4.03125]]]).bfloat16(),
        torch.zeros(1, 1, 2, 4) + torch.tensor([0.0, 0, 9, 9]),
        torch.ones(1, 1).bool(),
    )
    found = stage.detections(outputs, Images(torch.zeros(1, 3, 9, 9), torch.tensor([[9, 9]])))
    assert found.scores.dtype == torch.float32
    assert found.labels[0].tolist() == [1, 0]
