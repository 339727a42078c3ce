"""Matrix NMS against a slow loop over Python floats, on random and hostile boxes."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from references import matrixed
from strategies import assert_refused, boxes, crowd, drawn, unhooked
from thorough import sweep

from detkit.boxes import box_iou, mask_iou, matrix_nms

METHODS = ("linear", "gaussian")
TYPES = [torch.float16, torch.bfloat16, torch.float64, torch.int32, torch.int64, torch.uint8]
PAIR = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5]])  # IoU 1/2


class TestMatrixNMS:
    @pytest.mark.slow(3)
    @settings(max_examples=sweep(150))
    @given(
        data=st.data(),
        rows=boxes(most=8, inverted=False, huge=1e15),
        method=st.sampled_from(METHODS),
        sigma=st.sampled_from([0.01, 0.5, 10.0]),
    )
    def test_hostile_boxes_are_lowered_as_in_the_loop(self, data, rows, method, sigma):
        rows = rows.double()
        scores, groups = drawn(data, rows)
        expected = matrixed(box_iou(rows, rows).tolist(), scores.tolist(), groups.tolist(), method=method, sigma=sigma)
        found = matrix_nms(rows, scores, groups=groups, method=method, sigma=sigma)
        assert found.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)

    @pytest.mark.slow
    @pytest.mark.parametrize("method", METHODS)
    def test_thousands_of_boxes_in_many_sets_are_lowered_as_in_the_loop(self, method):
        for seed in range(sweep(100)):
            rows, scores, groups = crowd(100, seed=seed, groups=1 + seed % 5, ties=seed % 2 == 0)
            expected = matrixed(box_iou(rows, rows).tolist(), scores.tolist(), groups.tolist(), method=method)
            assert matrix_nms(rows, scores, groups=groups, method=method).tolist() == pytest.approx(expected, rel=1e-9)

    @given(data=st.data(), rows=boxes(most=8, inverted=False), method=st.sampled_from(METHODS))
    def test_scores_never_rise_and_the_best_keeps_its_own(self, data, rows, method):
        scores, _ = drawn(data, rows)
        lowered = matrix_nms(rows, scores, method=method)
        assert torch.isfinite(lowered).all()
        assert ((lowered >= 0) & (lowered <= scores)).all()
        if len(rows):
            assert lowered[scores.argmax()] == scores.max()

    @given(data=st.data(), rows=boxes(most=8, inverted=False), method=st.sampled_from(METHODS))
    def test_groups_are_lowered_as_each_alone(self, data, rows, method):
        scores, groups = drawn(data, rows)
        together = matrix_nms(rows, scores, groups=groups, method=method)
        for group in set(groups.tolist()):
            members = groups == group
            assert torch.equal(together[members], matrix_nms(rows[members], scores[members], method=method))

    @given(data=st.data(), count=st.integers(1, 12), method=st.sampled_from(METHODS))
    def test_the_order_of_the_rows_does_not_matter_without_ties(self, data, count, method):
        rows, scores, groups = crowd(count, seed=count)
        order = torch.tensor(data.draw(st.permutations(range(count))), dtype=torch.int64)
        expected = matrix_nms(rows, scores, groups=groups, method=method)[order]
        assert torch.equal(matrix_nms(rows[order], scores[order], groups=groups[order], method=method), expected)

    @given(rows=boxes(most=6), method=st.sampled_from(METHODS), sigma=st.sampled_from([1e-300, 1e-3, 0.5, 1e300]))
    def test_hostile_boxes_have_finite_scores_and_gradients(self, rows, method, sigma):
        scores = torch.linspace(1, 0, len(rows)).requires_grad_()
        lowered = matrix_nms(rows.requires_grad_(), scores, method=method, sigma=sigma, nonfinite="drop")
        lowered.sum().backward()
        assert torch.isfinite(lowered).all()
        assert torch.isfinite(scores.grad).all()
        assert torch.isfinite(rows.grad).all()

    @pytest.mark.slow
    @pytest.mark.parametrize("method", METHODS)
    def test_gradients_equal_finite_differences(self, method):
        rows, scores, groups = crowd(6, seed=3, groups=2)

        def lowered(rows, scores):
            return matrix_nms(rows, scores, groups=groups, method=method)

        assert torch.autograd.gradcheck(lowered, (rows.requires_grad_(), scores.requires_grad_()))

    def test_numbers_of_both_methods(self):
        scores = torch.tensor([0.5, 1.0], dtype=torch.float64)
        assert matrix_nms(PAIR, scores).tolist() == pytest.approx([0.5 * math.exp(-0.5), 1.0])
        assert matrix_nms(PAIR, scores, sigma=0.25).tolist() == pytest.approx([0.5 * math.exp(-1), 1.0])
        assert matrix_nms(PAIR, scores, method="linear").tolist() == pytest.approx([0.25, 1.0])

    def test_a_covered_box_lowers_others_less(self):
        overlaps = torch.tensor([[0, 0.8, 0.0], [0.8, 0, 0.9], [0.0, 0.9, 0]], dtype=torch.float64)
        lowered = matrix_nms(None, torch.tensor([1.0, 0.9, 0.8]), overlaps=overlaps, method="linear")
        assert lowered.tolist() == pytest.approx([1, 0.9 * 0.2, 0.8 * 0.1 / 0.2])
        gaussian = matrix_nms(None, torch.tensor([1.0, 0.9, 0.8]), overlaps=overlaps)
        assert gaussian.tolist() == pytest.approx([1, 0.9 * math.exp(-1.28), 0.8 * math.exp(-2 * (0.81 - 0.64))])

    def test_a_duplicate_says_nothing_that_its_better_has_not_said(self):
        overlaps = torch.tensor(
            [[1, 0.5, 0.5, 0], [0.5, 1, 1, 0.75], [0.5, 1, 1, 0.75], [0, 0.75, 0.75, 1]], dtype=torch.float64
        )
        scores = torch.tensor([1.0, 0.9, 0.8, 0.7], dtype=torch.float64)
        lowered = matrix_nms(None, scores, overlaps=overlaps, method="linear")
        assert lowered.tolist() == pytest.approx([1.0, 0.45, 0.0, 0.7 * 0.25 / 0.5])

    @pytest.mark.parametrize("method", METHODS)
    def test_of_equal_boxes_and_scores_the_first_keeps_its_score(self, method):
        lowered = matrix_nms(PAIR[[0, 0, 0]], torch.full((3,), 0.5, dtype=torch.float64), method=method)
        rest = 0.0 if method == "linear" else 0.5 * math.exp(-2)
        assert lowered.tolist() == pytest.approx([0.5, rest, rest])

    def test_scores_below_zero_stay(self):
        assert matrix_nms(PAIR, torch.tensor([0.5, -1.0])).tolist() == [0.5, -1.0]

    def test_masks_are_lowered_through_their_overlaps(self):
        masks = torch.zeros(3, 4, 4)
        masks[0, :, :], masks[1, :2, :], masks[2, 3, 3] = 1, 1, 1
        overlaps, scores = mask_iou(masks, masks), torch.tensor([0.9, 0.8, 0.7])
        lowered = matrix_nms(None, scores, overlaps=overlaps, method="linear")
        assert lowered.tolist() == pytest.approx([0.9, 0.4, 0.7 * 15 / 16])
        assert matrix_nms(None, scores, overlaps=overlaps, groups=torch.arange(3)).tolist() == scores.tolist()

    @pytest.mark.parametrize("method", METHODS)
    def test_a_batch_is_lowered_as_each_image_alone(self, method):
        images = [crowd(15, seed=seed, groups=2) for seed in range(4)]
        rows, scores, groups = (torch.stack(column) for column in zip(*images, strict=True))
        alone = torch.stack([matrix_nms(a, b, groups=c, method=method) for a, b, c in images])
        assert torch.equal(matrix_nms(rows, scores, groups=groups, method=method), alone)
        deep = matrix_nms(
            rows.reshape(2, 2, 15, 4), scores.reshape(2, 2, 15), groups=groups.reshape(2, 2, 15), method=method
        )
        assert torch.equal(deep.reshape(4, 15), alone)
        overlaps = box_iou(rows, rows)
        assert torch.equal(matrix_nms(None, scores, groups=groups, overlaps=overlaps, method=method), alone)

    @pytest.mark.parametrize("dtype", TYPES, ids=str)
    def test_every_type_is_lowered_as_its_promoted_numbers(self, dtype):
        rows, scores, _ = crowd(20)
        rows = rows.to(dtype)
        scores = scores.to(dtype) if dtype.is_floating_point else (scores * 9).to(dtype)
        wide = torch.float64 if dtype in (torch.float64, torch.int32, torch.int64) else torch.float32
        assert torch.equal(matrix_nms(rows, scores), matrix_nms(rows.to(wide), scores.to(wide)))
        assert matrix_nms(rows, scores).dtype == wide

    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
    def test_a_row_that_is_not_finite_is_named_or_scores_zero_alone(self, bad, method):
        rows, scores, _ = crowd(20)
        others = torch.tensor([i for i in range(20) if i != 7])
        expected = matrix_nms(rows[others], scores[others], method=method)
        worse, lower = rows.clone(), scores.clone()
        worse[7, 2] = lower[7] = bad
        for arguments, message in (
            ((worse, scores), rf"boxes\[7, 2\]={bad:g} must be finite; 1 of 80 values is not"),
            ((rows, lower), rf"scores\[7\]={bad:g} must be finite; 1 of 20 values is not"),
        ):
            with pytest.raises(ValueError, match=f"^matrix_nms: {message}"):
                matrix_nms(*arguments, method=method)
            found = matrix_nms(*arguments, method=method, nonfinite="drop")
            assert torch.equal(found[others], expected)
            assert found[7] == 0

    def test_overlaps_that_are_not_finite_or_outside_zero_to_one_are_named_or_made_so(self):
        scores = torch.tensor([0.9, 0.8])
        for value, message, same_as in (
            (torch.nan, "overlaps[0, 1]=nan 1 4", 0.0),
            (torch.inf, "overlaps[0, 1]=inf 1 4", 0.0),
            (1.5, "overlaps[0, 1]=1.5 [0, 1] 1", 1.0),
            (-0.5, "overlaps[0, 1]=-0.5 [0, 1] 1", 0.0),
        ):
            overlaps = torch.tensor([[1.0, value], [0.5, 1]])
            assert_refused(f"matrix_nms: {message}", matrix_nms, None, scores, overlaps=overlaps)
            good = torch.tensor([[1.0, same_as], [0.5, 1]])
            expected = matrix_nms(None, scores, overlaps=good)
            assert torch.equal(matrix_nms(None, scores, overlaps=overlaps, nonfinite="drop"), expected)

    def test_an_inverted_box_is_named_or_overlaps_nothing(self):
        rows = torch.tensor([[0.0, 0, 10, 10], [10, 10, 0, 0]])
        with pytest.raises(ValueError, match=r"^matrix_nms: boxes\[1\]: x2 < x1 \(0 < 10\); 1 box is inverted$"):
            matrix_nms(rows, torch.ones(2))
        assert matrix_nms(rows, torch.ones(2), nonfinite="drop").tolist() == [1, 1]

    def test_no_boxes_have_no_scores(self):
        for method in METHODS:
            assert matrix_nms(torch.zeros(0, 4), torch.zeros(0), method=method).shape == (0,)
            assert unhooked(matrix_nms)(torch.tensor([]), torch.zeros(0), method=method).shape == (0,)
            assert matrix_nms(torch.zeros(2, 0, 4), torch.zeros(2, 0), method=method).shape == (2, 0)
            assert matrix_nms(torch.zeros(0, 3, 4), torch.zeros(0, 3), method=method).shape == (0, 3)
            assert matrix_nms(None, torch.zeros(0), overlaps=torch.zeros(0, 0), method=method).shape == (0,)

    def test_inputs_are_left_alone(self):
        rows, scores, groups = crowd(20)
        before = rows.clone(), scores.clone(), groups.clone()
        matrix_nms(rows, scores, groups=groups)
        for one, other in zip((rows, scores, groups), before, strict=True):
            assert torch.equal(one, other)


def called(**chosen):
    return unhooked(matrix_nms)(**{"boxes": torch.zeros(3, 4), "scores": torch.zeros(3), **chosen})


@pytest.mark.parametrize("sigma", [0, -1.0, float("nan"), float("inf")])
def test_a_sigma_that_is_no_positive_number_is_refused(sigma):
    with pytest.raises(ValueError, match=rf"^matrix_nms: sigma={sigma} "):
        called(sigma=sigma)


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"method": "hard"}, "matrix_nms: method='hard' 'linear' 'gaussian'"),
        ({"nonfinite": "keep"}, "matrix_nms: nonfinite='keep' 'raise' 'drop'"),
        ({"boxes": torch.zeros(1, 3, 5)}, "matrix_nms: boxes (1, 3, 5) (N, 4)"),
        ({"scores": torch.zeros(2)}, "matrix_nms: scores (2,) (3,)"),
        (
            {"groups": torch.zeros(3)},
            "matrix_nms: groups torch.float32 integer",
        ),
        ({"boxes": None}, "matrix_nms: boxes boxes=None overlaps"),
        ({"overlaps": torch.zeros(3, 3)}, "matrix_nms: boxes boxes=None overlaps"),
        (
            {"boxes": None, "overlaps": torch.zeros(3, 2)},
            "matrix_nms: overlaps (3, 2) (3, 3)",
        ),
        (
            {"boxes": None, "scores": torch.zeros(2, 3), "overlaps": torch.zeros(3, 3)},
            "matrix_nms: overlaps (3, 3) (2, 3, 3)",
        ),
        (
            {"boxes": None, "overlaps": torch.zeros(3, 3), "groups": torch.zeros(2).long()},
            "matrix_nms: groups (2,) (3,)",
        ),
        (
            {"boxes": None, "overlaps": torch.zeros(3, 3), "groups": torch.zeros(3)},
            "matrix_nms: groups torch.float32 integer",
        ),
    ],
)
def test_wrong_shapes_and_options_are_refused_by_name(chosen, message):
    assert_refused(message, called, **chosen)
