"""Samplers: every sample once, every class in turn, every rank alike, and a restart at the very next sample."""

import json
from collections import Counter
from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import unhooked
from torch.utils.data import DataLoader

from detkit.data import BalancedBatchSampler, ResumableSampler


def shares(length, world_size, **settings):
    return [list(ResumableSampler(length, rank=rank, world_size=world_size, **settings)) for rank in range(world_size)]


@given(length=st.integers(0, 50), world_size=st.integers(1, 7))
def test_evaluation_sees_every_sample_exactly_once(length, world_size):
    parts = shares(length, world_size, shuffle=False)
    assert sorted(chain(*parts)) == list(range(length))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert all(part == sorted(part) for part in parts)


@given(length=st.integers(1, 50), world_size=st.integers(1, 7))
def test_training_gives_equal_shares_that_cover_everything_and_repeat_as_little_as_needed(length, world_size):
    parts = shares(length, world_size)
    assert len(set(map(len, parts))) == 1
    counts = np.bincount(list(chain(*parts)), minlength=length)
    assert counts.min() >= 1
    assert counts.sum() - length < world_size


@given(length=st.integers(0, 50), world_size=st.integers(1, 7), shuffle=st.booleans())
def test_dropping_the_last_gives_equal_shares_without_repetition(length, world_size, shuffle):
    parts = shares(length, world_size, shuffle=shuffle, drop_last=True)
    assert {len(part) for part in parts} == {length // world_size}
    assert len(set(chain(*parts))) == length // world_size * world_size


@given(length=st.integers(0, 30), world_size=st.integers(1, 5), shuffle=st.booleans(), drop_last=st.booleans())
def test_the_length_is_that_of_the_share(length, world_size, shuffle, drop_last):
    for rank in range(world_size):
        sampler = ResumableSampler(length, rank=rank, world_size=world_size, shuffle=shuffle, drop_last=drop_last)
        assert len(sampler) == len(list(sampler))


def test_the_order_is_a_function_of_seed_and_epoch():
    sampler = ResumableSampler(100, seed=1)
    first = list(sampler)
    assert list(sampler) == first != list(range(100))
    sampler.set_epoch(1)
    second = list(sampler)
    assert second != first
    assert list(ResumableSampler(100, seed=2)) != first
    again = ResumableSampler(100, seed=1)
    again.set_epoch(1)
    assert list(again) == second


def train(sampler, epochs, *, workers=0, stop_after=None):
    """Samples in the order of training steps; ends after ``stop_after`` steps, as a killed run would."""
    seen, steps = [], 0
    for epoch in range(sampler.epoch, epochs):
        sampler.set_epoch(epoch)
        for batch in DataLoader(range(23), batch_size=4, sampler=sampler, num_workers=workers):
            seen += batch.tolist()
            sampler.advance(len(batch))
            steps += 1
            if steps == stop_after:
                return seen
    return seen


@pytest.mark.parametrize(("workers", "stop_after"), [(0, 1), (0, 5), (0, 6), (0, 8), (0, 12), (2, 1), (2, 8)])
def test_a_resumed_run_goes_on_with_the_very_next_sample_though_workers_had_fetched_ahead(
    tmp_path, workers, stop_after
):
    whole = train(ResumableSampler(23, seed=4), 2)
    assert len(whole) == 46
    killed = ResumableSampler(23, seed=4)
    begun = train(killed, 2, workers=workers, stop_after=stop_after)
    torch.save(killed.state_dict(), tmp_path / "state.pt")
    resumed = ResumableSampler(23, seed=4)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert begun + train(resumed, 2) == whole


def test_setting_the_current_epoch_keeps_the_position_and_another_resets_it():
    sampler = ResumableSampler(10)
    sampler.advance(7)
    sampler.set_epoch(0)
    assert sampler.position == 7
    assert len(list(sampler)) == 3
    sampler.set_epoch(1)
    assert sampler.position == 0
    assert len(list(sampler)) == 10


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"length": 11}, {"world_size": 2}, {"shuffle": False}, {"drop_last": True}, {"blocks": [10]}]
    + [{"position": 11}, {"position": 1.5}, {"epoch": -1}, {"epoch": None}],
    ids=str,
)
def test_a_state_of_another_sampler_is_refused(change):
    sampler = ResumableSampler(10)
    with pytest.raises(ValueError, match=rf"ResumableSampler\.load_state_dict: .*{next(iter(change))}"):
        sampler.load_state_dict(sampler.state_dict() | change)


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"length": -1}, "length=-1"), ({"seed": -1}, "seed=-1"), ({"rank": 2, "world_size": 2}, "rank=2")]
    + [({"rank": -1, "world_size": 2}, "rank=-1"), ({"rank": 0, "world_size": 0}, "world_size=0")],
)
def test_settings_outside_their_range_are_refused(settings, words):
    with pytest.raises(ValueError, match=f"ResumableSampler: {words}"):
        ResumableSampler(settings.pop("length", 4), **settings)


