"""The recipes of classification and localization: their numbers, and that they learn."""

from functools import partial

import pytest
import torch

from detkit.detectors import joint_localizer, modified_ssd, residual_classifier, ssd7
from detkit.detectors.dense import predict
from detkit.structures import Images


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(("cells", "head"), [(1, 14_125), (14, 2_510_125)])
def test_the_classifier_has_the_parameters_of_its_source(cells, head):
    detector = residual_classifier(25, cells=cells)
    assert parameters(detector.trunk) == 1_523_520
    assert parameters(detector.classify) == head


@pytest.mark.parametrize(("stride", "boxes"), [(16, 1_020), (8, 4_152)])
def test_the_modified_ssd_has_the_published_number_of_default_boxes(stride, boxes):
    detector = modified_ssd(25, stride=stride).eval()
    batch = Images(torch.rand(1, 3, 224, 224), torch.tensor([[224, 224]]))
    with torch.no_grad():
        outputs = predict(detector.dense, detector.trunk(batch.tensors), batch)
    assert len(outputs.anchors.boxes) == boxes
    assert outputs.predictions.logits.shape == (1, boxes, 26)
    first = outputs.anchors.boxes[1]  # of a cell the tall one, then the square
    assert (first[2:] - first[:2]).tolist() == pytest.approx([0.1 * 224] * 2)


def test_the_modified_ssd_needs_five_scales_and_a_level_to_tap():
    with pytest.raises(ValueError, match=r"modified_ssd: scales=\(0\.1, 0\.9\) must be five"):
        modified_ssd(2, scales=(0.1, 0.9))
    with pytest.raises(ValueError, match="stride=32; allowed are 8 and 16"):
        modified_ssd(2, stride=32)


def test_five_guesses_share_a_box_and_all_classes_are_scored():
    (found,) = joint_localizer(7, size=(64, 64)).eval()([torch.rand(3, 50, 70)])
    assert found["labels"].shape == (5,)
    assert (found["boxes"] == found["boxes"][0]).all()
    assert found["image_scores"].shape == (7,)
    assert found["image_scores"].sum().item() == pytest.approx(1)


def test_an_image_with_a_label_and_no_box_teaches_its_class_alone():
    losses = joint_localizer(3, size=(64, 64))([torch.rand(3, 64, 64)] * 2, [{"image_labels": torch.tensor(1)}] * 2)
    assert losses["classify.classification"] > 0
    assert losses["localize.box"] == 0


@pytest.mark.slow(3)
def test_class_and_box_of_two_images_are_learned_by_heart():
    torch.manual_seed(0)
    detector, images = joint_localizer(3, size=(64, 64), cells=4), torch.zeros(2, 3, 64, 64)
    images[0, 0, 8:32, 8:32] = 1.0
    images[1, 1, 30:60, 24:60] = 1.0
    boxes = torch.tensor([[[8.0, 8, 32, 32]], [[24.0, 30, 60, 60]]])
    targets = [{"boxes": boxes[i], "labels": torch.tensor([2 - i])} for i in range(2)]
    optimizer = torch.optim.Adam(detector.parameters(), lr=1e-3)
    for _ in range(25):
        optimizer.zero_grad()
        sum(detector([*images], targets).values()).backward()
        optimizer.step()
    for found, target in zip(detector([*images]), targets, strict=True):  # with the statistics of the batch
        assert found["labels"][0] == target["labels"][0]
        torch.testing.assert_close(found["boxes"][:1], target["boxes"], rtol=0, atol=6)


@pytest.mark.parametrize(
    ("build", "size", "smallest"),
    [
        (residual_classifier, (1, 1), 2),
        (joint_localizer, (224, 1), 2),
        (modified_ssd, (100, 100), 114),
        (partial(modified_ssd, stride=8), (57, 100), 58),
        (ssd7, (63, 64), 64),
    ],
)
def test_sizes_that_leave_the_last_level_no_cells_are_refused_and_the_smallest_works(build, size, smallest):
    with pytest.raises(ValueError, match=rf"size=\({size[0]}, {size[1]}\) leaves .* at least {smallest} pixels$"):
        build(2, size=size)
    detector = build(2, size=(smallest, smallest)).eval()
    assert len(detector([torch.rand(3, smallest, smallest)])) == 1
