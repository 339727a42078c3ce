"""Detections and ground truth of an image as host arrays, checked once on entry.

All box metrics start from these records, so that none repeats the checks.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike

from detkit._inputs import Form, read_tensor
from detkit._rle import Rle, encode_masks, mask_areas
from detkit.structures import Detection, Target, read_entries, read_truth
from detkit.structures.padding import check_size

LARGEST = 1e15
"""Largest coordinate: areas of larger boxes could overflow, and then overlap is not a number."""


class Objects(NamedTuple):
    """N objects of one image.

    boxes (N, 4) float64 as x, y, width, height, COCO's own form; labels (N,) int64; areas (N,) float64, or None for the
    area of whatever is compared; scores (N,) float64, highest is best; crowd and ignore (N,) bool; masks N compressed
    run lengths; keypoints (N, P, 3) float64.
    """

    boxes: np.ndarray
    labels: np.ndarray
    areas: np.ndarray | None
    scores: np.ndarray
    crowd: np.ndarray
    ignore: np.ndarray
    masks: list[Rle] | None = None
    keypoints: np.ndarray | None = None

    def take(self, rows: np.ndarray) -> "Objects":
        """The objects at the int64 indices ``rows``, in that order.

        >>> blank = objects(np.array([[0, 0, 2, 2], [1, 1, 3, 3]]), np.array([4, 5]))
        >>> blank.take(np.array([1])).labels
        array([5])
        """
        masks = None if self.masks is None else [self.masks[row] for row in rows]
        arrays = {name: column[rows] for name, column in self._asdict().items() if isinstance(column, np.ndarray)}
        return self._replace(**arrays, masks=masks)


class ImageRecord(NamedTuple):
    """One image: its key (which orders the images), its size (height, width) if masks give it, and its objects.

    Federated ground truth only: ``negative`` labels are known to be absent, ``not_exhaustive`` ones partly annotated.
    """

    key: tuple[int, int, int]
    detections: Objects
    truth: Objects
    size: tuple[int, int] | None = None
    negative: frozenset[int] = frozenset()
    not_exhaustive: frozenset[int] = frozenset()


class Reader(NamedTuple):
    """What to read from the dicts, and the name used in errors. keypoints: how many each object must have."""

    function: str
    num_classes: int
    masks: bool = False
    keypoints: int | None = None


def objects(boxes: np.ndarray, labels: np.ndarray, **columns: Any) -> Objects:
    """Objects from xywh boxes (N, 4) and labels (N,); scores are 1, nothing is crowd or ignored unless given.

    >>> objects(np.zeros((2, 4)), np.array([0, 1])).scores
    array([1., 1.])
    """
    no = np.zeros(len(labels), dtype=bool)
    defaults = {"areas": None, "scores": np.ones(len(labels)), "crowd": no, "ignore": no}
    return Objects(boxes=boxes, labels=labels, **{**defaults, **columns})


def corners(boxes: np.ndarray) -> np.ndarray:
    """Boxes (N, 4) as x1, y1, x2, y2, from x, y, width, height.

    >>> corners(np.array([[1.0, 2.0, 3.0, 4.0]]))
    array([[1., 2., 4., 6.]])
    """
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


def check_images(function: str, targets: Sequence[Target], **found: Sequence[Mapping[str, Any]]) -> None:
    """Raise TypeError unless both are lists, and ValueError where they are not equally long; ``found`` has one name.

    >>> check_images("demo", [], proposals=[{}])
    Traceback (most recent call last):
    ValueError: demo: 1 proposals but 0 targets; allowed is one dict of each per image
    """
    for name, values in {**found, "targets": targets}.items():
        if not isinstance(values, Sequence) or isinstance(values, str | bytes):
            kind = type(values).__name__
            raise TypeError(f"{function}: {name} is a {kind}; allowed is a list with one dict per image")
    for name, values in found.items():
        if len(values) != len(targets):
            counts = f"{len(values)} {name} but {len(targets)} targets"
            raise ValueError(f"{function}: {counts}; allowed is one dict of each per image")


def read_images(
    reader: Reader, detections: Sequence[Detection], targets: Sequence[Target], keys: Iterable[tuple[int, int, int]]
) -> list[ImageRecord]:
    """Records of a batch, with every shape and value checked.

    Raises ValueError naming the image, the entry, the first bad index and value, and what is allowed, for NaN, infinite
    or inverted boxes, NaN or infinite scores, labels outside 0..C-1, lengths that disagree, and masks, or canvases of
    BoundingBoxes, of different sizes.

    >>> read_images(Reader("demo", 2), [{"boxes": torch.zeros(1, 4), "scores": torch.ones(1),
    ...     "labels": torch.tensor([2])}], [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long()}], [(1, 0, 0)])
    Traceback (most recent call last):
    ValueError: demo: detections[0]['labels'][0] = 2 (1 such here); allowed are labels 0..1
    """
    pairs = zip(keys, detections, targets, strict=True)
    return [_read_image(reader, i, key, found, truth) for i, (key, found, truth) in enumerate(pairs)]


def _read_image(
    reader: Reader, index: int, key: tuple[int, int, int], detection: Detection, target: Target
) -> ImageRecord:
    name = f" (image_id {key[1]})" if key[0] == 0 else ""
    found_at, truth_at = (f"{reader.function}: {kind}[{index}]{name}" for kind in ("detections", "targets"))
    results, facts = read_entries(detection, where=found_at), read_truth(target, where=truth_at)
    found, found_size = _read_objects(reader, results, found_at)
    truth, truth_size = _read_objects(reader, facts, truth_at)
    sizes = {
        f"{truth_at}['boxes']": getattr(facts["boxes"], "canvas_size", None),
        f"{truth_at}['masks']": truth_size,
        f"{found_at}['boxes']": getattr(results["boxes"], "canvas_size", None),
        f"{found_at}['masks']": found_size,
    }
    known = {where: size for where, size in sizes.items() if size is not None}
    for where, size in known.items():
        check_size(size, next(iter(known.values())), where=where)
    scores = _column(results, "scores", len(found.labels), found_at, np.float64)
    _refuse(~np.isfinite(scores), scores, f"{found_at}['scores']", "finite scores")
    areas = _truth_areas(facts, truth, truth_at)
    flags = {
        name: read_flags(facts, key, len(truth.labels), truth_at)
        for name, key in (("crowd", "iscrowd"), ("ignore", "ignore"))
    }
    return ImageRecord(
        key,
        found._replace(scores=scores),
        truth._replace(areas=areas, **flags),
        truth_size or found_size,
        frozenset(_whole_labels(reader, facts, "negative_labels", truth_at).flatten().tolist()),
        frozenset(_whole_labels(reader, facts, "not_exhaustive_labels", truth_at).flatten().tolist()),
    )


def _truth_areas(target: Mapping[str, Any], truth: Objects, where: str) -> np.ndarray:
    """The given area, else the mask's, else the box's."""
    derived = truth.boxes[:, 2] * truth.boxes[:, 3] if truth.masks is None else mask_areas(truth.masks)
    areas = _column(target, "area", len(truth.labels), where, np.float64, default=derived)
    _refuse(~(np.isfinite(areas) & (areas >= 0)), areas, f"{where}['area']", "finite areas >= 0")
    return areas


def read_flags(entries: Mapping[str, Any], name: str, length: int, where: str) -> np.ndarray:
    """``entries[name]`` as (N,) bool, all False where it is missing; ValueError for other numbers than 0 and 1.

    >>> read_flags({"iscrowd": [0, 1]}, "iscrowd", 2, "demo")
    array([False,  True])
    """
    flags = _column(entries, name, length, where, np.float64, default=0)
    _refuse((flags != 0) & (flags != 1), flags, f"{where}[{name!r}]", "0 and 1")
    return flags != 0


def _read_objects(reader: Reader, entries: Mapping[str, Any], where: str) -> tuple[Objects, tuple[int, int] | None]:
    ends = read_boxes(entries, where)
    labels = read_labels(reader, entries, where, length=len(ends))
    boxes = np.concatenate([ends[:, :2], ends[:, 2:] - ends[:, :2]], axis=1)
    masks = read_masks(entries, len(labels), where) if reader.masks else None
    keypoints = None if reader.keypoints is None else _read_keypoints(entries, (len(labels), reader.keypoints), where)
    size = None if masks is None or masks.shape[1] == 0 else (masks.shape[1], masks.shape[2])
    encoded = None if masks is None else encode_masks(masks)
    return objects(boxes, labels, masks=encoded, keypoints=keypoints), size


def read_boxes(entries: Mapping[str, Any], where: str) -> np.ndarray:
    """``entries["boxes"]`` as float64 xyxy (N, 4); ValueError for another shape, NaN, infinite or inverted boxes.

    >>> read_boxes({"boxes": torch.tensor([])}, "demo").shape
    (0, 4)
    """
    if "boxes" not in entries:
        raise ValueError(f"{where} has no 'boxes', only {sorted(entries)}")
    boxes = _host(entries["boxes"], np.float64, f"{where}['boxes']", form="XYXY")
    boxes = boxes.reshape(0, 4) if boxes.shape == (0,) else boxes
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"{where}['boxes'] have shape {boxes.shape}; allowed is (N, 4)")
    bad = ~(np.abs(boxes) <= LARGEST).all(axis=1) | (boxes[:, 2:] < boxes[:, :2]).any(axis=1)
    _refuse(bad, boxes, f"{where}['boxes']", "finite xyxy pixels with x1 <= x2 and y1 <= y2")
    return boxes


def read_labels(reader: Reader, entries: Mapping[str, Any], where: str, *, length: int | None = None) -> np.ndarray:
    """``entries["labels"]`` as int64 (N,); ValueError for fractions, other classes, and another ``length``.

    >>> read_labels(Reader("demo", 2), {"labels": [1, 0]}, "demo")
    array([1, 0])
    """
    labels = _whole_labels(reader, entries, "labels", where)
    given = {"labels": labels} if "labels" in entries else {}
    return _column(given, "labels", labels.size if length is None else length, where, np.int64)


def _whole_labels(reader: Reader, entries: Mapping[str, Any], name: str, where: str) -> np.ndarray:
    """Integers of any shape, each a class."""
    given = read_tensor(entries.get(name, ()), where=f"{where}[{name!r}]")
    if given.numel() and (given.is_floating_point() or given.dtype == torch.bool):
        raise ValueError(f"{where}[{name!r}] are {given.dtype}; allowed are integers")
    labels = given.cpu().numpy().astype(np.int64)
    rows = labels.reshape(-1)
    _refuse(
        (rows < 0) | (rows >= reader.num_classes), rows, f"{where}[{name!r}]", f"labels 0..{reader.num_classes - 1}"
    )
    return labels


def read_masks(entries: Mapping[str, Any], length: int, where: str) -> np.ndarray:
    """``entries["masks"]`` (N, H, W), (0, 0, 0) where it is missing without objects; ValueError for another shape.

    >>> read_masks({}, 0, "demo").shape
    (0, 0, 0)
    """
    if "masks" not in entries and length == 0:
        return np.zeros((0, 0, 0), dtype=np.uint8)
    masks = read_tensor(entries.get("masks", ()), where=f"{where}['masks']")
    if masks.ndim != 3 or len(masks) != length or masks.is_floating_point() or bool(length) > bool(masks.numel()):
        raise ValueError(
            f"{where}['masks'] have shape {tuple(masks.shape)} and {masks.dtype}; allowed is "
            f"({length}, height, width), boolean or integer (threshold probabilities, and drop a channel of one, first)"
        )
    return masks.cpu().numpy()


def _read_keypoints(entries: Mapping[str, Any], shape: tuple[int, int], where: str) -> np.ndarray:
    keypoints = _host(entries.get("keypoints", ()), np.float64, f"{where}['keypoints']")
    keypoints = keypoints.reshape(0, shape[1], 3) if shape[0] == 0 and keypoints.size == 0 else keypoints
    if keypoints.shape != (*shape, 3):
        raise ValueError(f"{where}['keypoints'] have shape {keypoints.shape}; allowed is {(*shape, 3)}")
    keypoints = np.where(keypoints[..., 2:] == 0, 0, keypoints)  # what is not labeled may hold anything
    bad = ~np.isfinite(keypoints).all(axis=(1, 2))
    _refuse(bad, keypoints, f"{where}['keypoints']", "finite x, y, visibility")
    return keypoints


def _column(
    entries: Mapping[str, Any], name: str, length: int, where: str, dtype: Any, default: Any = None
) -> np.ndarray:
    if name not in entries and default is not None:
        return np.broadcast_to(np.asarray(default, dtype), (length,)).copy()
    column = _host(entries.get(name, ()), dtype, f"{where}[{name!r}]")
    if column.size != length or column.ndim > 1:
        found = f"has shape {column.shape}" if name in entries else "is missing"
        raise ValueError(f"{where}[{name!r}] {found}; allowed is ({length},), one per box")
    return column.reshape(length)


def _host(values: Any, dtype: Any, where: str, *, form: Form | None = None) -> np.ndarray:
    tensor = read_tensor(values, where=where, form=form)
    return (tensor.to("cpu", torch.float64) if tensor.is_floating_point() else tensor.cpu()).numpy().astype(dtype)


def _refuse(bad: ArrayLike, values: np.ndarray, where: str, allowed: str) -> None:
    rows = np.asarray(bad)
    if rows.any():
        first = int(rows.argmax())
        shown = f"{values[first].tolist()!r:.100}"
        raise ValueError(f"{where}[{first}] = {shown} ({int(rows.sum())} such here); allowed are {allowed}")
