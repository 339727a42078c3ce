"""Samplers: how many anchors each takes, which, and how evenly chance treats them."""

import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import assert_refused
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler

from detkit.anchors import HardNegativeSampler
from detkit.anchors.sample import BalancedSampler, sampled_rows


def slow_choice(losses: list[float], labels: list[int], ratio: float, minimum: int) -> list[bool]:
    wanted = max(int(sum(label >= 0 for label in labels) * ratio), minimum)
    eligible = [i for i, (loss, label) in enumerate(zip(losses, labels, strict=True)) if label == -1 and loss > 0]
    chosen = sorted(eligible, key=lambda i: (-losses[i], i))[:wanted]
    return [i in chosen for i in range(len(losses))]


@given(
    data=st.data(),
    count=st.integers(0, 12),
    ratio=st.sampled_from([0.0, 0.5, 1.0, 3.0]),
    minimum=st.sampled_from([0, 2, 50]),
)
def test_choice_equals_the_slow_one_in_both_scopes(data, count, ratio, minimum):
    def draw(values, n):
        return data.draw(st.lists(st.sampled_from(values), min_size=n, max_size=n))

    losses, labels = draw([0.0, 0.1, 0.5, 0.5, 2.0, 1e30], 2 * count), draw([-2, -1, -1, -1, 0, 3], 2 * count)
    tensors = torch.tensor(losses).reshape(2, count), torch.tensor(labels).long().reshape(2, count)
    per_image = HardNegativeSampler(ratio, minimum=minimum)(*tensors)
    expected = [slow_choice(losses[s], labels[s], ratio, minimum) for s in (slice(count), slice(count, None))]
    assert per_image.tolist() == expected
    batch = HardNegativeSampler(ratio, scope="batch", minimum=minimum)(*tensors)
    assert batch.flatten().tolist() == slow_choice(losses, labels, ratio, minimum)


def test_ties_go_to_the_lower_index_however_many_there_are():
    labels = torch.full((1, 5000), -1)
    labels[0, 7] = 2
    chosen = HardNegativeSampler(3.0)(torch.ones(1, 5000), labels)
    assert chosen.nonzero()[:, 1].tolist() == [0, 1, 2]


@pytest.mark.parametrize("loss", [torch.nan, 0.0, -1.0])
def test_a_loss_that_is_not_positive_is_never_chosen(loss):
    labels = torch.tensor([[0, -1, -1]])
    assert HardNegativeSampler(3.0)(torch.tensor([[9.0, loss, 0.1]]), labels).tolist() == [[False, False, True]]


def test_no_gradient_flows_through_the_choice():
    losses = torch.rand(1, 4, requires_grad=True)
    assert not HardNegativeSampler(minimum=2)(losses, torch.full((1, 4), -1)).requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_type_of_loss_is_ranked(dtype):
    chosen = HardNegativeSampler(1.0)(torch.tensor([[9, 1, 3]], dtype=dtype), torch.tensor([[0, -1, -1]]))
    assert chosen.tolist() == [[False, False, True]]


@pytest.mark.parametrize("ratio", [-1.0, float("nan"), float("inf")])
def test_a_ratio_that_makes_no_sense_is_refused(ratio):
    assert_refused(f"HardNegativeSampler: negatives_per_positive={ratio} 0", HardNegativeSampler, ratio)


def test_a_negative_minimum_and_another_scope_are_refused():
    assert_refused("HardNegativeSampler: minimum=-1 0", HardNegativeSampler, minimum=-1)
    assert_refused(
        "HardNegativeSampler: scope='all' 'image' 'batch'",
        HardNegativeSampler.__init__,
        HardNegativeSampler.__new__(HardNegativeSampler),
        scope="all",
    )


def test_printing_shows_the_settings():
    assert repr(HardNegativeSampler(2.0, scope="batch")) == "HardNegativeSampler(2.0, scope='batch', minimum=0)"


def test_the_defaults_are_three_to_one_in_each_image_and_no_minimum():
    labels = torch.tensor([[5, -1, -1, -1, -1], [-1, -1, -1, -1, -1]])
    losses = torch.tensor([[9.0, 1, 4, 3, 2], [8, 8, 8, 8, 8]])
    chosen = HardNegativeSampler()(losses, labels)
    assert chosen.tolist() == [[False, False, True, True, True], [False] * 5]
    whole = HardNegativeSampler(scope="batch")(losses, labels)
    assert whole.tolist() == [[False] * 5, [True, True, True, False, False]]


