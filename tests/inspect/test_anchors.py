"""Which objects anchors fit, against a slow reference."""

import pytest
import torch

from detkit.boxes import box_iou
from detkit.detectors import fpn_ssd, small_detr, small_faster_rcnn, small_fcos, small_yolo_v3
from detkit.inspect.anchors import AnchorFit


def target(*boxes, **entries):
    return {
        "boxes": torch.tensor(boxes).reshape(-1, 4),
        "labels": torch.zeros(len(boxes), dtype=torch.int64),
        **entries,
    }


@pytest.mark.slow(3)
def test_an_anchor_fits_by_its_iou_at_the_input_size():
    detector = fpn_ssd(2, size=(64, 96), channels=8)
    anchors = AnchorFit(detector)
    found = anchors.fit(target([20.0, 20, 80, 90], [0, 0, 8, 8], [40, 40, 41, 90]), (128, 192))
    assert found.boxes.tolist() == [[10, 10, 40, 45], [0, 0, 4, 4], [20, 20, 20.5, 45]]
    batch, _ = detector.preprocess([torch.zeros(3, 128, 192)])
    with torch.no_grad():
        boxes = detector.eval().dense.anchors(detector.trunk(batch.tensors), batch).boxes
    best = [max(float(box_iou(one[None], other[None])) for other in boxes) for one in found.boxes]
    assert found.overlap.tolist() == pytest.approx(best)
    assert found.fits.tolist() == [value >= 0.5 for value in best] == [True, False, False]


@pytest.mark.parametrize("recipe", [small_fcos, small_yolo_v3])
def test_without_an_iou_a_cell_must_have_its_center_inside(recipe):
    found = AnchorFit(recipe(2, size=(64, 64), channels=8)).fit(target([1.0, 1, 30, 30], [1, 1, 3, 3]), (64, 64))
    assert found.fits.tolist() == [True, False]


def test_crowds_are_no_objects_and_rows_are_those_of_the_target():
    found = AnchorFit(fpn_ssd(2, size=(64, 64), channels=8)).fit(
        target([1.0, 1, 30, 30], [1, 1, 20, 20], iscrowd=torch.tensor([1, 0])), (64, 64)
    )
    assert found.rows.tolist() == [1]
    assert len(AnchorFit(small_faster_rcnn(2, size=(64, 64), channels=8)).fit(target(), (64, 64)).fits) == 0


def test_the_smallest_object_shrinks_with_the_strides():
    fcos, ssd = (AnchorFit(recipe(2, size=(96, 96), channels=8)) for recipe in (small_fcos, fpn_ssd))
    assert fcos.smallest((96, 96)) == fcos.smallest((960, 960)) == 8
    assert 12 < ssd.smallest((96, 96)) < 24
    assert AnchorFit(fpn_ssd(2, size=(8, 8), channels=8)).smallest((8, 8)) is None


def test_the_detector_is_left_as_it_is():
    detector = fpn_ssd(2, size=(64, 64), channels=8)
    AnchorFit(detector).fit(target([1.0, 1, 30, 30]), (64, 64))
    assert detector.training
    assert detector.preprocess.degenerate == "raise"


def test_a_detector_without_anchors_is_told():
    with pytest.raises(ValueError, match="has no anchors: it takes any size"):
        AnchorFit(small_detr(2, size=(64, 64)))
