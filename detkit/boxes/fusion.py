"""Fusion of the detections of several models: overlapping boxes are averaged instead of all but one being dropped."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from numpy.typing import NDArray
from torch import Tensor

from detkit._door import door
from detkit._inputs import as_tensor, check_box_values, check_finite, check_fraction, first_bad, promote
from detkit._threads import on_one_thread

_FUNCTION = "weighted_boxes_fusion"
_LARGEST = 1e150  # areas of larger boxes overflow float64


@door
def weighted_boxes_fusion(
    boxes_list: Sequence[Shaped[Tensor, "_ 4"]],
    scores_list: Sequence[Shaped[Tensor, "_"]],
    labels_list: Sequence[Shaped[Tensor, "_"]],
    *,
    weights: Sequence[float] | None = None,
    iou_threshold: float = 0.55,
    score_threshold: float = 0.0,
    allow_overflow: bool = False,
    nonfinite: Literal["raise", "drop"] = "raise",
) -> tuple[Float[Tensor, "K 4"], Float[Tensor, "K"], Int[Tensor, "K"]]:
    """Boxes, scores and labels of the clusters that the detections of T models form in one image; best first.

    Lists of T tensors, one a model: boxes (N, 4) xyxy in any unit, scores (N,) >= 0, labels (N,) integers; N may
    differ. Boxes in order of score times the model's weight, ties to the earlier, join the cluster of their label whose
    fused box has the largest IoU with them, where that is above ``iou_threshold``; else they found a cluster. The fused
    box is the mean of the members, weighted by their scores; its score is their mean score times min(T, n) / T for n
    members, or with ``allow_overflow`` times n / T, which may exceed 1. ``weights`` (T positive numbers) multiply the
    scores, and their sum replaces the T that divides: only their ratios matter. Scores below ``score_threshold`` are
    left out first. Boxes without area stay alone. Computed in float64 on the host, without a gradient. Raises
    ValueError for rows that are not finite (``nonfinite="drop"`` leaves them out), inverted boxes and negative scores.
    Source: Solovyev et al. 2021, section 3.

    >>> one, other = torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([[0.0, 0, 10, 8], [50, 50, 60, 60]])
    >>> scores, labels = [torch.tensor([0.6]), torch.tensor([0.6, 0.5])], [torch.tensor([3]), torch.tensor([3, 3])]
    >>> weighted_boxes_fusion([one, other], scores, labels)
    (tensor([[ 0.,  0., 10.,  9.],
            [50., 50., 60., 60.]]), tensor([0.6000, 0.2500]), tensor([3, 3]))
    """
    boxes, scores, labels, _ = fused_with_founders(
        boxes_list,
        scores_list,
        labels_list,
        weights=weights,
        iou_threshold=iou_threshold,
        score_threshold=score_threshold,
        allow_overflow=allow_overflow,
        nonfinite=nonfinite,
    )
    return boxes, scores, labels


def fused_with_founders(
    boxes_list: Sequence[Tensor],
    scores_list: Sequence[Tensor],
    labels_list: Sequence[Tensor],
    *,
    weights: Sequence[float] | None = None,
    iou_threshold: float = 0.55,
    score_threshold: float = 0.0,
    allow_overflow: bool = False,
    nonfinite: Literal["raise", "drop"] = "raise",
) -> tuple[Float[Tensor, "K 4"], Float[Tensor, "K"], Int[Tensor, "K"], Int[Tensor, "K"]]:
    """What :func:`weighted_boxes_fusion` returns, and of each cluster the detection that founded it: its best one.

    Founders are rows of all detections, one model's after the other's.

    >>> one, other = torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([[50.0, 50, 60, 60], [0, 0, 10, 9]])
    >>> scores, labels = [torch.tensor([0.6]), torch.tensor([0.5, 0.9])], [torch.tensor([3]), torch.tensor([3, 3])]
    >>> fused_with_founders([one, other], scores, labels)[3]
    tensor([2, 1])
    """
    check_fraction(iou_threshold, name="iou_threshold", function=_FUNCTION)
    check_fraction(score_threshold, name="score_threshold", function=_FUNCTION)
    if nonfinite not in ("raise", "drop"):
        raise ValueError(f"{_FUNCTION}: nonfinite={nonfinite!r}; allowed is 'raise' or 'drop'")
    boxes_list = [boxes.reshape(0, 4) if boxes.shape == (0,) else boxes for boxes in _read("boxes_list", boxes_list)]
    scores_list, labels_list = _read("scores_list", scores_list), _read("labels_list", labels_list)
    _check_lists(boxes_list, scores_list, labels_list)
    weights = _checked_weights(weights, len(boxes_list))
    boxes, scores = (torch.cat([promote(rows.detach()) for rows in parts]) for parts in (boxes_list, scores_list))
    labels = torch.cat([labels.to(torch.int64) for labels in labels_list])  # an empty list of floats among them
    counts = [boxes.shape[0] for boxes in boxes_list]
    return torch.ops.detkit.weighted_boxes_fusion(
        boxes, scores, labels, counts, weights, iou_threshold, score_threshold, allow_overflow, nonfinite == "drop"
    )


def _read(name: str, entries: Sequence[Any]) -> list[Tensor]:
    form = "XYXY" if name == "boxes_list" else None
    return [as_tensor(rows, function=_FUNCTION, name=f"{name}[{i}]", form=form) for i, rows in enumerate(entries)]


def _check_lists(boxes_list: Sequence[Tensor], scores_list: Sequence[Tensor], labels_list: Sequence[Tensor]) -> None:
    lengths = len(boxes_list), len(scores_list), len(labels_list)
    if len(set(lengths)) > 1 or lengths[0] == 0:
        raise ValueError(
            f"{_FUNCTION}: boxes_list, scores_list and labels_list have {lengths[0]}, {lengths[1]} and {lengths[2]} "
            "entries; allowed is one of each for every model, and at least one model"
        )
    for model, (boxes, scores, labels) in enumerate(zip(boxes_list, scores_list, labels_list, strict=True)):
        if boxes.ndim != 2 or boxes.shape[1] != 4:
            raise ValueError(f"{_FUNCTION}: boxes_list[{model}] has shape {tuple(boxes.shape)}; allowed is (N, 4)")
        for name, entries in (("scores_list", scores), ("labels_list", labels)):
            if entries.shape != boxes.shape[:1]:
                raise ValueError(
                    f"{_FUNCTION}: {name}[{model}] has shape {tuple(entries.shape)}; allowed is one entry for each "
                    f"of the {boxes.shape[0]} boxes"
                )
        if boxes.shape[0] and (labels.is_floating_point() or labels.is_complex()):
            raise ValueError(f"{_FUNCTION}: labels_list[{model}] has type {labels.dtype}; allowed is an integer type")


def _checked_weights(weights: Sequence[float] | None, models: int) -> list[float]:
    weights = [1.0] * models if weights is None else [float(weight) for weight in weights]
    if len(weights) != models or not all(0 < weight < float("inf") for weight in weights):
        raise ValueError(f"{_FUNCTION}: weights={weights} must be a positive finite number for each of {models} models")
    return [weight / max(weights) for weight in weights]  # only their ratios matter, and their sum stays finite


@torch.library.custom_op("detkit::weighted_boxes_fusion", mutates_args=())
@on_one_thread
def _weighted_boxes_fusion(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    counts: Sequence[int],
    weights: Sequence[float],
    iou_threshold: float,
    score_threshold: float,
    allow_overflow: bool,
    drop: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if not drop:
        _check_values(boxes.split(counts), scores.split(counts))
    rows, numbers = boxes.to("cpu", torch.float64), scores.to("cpu", torch.float64)
    used = (torch.isfinite(rows).all(1) & torch.isfinite(numbers) & (numbers >= score_threshold)).numpy()
    weighted = numbers.numpy() * np.repeat(np.array(weights), counts)
    order = np.argsort(-weighted, kind="stable")
    order = order[used[order]]
    found = rows.clamp(-_LARGEST, _LARGEST).numpy()[order]
    fused, total, size, founder = _clusters(found, weighted[order], labels.cpu().numpy()[order], iou_threshold)
    share = size if allow_overflow else np.minimum(size, len(weights))
    result = torch.from_numpy(total / size * share / sum(weights)).to(scores)
    founder = torch.from_numpy(order[founder])
    best = founder.argsort()  # of equal scores, the cluster whose founder stands earlier
    best = best[result.cpu()[best].argsort(descending=True, stable=True)]
    return (
        torch.from_numpy(fused)[best].to(boxes),
        result[best.to(scores.device)],
        labels[founder[best].to(labels.device)],
        founder[best].to(boxes.device),
    )


@_weighted_boxes_fusion.register_fake
def _(boxes, scores, labels, counts, weights, iou_threshold, score_threshold, allow_overflow, drop):
    count = torch.library.get_ctx().new_dynamic_size()
    founders = boxes.new_empty(count, dtype=torch.int64)
    return boxes.new_empty(count, 4), scores.new_empty(count), labels.new_empty(count), founders


def _check_values(boxes_list: Sequence[Tensor], scores_list: Sequence[Tensor]) -> None:
    for model, (boxes, scores) in enumerate(zip(boxes_list, scores_list, strict=True)):
        check_box_values(boxes, function=_FUNCTION, name=f"boxes_list[{model}]")
        check_finite(scores, function=_FUNCTION, name=f"scores_list[{model}]")
        if (scores < 0).any():
            (index,), count = first_bad(scores < 0)
            raise ValueError(
                f"{_FUNCTION}: scores_list[{model}][{index}]={scores[index].item():g} must be at least 0; "
                f"{count} of {len(scores)} below"
            )


def _clusters(
    boxes: NDArray[np.float64], scores: NDArray[np.float64], labels: NDArray[np.int64], iou_threshold: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Fused boxes, sums of scores, numbers of members, and founders of the clusters that boxes form in their order."""
    parts = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    empty = np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64), np.zeros(0, np.int64)
    columns = zip(empty, *(_clusters_of_one_label(boxes, scores, part, iou_threshold) for part in parts), strict=True)
    fused, total, size, founder = (np.concatenate(column) for column in columns)
    return fused, total, size, founder