def test_a_share_of_a_negative_is_rounded_down():
    labels = torch.tensor([[0, 0, 0, -1, -1, -1]])
    for ratio, count in ((0.3, 0), (0.34, 1), (0.66, 1), (0.67, 2), (1.0, 3)):
        assert HardNegativeSampler(ratio)(torch.ones(1, 6), labels).sum() == count


def test_an_ignored_anchor_is_neither_a_positive_nor_a_negative():
    labels = torch.tensor([[-2, -2, -1, 3, -1]])
    assert HardNegativeSampler(1.0)(torch.ones(1, 5), labels).tolist() == [[False, False, True, False, False]]
    assert HardNegativeSampler(0.0, minimum=9)(torch.ones(1, 5), labels).sum() == 2


@pytest.mark.parametrize("ratio", [1e10, 1e19, 3e38, 1e300])
def test_a_huge_ratio_samples_all_negatives_where_there_is_a_positive(ratio):
    losses, labels = torch.ones(2, 4), torch.tensor([[0, -1, -1, -2], [-1, -1, -2, -1]])
    assert HardNegativeSampler(ratio)(losses, labels).tolist() == [[False, True, True, False], [False] * 4]
    heavy = HardNegativeSampler()(losses, labels, weights=torch.full((2, 4), 1e30))
    assert heavy.tolist() == [[False, True, True, False], [False] * 4]


@pytest.mark.parametrize("weight", [-1.0, math.nan, math.inf])
def test_weights_of_positives_are_checked_and_others_are_not_looked_at(weight):
    labels, weights = torch.tensor([[0, -1, -2]]), torch.tensor([[1.0, weight, weight]])
    assert HardNegativeSampler()(torch.ones(1, 3), labels, weights=weights).tolist() == [[False, True, False]]
    assert_refused(
        "HardNegativeSampler: weights[0, 0] must be at least 0",
        lambda: HardNegativeSampler()(torch.ones(1, 3), labels, weights=weights.roll(1)),
    )


@pytest.mark.parametrize("scope", ["image", "batch"])
def test_no_anchors_leave_nothing_to_choose(scope):
    chosen = HardNegativeSampler(scope=scope, minimum=3)(torch.zeros(2, 0), torch.zeros(2, 0).long())
    assert chosen.shape == (2, 0)


# Random samples


def counts(chosen: torch.Tensor, labels: torch.Tensor) -> tuple[list[int], list[int]]:
    """Chosen positives and negatives of each image."""
    return (chosen & (labels >= 0)).sum(1).tolist(), (chosen & (labels == -1)).sum(1).tolist()


def label_rows(images: int = 2, most: int = 30):
    return st.integers(0, most).flatmap(
        lambda n: st.lists(
            st.lists(st.sampled_from([-2, -1, -1, 0, 7]), min_size=n, max_size=n), min_size=images, max_size=images
        ).map(lambda rows: torch.tensor(rows, dtype=torch.int64).reshape(images, n))
    )


@given(labels=label_rows(), count=st.integers(1, 20), fraction=st.sampled_from([0.0, 0.25, 0.3, 0.5, 1.0]))
def test_each_image_gets_the_positives_of_its_quota_and_is_filled_with_negatives(labels, count, fraction):
    chosen = BalancedSampler(count, positive_fraction=fraction)(labels)
    positives = [min(n, int(count * fraction)) for n in (labels >= 0).sum(1).tolist()]
    negatives = [min(n, count - p) for n, p in zip((labels == -1).sum(1).tolist(), positives, strict=True)]
    assert counts(chosen, labels) == (positives, negatives)
    assert not chosen[labels == -2].any()
    assert chosen.dtype == torch.bool


@given(labels=label_rows(), count=st.integers(1, 20), fraction=st.floats(0, 1))
def test_as_many_of_each_are_taken_as_torchvision_takes(labels, count, fraction):
    peer = BalancedPositiveNegativeSampler(count, fraction)
    theirs = peer(list(torch.where(labels >= 0, 1, torch.where(labels == -1, 0, -1))))
    expected = tuple([int(mask.sum()) for mask in masks] for masks in theirs)
    assert counts(BalancedSampler(count, positive_fraction=fraction)(labels), labels) == expected


