"""Weighted boxes fusion against a slow loop over Python floats, and what must hold for any models."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from references import clustered
from strategies import assert_refused, boxes, random_boxes, unhooked
from thorough import sweep

from detkit.boxes.fusion import weighted_boxes_fusion

SCORES = st.sampled_from([0.0, 0.125, 0.25, 0.5, 0.5, 0.75, 1.0])


def listed(models):
    """The models as lists of plain numbers."""
    return [tuple(column.tolist() for column in detections) for detections in models]


def fuse(models, **chosen):
    """Boxes, scores, labels that the models (boxes, scores, labels) come to."""
    return weighted_boxes_fusion(*(list(column) for column in zip(*models, strict=True)), **chosen)


def model(count: int, *, seed: int, labels: int = 2, wobble: float = 6.0):
    """Detections in float64 around places that all seeds share, so that models overlap."""
    generator = torch.Generator().manual_seed(seed)
    centers = random_boxes(count, seed=count, dtype=torch.float64)
    rows = centers + torch.rand(count, 4, generator=generator, dtype=torch.float64) * wobble
    rows[:, 2:] = torch.maximum(rows[:, 2:], rows[:, :2])
    scores = torch.rand(count, generator=generator, dtype=torch.float64)
    return rows, scores, torch.arange(count) % labels


def one(rows, scores, labels=None):
    rows = torch.as_tensor(rows, dtype=torch.float64).reshape(-1, 4)
    labels = torch.zeros(len(rows), dtype=torch.int64) if labels is None else torch.tensor(labels)
    return rows, torch.as_tensor(scores, dtype=torch.float64), labels


def assert_fused(result, expected) -> None:
    found_boxes, found_scores, found_labels = result
    assert found_scores.tolist() == pytest.approx([score for _, score, _, _ in expected], rel=1e-9, abs=1e-15)
    assert found_labels.tolist() == [label for _, _, label, _ in expected]
    rows = torch.tensor([box for box, _, _, _ in expected], dtype=torch.float64).reshape(-1, 4)
    torch.testing.assert_close(found_boxes, rows, rtol=1e-9, atol=1e-9)


@st.composite
def models(draw: st.DrawFn, *, most: int = 4):
    """One to three models with up to ``most`` hostile boxes each."""
    made = []
    for _ in range(draw(st.integers(1, 3))):
        rows = draw(boxes(most=most, inverted=False, huge=1e15)).double()
        scores = draw(st.lists(SCORES, min_size=len(rows), max_size=len(rows)))
        labels = draw(st.lists(st.integers(-1, 1), min_size=len(rows), max_size=len(rows)))
        made.append((rows, torch.tensor(scores, dtype=torch.float64), torch.tensor(labels, dtype=torch.int64)))
    return made


@pytest.mark.slow
@settings(max_examples=sweep(150))
@given(data=st.data(), made=models(), overflow=st.booleans(), low=st.sampled_from([0.0, 0.2, 0.25]))
def test_hostile_boxes_are_fused_as_in_the_loop(data, made, overflow, low):
    weights = data.draw(st.lists(st.sampled_from([0.5, 1.0, 2.0]), min_size=len(made), max_size=len(made)))
    # Thresholds that are no ratio of small whole numbers: there rounding decides, here as in the loop.
    threshold = data.draw(st.sampled_from([0.0137, 0.3137, 0.5537]))
    chosen = {
        "weights": weights,
        "iou_threshold": threshold,
        "score_threshold": low,
        "allow_overflow": overflow,
    }
    assert_fused(fuse(made, **chosen), clustered(listed(made), **chosen))


@pytest.mark.slow(2)
@pytest.mark.parametrize("overflow", [False, True])
def test_thousands_of_boxes_in_many_sets_are_fused_as_in_the_loop(overflow):
    shrunk = 0
    for seed in range(sweep(34)):
        made = [model(50, seed=10 * seed + i, labels=1 + seed % 4, wobble=12.0) for i in range(3)]
        expected = clustered(listed(made), weights=[1.0, 2.0, 0.5], allow_overflow=overflow)
        assert_fused(fuse(made, weights=[1.0, 2.0, 0.5], allow_overflow=overflow), expected)
        shrunk += 150 - len(expected)
    assert shrunk > 29 * sweep(34)


@given(made=models())
def test_fused_boxes_lie_in_the_hull_of_their_members_and_count_them_all(made):
    expected = clustered(listed(made), iou_threshold=0.3137)
    found, _, _ = fuse(made, iou_threshold=0.3137)
    assert sum(len(members) for *_, members in expected) == sum(len(rows) for rows, _, _ in made)
    for box, (_, _, _, members) in zip(found, expected, strict=True):
        rows = torch.tensor([row for row, _ in members], dtype=torch.float64)
        slack = 1e-12 * rows.abs().max() + 1e-12
        assert (box >= rows.amin(0) - slack).all()
        assert (box <= rows.amax(0) + slack).all()


@given(made=models(), threshold=st.sampled_from([0.0, 0.3, 0.55, 1.0]))
def test_scores_stay_between_zero_and_the_best_and_stand_in_order(made, threshold):
    _, scores, _ = fuse(made, iou_threshold=threshold)
    best = max((float(s.max()) for _, s, _ in made if len(s)), default=0.0)
    assert ((scores >= 0) & (scores <= best + 1e-12)).all()
    assert (scores.diff() <= 0).all()


@given(made=models(), threshold=st.sampled_from([0.0, 0.3, 0.55]))
def test_labels_are_fused_as_each_alone(made, threshold):
    together = fuse(made, iou_threshold=threshold)
    assert set(together[2].tolist()) == {label for _, _, labels in made for label in labels.tolist()}
    for label in (-1, 0, 1):
        alone = fuse(
            [tuple(x[labels == label] for x in (r, s, labels)) for r, s, labels in made], iou_threshold=threshold
        )
        for whole, part in zip(together, alone, strict=True):
            assert torch.equal(whole[together[2] == label], part)


@given(made=models(), scale=st.sampled_from([0.25, 4.0, 1024.0]))
def test_only_the_ratios_of_the_weights_matter(made, scale):
    weights = [1.0, 2.0, 0.5][: len(made)]
    for found, other in zip(fuse(made, weights=weights), fuse(made, weights=[w * scale for w in weights]), strict=True):
        assert torch.equal(found, other)
    for found, other in zip(fuse(made), fuse(made, weights=[scale] * len(made)), strict=True):
        assert torch.equal(found, other)


@given(made=models(), copies=st.integers(2, 4))
def test_identical_models_that_overlap_nothing_of_their_own_give_what_one_gives(made, copies):
    rows, scores, labels = made[0]
    labels = torch.arange(len(labels))  # every box alone in its label
    solid = ((rows[:, 2:] - rows[:, :2]).amin(1) > 0) & (rows.abs().amax(1) > 1e-3)
    detections = rows[solid], scores[solid], labels[solid]
    expected, found = fuse([detections]), fuse([detections] * copies)
    assert torch.equal(expected[0], found[0])
    assert torch.equal(expected[2], found[2])
    torch.testing.assert_close(expected[1], found[1], rtol=1e-14, atol=0)


@given(data=st.data(), count=st.integers(0, 10))
def test_the_order_of_a_models_rows_does_not_matter_without_ties(data, count):
    made = [model(count, seed=seed) for seed in range(2)]
    order = torch.tensor(data.draw(st.permutations(range(count))), dtype=torch.int64)
    shuffled = [made[0], tuple(x[order] for x in made[1])]
    for found, other in zip(fuse(made), fuse(shuffled), strict=True):
        assert torch.equal(found, other)


@given(made=models())
def test_one_model_of_boxes_apart_is_only_sorted(made):
    rows, scores, _ = made[0]
    labels = torch.arange(len(rows))
    order = scores.argsort(descending=True, stable=True)
    found = fuse([(rows, scores, labels)])
    for result, given_rows in zip(found, (rows, scores, labels), strict=True):
        assert torch.equal(result, given_rows[order])


def test_numbers_of_two_models():
    made = [one([0, 0, 10, 10], [0.75]), one([0, 0, 10, 6], [0.25])]
    for threshold, expected in ((0.55, [[0, 0, 10, 9]]), (0.61, [[0, 0, 10, 10], [0, 0, 10, 6]])):
        assert fuse(made, iou_threshold=threshold)[0].tolist() == expected
    assert fuse(made)[1].tolist() == [0.5]  # the mean of both
    assert fuse(made, iou_threshold=0.61)[1].tolist() == [0.375, 0.125]  # half the models see each
    assert fuse(made, weights=[1.0, 3.0])[0].tolist() == [[0, 0, 10, 8]]  # 0.75 against 0.75
    assert fuse(made, weights=[1.0, 3.0])[1].tolist() == [0.375]  # (0.75 + 0.75) / 2 * 2 / 4


def test_more_boxes_than_models_count_only_where_overflow_is_allowed():
    crowd = one([[0, 0, 10, 10]] * 3, [0.5, 0.5, 0.5])
    assert fuse([crowd])[1].tolist() == [0.5]
    assert fuse([crowd], allow_overflow=True)[1].tolist() == [1.5]
    empty = one([], [])
    assert fuse([crowd, empty])[1].tolist() == [0.5]
    assert fuse([crowd, empty], allow_overflow=True)[1].tolist() == [0.75]
    assert fuse([crowd, empty, empty, empty])[1].tolist() == [0.375]


def test_overlap_equal_to_the_threshold_founds_a_cluster():
    made = [one([0, 0, 2, 1], [0.9]), one([0, 0, 1, 1], [0.8])]
    assert len(fuse(made, iou_threshold=0.5)[0]) == 2
    assert len(fuse(made, iou_threshold=0.499)[0]) == 1
    nearly = [
        one([[0, 0, 100, 1], [0, 5, 100, 6]], [0.9, 0.8], [0, 1]),
        one([[0, 0, 54, 1], [0, 5, 56, 6]], [0.7, 0.6], [0, 1]),
    ]
    assert fuse(nearly)[2].tolist() == [1, 0, 0]  # the default is 0.55


def test_a_box_joins_the_cluster_that_it_overlaps_most_and_of_equals_the_first():
    rows = [[0, 0, 10, 10], [4, 0, 14, 10], [3, 0, 13, 10]]
    found = fuse([one(rows, [0.9, 0.8, 0.8])], iou_threshold=0.5)
    assert found[0].tolist() == [[0, 0, 10, 10], [3.5, 0, 13.5, 10]]
    middle = [[0, 0, 10, 10], [4, 0, 14, 10], [2, 0, 12, 10]]
    found = fuse([one(middle, [0.75, 0.75, 0.75])], iou_threshold=0.5)
    assert found[0].tolist() == [[1, 0, 11, 10], [4, 0, 14, 10]]


def test_a_box_is_compared_with_the_fused_box_and_not_with_its_members():
    rows = [[0, 0, 10, 10], [0, 0, 6, 10], [0, 0, 5, 10]]  # the fused box of the first two ends at 8
    found = fuse([one(rows, [0.5, 0.5, 0.25])], iou_threshold=0.55)
    assert found[0][0].tolist() == pytest.approx([0, 0, 7.4, 10])
    assert len(found[0]) == 1
    assert len(fuse([one([rows[0], rows[2]], [0.5, 0.25])], iou_threshold=0.55)[0]) == 2


def test_scores_below_the_threshold_are_left_out_before_weights_count():
    made = [one([[0, 0, 1, 1], [5, 5, 6, 6]], [0.5, 0.2])]
    assert len(fuse(made, score_threshold=0.5, weights=[0.01])[0]) == 1
    assert len(fuse(made, score_threshold=0.2)[0]) == 2
    assert len(fuse(made, score_threshold=0.51)[0]) == 0
    assert len(fuse([one([0, 0, 1, 1], [0.0])])[0]) == 1


def test_boxes_whose_scores_are_all_zero_weigh_alike():
    found = fuse([one([[0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 8]], [0.0, 0.0, 0.0])])
    assert found[0][0].tolist() == pytest.approx([0, 0, 10, 9])
    assert found[1].tolist() == [0]


def test_equal_scores_stand_in_the_order_of_the_input():
    rows = torch.tensor([[0.0, 0, 1, 1]]) + torch.arange(40)[:, None] * 5
    made = [one(rows[:20], torch.ones(20), [i % 3 for i in range(20)]), one(rows[20:], torch.ones(20), [2] * 20)]
    assert torch.equal(fuse(made)[0], rows.double())


def test_boxes_without_area_stay_alone():
    point, line = [3, 3, 3, 3], [3, 0, 3, 10]
    found = fuse([one([point, point, line, line, [0, 0, 10, 10]], [0.5] * 5)] * 2, iou_threshold=0)
    assert len(found[0]) == 9


def test_huge_boxes_meet_only_their_equals():
    for size in (1e30, 1e60):
        made = [one([0, 0, size, size], [0.5]), one([0, 0, size, size], [0.5]), one([0, 0, 1, 1], [0.5])]
        found = fuse(made)
        assert found[0].tolist() == [[0, 0, size, size], [0, 0, 1, 1]]
    endless = [one([0, 0, 1e300, 1e300], [0.5]), one([0, 0, 1, 1], [0.5]), one([0, 0, 1, 1], [0.5])]
    found = fuse(endless)
    assert torch.isfinite(found[0]).all()
    assert found[0][0].tolist() == [0, 0, 1, 1]
    most = 1.7e308
    found = fuse([one([[-most, -most, most, most], [-most, -most, -1.6e308, -1.6e308]], [0.5, 0.5])])
    assert torch.isfinite(found[0]).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.int32, torch.int64, torch.uint8])
def test_every_type_is_fused_as_its_promoted_numbers(dtype):
    made = [model(20, seed=seed) for seed in range(3)]
    made = [
        (rows.to(dtype), scores.to(dtype) if dtype.is_floating_point else (scores * 9).to(dtype), labels.int())
        for rows, scores, labels in made
    ]
    wide = torch.float64 if dtype in (torch.int32, torch.int64) else torch.float32
    found = fuse(made)
    assert [x.dtype for x in found] == [wide, wide, torch.int64]
    expected = fuse([(rows.double(), scores.double(), labels) for rows, scores, labels in made])
    torch.testing.assert_close(found[0], expected[0].to(wide))
    torch.testing.assert_close(found[1], expected[1].to(wide))
    assert torch.equal(found[2], expected[2])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_row_that_is_not_finite_is_named_with_its_model_or_left_out_alone(bad):
    made = [model(10, seed=seed) for seed in range(2)]
    others = torch.tensor([i for i in range(10) if i != 4])
    expected = fuse([made[0], tuple(x[others] for x in made[1])])
    for place, message in (
        (0, rf"boxes_list\[1\]\[4, 3\]={bad:g} must be finite; 1 of 40 values is not"),
        (1, rf"scores_list\[1\]\[4\]={bad:g} must be finite; 1 of 10 values is not"),
    ):
        worse = [x.clone() for x in made[1]]
        worse[place][(4, 3) if place == 0 else 4] = bad
        with pytest.raises(ValueError, match=f"^weighted_boxes_fusion: {message}$"):
            fuse([made[0], worse])
        for found, other in zip(fuse([made[0], worse], nonfinite="drop"), expected, strict=True):
            assert torch.equal(found, other)


def test_inverted_boxes_and_negative_scores_are_named_with_their_model():
    good = one([0, 0, 1, 1], [0.5])
    for message, bad in {
        "boxes_list[1][0] x2 < x1 (0 < 10) 1": one([10, 10, 0, 0], [0.5]),
        "scores_list[1][1]=-0.5 0 1 2": one([[0, 0, 1, 1], [0, 0, 1, 1]], [0.0, -0.5]),
    }.items():
        assert_refused(f"weighted_boxes_fusion: {message}", fuse, [good, bad])


def test_inputs_are_left_alone_and_gradients_are_not_followed():
    made = [model(10, seed=seed) for seed in range(2)]
    before = [[x.clone() for x in detections] for detections in made]
    weights = [1, 2]
    fuse(made, weights=weights)
    for detections, copies in zip(made, before, strict=True):
        for x, copy in zip(detections, copies, strict=True):
            assert torch.equal(x, copy)
    assert weights == [1, 2]
    rows, scores, labels = made[0]
    assert not fuse([(rows.requires_grad_(), scores.requires_grad_(), labels)])[0].requires_grad


def test_nothing_in_gives_nothing_out():
    empty = torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64)
    for count in (1, 3):
        found = fuse([empty] * count)
        assert [x.shape for x in found] == [(0, 4), (0,), (0,)]
        assert [x.dtype for x in found] == [torch.float32, torch.float32, torch.int64]
    plain = unhooked(weighted_boxes_fusion)([torch.tensor([])], [torch.tensor([])], [torch.tensor([])])
    assert [x.shape for x in plain] == [(0, 4), (0,), (0,)]


def call(**chosen):
    given = {
        "boxes_list": [torch.zeros(3, 4)],
        "scores_list": [torch.zeros(3)],
        "labels_list": [torch.zeros(3, dtype=torch.int64)],
    }
    return unhooked(weighted_boxes_fusion)(**{**given, **chosen})


@pytest.mark.parametrize("name", ["iou_threshold", "score_threshold"])
@pytest.mark.parametrize("value", [float("nan"), -0.001, 1.001, 50])
def test_a_threshold_outside_zero_to_one_is_refused(name, value):
    with pytest.raises(ValueError, match=rf"^weighted_boxes_fusion: {name}={value}.*\[0, 1\]$"):
        call(**{name: value})
    call(**{name: 0})
    call(**{name: 1})


@pytest.mark.parametrize("weights", [[0], [-1.0], [float("nan")], [float("inf")], [], [1.0, 1.0]])
def test_weights_that_are_not_one_positive_number_a_model_are_refused(weights):
    shown = [float(weight) for weight in weights]
    message = f"weights={shown} 1"
    assert_refused(f"weighted_boxes_fusion: {message}", call, weights=weights)


LISTS = "boxes_list scores_list labels_list"
EACH = "3 boxes"


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"nonfinite": "keep"}, "nonfinite='keep' 'raise' 'drop'"),
        ({"scores_list": []}, f"{LISTS} 1 0 1"),
        ({"labels_list": [torch.zeros(3)] * 2}, f"{LISTS} 1 1 2"),
        ({"boxes_list": [], "scores_list": [], "labels_list": []}, f"{LISTS} 0 0 0"),
        ({"boxes_list": [torch.zeros(3, 5)]}, "boxes_list[0] (3, 5) (N, 4)"),
        ({"boxes_list": [torch.zeros(1, 3, 4)]}, "boxes_list[0] (1, 3, 4) (N, 4)"),
        ({"scores_list": [torch.zeros(2)]}, f"scores_list[0] (2,) {EACH}"),
        ({"labels_list": [torch.zeros(3, 1)]}, f"labels_list[0] (3, 1) {EACH}"),
        ({"labels_list": [torch.zeros(3)]}, "labels_list[0] torch.float32 integer"),
    ],
)
def test_wrong_shapes_and_options_are_refused_by_name(chosen, message):
    assert_refused(f"weighted_boxes_fusion: {message}", call, **chosen)


def test_a_model_that_found_nothing_leaves_the_labels_of_others_as_they_are():
    boxes, scores = random_boxes(1), torch.tensor([0.5])
    lists = [boxes, torch.tensor([])], [scores, torch.tensor([])], [torch.tensor([2**24 + 1]), torch.tensor([])]
    assert unhooked(weighted_boxes_fusion)(*lists)[2].tolist() == [2**24 + 1]


def test_only_the_ratio_of_weights_matters_however_large_they_are():
    boxes, labels = random_boxes(1), torch.tensor([0])
    lists = [boxes, boxes + 1], [torch.tensor([0.5]), torch.tensor([0.7])], [labels, labels]
    expected = weighted_boxes_fusion(*lists)
    for one, other in zip(weighted_boxes_fusion(*lists, weights=[1e308, 1e308]), expected, strict=True):
        torch.testing.assert_close(one, other)
