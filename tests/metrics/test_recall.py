"""Recall of proposals: known answers, and the two ways to match."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detkit.metrics import CocoMetrics, ProposalRecall


def boxes_of(*rows):
    boxes = torch.from_numpy(np.array(rows, dtype=np.float64).reshape(-1, 4))
    return torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1)


PROPOSALS = [
    {
        "boxes": boxes_of((12, 12, 40, 40), (11, 9, 38, 42), (100, 105, 60, 30), (150, 150, 20, 20)),
        "scores": torch.tensor([0.9, 0.8, 0.7, 0.95]),
    },
    {
        "boxes": boxes_of((22, 20, 20, 20), (60, 60, 100, 90), (0, 0, 30, 30)),
        "scores": torch.tensor([0.6, 0.5, 0.55]),
    },
]
TARGETS = [
    {"boxes": boxes_of((10, 10, 40, 40), (100, 100, 60, 30)), "labels": torch.tensor([3, 9])},
    {"boxes": boxes_of((20, 20, 20, 20), (60, 60, 100, 100)), "labels": torch.tensor([3, 9])},
]


def recall(proposals, targets, *ks, **options):
    metrics = ProposalRecall(ks, **options)
    metrics.update(proposals, targets)
    return metrics.compute()


@pytest.mark.parametrize("engine", ["pycocotools", "hotcoco"])
def test_two_images_worked_out_by_hand(engine):
    if engine == "hotcoco":
        pytest.importorskip("hotcoco")
    numbers = recall(PROPOSALS, TARGETS, 1, 2, 3, 100, engine=engine)
    found = [numbers[f"AR@{k}"] for k in (1, 2, 3, 100)]
    assert found == pytest.approx([0.175, 0.35, 0.625, 0.75])
    assert [name for name in numbers if "@" not in name] == ["AR50", "AR75", "ARs", "ARm", "ARl"]


def test_one_proposal_over_two_objects_covers_both_only_where_any_may_match():
    twins = {"boxes": boxes_of((0, 0, 40, 40), (0, 0, 40, 40)), "labels": torch.tensor([0, 0])}
    one = [{"boxes": boxes_of((0, 0, 40, 40)), "scores": torch.ones(1)}]
    assert recall(one, [twins], 5)["AR@5"] == 0.5
    assert recall(one, [twins], 5, match="any") == {"AR@5": 1.0}


def test_proposals_without_scores_come_best_first():
    order = torch.tensor([3, 0, 1, 2])
    sorted_first = {"boxes": PROPOSALS[0]["boxes"][order]}
    for match in ("one-to-one", "any"):
        with_scores = recall(PROPOSALS[:1], TARGETS[:1], 1, 2, 3, match=match)
        assert recall([sorted_first], TARGETS[:1], 1, 2, 3, match=match) == with_scores


@pytest.mark.parametrize("match", ["one-to-one", "any"])
def test_crowds_and_images_without_objects_or_proposals_do_not_break_it(match):
    nothing = {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0)}
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long()}
    assert recall([nothing, PROPOSALS[0]], [TARGETS[0], empty], 5, match=match)["AR@5"] == 0
    assert recall([PROPOSALS[0]], [empty], 5, match=match)["AR@5"] == -1
    crowd = TARGETS[0] | {"iscrowd": torch.tensor([0, 1])}
    (kept,) = [{"boxes": TARGETS[0]["boxes"][:1], "labels": torch.zeros(1).long()}]
    assert (
        recall(PROPOSALS[:1], [crowd], 5, match=match)["AR@5"] == recall(PROPOSALS[:1], [kept], 5, match=match)["AR@5"]
    )


@pytest.mark.slow
@given(st.integers(0, 2**32 - 1))
@settings(max_examples=25)
def test_any_match_recalls_at_least_as_much_and_equals_judging_each_object_alone(seed):
    random = np.random.default_rng(seed)
    sizes = random.integers(1, 6), random.integers(0, 8)
    true, found = (boxes_of(*np.c_[random.integers(0, 6, (n, 2)), random.integers(1, 6, (n, 2))]) for n in sizes)
    proposals = {"boxes": found, "scores": torch.from_numpy(random.random(sizes[1]))}
    together = {"boxes": true, "labels": torch.zeros(len(true)).long()}
    alone = [{"boxes": box[None], "labels": torch.zeros(1).long()} for box in true]
    loose, strict = (recall([proposals], [together], 1, 3, match=match) for match in ("any", "one-to-one"))
    each = recall([proposals] * len(alone), alone, 1, 3)
    for k in (1, 3):
        assert loose[f"AR@{k}"] == pytest.approx(each[f"AR@{k}"])
        assert loose[f"AR@{k}"] >= strict[f"AR@{k}"] - 1e-12


def test_it_is_coco_without_labels():
    metrics = CocoMetrics(10, class_agnostic=True)
    metrics.update([proposal | {"labels": torch.arange(len(proposal["boxes"]))} for proposal in PROPOSALS], TARGETS)
    numbers = recall(PROPOSALS, TARGETS, 1, 10, 100)
    assert numbers == {name: metrics.compute()[f"bbox/{name}"] for name in numbers}


def test_other_ways_to_match_are_refused_and_reset_forgets():
    with pytest.raises(ValueError, match=r"ProposalRecall: match='best'; allowed are \('one-to-one', 'any'\)"):
        ProposalRecall(match="best")
    metrics = ProposalRecall((5,))
    metrics.update(PROPOSALS, TARGETS)
    metrics.reset()
    assert metrics.compute()["AR@5"] == -1
