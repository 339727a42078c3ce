"""The data set at a path, whatever its form."""

from pathlib import Path
from typing import Any

from torch.utils.data import ConcatDataset

from detkit.data import CocoDataset, CsvDataset, DigitScenes, VocDataset, VocFolders, YoloDataset

_ROBOFLOW = "_annotations.coco.json"


def open_source(path: str, *, images: Path | None = None, split: str | None = None) -> Any:
    """A COCO json or a csv file with its folder of ``images`` (or beside them), a folder in YOLO's, Roboflow's or VOC's
    form, all of it or one ``split``, or "scenes".

    Raises FileNotFoundError for what is not there, a folder's labels included, ValueError for a file of no form, and as
    the data sets do.

    >>> len(open_source("scenes"))
    200
    """
    place = Path(path)
    if path == "scenes" and not place.exists():
        return DigitScenes(200)
    if not place.exists():
        raise FileNotFoundError(f"there is no file or folder {path}")
    if place.is_file():
        kinds: dict[str, Any] = {".json": CocoDataset, ".csv": CsvDataset}
        if place.suffix.lower() not in kinds:
            raise ValueError(f"{path}: allowed are a COCO .json, a .csv, and folders")
        return kinds[place.suffix.lower()](images or place.parent, place)
    if found := sorted(place.glob(f"{split or '*'}/{_ROBOFLOW}")) or sorted(place.glob(_ROBOFLOW)):
        return ConcatDataset([CocoDataset(file.parent, file, tidy_categories=True) for file in found])
    if folders := VocFolders.find(place):
        return VocDataset(place, split, folders=folders)
    if not any(next(place.rglob(labels), None) for labels in ("*.txt", "*.y*ml")):
        raise FileNotFoundError(f"{path} is a folder without labels in Roboflow's, VOC's or YOLO's form")
    return YoloDataset(place, split)
