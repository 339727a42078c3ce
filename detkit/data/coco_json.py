"""A COCO annotation file, read and checked as a whole into arrays: errors surface at once and name their entry."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from detkit._json_file import read_json
from detkit._rle import Segmentation, check_segmentation
from detkit.data.files import check_name, check_pixels, shown
from detkit.data.truth import Degenerate, sized_boxes

MAX_COORDINATE = float(1 << 31)
"""Larger coordinates, in either direction, are refused."""
MAX_MASK_BYTES = 1 << 32
"""More mask pixels in one image are refused: objects x height x width."""

Entry = dict[str, Any]


class CocoRecords(NamedTuple):
    """M images in ascending id and A annotations grouped by image, file order kept within one; C categories.

    sizes (M, 2) height, width; offsets (M + 1,): annotations of image m are offsets[m] to offsets[m + 1]; boxes (A, 4)
    float32 xyxy; labels, area, iscrowd (A,); keypoints (A, P, 3) and A segmentations only if requested.
    """

    categories: list[str]
    category_ids: list[int]
    image_ids: NDArray[np.int64]
    file_names: list[str]
    sizes: NDArray[np.int64]
    offsets: NDArray[np.int64]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    area: NDArray[np.float64]
    iscrowd: NDArray[np.int64]
    keypoints: NDArray[np.float32] | None = None
    segmentations: list[Segmentation] | None = None


def read_coco(
    path: str | Path, *, masks: bool = False, keypoints: bool = False, degenerate: Degenerate = "drop"
) -> CocoRecords:
    """Read a COCO annotation file; see :class:`CocoRecords` for the result.

    An annotation with ``ignore`` set counts as a crowd. Raises ValueError naming the file and the image, annotation or
    category, if the file is not a dict of three lists, keys are missing or of the wrong type, ids are duplicate or
    unknown, boxes are not four finite numbers or have negative size, or areas, keypoints or segmentations are invalid.

    >>> import json, tempfile
    >>> with tempfile.TemporaryDirectory() as root:
    ...     written = Path(root, "a.json").write_text(json.dumps({
    ...         "images": [{"id": 5, "file_name": "5.jpg", "height": 4, "width": 6}],
    ...         "categories": [{"id": 90, "name": "toothbrush"}],
    ...         "annotations": [{"id": 1, "image_id": 5, "category_id": 90, "bbox": [1, 1, 2, 3]}]}))
    ...     records = read_coco(Path(root, "a.json"))
    >>> records.boxes.tolist(), records.labels.tolist(), records.category_ids
    ([[1.0, 1.0, 3.0, 4.0]], [0], [90])
    """
    source = f"CocoDataset: {path}"
    document = read_json(path, owner="CocoDataset")
    categories, category_ids = _sorted(document, "categories", "category", source)
    images, image_ids = _sorted(document, "images", "image", source)
    annotations = _entries(document, "annotations", source)
    _ids(annotations, "annotation", source)
    sizes = _sizes(images, source)
    owners = _positions(annotations, "image_id", image_ids, source)
    order = np.argsort(owners, kind="stable")
    annotations, owners = [annotations[a] for a in order], owners[order]
    boxes = _boxes(annotations, source)
    kept = sized_boxes(boxes, policy=degenerate, name=lambda a: _named("annotation", annotations[a], a), owner=source)
    annotations, owners, boxes = [annotations[a] for a in np.flatnonzero(kept)], owners[kept], boxes[kept]
    offsets = np.searchsorted(owners, np.arange(len(images) + 1))
    return CocoRecords(
        categories=[_category_name(category, source) for category in categories],
        category_ids=category_ids.tolist(),
        image_ids=image_ids,
        file_names=[check_name(image.get("file_name"), owner=f"{source}: image id={image['id']}") for image in images],
        sizes=sizes,
        offsets=offsets,
        boxes=boxes,
        labels=_positions(annotations, "category_id", category_ids, source),
        area=_area(annotations, source),
        iscrowd=_crowds(annotations, source),
        keypoints=_keypoints(annotations, categories, source) if keypoints else None,
        segmentations=_segmentations(annotations, image_ids, sizes, offsets, source) if masks else None,
    )


def _named(kind: str, entry: Entry, position: int) -> str:
    return f"{kind} id={shown(entry['id'])}" if "id" in entry else f"{kind} at position {position} (without id)"


def _fail(source: str, kind: str, entry: Entry, position: int, key: str, allowed: str) -> ValueError:
    found = f"{key}={shown(entry[key])}" if key in entry else f"{key} is missing"
    return ValueError(f"{source}: {_named(kind, entry, position)}: {found}; allowed is {allowed}")


def _entries(document: Any, key: str, source: str) -> list[Entry]:
    if not isinstance(document, dict):
        raise ValueError(f"{source}: holds a {type(document).__name__}; allowed is a dict with images, annotations ...")
    entries = document.get(key)
    if not isinstance(entries, list):
        raise ValueError(f"{source}: {key} is {shown(entries)}; allowed is a list")
    for position, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise ValueError(f"{source}: {key}[{position}] is {shown(entry)}; allowed is a dict")
    return entries


def _sorted(document: Any, key: str, kind: str, source: str) -> tuple[list[Entry], NDArray[np.int64]]:
    """The entries in ascending id, and the ids."""
    entries = _entries(document, key, source)
    ids = _ids(entries, kind, source)
    order = np.argsort(ids)
    return [entries[position] for position in order], ids[order]


def _integers(entries: list[Entry], key: str, kind: str, source: str) -> NDArray[np.int64]:
    """The column ``key``; NumPy's dtype tells whether all are integers, and only if not is the bad entry searched
    for."""
    column = _array([entry.get(key) for entry in entries])
    if column.dtype.kind == "i" and column.ndim == 1:
        return column.astype(np.int64)
    for position, entry in enumerate(entries):
        value = entry.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or abs(value) >= 1 << 63:
            raise _fail(source, kind, entry, position, key, "an integer")
    return np.zeros(0, np.int64)


def _numbers(entries: list[Entry], key: str, count: int, kind: str, source: str) -> NDArray[np.float64]:
    """The column ``key`` of ``count`` finite numbers each, as (A, count)."""
    column = _array([entry.get(key) for entry in entries])
    if column.dtype.kind in "iuf" and column.shape == (len(entries), count) and (abs(column) <= MAX_COORDINATE).all():
        return column.astype(np.float64)
    for position, entry in enumerate(entries):
        value = entry.get(key)
        if not isinstance(value, list) or len(value) != count or not all(_is_number(number) for number in value):
            raise _fail(source, kind, entry, position, key, f"{count} finite numbers within {MAX_COORDINATE:g}")
    return np.zeros((0, count))


def _array(values: Sequence[Any]) -> NDArray[Any]:
    try:
        return np.array(values)
    except (ValueError, OverflowError):
        return np.array(None)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MAX_COORDINATE


def _ids(entries: list[Entry], kind: str, source: str) -> NDArray[np.int64]:
    ids = _integers(entries, "id", kind, source)
    unique, counts = np.unique(ids, return_counts=True)
    if len(unique) < len(ids):
        twice = unique[counts > 1]
        raise ValueError(f"{source}: {kind} id={twice[0]} stands there {counts.max()} times; {len(twice)} ids do")
    return ids


def _positions(entries: list[Entry], key: str, known: NDArray[np.int64], source: str) -> NDArray[np.int64]:
    """The position of each entry's ``key`` in the ascending ids ``known``."""
    values = _integers(entries, key, "annotation", source)
    unknown = np.flatnonzero(~np.isin(values, known))
    if unknown.size:
        position = int(unknown[0])
        raise _fail(source, "annotation", entries[position], position, key, f"one of the {len(known)} ids in the file")
    return np.searchsorted(known, values).astype(np.int64)


