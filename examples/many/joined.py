"""The results of all blocks as one table, or as COCO's list."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as arrow
import pyarrow.parquet as parquet

from many.results import SCHEMA, parts


def joined(folder: Path, paths: Sequence[str]) -> arrow.Table:
    """The rows of all parts in the order of ``paths``, each picture once."""
    table = arrow.concat_tables(
        [SCHEMA.empty_table(), *(parquet.read_table(part, schema=SCHEMA) for part in parts(folder))]
    )
    places = {path: place for place, path in enumerate(table["path"].to_pylist())}  # a path twice: its last row
    return table.take(arrow.array([places[path] for path in paths if path in places], arrow.int64()))


def coco_results(table: arrow.Table, ids: Mapping[str, int]) -> Iterator[dict[str, Any]]:
    """COCO's results: an entry for each detection, with the id of its picture's path; category ids count from 1."""
    rows: list[dict[str, Any]] = table.to_pylist()
    for row in rows:
        for place, (x1, y1, x2, y2) in enumerate(row["boxes"] or []):
            entry: dict[str, Any] = {"image_id": ids[row["path"]], "category_id": row["labels"][place] + 1}
            entry |= {"bbox": [x1, y1, x2 - x1, y2 - y1], "score": row["scores"][place]}
            if row["masks"]:
                entry["segmentation"] = {"size": [row["height"], row["width"]], "counts": row["masks"][place]}
            if row["keypoints"]:
                entry["keypoints"] = row["keypoints"][place]
            yield entry
