"""Suppression against a slow greedy loop, per class and padded; ties, thresholds, and rows that are not finite."""

import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from strategies import assert_refused, boxes, random_boxes, unhooked

from detkit.boxes import batched_nms, box_iou, nms, nms_padded

# float16 areas overflow above 256 pixels, but scores tie often: ties are part of every test here.
SCORES = st.sampled_from([0.0, -0.0, 0.25, 0.5, 0.5, 0.75, 1.0])


def greedy(rows, scores, threshold, groups=None) -> list[int]:
    """Best first, ties to the lower index; a box goes if a better survivor of its group overlaps it more."""
    overlaps = box_iou(rows, rows).tolist()
    kept: list[int] = []
    for i in sorted(range(len(rows)), key=lambda i: (-float(scores[i]), i)):
        rivals = [j for j in kept if groups is None or groups[j] == groups[i]]
        if all(overlaps[j][i] <= threshold for j in rivals):
            kept.append(i)
    return kept


def crowd(count: int, *, seed: int = 0, groups: int = 3):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 20, (count,), generator=generator) / 20
    return random_boxes(count, seed=seed), scores, torch.randint(0, groups, (count,), generator=generator)


@given(data=st.data(), rows=boxes(most=8, inverted=False, huge=1e15), threshold=st.sampled_from([0.0, 0.3, 0.5, 1.0]))
def test_hostile_boxes_survive_as_in_the_greedy_loop(data, rows, threshold):
    scores = torch.tensor(data.draw(st.lists(SCORES, min_size=len(rows), max_size=len(rows))))
    groups = torch.tensor(data.draw(st.lists(st.integers(-2, 2), min_size=len(rows), max_size=len(rows)))).long()
    tiny = (rows.abs().amax(1) < 1e-20) & (rows != 0).any(1)
    rows, scores, groups = rows[~tiny], scores[~tiny], groups[~tiny]  # torchvision's areas vanish there
    assert nms(rows, scores, threshold).tolist() == greedy(rows, scores, threshold)
    assert batched_nms(rows, scores, groups, threshold).tolist() == greedy(rows, scores, threshold, groups.tolist())


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.7, 1.0])
def test_random_boxes_survive_as_in_the_greedy_loop_and_in_torchvision(threshold):
    rows, scores, groups = crowd(150)
    assert nms(rows, scores, threshold).tolist() == greedy(rows, scores, threshold)
    assert nms(rows, scores, threshold).tolist() == torchvision.ops.nms(rows, scores, threshold).tolist()
    assert batched_nms(rows, scores, groups, threshold).tolist() == greedy(rows, scores, threshold, groups.tolist())


def test_overlap_equal_to_the_threshold_is_kept():
    rows = torch.tensor([[0.0, 0, 2, 1], [0, 0, 1, 1]])
    assert nms(rows, torch.tensor([0.9, 0.8]), 0.5).tolist() == [0, 1]
    assert nms(rows, torch.tensor([0.9, 0.8]), 0.49).tolist() == [0]


def test_golden_of_the_anchor_chapter():
    rows = torch.tensor(
        [[0.1, 0.08, 0.52, 0.92], [0.08, 0.2, 0.56, 0.95], [0.15, 0.3, 0.62, 0.91], [0.55, 0.2, 0.9, 0.88]]
    )
    assert nms(rows, torch.tensor([0.9, 0.8, 0.7, 0.9]), 0.5).tolist() == [0, 3]
    assert batched_nms(rows, torch.tensor([0.9, 0.8, 0.7, 0.9]), torch.tensor([0, 0, 0, 1]), 0.5).tolist() == [0, 3]


def test_boxes_with_negative_coordinates_meet_no_other_class():
    rows = torch.tensor([[-200.0, -200, -100, -100], [0, 0, 100, 100], [-100, -100, 0, 0], [-200, -200, -100, -100]])
    scores, groups = torch.tensor([0.9, 0.8, 0.7, 0.6]), torch.tensor([1, 0, 0, 0])
    assert batched_nms(rows, scores, groups, 0.5).tolist() == [0, 1, 2, 3]


