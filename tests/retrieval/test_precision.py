"""Retrieval metrics: goldens, loops over ranked lists, pytorch-metric-learning's numbers, and lone queries."""

import numpy as np
import pytest
import torch
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from strategies import assert_refused, unhooked
from torch import Tensor

from detkit.retrieval import (
    CosineDistance,
    Gallery,
    map_at_r,
    neighbor_average_precision,
    precision_at_k,
    r_precision,
    recall_at_k,
)
from detkit.retrieval import precision as module

POINTS = torch.tensor([[0, 0], [0, 1], [1, 0], [5, 5], [5, 6], [6, 5.5], [0.4, 0.6]])
SETS = torch.tensor([[1, 0], [1, 0], [0, 1], [0, 1], [0, 1], [1, 1], [1, 0]])
METRICS = recall_at_k, precision_at_k, r_precision, map_at_r, neighbor_average_precision


def test_the_golden_numbers_of_the_source():
    found = neighbor_average_precision(POINTS, SETS, (1, 2, 3))
    assert {k: values.tolist() for k, values in found.per_class.items()} == {
        1: [0.75, 0.75],
        2: [0.75, 0.75],
        3: [0.5, pytest.approx(0.583333, abs=1e-6)],
    }
    assert found.values[3] == pytest.approx((0.583333 + 0.5) / 2, abs=1e-6)


