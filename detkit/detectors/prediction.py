"""From pictures to boxes: any detector over files, folders, Pillow images, arrays and tensors, a few at a time."""

import json
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from detkit._disk import write_atomically
from detkit._door import door
from detkit._ranges import Count, Fraction, Whole
from detkit._rle import encode_masks
from detkit.boxes import xyxy_to_xywh
from detkit.data import image_paths, read_image
from detkit.data.images import rgb_of
from detkit.structures import FIELDS, Detection

Picture = str | os.PathLike[str] | Image.Image | np.ndarray | Tensor
_LISTED = 20  # files that a warning names, and detections that a line does
_OF_OBJECTS = [name for name, field in FIELDS.items() if field.of == "object"]


class Prediction(NamedTuple):
    """What was found in one picture: its file (or "picture 3"), its (height, width), and the detection, on the CPU.

    ``detection`` is in the picture's own pixels, as the detector gives it; ``categories`` name the labels, or are none.
    """

    name: str
    size: tuple[int, int]
    detection: Detection
    categories: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """The category of each detection, or its label as text.

        >>> found = Detection(boxes=torch.zeros(1, 4), scores=torch.ones(1), labels=torch.tensor([1]))
        >>> Prediction("a.jpg", (8, 8), found, ("cat", "dog")).names
        ['dog']
        """
        labels = self.detection["labels"].tolist()
        return [self.categories[label] if self.categories else str(label) for label in labels]

    def __str__(self) -> str:
        found = list(zip(self.names, self.detection["scores"].tolist(), strict=True))
        more = f" and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
        return f"{self.name}: {', '.join(f'{name} {score:.2f}' for name, score in found[:_LISTED]) or 'nothing'}{more}"


@door
def predict(
    detector: nn.Module,
    pictures: Picture | Iterable[Picture],
    *,
    batch_size: Count = 8,
    score_threshold: Fraction = 0.3,
    categories: Sequence[str] = (),
    unreadable: Literal["raise", "skip"] = "raise",
    progress: bool = True,
) -> Iterator[Prediction]:
    """Run a detector over pictures, ``batch_size`` at a time; a prediction for each, in order, as soon as it is there.

    ``pictures`` is one or many of: a file, a folder (all pictures in it, sorted by path), a Pillow image, an array (H,
    W) or (H, W, 3) of uint8, a tensor (3, H, W) or (1, H, W), uint8 or float in [0, 1]. Any iterable will do, a
    generator too: only a batch is held. Detections below ``score_threshold`` are left out. ``categories`` name the
    labels: by default ``detector.categories``, which :func:`detkit.weights.load_detector` sets. The detector is used in
    ``eval()`` and left in the mode that it was in; pictures go to its device.

    Raises FileNotFoundError and ValueError naming the picture, for what cannot be read as one; with
    ``unreadable="skip"`` such files are left out, and one warning at the end counts and names them.

    >>> from detkit.detectors import tiny_ssd
    >>> [found.name for found in predict(tiny_ssd(2), [torch.zeros(3, 64, 64)] * 3, batch_size=2, progress=False)]
    ['picture 0', 'picture 1', 'picture 2']
    """
    if unreadable not in ("raise", "skip"):
        raise ValueError(f"predict: unreadable={unreadable!r}; allowed are 'raise' and 'skip'")
    names, entries, skipped = tuple(categories) or tuple(getattr(detector, "categories", ())), _single(pictures), []
    total = len(entries) if isinstance(entries, Sequence) else None
    batches = _batches(_read(entries, skipped if unreadable == "skip" else None), batch_size)
    bar = tqdm(total=total, unit="picture", disable=None if progress else True)
    return _predictions(detector, batches, names, score_threshold, bar, skipped)