def _sizes(images: list[Entry], source: str) -> NDArray[np.int64]:
    sizes = np.stack([_integers(images, key, "image", source) for key in ("height", "width")], 1)
    for image, (height, width) in zip(images, sizes.tolist(), strict=True):
        check_pixels(height, width, owner=f"{source}: image id={image['id']}")
    return sizes


def _boxes(annotations: list[Entry], source: str) -> NDArray[np.float32]:
    boxes = _numbers(annotations, "bbox", 4, "annotation", source)
    negative = np.flatnonzero((boxes[:, 2:] < 0).any(1))
    if negative.size:
        position = int(negative[0])
        allowed = "x, y, width, height with width and height not negative"
        raise _fail(source, "annotation", annotations[position], position, "bbox", allowed)
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1).astype(np.float32)


def _area(annotations: list[Entry], source: str) -> NDArray[np.float64]:
    areas = [entry["area"] if "area" in entry else entry["bbox"][2] * entry["bbox"][3] for entry in annotations]
    column = _array(areas)
    if not areas or (
        column.dtype.kind in "iuf" and column.ndim == 1 and np.isfinite(column).all() and column.min() >= 0
    ):
        return column.astype(np.float64)
    position = next(a for a, area in enumerate(areas) if not (_is_finite(area) and area >= 0))
    raise _fail(source, "annotation", annotations[position], position, "area", "a finite number, not negative")


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _crowds(annotations: list[Entry], source: str) -> NDArray[np.int64]:
    for position, entry in enumerate(annotations):
        for key in ("iscrowd", "ignore"):
            if entry.get(key, 0) not in (0, 1):
                raise _fail(source, "annotation", entry, position, key, "0 or 1")
    return np.array([int(entry.get("iscrowd", 0) or entry.get("ignore", 0)) for entry in annotations], np.int64)


