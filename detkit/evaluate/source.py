"""Detections from a detector's file, which is run over the pictures of a data set, and ground truth of any form."""

from collections.abc import Sequence
from pathlib import Path

from detkit.data import CocoDataset, save_coco
from detkit.data.wrapped import find_item
from detkit.detectors import predict, save_results
from detkit.inspect.source import open_source
from detkit.weights import load_detector


def detect(detector_file: Path, dataset: CocoDataset, results: Path, *, batch_size: int, device: str) -> None:
    """Run a detector over a data set, and write ``results``, a COCO results json.

    Labels become the categories of the same names, or, for a detector without names, those in the order of their ids.
    Raises ValueError for a detector of other classes.
    """
    detector = load_detector(detector_file)
    category_ids = match_categories(detector.categories, dataset.categories, dataset.category_ids)
    names = [str(image_id) for image_id in dataset.image_ids]
    images = (dataset[index][0] for index in range(len(dataset)))
    found = predict(detector.to(device), images, batch_size=batch_size, score_threshold=0.0)
    named = (prediction._replace(name=name) for prediction, name in zip(found, names, strict=True))
    image_ids = dict(zip(names, dataset.image_ids, strict=True))
    save_results(named, results, image_ids=image_ids, category_ids=category_ids)


def as_coco(place: Path, file: Path, *, images: Path | None = None, split: str | None = None) -> tuple[Path, Path]:
    """Write a data set of another form as a COCO ``file``; that file, and the folder of its pictures.

    Raises as :func:`~detkit.inspect.source.open_source` and :func:`~detkit.data.save_coco` do.
    """
    dataset = open_source(str(place), images=images, split=split)
    save_coco(dataset, file)
    return file, Path(find_item(dataset, 0, function="detkit.evaluate")[0].image_folder)


def match_categories(names: Sequence[str], known: Sequence[str], category_ids: Sequence[int]) -> list[int]:
    """The category id of each label of a detector that names its classes, or does not.

    >>> match_categories(["dog", "cat"], ["cat", "dog"], [3, 5]), match_categories([], ["cat", "dog"], [3, 5])
    ([5, 3], [3, 5])
    """
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(
            f"the detector finds {', '.join(map(repr, unknown[:5]))}, which the ground truth does not have; "
            f"its categories are {', '.join(map(repr, known[:10]))}"
        )
    return [category_ids[known.index(name)] for name in names] if names else list(category_ids)
