"""Reading files that a user names: regular ones only, of bounded size, named in every error."""

import io
import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

MAX_JSON_BYTES = 1 << 32
"""Larger files are refused before they are read: parsed, they take about ten times their size in memory."""
_AT_ONCE = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)


def open_regular(path: str | os.PathLike[str], *, owner: str, links: bool = True) -> BinaryIO:
    """Open a file for reading; a pipe, at which one would wait until somebody writes, a device or a folder is refused.

    ``links=False`` refuses a path that is a link. Raises ValueError naming ``owner`` and the path; a missing or
    forbidden file keeps its own OSError.

    >>> open_regular("/", owner="load_weights")
    Traceback (most recent call last):
    ValueError: load_weights: / is a folder; allowed is a regular file
    """
    descriptor = os.open(path, os.O_RDONLY | _AT_ONCE | (0 if links else getattr(os, "O_NOFOLLOW", 0)))
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe" if stat.S_ISFIFO(mode) else "a device"
        raise ValueError(f"{owner}: {Path(path)} is {kind}; allowed is a regular file")
    return os.fdopen(descriptor, "rb")


def read_json(path: str | Path, *, owner: str) -> Any:
    """The content of a JSON file, with or without a byte order mark.

    Raises ValueError naming ``owner`` and the file if it is not a regular file, too large, too deep or not JSON.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as root:
    ...     written = Path(root, "a.json").write_text('{"images": []}')
    ...     read_json(Path(root, "a.json"), owner="CocoDataset")
    {'images': []}
    """
    with open_regular(path, owner=owner) as opened, io.TextIOWrapper(opened, encoding="utf-8-sig") as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_JSON_BYTES:
            raise ValueError(f"{owner}: {path} has {size} bytes; allowed are {MAX_JSON_BYTES}")
        try:
            return json.load(file)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{owner}: {path} is not valid JSON: {error}") from error
