"""What may be handed over as a fusion, and what it may answer."""

import torch
from strategies import assert_refused

from detkit.boxes import weighted_boxes_fusion
from detkit.tricks import Fused, KeepAll, WeightedBoxesFusion, fuse_detections
from detkit.tricks.fused import check_fusion, decided

VIEW = {"boxes": torch.ones(1, 4), "scores": torch.ones(1), "labels": torch.zeros(1).long()}
ROWS = [[VIEW[key]] for key in ("boxes", "scores", "labels")]


def own(boxes_list, scores_list, labels_list):
    return Fused(boxes_list[0], scores_list[0], labels_list[0], torch.tensor([0]))


def test_a_function_of_your_own_is_a_fusion():
    check_fusion(own, where="x")
    assert decided(own, *ROWS).rows.tolist() == decided(KeepAll(), *ROWS).rows.tolist() == [0]


def test_what_is_no_fusion_is_refused_by_name():
    assert_refused("fuse_detections: fusion 'wbf' allowed NMSFusion(0.5)", fuse_detections, [VIEW], "wbf")
    said = "fuse_detections: fusion class WeightedBoxesFusion allowed WeightedBoxesFusion()"
    assert_refused(said, fuse_detections, [VIEW], WeightedBoxesFusion)


def test_a_function_that_returns_something_else_is_refused_by_name():
    said = "weighted_boxes_fusion: tuple allowed Fused(boxes, scores, labels, rows)"
    assert_refused(said, fuse_detections, [VIEW], weighted_boxes_fusion)
