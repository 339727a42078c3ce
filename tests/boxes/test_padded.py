"""Suppression of padded batches: equal to a loop over images, whatever the prefix, the padding and the groups."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import assert_refused, random_boxes

from detkit.boxes import batched_nms, multiclass_nms_padded, nms_padded


def crowd(images: int, count: int, *, classes: int = 3, levels: int = 12, seed: int = 0):
    """Boxes of a few objects each, and scores with many ties, some below zero."""
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.stack([random_boxes(max(count // 6, 1), seed=seed + i).repeat(7, 1)[:count] for i in range(images)])
    boxes = boxes + torch.rand(images, count, 4, generator=generator) * 0.4
    return boxes, torch.randint(-2, levels, (images, count, classes), generator=generator) / levels


def slow(boxes, scores, iou_threshold, score_threshold, candidates, most) -> list[tuple[int, int]]:
    """(box, class) of one image: every class alone, then all together by score, box and class."""
    found = []
    for label in range(scores.shape[1]):
        column = scores[:, label]
        order = column.sort(descending=True, stable=True).indices
        order = order[(column[order] > score_threshold) & column[order].isfinite()][:candidates]
        kept = order[batched_nms(boxes[order], column[order], torch.zeros_like(order), iou_threshold)]
        found += [(-column[i].item(), i.item(), label) for i in kept]
    return [(box, label) for _, box, label in sorted(found)[:most]]


@given(
    count=st.sampled_from([1, 5, 40, 90]),
    classes=st.sampled_from([1, 3]),
    most=st.sampled_from([1, 2, 7, 50, 400]),
    candidates=st.sampled_from([None, 1, 4, 30]),
    iou_threshold=st.sampled_from([0.0, 0.4, 1.0]),
    score_threshold=st.sampled_from([-1.0, 0.0, 0.5, 0.9]),
)
def test_the_best_pairs_are_those_of_a_loop_over_classes(
    count, classes, most, candidates, iou_threshold, score_threshold
):
    boxes, scores = crowd(2, count, classes=classes, seed=count)
    indices, labels, valid = multiclass_nms_padded(
        boxes, scores, iou_threshold, score_threshold=score_threshold, candidates_per_class=candidates,
        max_detections=most,
    )  # fmt: skip
    assert indices.shape == labels.shape == valid.shape == (2, min(most, min(count, candidates or count) * classes))
    for b in range(2):
        expected = slow(boxes[b], scores[b], iou_threshold, score_threshold, candidates, most)
        assert list(zip(indices[b][valid[b]].tolist(), labels[b][valid[b]].tolist(), strict=True)) == expected
        assert (indices[b][~valid[b]] == 0).all()
        assert (labels[b][~valid[b]] == 0).all()
        assert valid[b].tolist() == sorted(valid[b].tolist(), reverse=True)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_pairs_that_are_not_finite_are_as_if_absent(bad):
    boxes, scores = crowd(2, 60)
    clean = scores.clone()
    scores[0, 7, 1], clean[0, 7, 1] = bad, -9.0
    boxes_with_bad, clean[1, 3] = boxes.clone(), -9.0
    boxes_with_bad[1, 3, 2] = bad
    options = {"score_threshold": 0.1, "max_detections": 100}
    expected = multiclass_nms_padded(boxes, clean, 0.5, **options)
    found = multiclass_nms_padded(boxes_with_bad, scores, 0.5, **options)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert expected[2].sum() > 20


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_scores_of_every_type_decide_as_their_promoted_numbers(dtype):
    boxes, scores = crowd(2, 50)
    options = {"score_threshold": 0.2, "max_detections": 30}
    expected = multiclass_nms_padded(boxes.to(dtype).double(), scores.to(dtype).double(), 0.5, **options)
    found = multiclass_nms_padded(boxes.to(dtype), scores.to(dtype), 0.5, **options)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def own_boxes(count: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Every class has boxes of its own, near the shared ones and near each other."""
    boxes, scores = crowd(2, count, classes=classes, seed=count)
    generator = torch.Generator().manual_seed(5)
    return boxes[:, :, None] + torch.rand(2, count, classes, 2, generator=generator).repeat(1, 1, 1, 2) * 3, scores


