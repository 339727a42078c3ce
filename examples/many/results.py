"""What was found, in Parquet: one file for each block of pictures, renamed into place."""

import functools
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet
from pycocotools import mask as runs

from detkit.detectors import Prediction

PARTS = "[!.]*.parquet"
NUMBERS = arrow.list_(arrow.float32())
SCHEMA = arrow.schema(
    {
        "path": arrow.string(),
        "file_name": arrow.string(),
        "error": arrow.string(),  # null: the picture was read
        "height": arrow.int32(),
        "width": arrow.int32(),
        "boxes": arrow.list_(NUMBERS),
        "scores": NUMBERS,
        "labels": arrow.list_(arrow.int64()),
        "masks": arrow.list_(arrow.string()),  # COCO's compressed runs
        "keypoints": arrow.list_(NUMBERS),  # x, y, 1 of each
        "embeddings": arrow.list_(NUMBERS),
    }
)
"""Stated, not guessed from values: else float32 becomes float64, and a file without objects has lists of null."""


def row_of(path: str, file_name: str, found: Prediction) -> dict[str, Any]:
    """A picture that was read."""
    detection: Any = found.detection
    row = {key: detection[key].tolist() for key in ("boxes", "scores", "labels", "embeddings") if key in detection}
    if "masks" in detection:
        columns = np.asfortranarray(detection["masks"].numpy().astype(np.uint8).transpose(1, 2, 0))
        encoded: Any = runs.encode(columns)  # whose stubs know one mask alone
        row["masks"] = [mask["counts"].decode() for mask in encoded]
    if "keypoints" in detection:
        row["keypoints"] = detection["keypoints"].flatten(1).tolist()
    height, width = found.size
    return {"path": path, "file_name": file_name, "height": height, "width": width, **row}


def write_part(rows: list[dict[str, Any]], folder: Path) -> None:
    """The rows of one block, whole or not at all; the same block again replaces its file."""
    name = hashlib.sha256("\0".join(row["path"] for row in rows).encode()).hexdigest()[:24]
    table = arrow.Table.from_pylist(rows, SCHEMA)
    write_whole(folder / f"{name}.parquet", functools.partial(parquet.write_table, table))


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file under another name, and rename it when it is on the disk."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def claimed(output: Path, **about: Any) -> Path:
    """The folder of parts, of a run that this is ``about`` alone: an output of two detectors would be of neither."""
    known, ours, folder = output / "run.json", json.dumps(about), output / "parts"
    theirs = known.read_text() if known.exists() else "unknown ones" if any(folder.glob(PARTS)) else ours
    if theirs != ours:
        words = "delete the folder, name another, or give what it was made with"
        raise SystemExit(f"{output} holds results of other weights or options, {theirs}, not {ours}: {words}")
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(known, lambda file: file.write(ours.encode()))
    return folder
