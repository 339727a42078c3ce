"""Soft-NMS against a slow loop over Python floats, on random and hostile boxes."""

import importlib
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from references import softened
from strategies import assert_refused, boxes, crowd, drawn, unhooked
from thorough import sweep

from detkit.boxes import box_iou, nms
from detkit.boxes.soft_nms import soft_nms, soft_nms_padded

module = importlib.import_module("detkit.boxes.soft_nms")  # the package's name is the function's
METHODS = ("linear", "gaussian")
TYPES = [torch.float16, torch.bfloat16, torch.float64, torch.int32, torch.int64, torch.uint8]
PAIR = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5]])  # IoU 1/2
APART = torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10]])


def assert_picks(result, expected, *, tolerance: float = 1e-12) -> None:
    indices, scores = result
    assert indices.tolist() == [index for index, _ in expected]
    assert scores.tolist() == pytest.approx([score for _, score in expected], rel=tolerance, abs=1e-300)


options = st.fixed_dictionaries(
    {
        "method": st.sampled_from(METHODS),
        "sigma": st.sampled_from([1e-3, 0.1, 0.5, 10.0]),
        "iou_threshold": st.sampled_from([0.0, 0.3, 0.51, 1.0]),
        "score_threshold": st.sampled_from([0.0, 0.001, 0.2, 0.5, 1.0]),
    }
)


