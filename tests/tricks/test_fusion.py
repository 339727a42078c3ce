"""Fusions against what they are made of; and what belongs to an object stays with it."""

import pytest
import torch
from strategies import assert_refused, crowd
from torchvision.ops import nms as torchvision_nms

from detkit.boxes import soft_nms, weighted_boxes_fusion
from detkit.boxes.fusion import fused_with_founders
from detkit.tricks import KeepAll, NMSFusion, SoftNMSFusion, WeightedBoxesFusion, fuse_detections
from detkit.tricks.by_smaller import nms_by_smaller

FUSIONS = [KeepAll(), NMSFusion(0.5), NMSFusion(0.5, measure="ios"), SoftNMSFusion(), WeightedBoxesFusion()]
each_fusion = pytest.mark.parametrize("fusion", FUSIONS, ids=repr)


def views(count: int = 40, several: int = 3, *, ties: bool = False):
    """Boxes, scores and labels of several views of one crowd, jittered."""
    columns = []
    for seed in range(several):
        rows, scores, labels = crowd(count, seed=1, ties=ties)
        jitter = torch.rand(rows.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        columns.append((rows + jitter * 0.4, scores / (seed + 1), labels))
    return [list(column) for column in zip(*columns, strict=True)]


def test_all_detections_of_all_views_come_best_first_with_ties_to_the_earlier_view():
    fused = KeepAll()(*views(ties=True))
    scores = torch.cat(views(ties=True)[1])
    assert sorted(fused.rows.tolist()) == list(range(120))
    order = sorted(range(120), key=lambda i: (-scores[i].item(), i))
    assert fused.rows.tolist() == order


@pytest.mark.parametrize("agnostic", [False, True])
def test_nms_is_that_of_the_union_in_each_class(agnostic):
    given = views()
    boxes, scores, labels = map(torch.cat, given)
    groups = torch.zeros_like(labels) if agnostic else labels
    parts = [(groups == group).nonzero().squeeze(1) for group in groups.unique()]
    kept = torch.cat([part[torchvision_nms(boxes[part], scores[part], 0.5)] for part in parts])
    expected = kept[scores[kept].argsort(descending=True)]
    fused = NMSFusion(0.5, class_agnostic=agnostic)(*given)
    assert fused.rows.tolist() == expected.tolist()
    assert NMSFusion(0.5, class_agnostic=agnostic, max_detections=4)(*given).rows.tolist() == expected[:4].tolist()
    assert 10 < len(expected) < 80


def test_the_other_measure_removes_parts_that_lie_in_a_whole():
    given = views()
    fused = NMSFusion(0.5, measure="ios")(*given)
    assert fused.rows.tolist() == nms_by_smaller(*map(torch.cat, given), 0.5).tolist()
    assert len(fused.rows) < len(NMSFusion(0.5)(*given).rows)


def test_soft_nms_is_that_of_the_union_in_each_class():
    given = views()
    boxes, scores, labels = map(torch.cat, given)
    options = {"method": "linear", "iou_threshold": 0.4, "score_threshold": 0.05, "max_detections": 50}
    rows, lowered = soft_nms(boxes, scores, groups=labels, **options)
    fused = SoftNMSFusion(**options)(*given)
    assert torch.equal(fused.rows, rows)
    assert torch.equal(fused.scores, lowered)
    assert torch.equal(fused.boxes, boxes[rows])


def test_fused_boxes_are_those_of_the_function_and_each_is_named_after_its_best_member():
    given = views()
    options = {"iou_threshold": 0.6, "score_threshold": 0.05, "allow_overflow": True}
    fused = WeightedBoxesFusion(weights=(1, 2, 1), **options)(*given)
    expected = weighted_boxes_fusion(*given, weights=(1, 2, 1), **options)
    for found, wanted in zip(fused, expected, strict=False):
        assert torch.equal(found, wanted)
    weighted = torch.cat([scores * weight for scores, weight in zip(given[1], (1, 2, 1), strict=True)])
    assert len(fused.rows.unique()) == len(fused.rows)
    assert torch.equal(torch.cat(given[2])[fused.rows], fused.labels)
    used = (torch.cat(given[1]) >= 0.05).sum()
    assert weighted[fused.rows].max() == weighted.max()
    assert 20 < len(fused.rows) < used


def test_the_founder_of_a_cluster_is_its_best_member():
    boxes = [torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60]]), torch.tensor([[51.0, 50, 60, 60], [0, 0, 10, 9]])]
    scores = [torch.tensor([0.3, 0.8]), torch.tensor([0.7, 0.9])]
    founders = fused_with_founders(boxes, scores, [torch.zeros(2).long()] * 2)[3]
    assert founders.tolist() == [1, 3]  # as their clusters, best first
    founders = fused_with_founders(boxes, scores, [torch.zeros(2).long()] * 2, weights=(1, 2))[3]
    assert founders.tolist() == [2, 3]