def test_advancing_past_the_end_or_back_is_refused():
    sampler = ResumableSampler(4)
    sampler.advance(3)
    for count in (2, -1):
        with pytest.raises(ValueError, match=rf"advance: count={count}.*0.*1"):
            sampler.advance(count)
    with pytest.raises(ValueError, match="epoch=-1"):
        sampler.set_epoch(-1)


LABELS = [0] * 90 + [3] * 7 + [5] * 3


@given(batch_size=st.integers(1, 12), epoch=st.integers(0, 3), world_size=st.integers(1, 3))
def test_the_class_histogram_is_flat_within_one_in_every_batch_and_in_the_epoch(batch_size, epoch, world_size):
    total = np.zeros(6, np.int64)
    for rank in range(world_size):
        sampler = BalancedBatchSampler(LABELS, batch_size, rank=rank, world_size=world_size)
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert len(batches) == len(sampler)
        for batch in batches:
            assert len(batch) == batch_size
            counts = np.bincount(np.array(LABELS)[batch], minlength=6)
            assert counts[[0, 3, 5]].max() - counts[[0, 3, 5]].min() <= 1
            total += counts
    assert total[[0, 3, 5]].max() - total[[0, 3, 5]].min() <= 1


def test_within_a_class_images_come_equally_often():
    sampler = BalancedBatchSampler(LABELS, 6, batches=15)
    counts = np.bincount(np.concatenate(list(sampler)), minlength=100)
    assert counts[:90].max() == 1
    assert counts[:90].sum() == counts[90:97].sum() == counts[97:].sum() == 30
    assert counts[90:97].max() - counts[90:97].min() <= 1
    assert counts[97:].tolist() == [10, 10, 10]


def test_images_with_several_labels_fill_a_place_of_one_and_those_without_none():
    labels = [torch.tensor([0, 0, 1]), [], [1], torch.zeros(0, dtype=torch.int64), 0]
    drawn = np.concatenate(list(BalancedBatchSampler(labels, 4, batches=20)))
    assert set(drawn.tolist()) == {0, 2, 4}


def test_a_label_below_zero_is_no_class():
    drawn = np.concatenate(list(BalancedBatchSampler([0, -1, torch.tensor([-1, 1]), -1], 4, batches=20)))
    assert set(drawn.tolist()) == {0, 2}
    with pytest.raises(ValueError, match="none of the 2 images has a label"):
        BalancedBatchSampler([-1, [-1]], 4)


def test_balanced_batches_depend_on_seed_and_epoch_and_resume():
    sampler = BalancedBatchSampler(LABELS, 6, seed=1)
    first = list(sampler)
    assert first == list(BalancedBatchSampler(LABELS, 6, seed=1)) != list(BalancedBatchSampler(LABELS, 6, seed=2))
    sampler.advance()
    resumed = BalancedBatchSampler(LABELS, 6, seed=1)
    resumed.load_state_dict(sampler.state_dict())
    assert list(resumed) == first[1:]
    sampler.set_epoch(1)
    assert list(sampler) != first
    same = {"labels_per_image": LABELS, "batch_size": 6, "batches": len(first), "seed": 1}
    for change in ({"batch_size": 3}, {"samples_per_class": 3}, {"labels_per_image": [*LABELS[1:], 5]}):
        with pytest.raises(ValueError, match="another one"):
            BalancedBatchSampler(**same | change).load_state_dict(sampler.state_dict())


def test_places_of_a_class_are_spread_over_the_batch():
    firsts = {LABELS[batch[0]] for batch in BalancedBatchSampler(LABELS, 6, batches=30)}
    assert firsts == {0, 3, 5}