def _predictions(
    detector: nn.Module,
    batches: Iterator[list[tuple[str, Tensor]]],
    names: tuple[str, ...],
    score_threshold: float,
    bar: Any,
    skipped: list[str],
) -> Iterator[Prediction]:
    with bar:
        for batch in batches:
            images = [image for _, image in batch]
            for (name, image), found in zip(batch, _detect(detector, images), strict=True):
                detection = _above(found, score_threshold)
                _check_labels(detection["labels"], names)
                yield Prediction(name, (image.shape[-2], image.shape[-1]), detection, names)
            bar.update(len(batch))
    if skipped:
        listed = "\n  ".join(skipped[:_LISTED]) + ("\n  ..." if len(skipped) > _LISTED else "")
        warnings.warn(f"predict: {len(skipped)} files cannot be read and were left out:\n  {listed}", stacklevel=2)


def _above(found: Detection, score_threshold: float) -> Detection:
    kept = found["scores"] >= score_threshold
    entries: dict[str, Any] = {**found}
    rows = {key: value[kept] if key in _OF_OBJECTS else value for key, value in entries.items()}
    return Detection(**{key: value.cpu() for key, value in rows.items()})


def listed(
    predictions: Prediction | Iterable[Prediction], *, function: str, name: str = "predictions"
) -> Iterator[Prediction]:
    """Each of several predictions, or the one. Raises ValueError for what is none, such as a detector's dict."""
    one = isinstance(predictions, Prediction) or not isinstance(predictions, Iterable)
    for each in [predictions] if one else predictions:
        if not isinstance(each, Prediction):
            kind = type(each).__name__
            raise ValueError(f"{function}: {name}: a {kind} is no Prediction; give what detector.predict() returns")
        yield each


@door
def save_results(
    predictions: Prediction | Iterable[Prediction],
    path: str | os.PathLike[str],
    *,
    image_ids: Mapping[str, int] | None = None,
    category_ids: Sequence[Whole] | None = None,
) -> None:
    """Write predictions as COCO's list of results: image_id, category_id, bbox (x, y, width, height), score.

    Masks are written as compressed segmentations, keypoints as x, y, 1 of each. ``image_ids`` gives the id of each file
    by as much of the end of its path as is known, as COCO's ``{image["file_name"]: image["id"]}``; without it pictures
    are counted from 1, and each has its ``file_name``, too. ``category_ids`` of each label: label + 1 if not given.
    Written atomically.

    Raises ValueError for a picture without an id, a label without a category, and what is no prediction.

    >>> import tempfile
    >>> from detkit.detectors import Prediction, save_results
    >>> path = Path(tempfile.mkdtemp(), "found.json")
    >>> found = Detection(boxes=torch.tensor([[1.0, 2, 4, 6]]), scores=torch.tensor([0.5]), labels=torch.tensor([0]))
    >>> save_results([Prediction("a.jpg", (8, 8), found)], path, image_ids={"a.jpg": 7})
    >>> path.read_text()
    '[{"image_id": 7, "category_id": 1, "bbox": [1.0, 2.0, 3.0, 4.0], "score": 0.5}]'
    """
    entries = []
    for number, found in enumerate(listed(predictions, function="save_results"), 1):
        name = Path(found.name).name
        known = name if image_ids is None else _longest_end(found.name, image_ids)
        if image_ids is not None and known not in image_ids:
            raise ValueError(
                f"save_results: image_ids has no {name!r}; allowed are {', '.join(list(image_ids)[:5])} ..."
            )
        image = {"image_id": number, "file_name": name} if image_ids is None else {"image_id": image_ids[known]}
        entries += [image | entry for entry in _results(found.detection, category_ids)]
    write_atomically(path, lambda file: file.write(json.dumps(entries).encode()), owner="save_results")


def _longest_end(name: str, known: Mapping[str, int]) -> str:
    """Of "p/train/a.jpg" the first of itself, "train/a.jpg" and "a.jpg" that is known: folders may repeat names."""
    parts = Path(name).parts
    ends = (Path(*parts[first:]).as_posix() for first in range(len(parts)))
    return next((end for end in ends if end in known), "")


