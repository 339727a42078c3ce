"""The Hungarian matcher against costs computed pair by pair in plain Python, scipy, and all permutations."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from strategies import boxes, targets_of, unhooked
from thorough import sweep

from detkit.anchors.hungarian import HungarianMatcher
from detkit.boxes import box_iou, cxcywh_to_xyxy
from detkit.boxes.overlap import generalized_box_iou
from detkit.structures import IGNORED, NEGATIVE, Predictions, Targets, pad_targets

WEIGHTS = (1.0, 5.0, 2.0)


def softmax_cost(logits: list[float], label: int) -> float:
    top = max(logits)
    return -math.exp(logits[label] - top) / sum(math.exp(logit - top) for logit in logits)


def focal_cost(logits: list[float], label: int, alpha=0.25, gamma=2.0) -> float:
    p = 1 / (1 + math.exp(-logits[label]))
    return alpha * (1 - p) ** gamma * -math.log(p) - (1 - alpha) * p**gamma * -math.log(1 - p)


def pair_cost(logits, box, label, truth, *, class_cost=softmax_cost, weights=WEIGHTS) -> float:
    """box: cx, cy, w, h; truth: x1, y1, x2, y2; all as fractions."""
    cx, cy, w, h = box
    a, b = (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2), truth
    target = ((b[0] + b[2]) / 2, (b[1] + b[3]) / 2, b[2] - b[0], b[3] - b[1])
    distance = sum(abs(one - other) for one, other in zip(box, target, strict=True))
    shared = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    union = w * h + target[2] * target[3] - shared
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    giou = (shared / union if union > 0 else 0) - ((hull - union) / hull if hull > 0 else 0)
    return weights[0] * class_cost(logits, label) + weights[1] * distance - weights[2] * giou


def table(logits, predicted, labels, truth, **settings) -> np.ndarray:
    """(objects, queries) of one image."""
    rows = [
        [pair_cost(*query, label, box, **settings) for query in zip(logits.tolist(), predicted.tolist(), strict=True)]
        for label, box in zip(labels.tolist(), truth.tolist(), strict=True)
    ]
    return np.array(rows).reshape(len(truth), len(predicted))


def best_total(costs: np.ndarray) -> float:
    """The lowest sum over all ways to give every object (or, if they are fewer, every query) one of its own."""
    costs = costs if costs.shape[0] <= costs.shape[1] else costs.T
    ways = itertools.permutations(range(costs.shape[1]), costs.shape[0])
    return min(sum(costs[row, column] for row, column in enumerate(way)) for way in ways)


def total(costs: np.ndarray, matched: list[int]) -> float:
    """The sum of an assignment, which must give min(objects, queries) pairs and no object twice."""
    pairs = [(target, query) for query, target in enumerate(matched) if target >= 0]
    assert len({target for target, _ in pairs}) == len(pairs) == min(costs.shape)
    return sum(costs[pair] for pair in pairs)


def predictions(images: int, queries: int, *, seed: int, classes: int = 4, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(images, queries, classes, generator=generator, dtype=torch.float64) * 2
    predicted = torch.rand(images, queries, 4, generator=generator, dtype=torch.float64) * 0.5 + 0.05
    return logits.to(dtype), predicted.to(dtype)


def of_detr(logits: torch.Tensor, predicted: torch.Tensor) -> Predictions:
    """What a network predicts as DETR does, cx, cy, w, h, in the form that matchers take."""
    return Predictions(cxcywh_to_xyxy(predicted), logits=logits)


def truth_of(counts: list[int], *, seed: int, classes: int = 3) -> Targets:
    generator = torch.Generator().manual_seed(seed + 10_000)
    targets = []
    for count in counts:
        rows = torch.rand(count, 4, generator=generator) * 0.5 + 0.05
        labels = torch.randint(0, classes, (count,), generator=generator)
        targets.append({"boxes": cxcywh_to_xyxy(rows), "labels": labels})
    return pad_targets(targets)


def rows_of(targets: Targets, image: int):
    keep = targets.valid[image] & ~targets.ignore[image]
    return targets.labels[image][keep], targets.boxes[image][keep]


def golden() -> tuple[torch.Tensor, torch.Tensor, Targets]:
    logits = torch.linspace(0, 12, 40, dtype=torch.float64).sin().view(2, 5, 4)
    predicted = (1.5 * torch.linspace(0, 9, 40, dtype=torch.float64).cos()).sigmoid().view(2, 5, 4)
    rows = ([[0.5, 0.5, 0.4, 0.3], [0.2, 0.7, 0.1, 0.2]], [[0.6, 0.4, 0.5, 0.5]])
    corners = [cxcywh_to_xyxy(torch.tensor(row, dtype=torch.float64)) for row in rows]
    labels = [torch.tensor([0, 2]), torch.tensor([1])]
    return logits, predicted, pad_targets([{"boxes": b, "labels": c} for b, c in zip(corners, labels, strict=True)])


def test_golden_of_detr():
    logits, predicted, targets = golden()
    matched = HungarianMatcher()(None, targets, of_detr(logits, predicted)).matched
    assert matched.tolist() == [[-1, -1, 0, 1, -1], [-1, -1, -1, 0, -1]]


@pytest.mark.parametrize(("class_cost", "reference"), [("softmax", softmax_cost), ("focal", focal_cost)])
def test_costs_are_those_computed_pair_by_pair(class_cost, reference):
    logits, predicted = predictions(2, 7, seed=1, dtype=torch.float64)
    targets = truth_of([3, 4], seed=1)
    for weights in (WEIGHTS, (3.0, 0.5, 0.25), (0, 1, 0), (1, 0, 0), (0, 0, 1)):
        names = dict(zip(("class_weight", "l1_weight", "giou_weight"), weights, strict=True))
        matcher = HungarianMatcher(class_cost=class_cost, **names)
        costs, overlaps, usable = matcher._costs(
            logits, cxcywh_to_xyxy(predicted), targets._replace(boxes=targets.boxes.double())
        )
        for image, count in enumerate((3, 4)):
            labels, truth = rows_of(targets, image)
            slow = table(logits[image], predicted[image], labels, truth, class_cost=reference, weights=weights)
            np.testing.assert_allclose(costs[image, :count].numpy(), slow, atol=1e-12)
            expected = box_iou(truth.double(), cxcywh_to_xyxy(predicted[image]))
            torch.testing.assert_close(overlaps[image, :count], expected)
        assert usable.all()


def test_focal_cost_takes_alpha_and_gamma():
    logits, predicted = predictions(1, 5, seed=2, dtype=torch.float64)
    targets = truth_of([1], seed=2)
    matcher = HungarianMatcher(class_cost="focal", alpha=0.7, gamma=1.5, l1_weight=0, giou_weight=0)
    costs = matcher._costs(logits, cxcywh_to_xyxy(predicted), targets._replace(boxes=targets.boxes.double()))[0]
    label = int(targets.labels[0, 0])
    expected = [focal_cost(row, label, 0.7, 1.5) for row in logits[0].tolist()]
    np.testing.assert_allclose(costs[0, 0].numpy(), expected, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(("class_cost", "reference"), [("softmax", softmax_cost), ("focal", focal_cost)])
def test_thousands_of_images_have_the_total_of_the_reference(class_cost, reference):
    matcher, same = HungarianMatcher(class_cost=class_cost), 0
    for batch in range(sweep(50)):
        queries = 1 + batch % 6
        logits, predicted = predictions(100, queries, seed=batch)
        counts = [(image + batch) % 5 for image in range(100)]
        targets = truth_of(counts, seed=batch)
        assignment = matcher(None, targets, of_detr(logits, predicted))
        for image, count in enumerate(counts):
            matched = assignment.matched[image].tolist()
            if count == 0:
                assert matched == [NEGATIVE] * queries
                continue
            costs = table(logits[image], predicted[image], *rows_of(targets, image), class_cost=reference)
            rows, columns = linear_sum_assignment(costs)
            assert total(costs, matched) == pytest.approx(costs[rows, columns].sum(), abs=1e-5)
            same += all(matched[column] == row for row, column in zip(rows, columns, strict=True))
    assert same >= 79.8 * sweep(50)  # of 80 a batch with objects: rounding to float32 may swap what costs the same


@given(seed=st.integers(0, 2**20), queries=st.integers(1, 5), objects=st.integers(1, 5))
def test_no_permutation_costs_less(seed, queries, objects):
    logits, predicted = predictions(1, queries, seed=seed)
    targets = truth_of([objects], seed=seed)
    matched = HungarianMatcher()(None, targets, of_detr(logits, predicted)).matched[0].tolist()
    costs = table(logits[0], predicted[0], *rows_of(targets, 0))
    assert total(costs, matched) == pytest.approx(best_total(costs), abs=1e-5)


@pytest.mark.slow(2)
@given(seed=st.integers(0, 2**20), data=st.data())
def test_the_order_of_queries_and_of_objects_only_reorders_the_result(seed, data):
    logits, predicted = predictions(1, 6, seed=seed, dtype=torch.float64)
    targets = truth_of([4], seed=seed)
    matched = HungarianMatcher()(None, targets, of_detr(logits, predicted)).matched[0]
    order = torch.tensor(data.draw(st.permutations(range(6))))
    assert torch.equal(
        HungarianMatcher()(None, targets, of_detr(logits[:, order], predicted[:, order])).matched[0], matched[order]
    )
    order = torch.tensor(data.draw(st.permutations(range(4))))
    mixed = targets._replace(boxes=targets.boxes[:, order], labels=targets.labels[:, order])
    other = HungarianMatcher()(None, mixed, of_detr(logits, predicted)).matched[0]
    assert torch.equal(torch.where(other >= 0, order[other.clamp(min=0)], other), matched)


@given(seed=st.integers(0, 2**20), shift=st.floats(-50, 50))
def test_a_constant_added_to_all_logits_of_a_query_changes_nothing(seed, shift):
    logits, predicted = predictions(1, 6, seed=seed, dtype=torch.float64)
    targets = truth_of([4], seed=seed)
    logits_shifted = logits.clone()
    logits_shifted[0, 2] += shift
    expected = HungarianMatcher()(None, targets, of_detr(logits, predicted)).matched
    assert torch.equal(HungarianMatcher()(None, targets, of_detr(logits_shifted, predicted)).matched, expected)


@given(seed=st.integers(0, 2**20), scale=st.sampled_from([0.5, 2.0, 1024.0]))
def test_scaling_all_three_weights_changes_nothing(seed, scale):
    logits, predicted = predictions(1, 6, seed=seed)
    targets = truth_of([4], seed=seed)
    scaled = HungarianMatcher(class_weight=scale, l1_weight=5 * scale, giou_weight=2 * scale)
    assert torch.equal(
        scaled(None, targets, of_detr(logits, predicted)).matched,
        HungarianMatcher()(None, targets, of_detr(logits, predicted)).matched,
    )


@given(seed=st.integers(0, 2**20))
def test_further_queries_never_raise_the_total(seed):
    logits, predicted = predictions(1, 8, seed=seed)
    targets = truth_of([3], seed=seed)
    costs = table(logits[0], predicted[0], *rows_of(targets, 0))
    few = HungarianMatcher()(None, targets, of_detr(logits[:, :4], predicted[:, :4])).matched[0].tolist()
    many = HungarianMatcher()(None, targets, of_detr(logits, predicted)).matched[0].tolist()
    assert total(costs, many) <= total(costs[:, :4], few) + 1e-5


@given(predicted=boxes(most=6), truth=boxes(most=4, inverted=False, huge=800))
def test_hostile_boxes_give_every_object_a_query_and_finite_numbers(predicted, truth):
    queries = Predictions(predicted[None], logits=torch.zeros(1, len(predicted), 6))
    assignment = HungarianMatcher()(None, targets_of(truth / 160), queries)  # at most 10 images away
    matched = assignment.matched[0]
    assert int((matched >= 0).sum()) == len(set(matched[matched >= 0].tolist())) == min(len(predicted), len(truth))
    assert ((assignment.quality >= 0) & (assignment.quality <= 1)).all()


@given(predicted=boxes(most=5, huge=1e6), truth=boxes(most=4, inverted=False, huge=1e6))
def test_the_fused_overlaps_equal_those_of_the_box_functions(predicted, truth):
    matcher = HungarianMatcher(class_weight=0, l1_weight=0, giou_weight=1)
    targets = targets_of(truth)
    targets = targets._replace(boxes=targets.boxes.double())
    corners = predicted.double()[None]
    costs, overlaps, _ = matcher._costs(torch.zeros(1, len(predicted), 6), corners, targets)
    torch.testing.assert_close(overlaps, box_iou(targets.boxes, corners), rtol=1e-6, atol=1e-6)
    clear = ((corners[..., 2:] - corners[..., :2]).abs() > 1e-9).all(-1)[:, None]  # where no term is all rounding
    clear = clear & ((targets.boxes[..., 2:] - targets.boxes[..., :2]) > 1e-9).all(-1)[..., None]
    expected = -generalized_box_iou(targets.boxes, corners)
    torch.testing.assert_close(costs[clear], expected[clear], rtol=1e-4, atol=1e-4)


def test_boxes_without_area_cost_what_generalized_box_iou_says():
    matcher = HungarianMatcher(class_weight=0, l1_weight=0)
    points = torch.tensor([[[0.5, 0.5, 0.5, 0.5], [0.6, 0.6, 0.4, 0.4], [0.4, 0.6, 0.6, 0.4]]])
    truth = torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.25, 0.25, 0.75, 0.75]])
    costs = matcher._costs(torch.zeros(1, 3, 3), points, targets_of(truth))[0]
    torch.testing.assert_close(costs, -2 * generalized_box_iou(truth, points), rtol=1e-5, atol=1e-5)


def test_quality_is_the_overlap_of_the_match_and_zero_without():
    predicted = torch.tensor([[[0.5, 0.5, 0.4, 0.2], [0.2, 0.2, 0.1, 0.1]]])
    truth = cxcywh_to_xyxy(torch.tensor([[0.5, 0.5, 0.4, 0.4]]))
    quality = HungarianMatcher()(None, targets_of(truth), of_detr(torch.zeros(1, 2, 3), predicted)).quality
    torch.testing.assert_close(quality, torch.tensor([[0.5, 0.0]]))


@pytest.mark.parametrize("class_cost", ["softmax", "focal"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("field", ["logit", "box"])
def test_a_query_that_is_not_finite_is_ignored_and_moves_no_other(class_cost, bad, field):
    logits, predicted = predictions(3, 6, seed=3)
    targets, matcher = truth_of([4, 0, 2], seed=3), HungarianMatcher(class_cost=class_cost)
    others = [0, 1, 3, 4, 5]
    expected = matcher(None, targets, of_detr(logits[:, others], predicted[:, others]))
    (logits if field == "logit" else predicted)[:, 2, 1] = bad
    assignment = matcher(None, targets, of_detr(logits, predicted))
    assert assignment.matched[:, 2].tolist() == [IGNORED] * 3
    assert (assignment.quality[:, 2] == 0).all()
    assert torch.equal(assignment.matched[:, others], expected.matched)
    assert torch.equal(assignment.quality[:, others], expected.quality)


def test_where_all_queries_are_needed_the_bad_one_is_left_out_and_the_rest_is_the_cheapest():
    logits, predicted = predictions(1, 4, seed=4)
    targets = truth_of([4], seed=4)
    logits[0, 1] = torch.nan
    matched = HungarianMatcher()(None, targets, of_detr(logits, predicted)).matched[0]
    assert matched[1] == IGNORED
    keep = [0, 2, 3]
    costs = table(logits[0, keep], predicted[0, keep], *rows_of(targets, 0))
    assert total(costs, matched[keep].tolist()) == pytest.approx(best_total(costs), abs=1e-5)


@pytest.mark.parametrize("class_cost", ["softmax", "focal"])
def test_a_class_that_is_switched_off_by_minus_infinity_leaves_its_queries_usable(class_cost):
    logits, predicted = predictions(1, 4, seed=5)
    logits[0, :, 2] = -torch.inf
    targets = truth_of([2], seed=5)._replace(labels=torch.tensor([[2, 0]]))
    matched = HungarianMatcher(class_cost=class_cost)(None, targets, of_detr(logits, predicted)).matched[0]
    assert sorted(matched.tolist()) == [-1, -1, 0, 1]
    logits[0, 0] = -torch.inf
    assert HungarianMatcher(class_cost=class_cost)(None, targets, of_detr(logits, predicted)).matched[0, 0] == IGNORED


@pytest.mark.parametrize(("class_cost", "last"), [("softmax", 2), ("focal", 3)])
@pytest.mark.parametrize("offset", [1, 7, None])
def test_a_label_out_of_range_is_named(class_cost, last, offset):
    logits, predicted = predictions(2, 4, seed=6)
    targets, label = truth_of([2, 3], seed=6), -1 if offset is None else last + offset
    matcher = HungarianMatcher(class_cost=class_cost)
    targets.labels[1, 2] = label
    message = rf"HungarianMatcher: image 1, target 2: label {label} must lie in 0..{last}$"
    with pytest.raises(ValueError, match=message):
        matcher(None, targets, of_detr(logits, predicted))
    targets.labels[0, 1] = 9
    with pytest.raises(ValueError, match=r"image 0, target 1: label 9 must lie in 0\.\.\d; 2 objects are wrong$"):
        matcher(None, targets, of_detr(logits, predicted))
    targets.labels[:] = last
    targets.labels[1, 3] = 99  # padding
    assert int((matcher(None, targets, of_detr(logits, predicted)).matched >= 0).sum()) == 5


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ([0.1, 0.1, torch.nan, 0.5], r"box \[0.1, 0.1, nan, 0.5\] as fractions must be finite with x1 <= x2"),
        ([0.1, 0.1, torch.inf, 0.5], r"box \[0.1, 0.1, inf, 0.5\] as fractions must be finite"),
        ([0.6, 0.1, 0.5, 0.5], r"box \[0.6, 0.1, 0.5, 0.5\] as fractions must be finite with x1 <= x2 and y1 <= y2"),
        ([0.1, 0.6, 0.5, 0.5], r"box \[0.1, 0.6, 0.5, 0.5\] as fractions must be finite"),
        ([0.1, 0.6, 10.5, 0.7], r"box \[0.1, 0.6, 10.5, 0.7\] must hold fractions of the image, not pixels"),
    ],
)
def test_a_target_box_that_cannot_be_learned_is_named(box, message):
    logits, predicted = predictions(1, 4, seed=7)
    with pytest.raises(ValueError, match=f"^HungarianMatcher: image 0, target 1: {message}"):
        HungarianMatcher()(None, targets_of(torch.tensor([[0.1, 0.1, 0.2, 10.0], box])), of_detr(logits, predicted))


def test_crowds_take_no_query_and_queries_inside_are_ignored():
    predicted = torch.tensor([[[0.25, 0.25, 0.2, 0.2], [0.75, 0.75, 0.2, 0.2], [0.49, 0.75, 0.2, 0.2]]])
    truth = torch.tensor([[0.15, 0.15, 0.35, 0.35], [0.5, 0.5, 1.0, 1.0]])
    crowded = targets_of(truth, iscrowd=[torch.tensor([0, 1])])
    crowded.labels[0, 1] = 77  # no object: nobody looks at its class
    assert HungarianMatcher()(None, crowded, of_detr(torch.zeros(1, 3, 3), predicted)).matched.tolist() == [
        [0, IGNORED, NEGATIVE]
    ]
    predicted[0, 2, 0] = 0.51
    assert HungarianMatcher()(None, crowded, of_detr(torch.zeros(1, 3, 3), predicted)).matched.tolist() == [
        [0, IGNORED, IGNORED]
    ]


def test_a_batch_equals_a_loop_and_padding_changes_nothing():
    logits, predicted = predictions(4, 9, seed=8)
    targets = truth_of([5, 0, 2, 1], seed=8)
    batch = HungarianMatcher()(None, targets, of_detr(logits, predicted))
    for image in range(4):
        labels, truth = rows_of(targets, image)
        alone = pad_targets([{"boxes": truth, "labels": labels}])
        ours = HungarianMatcher()(None, alone, of_detr(logits[image : image + 1], predicted[image : image + 1]))
        assert torch.equal(batch.matched[image], ours.matched[0])
        torch.testing.assert_close(batch.quality[image], ours.quality[0])


def test_no_queries_and_no_objects_give_empty_and_negative_assignments():
    targets = truth_of([3, 0], seed=9)
    assignment = HungarianMatcher()(None, targets, of_detr(torch.zeros(2, 0, 4), torch.zeros(2, 0, 4)))
    assert assignment.matched.shape == assignment.quality.shape == (2, 0)
    empty = HungarianMatcher()(None, truth_of([0, 0], seed=9), of_detr(*predictions(2, 3, seed=9)))
    assert empty.matched.tolist() == [[NEGATIVE] * 3] * 2
    assert (empty.quality == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("class_cost", ["softmax", "focal"])
def test_half_precision_matches_as_its_promoted_numbers(dtype, class_cost):
    logits, predicted = predictions(2, 20, seed=10, dtype=dtype)
    targets, matcher = truth_of([7, 3], seed=10), HungarianMatcher(class_cost=class_cost)
    ours, expected = (
        matcher(None, targets, of_detr(logits, predicted)),
        matcher(None, targets, of_detr(logits.float(), predicted.float())),
    )
    assert torch.equal(ours.matched, expected.matched)
    assert torch.equal(ours.quality, expected.quality)
    assert ours.quality.dtype == torch.float32


def test_nothing_is_learned_through_the_matcher():
    logits, predicted = predictions(1, 4, seed=11)
    assignment = HungarianMatcher()(
        None, truth_of([2], seed=11), of_detr(logits.requires_grad_(), predicted.requires_grad_())
    )
    assert not assignment.quality.requires_grad


@pytest.mark.parametrize("field", ["logits", "boxes"])
def test_full_checks_name_a_prediction_that_is_not_finite(monkeypatch, field):
    monkeypatch.setenv("DETKIT_CHECKS", "full")
    queries = of_detr(*predictions(1, 4, seed=12))
    getattr(queries, field)[0, 1, 2] = torch.nan
    with pytest.raises(ValueError, match=rf"^HungarianMatcher: {field}\[0, 1, 2\]=nan"):
        HungarianMatcher()(None, truth_of([2], seed=12), queries)


@pytest.mark.parametrize(
    ("message", "settings"),
    [
        ("class_cost='cosine'; allowed is 'softmax' or 'focal'", {"class_cost": "cosine"}),
        ("class_weight=-1 must be at least 0 and finite", {"class_weight": -1}),
        ("l1_weight=nan must be at least 0", {"l1_weight": math.nan}),
        ("giou_weight=inf must be at least 0 and finite", {"giou_weight": math.inf}),
        ("alpha=-0.1 must lie in \\[0, 1\\]", {"alpha": -0.1}),
        ("gamma=-2 must be at least 0", {"gamma": -2}),
    ],
)
def test_settings_that_make_no_sense_are_refused(message, settings):
    with pytest.raises(ValueError, match=f"^HungarianMatcher: {message}"):
        unhooked(HungarianMatcher.__init__)(HungarianMatcher(), **settings)


def test_shapes_that_disagree_are_refused():
    forward = unhooked(HungarianMatcher.forward)
    logits, predicted = predictions(2, 4, seed=13)
    targets, matcher = truth_of([2, 1], seed=13), HungarianMatcher()
    nobody = Targets(*(rows[:, :0] for rows in targets[:4]))
    wrong = [
        (logits[:1], predicted, targets, r"logits have shape \(1, 4, 4\), boxes \(2, 4, 4\) and targets 2 images"),
        (logits[:, :3], predicted, targets, r"allowed is \(B, Q, classes\), \(B, Q, 4\) and B images"),
        (logits[0], predicted[0], targets, "allowed is"),
        (logits[:1], predicted[:1], targets, "and targets 2 images"),
        (logits[..., :1], predicted, targets, r"logits have shape \(2, 4, 1\), which leaves no class"),
        (logits, predicted, nobody, "targets have 0 rows; allowed is at least 1"),
    ]
    for *predicting, truth, message in wrong:
        with pytest.raises(ValueError, match=rf"HungarianMatcher: .*{message}"):
            forward(matcher, None, truth, of_detr(*predicting))
    with pytest.raises(ValueError, match="which leaves no class"):
        forward(HungarianMatcher(class_cost="focal"), None, targets, of_detr(logits[..., :0], predicted))


@pytest.mark.parametrize("predictions", [None, Predictions(torch.zeros(1, 2, 4), torch.zeros(1, 2, 3))])
def test_a_call_without_logits_is_refused_with_the_repair(predictions):
    assert HungarianMatcher.reads_predictions
    with pytest.raises(ValueError, match=r"HungarianMatcher: .* call it as .*Predictions\(boxes, logits=logits\)"):
        HungarianMatcher()(None, truth_of([1], seed=1), predictions)


def test_printing_shows_the_settings():
    assert repr(HungarianMatcher()) == (
        "HungarianMatcher(class_cost='softmax', class_weight=1.0, l1_weight=5.0, giou_weight=2.0)"
    )
    assert repr(HungarianMatcher(class_cost="focal")).endswith("giou_weight=2.0, alpha=0.25, gamma=2.0)")
