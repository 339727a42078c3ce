"""Proposals that another program made: read from a COCO result file, checked, and padded for a detector.

BING, EdgeBoxes, objectness, or a stored RPN: any program that writes ``[{"image_id", "bbox", "score"}, ...]``.
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from reprlib import Repr
from typing import Any, Literal, TypedDict

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from detkit._door import door
from detkit._inputs import promote, read_tensor
from detkit._ranges import Count
from detkit._regular_file import read_json
from detkit._sent import sent
from detkit.structures import Detections, pad_rows, read_entries

MAX_COORDINATE = float(1 << 31)
"""Larger numbers, in either direction, are refused."""

_short = Repr()
_short.maxstring = _short.maxother = 120


class Proposals(TypedDict):
    """Boxes of one image that may hold an object, best first: boxes (N, 4) xyxy in its pixels, scores (N,)."""

    boxes: Tensor
    scores: Tensor


@door
def load_proposals(
    path: str | Path,
    image_ids: Sequence[int],
    sizes: Sequence[tuple[Count, Count]],
    *,
    max_proposals: Count | None = None,
    unknown: Literal["raise", "drop"] = "raise",
) -> list[Proposals]:
    """The proposals of each image from a COCO result file, best first, ties in the order of the file.

    path: a JSON list of dicts with image_id, bbox (x, y, width, height in pixels) and score; other keys, such as
    category_id, are ignored. image_ids (B,) are the images to return, in this order, and sizes their (height, width):
    ``CocoDataset`` has ``image_ids`` and ``image_size(index)``. Boxes are clipped to the image; boxes that lie outside
    are dropped. An image without proposals has boxes (0, 4). max_proposals: how many of the best to keep per image.

    Raises ValueError naming the file and the entry if the file is not a list, a key is missing or of the wrong type,
    numbers are not finite, sizes are negative, or the image is not among image_ids (``unknown="drop"`` skips such
    entries, for the file of a larger set).

    >>> import json, tempfile
    >>> from pathlib import Path
    >>> rows = [{"image_id": 7, "bbox": [1, 2, 3, 4], "score": 0.5}, {"image_id": 7, "bbox": [0, 0, 9, 9], "score": 1}]
    >>> with tempfile.TemporaryDirectory() as root:
    ...     written = Path(root, "boxes.json").write_text(json.dumps(rows))
    ...     found = load_proposals(Path(root, "boxes.json"), [7, 8], [(6, 8), (6, 8)])
    >>> [image["boxes"].tolist() for image in found]
    [[[0.0, 0.0, 8.0, 6.0], [1.0, 2.0, 4.0, 6.0]], []]
    """
    _check(image_ids, sizes, unknown)
    source = f"load_proposals: {path}"
    rows = read_json(path, owner="load_proposals")
    if not isinstance(rows, list):
        raise ValueError(f"{source} holds a {type(rows).__name__}; allowed is a list of image_id, bbox and score")
    owners, boxes, scores = _columns(rows, {image: i for i, image in enumerate(image_ids)}, unknown, source)
    boxes = _clipped(
        boxes, np.array([(width, height) * 2 for height, width in sizes], np.float64).reshape(-1, 4)[owners]
    )
    keep = np.flatnonzero((boxes[:, 2:] > boxes[:, :2]).all(axis=1))
    order = keep[np.lexsort((-scores[keep], owners[keep]))]  # stable: by image, then by score
    cuts = np.searchsorted(owners[order], np.arange(len(image_ids) + 1))
    parts = [order[start:stop][:max_proposals] for start, stop in pairwise(cuts)]
    return [{"boxes": _tensor(boxes[part]), "scores": _tensor(scores[part])} for part in parts]


@door
def pad_proposals(
    proposals: Sequence[Proposals], *, max_proposals: Count | None = None, device: torch.device | None = None
) -> Detections:
    """Proposals of B images as one padded batch of class 0, the input of ``Detector(images, proposals=)``.

    Boxes (N_i, 4) and scores (N_i,) come best first and keep their order. K is ``max_proposals``, the best of each
    image: it does not depend on values, so the model compiles once. Without it K is the largest number in any image, at
    least 1. The result is on ``device``, by default that of the first boxes, and in the widest dtype of all images,
    promoted. Arrays and nested lists are accepted as in targets. Raises ValueError for an empty list, and naming the
    image if boxes or scores are missing or disagree; TypeError for values that are not numbers.

    >>> padded = pad_proposals([{"boxes": torch.ones(1, 4), "scores": torch.ones(1)},
    ...                         {"boxes": torch.ones(3, 4), "scores": torch.ones(3)}], max_proposals=2)
    >>> padded.boxes.shape, padded.valid.tolist()
    (torch.Size([2, 2, 4]), [[True, False], [True, True]])
    """
    if not proposals:
        raise ValueError("pad_proposals: proposals of 0 images; allowed is at least 1")
    boxes, scores = zip(*(_rows(i, image) for i, image in enumerate(proposals)), strict=True)
    length = max_proposals or max(1, *map(len, boxes))
    counts = torch.tensor([min(len(rows), length) for rows in boxes])
    padded = Detections(
        boxes=pad_rows(boxes, length),
        scores=pad_rows(scores, length),
        labels=torch.zeros(len(boxes), length, dtype=torch.int64),
        valid=torch.arange(length) < counts[:, None],
    )
    device = padded.boxes.device if device is None else device
    return Detections._make(None if rows is None else sent(rows, device) for rows in padded)


def _check(image_ids: Sequence[int], sizes: Sequence[tuple[int, int]], unknown: str) -> None:
    if len(set(image_ids)) != len(image_ids) or len(sizes) != len(image_ids):
        raise ValueError(
            f"load_proposals: {len(image_ids)} image_ids, {len(set(image_ids))} of them different, and {len(sizes)} "
            "sizes; allowed are different ids, with a size for each"
        )
    if unknown not in ("raise", "drop"):
        raise ValueError(f"load_proposals: unknown={unknown!r}; allowed is 'raise' or 'drop'")


def _columns(
    rows: list[Any], positions: dict[int, int], unknown: str, source: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The image's position, xyxy box and score of every row of a requested image."""
    owners, boxes, scores = [], [], []
    for i, row in enumerate(rows):
        problem = _problem(row)
        if problem:
            raise ValueError(f"{source}: entry {i}: {problem}")
        owner = positions.get(row["image_id"])
        if owner is not None:
            owners.append(owner)
            boxes.append(row["bbox"])
            scores.append(row["score"])
        elif unknown == "raise":
            raise ValueError(
                f"{source}: entry {i}: image_id={row['image_id']} is none of the {len(positions)} image_ids; "
                "unknown='drop' passes over such entries"
            )
    corners = np.array(boxes, np.float64).reshape(-1, 4)
    corners[:, 2:] += corners[:, :2]
    return np.array(owners, np.int64), corners, np.array(scores, np.float64)