def _results(detection: Detection, category_ids: Sequence[int] | None) -> Iterator[dict[str, Any]]:
    masks = encode_masks(detection["masks"].numpy()) if "masks" in detection else None
    points = detection["keypoints"].flatten(1).tolist() if "keypoints" in detection else None
    boxes = xyxy_to_xywh(detection["boxes"]).tolist()
    for row, (box, score, label) in enumerate(
        zip(boxes, detection["scores"].tolist(), detection["labels"].tolist(), strict=True)
    ):
        if category_ids is not None and label >= len(category_ids):
            raise ValueError(f"save_results: label {label} has no id; category_ids has {len(category_ids)}")
        entry = {"category_id": label + 1 if category_ids is None else category_ids[label], "bbox": box, "score": score}
        if masks is not None:
            entry["segmentation"] = {**masks[row], "counts": masks[row]["counts"].decode()}
        if points is not None:
            entry["keypoints"] = points[row]
        yield entry


@torch.no_grad()
def _detect(detector: nn.Module, images: list[Tensor]) -> list[Detection]:
    device = next((value.device for value in detector.parameters()), torch.device("cpu"))
    training = [part for part in detector.modules() if part.training]  # others may be frozen in eval()
    try:
        return detector.eval()([image.to(device) for image in images])
    finally:
        for part in training:
            part.training = True


def _single(pictures: Any) -> Iterable[Any]:
    """One picture as a list of it, a folder as its pictures."""
    if isinstance(pictures, (str, os.PathLike)):
        return list(image_paths(pictures))
    if isinstance(pictures, (Image.Image, np.ndarray)) or (isinstance(pictures, Tensor) and pictures.ndim < 4):
        return [pictures]
    if isinstance(pictures, Mapping) or not isinstance(pictures, Iterable):
        raise ValueError(
            f"predict: pictures is a {type(pictures).__name__}; allowed are files, folders, images, or a list of them"
        )
    return pictures


def _read(entries: Iterable[Any], skipped: list[str] | None) -> Iterator[tuple[str, Tensor]]:
    """Names and images; files that cannot be read go to ``skipped``, or are an error if it is None."""
    for number, entry in enumerate(entries):
        if isinstance(entry, (str, os.PathLike)):
            for path in image_paths(entry):
                try:
                    image = read_image(path)
                except (ValueError, OSError) as error:
                    if skipped is None:
                        raise
                    skipped.append(str(error))
                    continue
                yield str(path), image
        else:
            name = str(getattr(entry, "filename", "") or f"picture {number}")
            yield name, _as_tensor(entry, f"predict: {name}")


def _as_tensor(entry: Any, owner: str) -> Tensor:
    if isinstance(entry, Image.Image):
        return rgb_of(entry, owner=owner)
    if isinstance(entry, np.ndarray):
        if entry.dtype != np.uint8 or entry.ndim not in (2, 3) or (entry.ndim == 3 and entry.shape[2] != 3):
            raise ValueError(
                f"{owner} is an array {entry.shape} of {entry.dtype}; allowed are (H, W) or (H, W, 3) of uint8, RGB: "
                "list(array) of a batch, array[..., :3] of RGBA, (array * 255).astype('uint8') of floats in [0, 1]"
            )
        return rgb_of(Image.fromarray(entry), owner=owner)
    if not isinstance(entry, Tensor) or entry.ndim != 3 or entry.shape[0] not in (1, 3):
        what = f"a tensor {tuple(entry.shape)}" if isinstance(entry, Tensor) else f"a {type(entry).__name__}"
        raise ValueError(f"{owner} is {what}; allowed are files, Pillow images, arrays (H, W, 3), tensors (3, H, W)")
    return entry.expand(3, -1, -1)


def _check_labels(labels: Tensor, categories: tuple[str, ...]) -> None:
    if categories and len(labels) and int(labels.max()) >= len(categories):
        raise ValueError(
            f"predict: label {int(labels.max())} has no name; categories has {len(categories)}; "
            "give one for each class of the detector"
        )


def _batches(entries: Iterator[Any], size: int) -> Iterator[list[Any]]:
    while batch := list(islice(entries, size)):
        yield batch
