"""A COCO annotation file and the pictures that it names, as arrays: all faults surface at once and name their entry."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from detkit._coco.crowds import warn_of_crowds
from detkit._coco.rows import Fields, read_objects
from detkit._coco.tables import Document, Table, keypoint_counts
from detkit._faults import Degenerate, Faults
from detkit._regular_file import read_json
from detkit._rle import Segmentation
from detkit.data.coco_categories import group_categories
from detkit.data.coco_pictures import read_pictures

MAX_MASK_BYTES = 1 << 32
"""More mask pixels in one image are refused: objects x height x width."""


class CocoRecords(NamedTuple):
    """M images in ascending id and A annotations grouped by image, file order kept within one; C categories.

    category_ids are those of each label, of several the smallest; id_to_label has all of them. sizes (M, 2) height,
    width; offsets (M + 1,): annotations of image m are offsets[m] to offsets[m + 1]; boxes (A, 4) float32 xyxy; labels,
    area, iscrowd (A,); keypoints (A, P, 3) and A segmentations only if requested.
    """

    categories: list[str]
    category_ids: list[int]
    id_to_label: dict[int, int]
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
    path: str | Path,
    image_folder: str | Path | None = None,
    *,
    masks: bool = False,
    keypoints: bool = False,
    degenerate: Degenerate = "drop",
    tidy_categories: bool = False,
) -> CocoRecords:
    """Read a COCO annotation file; see :class:`CocoRecords` for the result.

    The pictures must exist below ``image_folder``, and give the sizes that the file doesn't; None looks at none. An
    annotation with ``ignore`` set counts as a crowd. Raises ValueError naming the file, and of each kind of fault how
    many there are and the first: entries of a wrong form, ids that are no integers, duplicate or unknown, names and
    sizes that are none, and what the policy ``degenerate`` does not drop. Missing pictures are a FileNotFoundError.

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
    faults = Faults(f"CocoDataset: {path}", policy=degenerate)
    document = Document.read(read_json(path, owner="CocoDataset"), faults)
    categories = document.categories
    bad = [not isinstance(name, str) for name in categories.column("name")]
    faults.refuse(bad, lambda row: categories.fault(row, "name", "text"))
    names, sizes = read_pictures(document.images, image_folder, faults)
    points = _points(categories, document.annotations, faults) if keypoints else None
    rows, kept = read_objects(document.annotations, document, sizes, Fields(masks, points), faults)
    if masks:
        _bound_masks(rows.images[kept], sizes, document.images, faults)
    faults.settle(kept)
    groups = group_categories(categories, rows.labels, tidy=tidy_categories, source=faults.source)
    rows = rows.take(_by_image(rows.images, kept))
    labels = groups[rows.labels]
    first = [int(np.flatnonzero(groups == label)[0]) for label in range(groups.max(initial=-1) + 1)]
    category_names = [categories.entries[row]["name"] for row in first]
    if document.has_truth:
        warn_of_crowds(labels, rows.crowd, category_names, source=faults.source)
    return CocoRecords(
        categories=category_names,
        category_ids=document.category_ids[first].tolist(),
        id_to_label={i: g for i, g in zip(document.category_ids.tolist(), groups.tolist(), strict=True) if g >= 0},
        image_ids=document.image_ids,
        file_names=names,
        sizes=sizes,
        offsets=np.searchsorted(rows.images, np.arange(len(names) + 1)),
        boxes=np.concatenate([rows.boxes[:, :2], rows.boxes[:, :2] + rows.boxes[:, 2:]], axis=1).astype(np.float32),
        labels=labels,
        area=rows.area,
        iscrowd=(rows.crowd | rows.ignore).astype(np.int64),
        keypoints=None if rows.keypoints is None else rows.keypoints.astype(np.float32),
        segmentations=None if rows.segmentations is None else [mask for mask in rows.segmentations if mask is not None],
    )


def _by_image(images: NDArray[np.int64], kept: NDArray[np.bool_]) -> NDArray[np.int64]:
    rows = np.flatnonzero(kept)
    return rows[np.argsort(images[rows], kind="stable")]


def _points(categories: Table, annotations: Table, faults: Faults) -> int:
    """How many keypoints an object has: those that a category names, the most of any."""
    points = int(keypoint_counts(categories).max())
    faults.refuse(
        [not points and len(annotations.entries) > 0], lambda _: "keypoints=True, but no category names its keypoints"
    )
    return points


def _bound_masks(images: NDArray[np.int64], sizes: NDArray[np.int64], table: Table, faults: Faults) -> None:
    counts = np.bincount(images, minlength=len(sizes))
    faults.refuse(
        counts * sizes.prod(1) > MAX_MASK_BYTES,
        lambda row: (
            f"{table.name(row)}: {counts[row]} masks of {sizes[row, 0]} x {sizes[row, 1]} exceed {MAX_MASK_BYTES} bytes"
        ),
    )