def test_weights_are_those_of_the_detectors_and_all_views_of_one_share_its_weight():
    given = views(several=4)
    fused = WeightedBoxesFusion(weights=(1, 3))(*given)
    expected = WeightedBoxesFusion(weights=(1, 1, 3, 3))(*given)
    assert torch.equal(fused.boxes, expected.boxes)
    assert not torch.equal(fused.scores, WeightedBoxesFusion()(*given).scores)
    for weights in ((1, 1, 1), ()):
        assert_refused("WeightedBoxesFusion: weights 4 views", WeightedBoxesFusion(weights=weights), *given)


@each_fusion
def test_views_without_objects_make_none(fusion):
    none = [torch.zeros(0, 4)], [torch.zeros(0)], [torch.zeros(0).long()]
    fused = fusion(*(column * 3 for column in none))
    assert fused.boxes.shape == (0, 4)
    assert len(fused.scores) == len(fused.labels) == len(fused.rows) == 0
    one = fusion(*([*column, *rows] for column, rows in zip(none, views(5, 1), strict=True)))
    assert 0 < len(one.rows) <= 5


@each_fusion
def test_numbers_that_do_not_fit_each_other_are_refused_by_name(fusion):
    boxes, scores, labels = views(several=2)
    name = type(fusion).__name__ if type(fusion) is not WeightedBoxesFusion else "weighted_boxes_fusion"
    assert_refused(f"{name}: boxes_list 2 1 2 allowed", fusion, boxes, scores[:1], labels)
    assert_refused(f"{name}: boxes_list allowed at least one", fusion, [], [], [])
    assert_refused(f"{name}: scores_list[1] allowed", fusion, boxes, [scores[0], scores[1][1:]], labels)
    assert_refused(
        f"{name}: labels_list[0] torch.float32 allowed", fusion, boxes, scores, [labels[0].float(), labels[1]]
    )


@each_fusion
def test_what_belongs_to_an_object_stays_with_it(fusion):
    given, start = [], 0
    for boxes, scores, labels in zip(*views(), strict=True):
        marks = torch.arange(start, start + len(boxes))
        start += len(boxes)
        given.append({"boxes": boxes, "scores": scores, "labels": labels, "embeddings": marks[:, None].double()})
        given[-1]["masks"] = marks[:, None, None].expand(-1, 4, 5)
    fused = fuse_detections(given, fusion)
    rows = fusion(*views()).rows
    assert fused.keys() == given[0].keys()
    assert fused["embeddings"].squeeze(1).tolist() == rows.tolist()
    assert torch.equal(fused["masks"], rows[:, None, None].expand(-1, 4, 5))


def test_what_belongs_to_the_image_is_averaged_or_the_first_views():
    one = {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0).long()}
    first = {**one, "image_scores": torch.tensor([1.0, 0.0]), "segmentation": torch.tensor([[1, 2]]), "image_id": 5}
    second = {**one, "image_scores": torch.tensor([0.5, 0.5]), "segmentation": torch.tensor([[2, 2]]), "image_id": 6}
    fused = fuse_detections([first, second], KeepAll())
    assert fused["image_scores"].tolist() == [0.75, 0.25]
    assert fused["segmentation"].tolist() == [[1, 2]]
    assert fused["image_id"] == 5
    assert_refused("fuse_detections: views[1] image views[0] image_id", fuse_detections, [first, one], KeepAll())
    others = second | {"image_scores": torch.zeros(3)}
    assert_refused("fuse_detections: views[1] image_scores (3,) (2,)", fuse_detections, [first, others], KeepAll())


def test_no_views_and_unknown_options_are_refused_by_name():
    assert_refused("fuse_detections: views allowed at least one", fuse_detections, [], KeepAll())
    assert_refused("NMSFusion: measure 'diou' allowed 'iou' 'ios'", NMSFusion, 0.5, measure="diou")
    assert_refused("SoftNMSFusion: method 'cubic' allowed", SoftNMSFusion, method="cubic")
    assert_refused("NMSFusion: iou_threshold 1.5 [0, 1]", NMSFusion, 1.5)
    assert_refused("WeightedBoxesFusion: weights[1] above 0", WeightedBoxesFusion, weights=(1, 0))
