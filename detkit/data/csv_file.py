"""Reading a csv file: of bounded size, in UTF-8, with fields of any length."""

import csv
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock

from detkit._regular_file import open_regular

MAX_CSV_BYTES = 1 << 30
"""Larger tables are refused before they are read; that of ImageNet's 544,546 training images has 30 MB."""
_LIMIT = Lock()


def read_rows(file: str | Path) -> dict[int, list[str]]:
    """The rows of a file, header included, by the number of their last line; empty lines are none.

    Raises ValueError for a file that is no csv in UTF-8, or over 1 GiB.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as root:
    ...     written = Path(root, "a.csv").write_text("a,b\\n\\n1,2\\n")
    ...     read_rows(Path(root, "a.csv"))
    {1: ['a', 'b'], 3: ['1', '2']}
    """
    with open_regular(file, owner="CsvDataset") as opened, io.TextIOWrapper(opened, "utf-8-sig", newline="") as text:
        size = os.fstat(opened.fileno()).st_size
        if size > MAX_CSV_BYTES:
            raise ValueError(f"CsvDataset: {file} has {size} bytes; allowed are {MAX_CSV_BYTES}")
        reader = csv.reader(text, strict=True)
        try:
            with _long_fields():
                return dict((reader.line_num, row) for row in reader if row)  # noqa: C402 (the number changes)
        except UnicodeDecodeError as error:  # in a part of the file, of unknown lines
            raise ValueError(f"CsvDataset: {file} cannot be read as csv in UTF-8: {error}") from error
        except csv.Error as error:
            raise ValueError(f"CsvDataset: {file}: line {reader.line_num} cannot be read as csv: {error}") from error


@contextmanager
def _long_fields() -> Iterator[None]:
    """Fields as long as the file, not of some 4,000 objects; the limit is the process', so threads take turns."""
    with _LIMIT:
        limit = csv.field_size_limit(MAX_CSV_BYTES)
        try:
            yield
        finally:
            csv.field_size_limit(limit)