@given(
    count=st.sampled_from([1, 5, 40, 90]),
    classes=st.sampled_from([1, 3]),
    most=st.sampled_from([1, 7, 50, 400]),
    candidates=st.sampled_from([None, 1, 4, 30]),
    iou_threshold=st.sampled_from([0.0, 0.4, 1.0]),
)
def test_where_every_class_has_its_boxes_the_best_pairs_are_those_of_a_loop(
    count, classes, most, candidates, iou_threshold
):
    boxes, scores = own_boxes(count, classes)
    indices, labels, valid = multiclass_nms_padded(
        boxes, scores, iou_threshold, score_threshold=0.1, candidates_per_class=candidates, max_detections=most
    )
    assert indices.shape == labels.shape == valid.shape == (2, min(most, min(count, candidates or count) * classes))
    for b in range(2):
        found = []
        for label in range(classes):
            alone = slow(boxes[b, :, label], scores[b, :, label, None], iou_threshold, 0.1, candidates, None)
            found += [(-scores[b, box, label].item(), box, label) for box, _ in alone]
        expected = [(box, label) for _, box, label in sorted(found)[:most]]
        assert list(zip(indices[b][valid[b]].tolist(), labels[b][valid[b]].tolist(), strict=True)) == expected
        assert (indices[b][~valid[b]] == 0).all()


