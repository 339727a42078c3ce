"""Greedy grouping: the two most similar neighbors merge into one region until the whole image is one."""

import heapq
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from detkit.proposals.similarity import MEASURES, Regions, fill_similarity, histogram_similarity, size_similarity


class Hierarchy(NamedTuple):
    """2n - 1 regions of n segments: the segments first, then every merged region in the order of merging.

    boxes: xyxy in pixels; levels: 1 for a segment, else 1 + the higher level of its parts; parents: the region that
    each was merged into; the last region is its own parent.
    """

    boxes: Float[np.ndarray, "R 4"]
    levels: Int[np.ndarray, "R"]
    parents: Int[np.ndarray, "R"]


def group(regions: Regions, pairs: Int[np.ndarray, "M 2"], *, measures: str = MEASURES) -> Hierarchy:
    """Merge neighbors by the sum of the ``measures`` until none are left (Uijlings et al. 2013, algorithm 1).

    pairs (M, 2) says which regions touch. Among equally similar pairs the one with the lower indices merges first.
    Regions without neighbors are never merged; then there are fewer than 2n - 1.

    >>> regions = Regions(np.array([4.0, 4, 8]), np.array([[0.0, 0, 2, 2], [2, 0, 4, 2], [0, 2, 4, 4]]),
    ...                   np.array([[1.0, 0], [1, 0], [0, 1]]), colors=2)
    >>> hierarchy = group(regions, np.array([[0, 1], [0, 2], [1, 2]]), measures="C")
    >>> hierarchy.boxes[3:].tolist(), hierarchy.parents.tolist(), hierarchy.levels.tolist()
    ([[0.0, 0.0, 4.0, 2.0], [0.0, 0.0, 4.0, 4.0]], [3, 3, 4, 4, 4], [1, 1, 1, 2, 3])
    """
    if not measures or not set(measures) <= set(MEASURES):
        raise ValueError(f"group: measures={measures!r}; allowed are letters of {MEASURES!r}, at least one")
    grouping = _Grouping(regions, pairs, measures)
    grouping.run()
    return grouping.hierarchy()


class _Grouping:
    """Arrays with room for all regions to come, and a heap of pairs; pairs of regions already merged are skipped."""

    def __init__(self, regions: Regions, pairs: Int[np.ndarray, "M 2"], measures: str) -> None:
        self.count = len(regions.sizes)
        self.image_size = float(regions.sizes.sum())
        self.measures = measures
        self.sizes = _with_room(regions.sizes)
        self.boxes = _with_room(regions.boxes)
        self.histograms = _with_room(_columns(regions, measures))
        self.levels = np.ones(len(self.sizes), np.int64)
        self.parents = np.arange(len(self.sizes))
        self.neighbors: list[set[int]] = [set() for _ in range(self.count)]
        for a, b in pairs.tolist():
            self.neighbors[a].add(b)
            self.neighbors[b].add(a)
        alike = self.similarity(pairs[:, 0], pairs[:, 1])
        self.heap = [(-s, a, b) for s, (a, b) in zip(alike.tolist(), pairs.tolist(), strict=True)]
        heapq.heapify(self.heap)

    def run(self) -> None:
        merged: set[int] = set()
        while self.heap:
            _, a, b = heapq.heappop(self.heap)
            if a not in merged and b not in merged:
                merged |= {a, b}
                self.merge(a, b)

    def merge(self, a: int, b: int) -> None:
        new = self.count
        self.count += 1
        sizes = self.sizes[[a, b]]
        self.sizes[new] = sizes.sum()
        self.boxes[new] = _hull(self.boxes[a], self.boxes[b])
        self.histograms[new] = (sizes[0] * self.histograms[a] + sizes[1] * self.histograms[b]) / sizes.sum()
        self.levels[new] = 1 + max(self.levels[a], self.levels[b])
        self.parents[[a, b]] = new
        self.introduce(new, (self.neighbors[a] | self.neighbors[b]) - {a, b}, gone={a, b})

    def introduce(self, new: int, neighbors: set[int], *, gone: Iterable[int]) -> None:
        self.neighbors.append(neighbors)
        for other in neighbors:
            self.neighbors[other].difference_update(gone)
            self.neighbors[other].add(new)
        others = sorted(neighbors)
        if others:
            alike = self.similarity(np.array(others), np.array([new]))
            for s, other in zip(alike.tolist(), others, strict=True):
                heapq.heappush(self.heap, (-s, other, new))

    def similarity(self, a: Int[np.ndarray, "m"], b: Int[np.ndarray, "#m"]) -> Float[np.ndarray, "m"]:
        """The sum of the measures between the regions ``a`` and ``b``; ``b`` may be a single region for all of
        ``a``."""
        total = np.zeros(len(a))
        if self.histograms.shape[1]:
            total += histogram_similarity(self.histograms[a], self.histograms[b])
        if "S" in self.measures:
            total += size_similarity(self.sizes[a], self.sizes[b], self.image_size)
        if "F" in self.measures:
            hull = _hull(self.boxes[a], self.boxes[b])
            area = (hull[:, 2] - hull[:, 0]) * (hull[:, 3] - hull[:, 1])
            total += fill_similarity(self.sizes[a], self.sizes[b], area, self.image_size)
        return total

    def hierarchy(self) -> Hierarchy:
        return Hierarchy(self.boxes[: self.count], self.levels[: self.count], self.parents[: self.count])


def _columns(regions: Regions, measures: str) -> Float[np.ndarray, "n h"]:
    """The histograms that the measures read."""
    start = 0 if "C" in measures else regions.colors
    return regions.histograms[:, start : None if "T" in measures else max(start, regions.colors)]


def _with_room(rows: Float[np.ndarray, "n ..."]) -> Float[np.ndarray, "R ..."]:
    return np.concatenate((rows, np.zeros((max(len(rows) - 1, 0), *rows.shape[1:]))))


def _hull(boxes: Float[np.ndarray, "*m 4"], others: Float[np.ndarray, "*#m 4"]) -> Float[np.ndarray, "*m 4"]:
    """The smallest boxes around both."""
    return np.concatenate(
        (np.minimum(boxes[..., :2], others[..., :2]), np.maximum(boxes[..., 2:], others[..., 2:])), axis=-1
    )
