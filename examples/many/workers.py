"""What each process does: builds the detector once, then reads, detects and writes one block of pictures at a time."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as arrow
import torch
from torch import Tensor

from detkit.detectors import predict
from detkit.weights import load_detector
from many.embeddings import with_embeddings
from many.results import row_of, write_part
from many.sources import Picture, reader


class Settings(NamedTuple):
    """What to run, on what, and where results go; the same for every block of a run."""

    detector: str
    sources: list[str]
    parts: Path
    batch_size: int
    score_threshold: float
    embeddings: bool


class Worker:
    """Called with a block of paths, returns the block with the error of each, null for none."""

    def __init__(self, settings: Settings) -> None:
        torch.set_num_threads(1)  # one core is what Ray gives it
        self.settings, self.read = settings, reader(settings.sources)
        detector = load_detector(settings.detector)
        self.detector = with_embeddings(detector) if settings.embeddings else detector

    def __call__(self, block: arrow.Table) -> arrow.Table:
        paths = block["path"].to_pylist()
        rows: dict[str, dict[str, Any]] = {path: {"path": path} for path in paths}
        names: dict[str, str] = {}
        found = predict(
            self.detector,
            self._readable(rows, names),
            batch_size=self.settings.batch_size,
            score_threshold=self.settings.score_threshold,
            progress=False,
        )
        for prediction in found:
            path = next(iter(names))
            rows[path] = row_of(path, names.pop(path), prediction)
        write_part(list(rows.values()), self.settings.parts)
        errors = arrow.array([row.get("error") for row in rows.values()], arrow.string())
        return arrow.table({"path": block["path"], "error": errors})

    def _readable(self, rows: dict[str, dict[str, Any]], names: dict[str, str]) -> Iterator[Tensor]:
        """The pictures that can be read, their ``names`` noted in order; the others cost themselves alone."""
        for path in list(rows):
            try:
                picture: Picture = self.read(path)
            except Exception as error:  # whatever a decoder does with bytes that anyone may have written
                rows[path]["error"] = f"{path}: {type(error).__name__}: {error}"
            else:
                names[path] = picture.file_name
                yield picture.image