class TestSoftNMS:
    @pytest.mark.slow(2)
    @settings(max_examples=sweep(150))
    @given(data=st.data(), rows=boxes(most=8, inverted=False, huge=1e15), chosen=options)
    def test_hostile_boxes_are_picked_as_in_the_loop(self, data, rows, chosen):
        rows = rows[(rows.abs().amax(1) >= 1e-10) | (rows == 0).all(1)].double()
        scores, groups = drawn(data, rows)
        assert_picks(soft_nms(rows, scores, **chosen), softened(rows.tolist(), scores.tolist(), **chosen))
        assert_picks(
            soft_nms(rows, scores, groups=groups, **chosen),
            softened(rows.tolist(), scores.tolist(), groups.tolist(), **chosen),
        )

    @pytest.mark.slow(2)
    @pytest.mark.parametrize("method", METHODS)
    def test_thousands_of_boxes_in_many_sets_are_picked_as_in_the_loop(self, method):
        for seed in range(sweep(50)):
            rows, scores, groups = crowd(200, seed=seed, groups=1 + seed % 7, ties=seed % 2 == 0)
            expected = softened(rows.tolist(), scores.tolist(), groups.tolist(), method=method)
            assert_picks(soft_nms(rows, scores, groups=groups, method=method), expected)

    @given(data=st.data(), rows=boxes(most=8, inverted=False), chosen=options)
    def test_scores_never_rise_fall_below_the_threshold_or_stand_out_of_order(self, data, rows, chosen):
        scores, groups = drawn(data, rows)
        indices, lowered = soft_nms(rows, scores, groups=groups, **chosen)
        assert (lowered <= scores[indices]).all()
        assert (lowered >= chosen["score_threshold"]).all()
        assert sorted(zip((-lowered).tolist(), indices.tolist(), strict=True)) == list(
            zip((-lowered).tolist(), indices.tolist(), strict=True)
        )
        assert len(set(indices.tolist())) == len(indices)

    @given(data=st.data(), rows=boxes(most=8, inverted=False), method=st.sampled_from(METHODS))
    def test_the_best_of_every_group_keeps_its_score(self, data, rows, method):
        scores, groups = drawn(data, rows)
        indices, lowered = soft_nms(rows, scores, groups=groups, method=method, score_threshold=0)
        ends = dict(zip(indices.tolist(), lowered.tolist(), strict=True))
        for group in set(groups.tolist()):
            members = (groups == group).nonzero().squeeze(1)
            best = int(members[scores[members].argmax()])
            assert ends[best] == scores[best]

    @given(data=st.data(), rows=boxes(most=8, inverted=False), chosen=options)
    def test_groups_are_picked_as_each_alone(self, data, rows, chosen):
        scores, groups = drawn(data, rows)
        together = dict(zip(*(x.tolist() for x in soft_nms(rows, scores, groups=groups, **chosen)), strict=True))
        alone = {}
        for group in set(groups.tolist()):
            members = (groups == group).nonzero().squeeze(1)
            indices, lowered = soft_nms(rows[members], scores[members], **chosen)
            alone |= dict(zip(members[indices].tolist(), lowered.tolist(), strict=True))
        assert together == alone

    @given(data=st.data(), count=st.integers(0, 12), method=st.sampled_from(METHODS))
    def test_the_order_of_the_rows_does_not_matter_without_ties(self, data, count, method):
        rows, scores, groups = crowd(count, seed=count)
        order = torch.tensor(data.draw(st.permutations(range(count))), dtype=torch.int64)
        indices, lowered = soft_nms(rows, scores, groups=groups, method=method)
        shuffled, others = soft_nms(rows[order], scores[order], groups=groups[order], method=method)
        assert torch.equal(order[shuffled], indices)
        assert torch.equal(others, lowered)

    @given(data=st.data(), rows=boxes(most=8, inverted=False), most=st.integers(1, 9), chosen=options)
    def test_a_limit_gives_the_beginning_of_the_whole(self, data, rows, most, chosen):
        scores, groups = drawn(data, rows)
        whole = soft_nms(rows, scores, groups=groups, **chosen)
        best = soft_nms(rows, scores, groups=groups, max_detections=most, **chosen)
        assert [x.tolist() for x in best] == [x[:most].tolist() for x in whole]

    @pytest.mark.parametrize("method", METHODS)
    def test_boxes_apart_keep_their_scores(self, method):
        scores = torch.tensor([0.3, 0.9, 0.5])
        assert_picks(soft_nms(APART, scores, method=method), [(1, 0.9), (2, 0.5), (0, 0.3)], tolerance=1e-6)

    @pytest.mark.parametrize("seed", range(5))
    def test_a_vanishing_sigma_is_hard_suppression_of_all_that_overlap(self, seed):
        rows, scores, _ = crowd(60, seed=seed)
        for sigma in (1e-12, 1e-300, 5e-324):
            indices, lowered = soft_nms(rows, scores, sigma=sigma)
            assert torch.equal(indices, nms(rows, scores, 0.0)[scores[nms(rows, scores, 0.0)] >= 0.001])
            assert torch.equal(lowered, scores[indices])

    def test_a_large_sigma_and_a_threshold_of_one_lower_nothing(self):
        rows, scores, _ = crowd(30)
        for chosen in ({"sigma": 1e300}, {"method": "linear", "iou_threshold": 1.0}):
            indices, lowered = soft_nms(rows, scores, score_threshold=0, **chosen)
            assert torch.equal(indices, scores.argsort(descending=True))
            assert torch.equal(lowered, scores[indices])

    def test_numbers_of_both_methods(self):
        scores = torch.tensor([0.5, 1.0], dtype=torch.float64)
        assert_picks(soft_nms(PAIR, scores), [(1, 1.0), (0, 0.5 * math.exp(-0.5))])
        assert_picks(soft_nms(PAIR, scores, sigma=0.25), [(1, 1.0), (0, 0.5 * math.exp(-1))])
        assert_picks(soft_nms(PAIR, scores, method="linear"), [(1, 1.0), (0, 0.25)])

    def test_overlap_equal_to_the_threshold_lowers_nothing(self):
        scores = torch.tensor([1.0, 0.5])
        assert_picks(soft_nms(PAIR, scores, method="linear", iou_threshold=0.5), [(0, 1.0), (1, 0.5)])
        assert_picks(soft_nms(PAIR, scores, method="linear", iou_threshold=0.499), [(0, 1.0), (1, 0.25)])
        nearly = torch.tensor([[0.0, 0, 100, 1], [0, 0, 31, 1], [0, 2, 100, 3], [0, 2, 29, 3]])
        kept = soft_nms(nearly, torch.tensor([1.0, 0.5, 0.9, 0.4]), method="linear")  # the default is 0.3
        assert_picks(kept, [(0, 1.0), (2, 0.9), (3, 0.4), (1, 0.5 * 0.69)], tolerance=1e-6)

    def test_a_score_equal_to_the_threshold_stays(self):
        scores = torch.tensor([1.0, 0.5], dtype=torch.float64)
        assert len(soft_nms(PAIR, scores, method="linear", score_threshold=0.25)[0]) == 2
        assert len(soft_nms(PAIR, scores, method="linear", score_threshold=0.2501)[0]) == 1
        assert soft_nms(APART, torch.tensor([0.0011, 0.0009, -1.0]))[0].tolist() == [0]
        assert soft_nms(APART, torch.tensor([1.0, 0.0, -0.5]), score_threshold=0)[0].tolist() == [0, 1]

    def test_a_box_that_loses_all_stays_with_nothing_where_the_threshold_is_zero(self):
        same = PAIR[[0, 0]]
        assert_picks(soft_nms(same, torch.ones(2), method="linear", score_threshold=0), [(0, 1.0), (1, 0.0)])

    def test_equal_scores_go_by_index(self):
        rows = APART[0] + torch.arange(500)[:, None] * 20
        assert soft_nms(rows, torch.ones(500))[0].tolist() == list(range(500))
        assert soft_nms(rows, torch.ones(500), groups=torch.arange(500) % 7)[0].tolist() == list(range(500))
        assert soft_nms(rows, torch.ones(500), max_detections=3)[0].tolist() == [0, 1, 2]

    def test_boxes_without_area_lower_nothing_and_are_not_lowered(self):
        rows = torch.tensor([[2.0, 2, 2, 2], [0, 0, 10, 10], [2, 2, 2, 2], [3, 0, 3, 10]])
        scores = torch.tensor([0.9, 0.8, 0.7, 0.6])
        for method in METHODS:
            indices, lowered = soft_nms(rows, scores, method=method, iou_threshold=0)
            assert indices.tolist() == [0, 1, 2, 3]
            assert torch.equal(lowered, scores)

    def test_groups_are_kept_apart_at_negative_coordinates(self):
        rows = torch.tensor([[-200.0, -200, -100, -100], [0, 0, 100, 100], [-100, -100, 0, 0]])
        scores = torch.tensor([0.9, 0.8, 0.7])
        assert torch.equal(soft_nms(rows, scores, groups=torch.tensor([1, 0, 0]))[1], scores)

    @pytest.mark.slow
    @pytest.mark.parametrize("method", METHODS)
    def test_long_segments_computed_row_by_row_and_short_tables_give_the_same(self, method, monkeypatch):
        rows, scores, groups = crowd(120, groups=4)
        expected = soft_nms(rows, scores, groups=groups, method=method)
        for name, value in (("_LONGEST_MATRIX", 3), ("_MATRIX_NUMBERS", 1), ("_BLOCK_NUMBERS", 1)):
            monkeypatch.setattr(module, name, value)
            found = soft_nms(rows, scores, groups=groups, method=method)
            assert torch.equal(found[0], expected[0])
            torch.testing.assert_close(found[1], expected[1], rtol=1e-14, atol=0)

    @pytest.mark.slow(2)
    def test_three_thousand_boxes_of_one_group_are_picked_as_in_a_vectorised_loop(self):
        rows, scores, _ = crowd(2100, seed=4)
        left, expected = scores.clone(), []
        overlaps = box_iou(rows, rows)
        for _ in range(2100):
            best = int(left.argmax())
            if left[best] < 0.001:
                break
            expected.append((best, float(left[best])))
            left *= torch.exp(-(overlaps[best] ** 2) / 0.5)
            left[best] = -1
        assert_picks(soft_nms(rows, scores), expected)
        assert_picks(soft_nms(rows, scores, max_detections=20), expected[:20])

    @pytest.mark.parametrize("dtype", TYPES, ids=str)
    def test_every_type_is_picked_as_its_promoted_numbers(self, dtype):
        rows, scores, groups = crowd(40)
        rows = rows.to(dtype)
        scores = (scores * 9).to(dtype) if not dtype.is_floating_point else scores.to(dtype)
        indices, lowered = soft_nms(rows, scores, groups=groups.to(torch.uint8))
        expected = soft_nms(rows.double(), scores.double(), groups=groups)
        wide = torch.float64 if dtype in (torch.float64, torch.int32, torch.int64) else torch.float32
        assert lowered.dtype == wide
        torch.testing.assert_close(lowered, expected[1].to(wide), rtol=1e-6, atol=0)
        assert indices.tolist() == expected[0].tolist()

    @pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
    def test_a_row_that_is_not_finite_is_named_or_left_out_alone(self, bad):
        rows, scores, groups = crowd(40)
        others = torch.tensor([i for i in range(40) if i != 7])
        expected = soft_nms(rows[others], scores[others], groups=groups[others])
        worse = rows.clone()
        worse[7, 2] = bad
        with pytest.raises(ValueError, match=rf"^soft_nms: boxes\[7, 2\]={bad:g}.*1.*160"):
            soft_nms(worse, scores, groups=groups)
        found = soft_nms(worse, scores, groups=groups, nonfinite="drop")
        assert torch.equal(others[expected[0]], found[0])
        assert torch.equal(expected[1], found[1])
        lower = scores.clone()
        lower[7] = bad
        with pytest.raises(ValueError, match=rf"^soft_nms: scores\[7\]={bad:g}.*1.*40"):
            soft_nms(rows, lower, groups=groups)
        assert torch.equal(soft_nms(rows, lower, groups=groups, nonfinite="drop")[1], expected[1])

    def test_an_inverted_box_is_named(self):
        with pytest.raises(ValueError, match=r"^soft_nms: boxes\[1\]: x2 < x1 \(0 < 10\); 1 box is inverted$"):
            soft_nms(torch.tensor([[0.0, 0, 1, 1], [10, 10, 0, 0]]), torch.ones(2))

    def test_inputs_are_left_alone_and_gradients_are_not_followed(self):
        rows, scores, groups = crowd(40)
        before = rows.clone(), scores.clone(), groups.clone()
        soft_nms(rows, scores, groups=groups)
        for one, other in zip((rows, scores, groups), before, strict=True):
            assert torch.equal(one, other)
        assert not soft_nms(rows.requires_grad_(), scores.requires_grad_())[1].requires_grad

    def test_nothing_in_gives_nothing_out(self):
        for rows in (torch.zeros(0, 4), torch.tensor([])):
            indices, lowered = unhooked(soft_nms)(rows, torch.zeros(0))
            assert (indices.tolist(), lowered.tolist()) == ([], [])
            assert (indices.dtype, lowered.dtype) == (torch.int64, torch.float32)
        low = soft_nms(APART, torch.zeros(3), max_detections=2)
        assert (low[0].tolist(), low[1].tolist()) == ([], [])