def _problem(row: Any) -> str:
    """What is wrong with an entry, or nothing."""
    if not isinstance(row, dict):
        return f"is {_short.repr(row)}; allowed is a dict with image_id, bbox and score"
    missing = [key for key in ("image_id", "bbox", "score") if key not in row]
    if missing:
        return f"{missing[0]} is missing"
    if type(row["image_id"]) is not int:
        return f"image_id={_short.repr(row['image_id'])}; allowed is an integer"
    box = row["bbox"]
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)) or min(box[2:]) < 0:
        return (
            f"bbox={_short.repr(box)}; allowed are x, y, width, height: finite numbers within {MAX_COORDINATE:g}, "
            "width and height from 0 on"
        )
    return "" if _is_number(row["score"]) else f"score={_short.repr(row['score'])}; allowed is a finite number"


def _is_number(value: Any) -> bool:
    # NaN is not within anything; an integer too long for a float is compared all the same.
    return type(value) in (int, float) and abs(value) <= MAX_COORDINATE


def _clipped(boxes: Float[np.ndarray, "n 4"], limits: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, "n 4"]:
    return np.minimum(np.maximum(boxes, 0), limits)


def _tensor(rows: Float[np.ndarray, "..."]) -> Tensor:
    return torch.from_numpy(rows.astype(np.float32))


def _rows(image: int, proposals: Proposals) -> tuple[Tensor, Tensor]:
    """The boxes (N, 4) and scores (N,) of one image, promoted."""
    where = f"pad_proposals: proposals[{image}]"
    entries = read_entries(proposals, where=where)
    if missing := [key for key in ("boxes", "scores") if key not in entries]:
        raise ValueError(
            f"{where}: no {missing[0]!r} among {sorted(entries)}; allowed are boxes (N, 4) with scores (N,)"
        )
    boxes = read_tensor(entries["boxes"], where=f"{where}: boxes", form="XYXY")
    scores = read_tensor(entries["scores"], where=f"{where}: scores")
    boxes = boxes.reshape(-1, 4) if boxes.numel() == 0 else boxes
    if boxes.ndim != 2 or boxes.shape[1] != 4 or scores.shape != boxes.shape[:1]:
        raise ValueError(
            f"{where} has boxes of shape {tuple(boxes.shape)} and scores of shape {tuple(scores.shape)}; "
            "allowed is (N, 4) and (N,)"
        )
    return promote(boxes), promote(scores)