def test_no_labels_and_empty_batches_are_refused():
    with pytest.raises(ValueError, match="2 images"):
        BalancedBatchSampler([[], []], 4)
    with pytest.raises(ValueError, match="batch_size=0"):
        BalancedBatchSampler([0, 1], 0)
    with pytest.raises(ValueError, match="batches=0"):
        BalancedBatchSampler([0, 1], 1, batches=0)


def test_batches_of_several_images_per_class_hold_each_image_once():
    """Eight classes of 5 images and one of 2; P = 4 classes x K = 3 images."""
    labels = [c for c in range(8) for _ in range(5)] + [8, 8]
    sampler = BalancedBatchSampler(labels, 12, samples_per_class=3, batches=6, seed=1)
    seen: set[int] = set()
    for batch in sampler:
        counts = Counter(labels[image] for image in batch)
        assert len(counts) == 4
        assert set(counts.values()) == {3}
        assert all(labels.count(labels[i]) < 3 or batch.count(i) == 1 for i in batch)
        seen |= set(counts)
    assert seen == set(range(9))


def test_ranks_share_the_batches_of_several_images_per_class():
    labels = [c for c in range(6) for _ in range(4)]
    settings = {"samples_per_class": 2, "seed": 3}
    whole = list(BalancedBatchSampler(labels, 4, batches=6, **settings, rank=0, world_size=1))
    shares = [list(BalancedBatchSampler(labels, 4, batches=3, **settings, rank=r, world_size=2)) for r in (0, 1)]
    assert [batch for pair in zip(*shares, strict=True) for batch in pair] == whole


def test_a_batch_holds_whole_classes():
    with pytest.raises(ValueError, match="batch_size=10 is no multiple of samples_per_class=4"):
        BalancedBatchSampler([0, 1], 10, samples_per_class=4)


def test_an_epoch_that_is_over_says_so():
    sampler = BalancedBatchSampler([0, 1, 0, 1], 2)
    sampler.advance(len(sampler))
    with pytest.warns(UserWarning, match=r"BalancedBatchSampler: epoch 0 is over and gives nothing; set_epoch\(1\)"):
        assert list(sampler) == []
    sampler.set_epoch(1)
    assert len(list(sampler)) == 2


@given(
    blocks=st.lists(st.integers(0, 6), max_size=8),
    mixed=st.integers(1, 9),
    world_size=st.integers(1, 3),
    epoch=st.integers(0, 2),
)
def test_blocks_come_in_groups_whose_samples_are_mixed(blocks, mixed, world_size, epoch):
    parts = []
    for rank in range(world_size):
        sampler = ResumableSampler(
            sum(blocks), blocks=blocks, mixed=mixed, rank=rank, world_size=world_size, drop_last=True, seed=3
        )
        sampler.set_epoch(epoch)
        parts.append(list(sampler))
    order = list(chain(*zip(*parts, strict=True)))
    assert len(set(order)) == len(order) == sum(blocks) // world_size * world_size
    owner = np.repeat(np.arange(len(blocks)), blocks)
    first, last = {}, {}
    for place, sample in enumerate(order):
        first.setdefault(owner[sample], place)
        last[owner[sample]] = place
    for begin in first.values():  # no more than one group is open at a time
        assert sum(start <= begin <= last[block] for block, start in first.items()) <= mixed


def test_blocks_are_in_another_order_each_epoch_and_belong_to_the_state():
    sampler = ResumableSampler(40, blocks=[10] * 4, mixed=1)
    orders = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        orders.append([index // 10 for index in list(sampler)[::10]])
    assert len({tuple(order) for order in orders}) > 1
    for other in (
        ResumableSampler(40),
        ResumableSampler(40, blocks=[20] * 2, mixed=1),
        ResumableSampler(40, blocks=[10] * 4),
    ):
        with pytest.raises(ValueError, match="another one"):
            other.load_state_dict(sampler.state_dict())
        with pytest.raises(ValueError, match="another one"):
            sampler.load_state_dict(other.state_dict())
    state = unhooked(ResumableSampler)(np.int64(4), blocks=np.array([1, 3])).state_dict()
    assert json.loads(json.dumps(state)) == state
    with pytest.raises(ValueError, match="ResumableSampler: blocks hold 3 samples"):
        ResumableSampler(4, blocks=[1, 2])