def _clusters_of_one_label(
    boxes: NDArray[np.float64], scores: NDArray[np.float64], part: NDArray[np.int64], iou_threshold: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """As :func:`_clusters`, of the boxes at the places ``part``; the arrays are filled from the front."""
    fused, areas, total = np.zeros((4, len(part))), np.zeros(len(part)), np.zeros(len(part))
    size, founder = np.zeros(len(part), np.int64), np.zeros(len(part), np.int64)
    count = 0
    for i, box, score in zip(part, boxes[part], scores[part], strict=True):
        overlaps = _overlaps(box, fused[:, :count], areas[:count])
        best = int(overlaps.argmax()) if count else 0
        if count == 0 or not overlaps[best] > iou_threshold:
            best, count = count, count + 1
            founder[best], fused[:, best] = i, box
        size[best] += 1
        total[best] += score
        share = score / total[best] if total[best] > 0 else 1 / size[best]  # scores of 0 weigh alike
        fused[:, best] += (box - fused[:, best]) * share
        x1, y1, x2, y2 = fused[:, best]
        areas[best] = max(x2 - x1, 0) * max(y2 - y1, 0)
    return fused[:, :count].T, total[:count], size[:count], founder[:count]


def _overlaps(box: NDArray[np.float64], others: NDArray[np.float64], areas: NDArray[np.float64]) -> NDArray[np.float64]:
    """IoU of one box (4,) with others (4, C) of known area; 0 where neither has one."""
    x1, y1, x2, y2 = box
    width = np.minimum(others[2], x2) - np.maximum(others[0], x1)
    height = np.minimum(others[3], y2) - np.maximum(others[1], y1)
    both = np.maximum(width, 0) * np.maximum(height, 0)
    union = areas + max(x2 - x1, 0) * max(y2 - y1, 0) - both
    return both / np.where(union > 0, union, 1)
