"""Reading JSON: from a regular file of bounded size, named in every error."""

import json
import stat
from pathlib import Path
from typing import Any

MAX_JSON_BYTES = 1 << 32
"""Larger files are refused before they are read: parsed, they take about ten times their size in memory."""


def read_json(path: str | Path, *, owner: str) -> Any:
    """The content of a JSON file, with or without a byte order mark.

    Raises ValueError naming ``owner`` and the file if it is not a regular file, too large, too deep or not JSON.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as root:
    ...     written = Path(root, "a.json").write_text('{"images": []}')
    ...     read_json(Path(root, "a.json"), owner="CocoDataset")
    {'images': []}
    """
    status = Path(path).stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{owner}: {path} is no regular file")
    if status.st_size > MAX_JSON_BYTES:
        raise ValueError(f"{owner}: {path} has {status.st_size} bytes; allowed are {MAX_JSON_BYTES}")
    try:
        with open(path, encoding="utf-8-sig") as file:
            return json.load(file)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{owner}: {path} is not valid JSON: {error}") from error
