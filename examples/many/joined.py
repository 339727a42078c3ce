"""The results of all blocks: which pictures they hold, as one table, or as COCO's list."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as arrow
import pyarrow.parquet as parquet

from many.results import PARTS, SCHEMA


def done(folder: Path, *, retry: bool = False) -> set[str]:
    """The pictures whose results are there; with ``retry`` without those that could not be read."""
    table = joined_parts(folder)
    table = table.filter(table["error"].is_null()) if retry else table
    return set(table["path"].to_pylist())


def joined_parts(folder: Path, columns: Sequence[str] = ("path", "error")) -> arrow.Table:
    """``columns`` of all finished blocks. SystemExit naming a file that is none."""
    tables = [arrow.schema([SCHEMA.field(column) for column in columns]).empty_table()]
    for part in sorted(folder.glob(PARTS)):
        try:
            tables.append(parquet.ParquetFile(part).read(list(columns)).cast(tables[0].schema))
        except (arrow.ArrowException, OSError, ValueError) as error:
            raise SystemExit(
                f"{part} is no file of results; delete it, and its pictures are done again: {error}"
            ) from error
    return arrow.concat_tables(tables)


def joined(folder: Path, paths: Sequence[str]) -> arrow.Table:
    """The rows of all parts in the order of ``paths``, each picture once; KeyError where one has none."""
    table = joined_parts(folder, SCHEMA.names).sort_by("error")  # null, that of a picture that was read, comes last
    places = {path: place for place, path in enumerate(table["path"].to_pylist())}  # a path twice: its last row
    return table.take(arrow.array([places[path] for path in paths], arrow.int64()))


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