@given(labels=label_rows(), count=st.integers(1, 20), seed=st.integers(0, 9))
def test_one_state_of_the_generator_gives_one_choice(labels, count, seed):
    sampler = BalancedSampler(count)
    once, again = (sampler(labels, generator=torch.Generator().manual_seed(seed)) for _ in range(2))
    assert torch.equal(once, again)
    torch.manual_seed(seed)
    assert torch.equal(once, sampler(labels))


def test_another_state_of_the_generator_gives_another_choice(generator):
    labels = torch.full((1, 1000), -1)
    first, second = (BalancedSampler(20)(labels, generator=generator) for _ in range(2))
    assert not torch.equal(first, second)


def test_the_number_of_threads_does_not_change_the_choice():
    labels = torch.randint(-2, 3, (3, 200_000), generator=torch.Generator().manual_seed(0))
    before, choices = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 8):
            torch.set_num_threads(threads)
            choices.append(BalancedSampler()(labels, generator=torch.Generator().manual_seed(1)))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(choices[0], choices[1])
    assert torch.equal(choices[0], choices[2])
    assert counts(choices[0], labels) == ([128] * 3, [128] * 3)


def chi_squared(observed: list[int], expected: float) -> float:
    return sum((count - expected) ** 2 / expected for count in observed)


def test_every_anchor_is_chosen_as_often_as_any_other_of_its_kind(generator):
    """6000 draws of 3 of 12 positives and 5 of 20 negatives; chi-squared at one in ten thousand."""
    labels = torch.tensor([0, -1, -2, -1] * 4 + [5, -1] * 8 + [-1] * 4).expand(6000, -1).contiguous()
    times = BalancedSampler(8, positive_fraction=0.4)(labels, generator=generator).sum(0)
    positives, negatives = times[labels[0] >= 0].tolist(), times[labels[0] == -1].tolist()
    assert (len(positives), len(negatives)) == (12, 20)
    assert (sum(positives), sum(negatives)) == (18_000, 30_000)
    assert chi_squared(positives, 1500) < 37.4
    assert chi_squared(negatives, 1500) < 52.4
    assert min(*positives, *negatives) > 1300


@pytest.mark.slow
def test_every_set_is_chosen_as_often_as_any_other(generator):
    """12,000 draws of 2 of 5: all 10 pairs; chi-squared of 9 degrees at one in ten thousand."""
    chosen = BalancedSampler(2, positive_fraction=1.0)(torch.zeros(12_000, 5).long(), generator=generator)
    pairs = Counter(tuple(row) for row in chosen.tolist())
    assert len(pairs) == 10
    assert chi_squared(list(pairs.values()), 1200) < 33.7


def test_images_of_a_batch_are_drawn_each_for_itself(generator):
    chosen = BalancedSampler(50)(torch.full((2, 1000), -1), generator=generator)
    assert not torch.equal(chosen[0], chosen[1])


def test_the_defaults_are_those_of_rpn():
    labels = torch.cat((torch.zeros(1, 1000), -torch.ones(1, 1000)), dim=1).long()
    assert counts(BalancedSampler()(labels), labels) == ([128], [128])
    assert counts(BalancedSampler(512, positive_fraction=0.25)(labels), labels) == ([128], [384])
    few = torch.cat((torch.zeros(1, 10), -torch.ones(1, 1000)), dim=1).long()
    assert counts(BalancedSampler()(few), few) == ([10], [246])


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("BalancedSampler: count=-1 1", {"count": -1}),
        ("BalancedSampler: positive_fraction=1.5 [0, 1]", {"positive_fraction": 1.5}),
        ("BalancedSampler: positive_fraction=nan [0, 1]", {"positive_fraction": float("nan")}),
    ],
)
def test_a_sample_that_makes_no_sense_is_refused(message, options):
    assert_refused(message, BalancedSampler, **options)


def test_printing_a_balanced_sampler_shows_the_settings():
    assert repr(BalancedSampler(9, positive_fraction=0.25)) == "BalancedSampler(9, positive_fraction=0.25)"


def test_losses_and_labels_of_differing_shapes_are_refused():
    losses, labels = torch.ones(1, 4), torch.ones(2, 4).long()
    assert_refused(
        "HardNegativeSampler: losses (1, 4) labels (2, 4)",
        HardNegativeSampler.forward,
        HardNegativeSampler(),
        losses,
        labels,
    )