def test_boxes_that_all_classes_share_may_be_repeated_for_each():
    boxes, scores = crowd(2, 70)
    options = {"score_threshold": 0.1, "candidates_per_class": 20, "max_detections": 60}
    expected = multiclass_nms_padded(boxes, scores, 0.5, **options)
    found = multiclass_nms_padded(boxes[:, :, None].expand(-1, -1, 3, -1), scores, 0.5, **options)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_box_that_is_not_finite_takes_only_its_own_class_away(bad):
    boxes, scores = own_boxes(60, 3)
    clean, spoilt = scores.clone(), boxes.clone()
    scores[0, 7], clean[0, 7] = 0.99, 0.99
    clean[0, 7, 1], spoilt[0, 7, 1, 2] = -9.0, bad
    options = {"score_threshold": 0.1, "max_detections": 100}
    found = multiclass_nms_padded(spoilt, scores, 0.5, **options)
    expected = multiclass_nms_padded(boxes, clean, 0.5, **options)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert {(7, 0), (7, 2)} <= set(zip(found[0][0].tolist(), found[1][0].tolist(), strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_boxes_of_every_class_decide_as_their_promoted_numbers(dtype):
    boxes, scores = (values.to(dtype) for values in own_boxes(50, 3))
    options = {"score_threshold": 0.2, "max_detections": 30}
    expected = multiclass_nms_padded(boxes.float(), scores.float(), 0.5, **options)
    found = multiclass_nms_padded(boxes, scores, 0.5, **options)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.slow
def test_the_operator_with_boxes_of_every_class_keeps_what_torch_asks_of_it():
    boxes, scores = own_boxes(6, 2)
    checks = ("test_schema", "test_faketensor")
    operator = torch.ops.detkit.multiclass_nms_padded.default
    for candidates in (None, 3):
        torch.library.opcheck(operator, (boxes, scores, 0.5, 0.1, candidates, 5, "iou"), test_utils=checks)


def test_one_class_that_fills_the_prefix_does_not_hide_the_others():
    """Of 100 best pairs, all of class 0, only 2 may be looked at: the other detections stand behind them."""
    boxes = torch.arange(200.0)[None, :, None] * 20 + torch.tensor([0.0, 0, 9, 9])
    scores = torch.stack((torch.linspace(1, 0.5, 200), torch.linspace(0.4, 0.1, 200)), dim=1)[None]
    indices, labels, valid = multiclass_nms_padded(
        boxes, scores, 0.5, score_threshold=0.0, candidates_per_class=2, max_detections=10
    )
    assert valid.sum() == 4
    assert indices[0, :4].tolist() == [0, 1, 0, 1]
    assert labels[0, :4].tolist() == [0, 0, 1, 1]


def test_diou_is_passed_on():
    boxes = torch.tensor([[[0.0, 0, 10, 10], [4, 0, 14, 10]]])
    scores = torch.tensor([[0.9, 0.8]])
    for measure, kept in (("iou", [True, False]), ("diou", [True, True])):
        assert nms_padded(boxes, scores, 0.4, max_detections=2, measure=measure)[1][0].tolist() == kept
        found = multiclass_nms_padded(
            boxes, scores[..., None], 0.4, score_threshold=0.0, max_detections=2, measure=measure
        )
        assert found[2][0].tolist() == kept


@pytest.mark.parametrize("groups", [torch.tensor([0, 5, 5]), torch.tensor([-(2**62), 2**62, 2**62])])
def test_groups_may_be_any_integers(groups):
    boxes = torch.tensor([[0.0, 0, 9, 9]]).repeat(3, 1)
    indices, valid = nms_padded(
        boxes.repeat(2, 1, 1), torch.ones(2, 3), 0.5, groups=groups.repeat(2, 1), max_detections=3
    )
    assert indices.tolist() == [[0, 1, 0]] * 2
    assert valid.tolist() == [[True, True, False]] * 2


def test_negative_scores_are_scores_too():
    boxes = torch.tensor([[[0.0, 0, 9, 9], [20, 0, 29, 9], [40, 0, 49, 9], [60, 0, 69, 9]]])
    indices, valid = nms_padded(boxes, torch.tensor([[-3.0, -1.0, -2.0, -0.0]]), 0.5, max_detections=3)
    assert indices.tolist() == [[3, 1, 2]]
    assert valid.all()


def test_nothing_in_gives_nothing_out():
    for shape in ((2, 0, 3), (0, 5, 3), (2, 5, 0)):
        for boxes in (torch.zeros(*shape[:2], 4), torch.zeros(*shape, 4)):
            found = multiclass_nms_padded(boxes, torch.zeros(shape), 0.5, score_threshold=0.1, max_detections=4)
            assert [rows.shape for rows in found] == [(shape[0], min(4, shape[1] * shape[2]))] * 3
            assert not found[2].any()


@pytest.mark.parametrize(
    ("message", "change"),
    [
        ("iou_threshold=1.5 [0, 1]", {"iou_threshold": 1.5}),
        ("measure='giou' 'iou' 'diou'", {"measure": "giou"}),
        ("max_detections=0 1", {"max_detections": 0}),
        ("candidates_per_class=0 1", {"candidates_per_class": 0}),
        ("boxes (3, 4) (B, N, 4) (B, N, C, 4)", {"boxes": torch.zeros(3, 4)}),
        (
            "boxes class (1, 3, 1, 4) (1, 3, 2) 4",
            {"boxes": torch.zeros(1, 3, 1, 4)},
        ),
        ("scores (1, 2, 5) (1, 3)", {"scores": torch.zeros(1, 2, 5)}),
        ("scores (1, 3) (1, 3)", {"scores": torch.zeros(1, 3)}),
    ],
)
def test_wrong_arguments_are_refused_by_name(message, change):
    good = {"boxes": torch.zeros(1, 3, 4), "scores": torch.zeros(1, 3, 2), "iou_threshold": 0.5}
    settings = {"score_threshold": 0.1, "max_detections": 3}
    assert_refused(f"multiclass_nms_padded: {message}", multiclass_nms_padded, **{**good, **settings, **change})


@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.9, 0.999, 2.0])
@pytest.mark.parametrize("most", [5, 300])
def test_however_few_boxes_reach_the_threshold_it_finds_what_a_loop_over_images_finds(threshold, most):
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(2, 3, 700, 2, generator=generator) * 100
    boxes = torch.cat((corners.amin(0), corners.amax(0)), dim=-1)
    scores = torch.rand(3, 700, 5, generator=generator) * torch.tensor([1.0, 0.95, 0.4])[:, None, None]
    settings = {"score_threshold": threshold, "max_detections": most}
    indices, labels, valid = multiclass_nms_padded(boxes, scores, 0.5, **settings)
    for image in range(3):
        row, label = (scores[image] > threshold).nonzero(as_tuple=True)
        kept = batched_nms(boxes[image, row], scores[image, row, label], label, 0.5)[:most]
        assert torch.equal(indices[image][valid[image]], row[kept])
        assert torch.equal(labels[image][valid[image]], label[kept])