class TestSoftNMSPadded:
    @given(data=st.data(), count=st.integers(1, 9), limit=st.integers(1, 10), chosen=options)
    def test_a_batch_is_picked_as_each_image_alone(self, data, count, limit, chosen):
        images = [crowd(count, seed=seed + count, groups=2, ties=seed == 1) for seed in range(3)]
        rows, scores, groups = (torch.stack(column) for column in zip(*images, strict=True))
        flags = data.draw(st.lists(st.booleans(), min_size=3 * count, max_size=3 * count))
        valid = torch.tensor(flags).reshape(3, count)
        indices, lowered, filled = soft_nms_padded(
            rows, scores, groups=groups, valid=valid, max_detections=limit, **chosen
        )
        assert indices.shape == lowered.shape == filled.shape == (3, min(limit, count))
        for b in range(3):
            members = valid[b].nonzero().squeeze(1)
            alone = soft_nms(rows[b, members], scores[b, members], groups=groups[b, members], **chosen)
            assert indices[b][filled[b]].tolist() == members[alone[0]].tolist()[:limit]
            assert torch.equal(lowered[b][filled[b]], alone[1][:limit])
            assert (indices[b][~filled[b]] == 0).all()
            assert (lowered[b][~filled[b]] == 0).all()
            assert (filled[b].int().diff() <= 0).all()

    @pytest.mark.parametrize("limit", [1, 2, 5, 20])
    def test_few_picks_are_found_behind_many_duplicates(self, limit):
        far = torch.tensor([[90.0, 90, 99, 99]])
        rows = torch.cat((PAIR[:1].expand(300, 4), far)).double()
        scores = torch.linspace(1, 0.1, 301, dtype=torch.float64)
        images = torch.stack((rows, rows.flip(0))), torch.stack((scores, scores.flip(0)))
        indices, lowered, valid = soft_nms_padded(*images, max_detections=limit, score_threshold=1e-9)
        for b in range(2):
            expected = softened(images[0][b].tolist(), images[1][b].tolist(), score_threshold=1e-9)[:limit]
            assert indices[b][valid[b]].tolist() == [index for index, _ in expected]
            assert lowered[b][valid[b]].tolist() == pytest.approx([score for _, score in expected])

    def test_a_tie_with_a_box_that_was_not_yet_looked_at_goes_by_index(self):
        rows = torch.cat((APART[1:2], PAIR[:1], PAIR[1:].expand(7, 4)))
        scores = torch.tensor([0.5, *[1.0] * 8])  # all but the first fall to 0.5 or less
        indices, lowered, _ = soft_nms_padded(rows[None], scores[None], method="linear", max_detections=2)
        assert indices.tolist() == [[1, 0]]
        assert lowered.tolist() == [[1.0, 0.5]]

    @pytest.mark.parametrize("limit", [1, 7, 30])
    def test_a_limit_far_below_the_number_of_boxes_gives_the_beginning(self, limit):
        rows, scores, _ = crowd(400, seed=8, ties=True)
        indices, lowered, valid = soft_nms_padded(rows[None], scores[None], max_detections=limit)
        whole = soft_nms(rows, scores)
        assert indices[0][valid[0]].tolist() == whole[0][:limit].tolist()
        assert torch.equal(lowered[0][valid[0]], whole[1][:limit])

    def test_padding_rows_change_nothing_whatever_they_hold(self):
        rows, scores, _ = crowd(20)
        plain = soft_nms_padded(rows[None], scores[None], max_detections=20)
        wide = (
            torch.cat((rows, torch.full((5, 4), torch.nan, dtype=torch.float64)))[None],
            torch.cat((scores, torch.full((5,), torch.inf, dtype=torch.float64)))[None],
        )
        for valid in (None, (torch.arange(25) < 20)[None]):
            for one, other in zip(soft_nms_padded(*wide, valid=valid, max_detections=20), plain, strict=True):
                assert torch.equal(one, other)

    def test_defaults_are_those_of_soft_nms(self):
        rows, scores, _ = crowd(60)
        for method in METHODS:
            indices, lowered, valid = soft_nms_padded(rows[None], scores[None], method=method, max_detections=60)
            alone = soft_nms(rows, scores, method=method)
            assert indices[0][valid[0]].tolist() == alone[0].tolist()
            assert torch.equal(lowered[0][valid[0]], alone[1])

    def test_empty_batches_keep_their_shapes(self):
        for shape, expected in (((2, 0), (2, 0)), ((0, 5), (0, 3))):
            results = soft_nms_padded(torch.zeros(*shape, 4), torch.zeros(shape), max_detections=3)
            assert [result.shape for result in results] == [expected] * 3