def test_forty_thousand_classes_decide_as_each_class_alone():
    rows, _, _ = crowd(10_000, seed=3)
    rows, scores = rows * 10, torch.rand(10_000, generator=torch.Generator().manual_seed(1))
    groups = torch.arange(10_000) % 50 * 800 + 799
    kept = torch.zeros(10_000, dtype=torch.bool)
    for group in groups.unique():
        members = (groups == group).nonzero().squeeze(1)
        kept[members[torchvision.ops.nms(rows[members], scores[members], 0.3)]] = True
    ours = batched_nms(rows, scores, groups, 0.3)
    assert torch.equal(
        ours, scores.argsort(descending=True, stable=True)[kept[scores.argsort(descending=True, stable=True)]]
    )


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_box_that_is_not_finite_is_named_or_dropped_alone(bad):
    rows, scores, groups = crowd(40)
    rows[7, 2] = bad
    groups[7] = 5
    with pytest.raises(ValueError, match=rf"^nms: boxes\[7, 2\]={bad:g}.*1.*160"):
        nms(rows, scores, 0.5)
    with pytest.raises(ValueError, match=rf"^batched_nms: boxes\[7, 2\]={bad:g}"):
        batched_nms(rows, scores, groups, 0.5)
    others = torch.tensor([i for i in range(40) if i != 7])
    expected = others[batched_nms(rows[others], scores[others], groups[others], 0.5)]
    assert torch.equal(batched_nms(rows, scores, groups, 0.5, nonfinite="drop"), expected)
    assert torch.equal(nms(rows, scores, 0.5, nonfinite="drop"), others[nms(rows[others], scores[others], 0.5)])


def test_full_checks_do_not_undo_dropping(monkeypatch):
    monkeypatch.setenv("DETKIT_CHECKS", "full")
    rows = torch.tensor([[0.0, 0, torch.nan, 9], [0, 0, 9, 9]])
    assert nms(rows, torch.ones(2), 0.5, nonfinite="drop").tolist() == [1]
    with pytest.raises(ValueError, match="boxes"):
        nms(rows, torch.ones(2), 0.5)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_score_that_is_not_finite_is_named_and_never_wins(bad):
    rows, scores = torch.tensor([[0.0, 0, 9, 9], [0, 0, 9, 9]]), torch.tensor([bad, 0.9])
    with pytest.raises(ValueError, match=rf"nms: scores\[0\]={bad:g}.*1.*2"):
        nms(rows, scores, 0.5)
    assert nms(rows, scores, 0.5, nonfinite="drop").tolist() == [1]
    indices, valid = nms_padded(rows[None], scores[None], 0.5, max_detections=2)
    assert (indices.tolist(), valid.tolist()) == ([[1, 0]], [[True, False]])


def test_an_inverted_box_is_named():
    with pytest.raises(ValueError, match=r"nms: boxes\[1\]: x2 < x1 \(0 < 10\); 1 box is inverted"):
        nms(torch.tensor([[0.0, 0, 1, 1], [10, 10, 0, 0]]), torch.ones(2), 0.5)


@pytest.mark.parametrize("threshold", [float("nan"), -1, 2, 50, 1.0001, float("inf")])
def test_a_threshold_outside_zero_to_one_is_refused(threshold):
    rows, scores = random_boxes(2), torch.ones(2)
    for function, arguments, options in (
        (nms, (rows, scores), {}),
        (batched_nms, (rows, scores, torch.zeros(2).long()), {}),
        (nms_padded, (rows[None], scores[None]), ONE),
    ):
        assert_refused(
            f"{function.__name__}: iou_threshold={threshold} [0, 1]",
            function,
            *arguments,
            threshold,
            **options,
        )


def test_equal_scores_keep_their_order():
    rows = torch.zeros(5000, 4)
    rows[:, 2:] = 1
    rows += torch.arange(5000)[:, None] * 2
    everything = list(range(5000))
    assert nms(rows, torch.ones(5000), 0.5).tolist() == everything
    assert batched_nms(rows, torch.ones(5000), torch.arange(5000) % 7, 0.5).tolist() == everything
    indices, valid = nms_padded(rows[None], torch.ones(1, 5000), 0.5, max_detections=300)
    assert indices[0].tolist() == everything[:300]
    assert valid.all()
    same = torch.ones(5000, 4) * torch.tensor([0, 0, 1, 1])
    assert nms(same, torch.ones(5000), 0.5).tolist() == [0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int32, torch.int64, torch.uint8])
def test_every_type_decides_as_its_promoted_numbers(dtype):
    rows, scores, groups = crowd(40)
    rows = rows.to(dtype)
    scores = scores if dtype in (torch.int32, torch.int64, torch.uint8) else scores.to(dtype)
    expected = batched_nms(rows.double(), scores.double(), groups, 0.4)
    assert torch.equal(batched_nms(rows, scores, groups.to(torch.uint8), 0.4), expected)


def test_half_boxes_above_256_pixels_do_not_overflow():
    rows = torch.tensor([[0, 0, 300, 300], [0, 0, 300, 290]], dtype=torch.float16)
    assert nms(rows, torch.tensor([0.5, 0.9], dtype=torch.float16), 0.5).tolist() == [1]


def test_order_of_the_rows_does_not_matter_without_ties():
    rows, _, groups = crowd(60)
    scores = torch.rand(60, generator=torch.Generator().manual_seed(1))
    order = torch.randperm(60, generator=torch.Generator().manual_seed(2))
    shuffled = batched_nms(rows[order], scores[order], groups[order], 0.3)
    assert torch.equal(order[shuffled], batched_nms(rows, scores, groups, 0.3))