def _category_name(category: Entry, source: str) -> str:
    if not isinstance(category.get("name"), str):
        raise _fail(source, "category", category, 0, "name", "text")
    return category["name"]


def _keypoints(annotations: list[Entry], categories: list[Entry], source: str) -> NDArray[np.float32]:
    named = (len(category["keypoints"]) for category in categories if isinstance(category.get("keypoints"), list))
    points = max(named, default=0)
    if annotations and not points:
        raise ValueError(f"{source}: keypoints=True, but no category names its keypoints")
    column = _numbers(annotations, "keypoints", 3 * points, "annotation", source).reshape(len(annotations), points, 3)
    wrong = np.flatnonzero(~np.isin(column[..., 2], (0, 1, 2)).all(1))
    if wrong.size:
        position = int(wrong[0])
        allowed = "x, y, visibility with visibility 0, 1 or 2"
        raise _fail(source, "annotation", annotations[position], position, "keypoints", allowed)
    return column.astype(np.float32)


def _segmentations(
    annotations: list[Entry],
    image_ids: NDArray[np.int64],
    sizes: NDArray[np.int64],
    offsets: NDArray[np.int64],
    source: str,
) -> list[Segmentation]:
    counts = np.diff(offsets)
    for m in np.flatnonzero(counts * sizes.prod(1) > MAX_MASK_BYTES)[:1]:
        size = " x ".join(map(str, sizes[m]))
        raise ValueError(
            f"{source}: image id={image_ids[m]}: {counts[m]} masks of {size} exceed {MAX_MASK_BYTES} bytes"
        )
    per_annotation = np.repeat(sizes, counts, axis=0).tolist()
    return [
        check_segmentation(
            entry.get("segmentation"), size=(size[0], size[1]), owner=f"{source}: {_named('annotation', entry, a)}"
        )
        for a, (entry, size) in enumerate(zip(annotations, per_annotation, strict=True))
    ]