def batch(rows: int = 60, classes: int = 6, *, sets: bool = False, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Points on a coarse grid, so with many ties, and labels of which one is alone and some take no part."""
    rng = np.random.default_rng(seed)
    points = torch.from_numpy(rng.integers(0, 4, (rows, 3))).float()
    labels = torch.from_numpy(rng.integers(0, 2, (rows, classes)) if sets else rng.integers(0, classes, rows))
    if not sets:
        labels[0], labels[5:8] = classes, -1
    return points, labels


def classes_of(labels: Tensor) -> list[set[int]]:
    if labels.ndim == 1:
        return [{int(label)} - {-1} for label in labels]
    return [set(row.nonzero().flatten().tolist()) for row in labels]


def ranked(points: Tensor, labels: Tensor, gallery: Gallery | None, ids: list[int] | None) -> list[tuple]:
    """Of each query its classes, and those of the others, nearest first, in a loop."""
    searched = Gallery(points, labels, ids) if gallery is None else gallery
    numbers = list(range(len(searched.labels)) if searched.ids is None else searched.ids)
    own = numbers if gallery is None else (ids or [None] * len(points))
    theirs, found = classes_of(searched.labels), []
    for i, mine in enumerate(classes_of(labels)):
        if labels.ndim == 1 and not mine:
            continue
        others = [
            (float((points[i] - searched.embeddings[j]).norm()), numbers[j], theirs[j])
            for j in range(len(numbers))
            if numbers[j] != own[i] and (searched.labels.ndim == 2 or theirs[j])
        ]
        found.append((mine, [other for *_, other in sorted(others, key=lambda row: row[:2])]))
    return found


def by_hand(name: str, lists: list[tuple], k: int) -> float:
    values = []
    for mine, others in lists:
        hits = [bool(mine & other) for other in others]
        total = sum(hits)
        if not total:
            continue
        values.append(
            {
                "any": float(any(hits[:k])),
                "fraction": sum(hits[:k]) / total,
                "precision": sum(hits[:k]) / max(k, 1),
                "r_precision": sum(hits[:total]) / total,
                "map_at_r": sum(sum(hits[: i + 1]) / (i + 1) for i in range(total) if hits[i]) / total,
            }[name]
        )
    return float(np.mean(values))


def by_class(lists: list[tuple], k: int) -> float:
    values: dict[int, list[float]] = {}
    for mine, others in lists:
        if any(mine & other for other in others):
            for c in mine:
                values.setdefault(c, []).append(sum(c in other for other in others[:k]) / k)
    return float(np.mean([np.mean(own) for own in values.values()]))


@pytest.mark.parametrize("how", ["itself", "itself by ids", "gallery", "gallery with itself"])
@pytest.mark.parametrize("sets", [False, True])
@pytest.mark.slow
def test_every_metric_is_its_loop(monkeypatch, sets, how):
    monkeypatch.setattr(module, "_QUERIES", 13)
    points, labels = batch(sets=sets)
    gallery, ids = None, None
    if how != "itself":
        ids = (np.random.default_rng(2).permutation(200)[:60]).tolist()
    if how.startswith("gallery"):
        others, theirs = batch(50, sets=sets, seed=1)
        gallery = Gallery(others, theirs, ids[:50] if "itself" in how else None)
        ids = ids if "itself" in how else None
    lists = ranked(points, labels, gallery, ids)
    given = {"gallery": gallery, "ids": ids}
    ks = 1, 4, 20
    for k, value in recall_at_k(points, labels, ks, **given).values.items():
        assert value == pytest.approx(by_hand("any", lists, k))
    for k, value in recall_at_k(points, labels, ks, definition="fraction", **given).values.items():
        assert value == pytest.approx(by_hand("fraction", lists, k))
    for k, value in precision_at_k(points, labels, ks, **given).values.items():
        assert value == pytest.approx(by_hand("precision", lists, k))
    assert r_precision(points, labels, **given) == pytest.approx(by_hand("r_precision", lists, 0))
    assert map_at_r(points, labels, **given) == pytest.approx(by_hand("map_at_r", lists, 0))
    for k, value in neighbor_average_precision(points, labels, ks, **given).values.items():
        assert value == pytest.approx(by_class(lists, k))


def test_queries_with_nothing_to_find_are_left_out_and_counted():
    points, labels = batch()
    found = recall_at_k(points, labels, 3)
    assert (found.queries, found.lone) == (56, 1)
    scores = neighbor_average_precision(points, labels, 3)
    assert scores.lone == 1
    assert scores.per_class[3].isnan().tolist() == [False] * 6 + [True]


def test_it_is_pytorch_metric_learnings():
    rng = np.random.default_rng(0)
    points = torch.from_numpy(rng.normal(size=(200, 8))).float()
    labels = torch.from_numpy(rng.integers(0, 7, 200))
    names = ("precision_at_1", "r_precision", "mean_average_precision_at_r")
    theirs = AccuracyCalculator(include=names, k="max_bin_count").get_accuracy(points, labels)
    assert precision_at_k(points, labels).values[1] == pytest.approx(theirs["precision_at_1"])
    assert r_precision(points, labels) == pytest.approx(theirs["r_precision"])
    assert map_at_r(points, labels) == pytest.approx(theirs["mean_average_precision_at_r"])


def test_another_distance_ranks_otherwise():
    points, labels = torch.tensor([[1.0, 0], [9, 1], [1, 1]]), torch.tensor([0, 0, 1])
    assert recall_at_k(points, labels, 1).values[1] == 0
    assert recall_at_k(points, labels, 1, distance=CosineDistance()).values[1] == 1


@pytest.mark.parametrize("metric", METRICS)
def test_what_is_wrong_is_named(metric):
    points, labels = POINTS, torch.tensor([0, 0, 1, 1, 1, 2, 2])
    name = metric.__name__
    given_k = {} if metric in (r_precision, map_at_r) else {"k": 1}
    with pytest.raises(ValueError, match=f"{name}: none of 7 queries has an equal one to find: every label is alone"):
        metric(points, torch.arange(7), **given_k)
    spoiled = points.clone()
    spoiled[2, 1] = torch.nan
    for arguments, given, message in (
        ((spoiled, labels), {}, r"embeddings\[2, 1\].*nan"),
        ((points, labels[:3]), {}, r"embeddings have shape \(7, 2\) and labels \(3,\)"),
        ((points, labels), {"ids": [1, 1, 2, 3, 4, 5, 6]}, r"ids\[1\]=1 comes twice"),
        ((points, labels), {"ids": [1]}, "1 ids for 7 vectors"),
        ((points, labels), {"gallery": Gallery(points[:0], labels[:0])}, "gallery have shape .* at least one row"),
        ((points, labels), {"gallery": Gallery(points[:, :1], labels)}, "may differ in their number only"),
    ):
        with pytest.raises(ValueError, match=message):
            unhooked(metric)(*arguments, **given_k, **given)


@pytest.mark.parametrize("metric", [recall_at_k, precision_at_k, neighbor_average_precision])
def test_a_k_above_the_gallery_is_named(metric):
    labels = torch.tensor([0, 0, 1, 1, 1, 2, 2])
    with pytest.raises(ValueError, match=r"k=7 of 6 vectors in the gallery, the query left out; allowed is 1..6"):
        metric(POINTS, labels, (1, 7))
    with pytest.raises(ValueError, match=r"k=8 of 7 vectors in the gallery; allowed is 1..7"):
        metric(POINTS, labels, 8, gallery=Gallery(POINTS, labels))
    with pytest.raises(ValueError, match="k is empty"):
        metric(POINTS, labels, ())


def test_another_definition_is_refused():
    with pytest.raises(ValueError, match="definition='all'; allowed are 'any' and 'fraction'"):
        unhooked(recall_at_k)(POINTS, SETS, definition="all")


@pytest.mark.parametrize("metric", METRICS)
def test_labels_that_say_nothing_or_are_of_another_kind_are_named(metric):
    labels, sets = torch.tensor([0, 0, 1, 1, 1, 2, 2]), torch.ones(7, 2, dtype=torch.int64)
    given_k = {} if metric in (r_precision, map_at_r) else {"k": 1}
    padding, spoiled = torch.full((7,), -1), POINTS.clone()
    spoiled[3, 0] = torch.inf
    for mine, gallery, message in (
        (padding, None, f"{metric.__name__}: nothing can be found"),
        (labels, Gallery(POINTS, padding), f"{metric.__name__}: nothing can be found"),
        (padding, Gallery(POINTS, labels), f"{metric.__name__}: none of 0 queries has an equal one"),
        (labels, Gallery(POINTS, sets), r"labels have shape \(7,\), and those of gallery \(7, 2\)"),
        (sets, Gallery(POINTS, labels), r"labels have shape \(7, 2\), and those of gallery \(7,\)"),
        (sets, Gallery(POINTS, sets[:, :1]), r"labels have shape \(7, 2\), and those of gallery \(7, 1\)"),
        (labels, Gallery(spoiled, labels), f"{metric.__name__}: embeddings of gallery\\[3, 0\\]=inf"),
    ):
        with pytest.raises(ValueError, match=message):
            unhooked(metric)(POINTS, mine, gallery=gallery, **given_k)


def test_what_padding_holds_is_not_looked_at():
    points, labels = torch.cat((POINTS, torch.full((1, 2), torch.nan))), torch.tensor([0, 0, 1, 1, 1, 2, 2, -1])
    assert recall_at_k(points, labels, 2) == recall_at_k(POINTS, labels[:7], 2)


def test_ids_given_for_classes_are_named():
    labels = torch.tensor([0, 0, 1, 1, 1, 2, 2]) + 2**62
    assert recall_at_k(POINTS, labels).queries == 7
    with pytest.raises(ValueError, match="neighbor_average_precision: labels reach 4611686018427387906; number the"):
        neighbor_average_precision(POINTS, labels)


@pytest.mark.parametrize("metric", METRICS)
def test_fractions_are_no_labels_and_no_label_sets(metric):
    points, _ = batch()
    function = metric.__name__
    assert_refused(f"{function}: labels 0.5 0 and 1", metric, points, torch.full((60, 3), 0.5))


def test_labels_of_truth_values_are_those_of_0_and_1():
    points, labels = batch()
    assert recall_at_k(points, labels > 2, (1, 3)) == recall_at_k(points, (labels > 2).long(), (1, 3))