@given(labels=label_rows(), count=st.integers(1, 20), fraction=st.sampled_from([0.0, 0.25, 0.5, 1.0]))
def test_rows_of_a_choice_are_its_positives_then_its_negatives(labels, count, fraction):
    sampler = BalancedSampler(count, positive_fraction=fraction)
    chosen = sampler(labels)
    rows, valid = sampled_rows(chosen, labels, count)
    assert rows.shape == valid.shape == (len(labels), min(count, labels.shape[1]))
    for i, row in enumerate(labels.tolist()):
        mask = chosen[i].tolist()
        positives = [n for n, label in enumerate(row) if mask[n] and label >= 0]
        expected = positives + [n for n, label in enumerate(row) if mask[n] and label < 0]
        assert rows[i][valid[i]].tolist() == expected
        assert valid[i].tolist() == [place < len(expected) for place in range(len(valid[i]))]
        assert len(set(rows[i].tolist())) == rows.shape[1]
        assert len(positives) <= sampler.most_positives


@pytest.mark.parametrize(("count", "fraction", "most"), [(256, 0.5, 128), (512, 0.25, 128), (5, 0.3, 1), (3, 0.3, 0)])
def test_the_number_of_positives_is_rounded_down(count, fraction, most):
    assert BalancedSampler(count, positive_fraction=fraction).most_positives == most
    assert BalancedSampler(count, positive_fraction=fraction)(torch.zeros(1, 999).long()).sum() == most


# A ratio of negatives, and gray anchors beyond


HOURGLASS = {"negatives_per_positive": 2.0, "gray_per_other": 0.5}


def of_three(positives: int, negatives: int, gray: int) -> torch.Tensor:
    return torch.tensor([[0] * positives + [-1] * negatives + [-3] * gray], dtype=torch.int64)


def taken(sampler: BalancedSampler, labels: torch.Tensor) -> tuple[int, int, int]:
    """Positive, negative and gray anchors that are sampled."""
    chosen = sampler(labels)
    return tuple(int((chosen & kind).sum()) for kind in (labels >= 0, labels == -1, labels == -3))


def slow_table(positives: int, negatives: int, gray: int, count: int) -> tuple[int, int, int]:
    """The authors' table, said in words."""
    own = min(positives, count // 2)
    background = min(2 * own, count - own, negatives) if own else min(count // 4, negatives)
    return own, background, min((own + background) // 2 if own + background else count // 8, gray)


@pytest.mark.parametrize(("positives", "expected"), [(20, (20, 40, 30)), (200, (150, 150, 150)), (0, (0, 75, 37))])
def test_the_hourglass_samples_as_the_table_says(positives, expected):
    assert taken(BalancedSampler(300, **HOURGLASS), of_three(positives, 2000, 2000)) == expected


@given(counts=st.tuples(*[st.integers(0, 40)] * 3), count=st.integers(1, 60))
def test_it_samples_as_the_table_says_where_there_are_few(counts, count):
    sampler, labels = BalancedSampler(count, **HOURGLASS), of_three(*counts)
    assert taken(sampler, labels) == slow_table(*counts, count)
    assert sampler(labels).sum() <= sampler.most == count + count // 2


@given(counts=st.tuples(*[st.integers(0, 40)] * 3), count=st.integers(1, 60))
def test_without_gray_none_is_sampled_and_the_others_are_the_same(counts, count):
    found = taken(BalancedSampler(count, negatives_per_positive=2.0), of_three(*counts))
    assert found == (*slow_table(*counts, count)[:2], 0)
    assert BalancedSampler(count).most == count


@pytest.mark.parametrize(("ratio", "expected"), [(0.0, 0), (0.5, 2), (1e300, 20)])
def test_any_ratio_is_rounded_down_and_the_count_is_the_end(ratio, expected):
    assert taken(BalancedSampler(25, negatives_per_positive=ratio), of_three(5, 99, 0)) == (5, expected, 0)


def test_the_ratio_is_shown():
    assert repr(BalancedSampler(300, **HOURGLASS)).endswith("negatives_per_positive=2.0, gray_per_other=0.5)")


def test_a_gray_share_that_makes_no_sense_is_refused():
    assert_refused("BalancedSampler: gray_per_other=1.5 [0, 1]", BalancedSampler, gray_per_other=1.5)
    assert_refused("BalancedSampler: negatives_per_positive=-1.0 0", BalancedSampler, negatives_per_positive=-1.0)