def soft(**chosen):
    return unhooked(soft_nms)(**{"boxes": torch.zeros(3, 4), "scores": torch.zeros(3), **chosen})


def padded(**chosen):
    arguments = {"boxes": torch.zeros(1, 3, 4), "scores": torch.zeros(1, 3), "max_detections": 2, **chosen}
    return unhooked(soft_nms_padded)(**arguments)


@pytest.mark.parametrize("call", [soft, padded])
@pytest.mark.parametrize("sigma", [0, -1.0, float("nan"), float("inf")])
def test_a_sigma_that_is_no_positive_number_is_refused(call, sigma):
    with pytest.raises(ValueError, match=rf"nms(_padded)?: sigma={sigma}"):
        call(sigma=sigma)


@pytest.mark.parametrize("call", [soft, padded])
@pytest.mark.parametrize("name", ["iou_threshold", "score_threshold"])
@pytest.mark.parametrize("value", [float("nan"), -0.001, 1.001, 50])
def test_a_threshold_outside_zero_to_one_is_refused(call, name, value):
    with pytest.raises(ValueError, match=rf"^soft_nms(_padded)?: {name}={value}.*\[0, 1\]$"):
        call(**{name: value})
    call(**{name: 0}), call(**{name: 1})


@pytest.mark.parametrize(
    ("call", "chosen", "message"),
    [
        (soft, {"method": "hard"}, "soft_nms: method='hard' 'linear' 'gaussian'"),
        (padded, {"method": "hard"}, "soft_nms_padded: method='hard' 'linear' 'gaussian'"),
        (soft, {"nonfinite": "keep"}, "soft_nms: nonfinite='keep' 'raise' 'drop'"),
        (soft, {"max_detections": 0}, "soft_nms: max_detections=0 1"),
        (padded, {"max_detections": 0}, "soft_nms_padded: max_detections=0 1"),
        (soft, {"boxes": torch.zeros(3, 5)}, "soft_nms: boxes (3, 5) (N, 4)"),
        (soft, {"boxes": torch.zeros(1, 3, 4)}, "soft_nms: boxes (1, 3, 4) (N, 4)"),
        (padded, {"boxes": torch.zeros(3, 4)}, "soft_nms_padded: boxes (3, 4) (B, N, 4)"),
        (soft, {"scores": torch.zeros(2)}, "soft_nms: scores (2,) (3,)"),
        (
            padded,
            {"scores": torch.zeros(1, 2)},
            "soft_nms_padded: scores (1, 2) (1, 3)",
        ),
        (
            padded,
            {"valid": torch.ones(1, 2).bool()},
            "soft_nms_padded: valid (1, 2) (1, 3)",
        ),
        (soft, {"groups": torch.zeros(2).long()}, "soft_nms: groups (2,) (3,)"),
        (
            soft,
            {"groups": torch.zeros(3)},
            "soft_nms: groups torch.float32 integer",
        ),
    ],
)
def test_wrong_shapes_and_options_are_refused_by_name(call, chosen, message):
    assert_refused(message, call, **chosen)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["linear", "gaussian"])
@pytest.mark.parametrize("most", [2, 3, 4])
def test_the_best_few_of_overlapping_clusters_are_those_of_the_whole(method, most):
    """Clusters fall one after the other, so that a short prefix picks late what the whole set never picks."""
    for seed in range(60):
        generator = torch.Generator().manual_seed(seed)
        center = (torch.rand(6, 2, generator=generator) * 9)[torch.arange(40) * 6 // 40]
        corner = center + torch.rand(40, 2, generator=generator) * 1.5
        rows = torch.cat((corner, corner + 8 + torch.rand(40, 2, generator=generator) * 2), dim=1).double()
        scores = torch.linspace(1, 0.3, 40, dtype=torch.float64)
        options = {"method": method, "iou_threshold": 0.1, "sigma": 0.5, "score_threshold": 0.05}
        everything, few = (soft_nms(rows, scores, max_detections=k, **options) for k in (None, most))
        assert few[0].tolist() == everything[0][:most].tolist()
        torch.testing.assert_close(few[1], everything[1][:most])