@pytest.mark.parametrize("limit", [1, 3, 10, 100])
def test_padded_suppression_equals_a_loop_over_images(limit):
    images = [crowd(40, seed=seed, groups=2) for seed in range(3)]
    rows, scores, groups = (torch.stack(column) for column in zip(*images, strict=True))
    valid = torch.rand(3, 40, generator=torch.Generator().manual_seed(5)) > 0.3
    valid[2] = False
    indices, filled = nms_padded(rows, scores, 0.3, groups=groups, valid=valid, max_detections=limit)
    assert indices.shape == filled.shape == (3, min(limit, 40))
    for b in range(3):
        members = valid[b].nonzero().squeeze(1)
        alone = members[batched_nms(rows[b, members], scores[b, members], groups[b, members], 0.3)][:limit]
        assert indices[b][filled[b]].tolist() == alone.tolist()
        assert (indices[b][~filled[b]] == 0).all()
        assert (filled[b].int().diff() <= 0).all()


def test_padding_rows_do_not_change_the_result():
    rows, scores, _ = crowd(20)
    plain, count = nms_padded(rows[None], scores[None], 0.3, max_detections=20)
    wide = (
        torch.cat((rows, torch.full((5, 4), torch.nan)))[None],
        torch.cat((scores, torch.full((5,), torch.inf)))[None],
    )
    valid = (torch.arange(25) < 20)[None]
    indices, filled = nms_padded(*wide, 0.3, valid=valid, max_detections=20)
    assert torch.equal(indices, plain)
    assert torch.equal(filled, count)


def test_few_survivors_are_found_behind_many_duplicates():
    rows = torch.cat((torch.tensor([[0.0, 0, 10, 10]]).expand(50, 4), torch.tensor([[90.0, 90, 99, 99]])))
    scores = torch.linspace(1, 0.1, 51)
    indices, valid = nms_padded(rows[None], scores[None], 0.5, max_detections=2)
    assert (indices.tolist(), valid.tolist()) == ([[0, 50]], [[True, True]])


def test_nothing_in_gives_nothing_out():
    none, groups = torch.zeros(0), torch.zeros(0, dtype=torch.int64)
    for rows in (torch.zeros(0, 4), torch.tensor([])):
        assert unhooked(nms)(rows, none, 0.5).tolist() == []
        assert unhooked(nms)(rows, none, 0.5).dtype == torch.int64
        assert unhooked(batched_nms)(rows, none, groups, 0.5).tolist() == []
    assert nms_padded(torch.zeros(2, 0, 4), torch.zeros(2, 0), 0.5, max_detections=3)[0].shape == (2, 0)
    assert nms_padded(torch.zeros(0, 5, 4), torch.zeros(0, 5), 0.5, max_detections=3)[0].shape == (0, 3)


ONE = {"max_detections": 1}


def test_wrong_shapes_and_options_are_refused_by_name():
    rows, scores, batch = torch.zeros(3, 4), torch.zeros(3), (torch.zeros(1, 3, 4), torch.zeros(1, 3), 0.5)
    keep = {"nonfinite": "keep"}
    for message, (function, arguments, options) in {
        "nms: boxes (3, 5) (N, 4)": (nms, (torch.zeros(3, 5), scores, 0.5), {}),
        "nms: scores (2,) 3 boxes": (nms, (rows, scores[:2], 0.5), {}),
        "nms: scores (3, 1) 3 boxes": (
            nms,
            (rows, scores[:, None], 0.5),
            {},
        ),
        "nms: nonfinite='keep' 'raise' 'drop'": (nms, (rows, scores, 0.5), keep),
        "batched_nms: nonfinite='keep' 'raise' 'drop'": (
            batched_nms,
            (rows, scores, torch.zeros(3).long(), 0.5),
            keep,
        ),
        "batched_nms: groups (3,) torch.float32 integer 3 scores": (
            batched_nms,
            (rows, scores, scores, 0.5),
            {},
        ),
        "nms_padded: max_detections=0 1": (nms_padded, batch, {"max_detections": 0}),
        "nms_padded: boxes (3, 4) (B, N, 4)": (nms_padded, (rows, scores, 0.5), ONE),
        "nms_padded: valid (1, 2) (1, 3)": (
            nms_padded,
            batch,
            {"valid": torch.ones(1, 2).bool(), **ONE},
        ),
    }.items():
        assert_refused(message, function, *arguments, **options)


@pytest.mark.parametrize("measure", ["iou", "diou"])
def test_a_default_device_is_not_that_of_the_boxes(measure):
    rows, scores = random_boxes(3000, seed=0), torch.rand(3000, generator=torch.Generator().manual_seed(0))
    expected = nms(rows, scores, 0.5, measure=measure)
    with torch.device("meta"):
        found = nms(rows, scores, 0.5, measure=measure)
    assert torch.equal(found, expected)
