"""Hard negatives: how many, which, and over what they are ranked."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detkit.anchors import HardNegativeSampler


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
@settings(deadline=None)
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
    with pytest.raises(ValueError, match=rf"HardNegativeSampler: negatives_per_positive={ratio} and minimum=0"):
        HardNegativeSampler(ratio)


def test_a_negative_minimum_and_another_scope_are_refused():
    with pytest.raises(ValueError, match="minimum=-1 must be at least 0"):
        HardNegativeSampler(minimum=-1)


def test_printing_shows_the_settings():
    assert repr(HardNegativeSampler(2.0, scope="batch")) == "HardNegativeSampler(2.0, scope='batch', minimum=0)"
