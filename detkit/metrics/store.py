"""The images a metric has seen, each once, gathered over processes."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from detkit.dist import gather_objects, rank
from detkit.metrics.records import ImageRecord, Objects, Reader, check_images, read_images
from detkit.structures import Detection, Target


class ImageStore:
    """The images seen so far, each once, in an order that does not depend on how processes shared them.

    An image seen again under its ``image_id`` replaces the earlier one (a padded sampler repeats images); its ground
    truth must be the same. Images without an id get consecutive ones and never count as the same image.

    >>> import torch
    >>> store = ImageStore()
    >>> store.next_keys([{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0), "image_id": 7}], "demo")
    [(0, 7, 0)]
    """

    def __init__(self) -> None:
        self.version = 0
        self.reset()

    def reset(self) -> None:
        """Forget every image.

        >>> ImageStore().reset()
        """
        self._images: dict[tuple[int, int, int], ImageRecord] = {}
        self._unnamed = 0
        self.version += 1

    def next_keys(self, targets: Sequence[Target], function: str) -> list[tuple[int, int, int]]:
        """Keys of a batch: (0, image_id, 0), or (1, running number, process) where a target has no id.

        >>> import torch
        >>> ImageStore().next_keys([{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0)}], "demo")
        [(1, 0, 0)]
        """
        return [image_key(target, self._unnamed + i, f"{function}: targets[{i}]") for i, target in enumerate(targets)]

    def read(self, reader: Reader, detections: Sequence[Detection], targets: Sequence[Target]) -> None:
        """Keep the images of a batch, as :func:`read_images` reads them; where it raises an error, none.

        >>> ImageStore().read(Reader("demo", 1), [], [])
        """
        check_images(reader.function, targets, detections=detections)
        keys = self.next_keys(targets, reader.function)
        self.add(read_images(reader, detections, targets, keys))

    def add(self, records: Sequence[ImageRecord]) -> None:
        """Keep these images. Raises ValueError if one was seen with other ground truth, and then keeps none.

        >>> ImageStore().add([])
        """
        merged = _merge([self._images.values(), records])
        self._images = merged
        self._unnamed += sum(record.key[0] for record in records)
        self.version += 1

    def versions(self) -> list[int]:
        """A number per process that grows with every change: equal lists mean equal images (collective call).

        >>> ImageStore().versions()
        [1]
        """
        return gather_objects(self.version)

    def gathered(self) -> list[ImageRecord]:
        """Every image of every process once, ordered by key; the same list in each process (collective call).

        >>> ImageStore().gathered()
        []
        """
        images = _merge(gather_objects(list(self._images.values())))
        return [images[key] for key in sorted(images)]


def _merge(parts: Iterable[Iterable[ImageRecord]]) -> dict[tuple[int, int, int], ImageRecord]:
    images: dict[tuple[int, int, int], ImageRecord] = {}
    for record in (record for part in parts for record in part):
        seen = images.setdefault(record.key, record)
        if seen is not record and not _same_truth(seen.truth, record.truth):
            raise ValueError(
                f"image_id {record.key[1]} came twice with different targets ({len(seen.truth.labels)} and "
                f"{len(record.truth.labels)} objects); give each image its own image_id"
            )
        images[record.key] = record
    return images


def _same_truth(first: Objects, second: Objects) -> bool:
    names = ("boxes", "labels", "crowd", "ignore")
    return all(np.array_equal(getattr(first, name), getattr(second, name)) for name in names)


def image_key(target: Target, number: int, where: str) -> tuple[int, int, int]:
    """(0, image_id, 0), or (1, ``number``, process) where the target has no id.

    Raises ValueError, beginning with ``where``, for an id that is no integer.

    >>> image_key({"boxes": [], "labels": [], "image_id": 7}, 3, "demo")
    (0, 7, 0)
    """
    image_id = _image_id(target, where)
    return (1, number, rank()) if image_id is None else (0, image_id, 0)


def _image_id(target: Target, where: str) -> int | None:
    image_id: Any = target.get("image_id")
    if isinstance(image_id, Tensor) and image_id.numel() == 1:
        image_id = image_id.item()
    if image_id is not None and (not isinstance(image_id, int | np.integer) or isinstance(image_id, bool)):
        raise ValueError(f"{where}['image_id'] = {image_id!r:.40}; allowed is an integer")
    return None if image_id is None else int(image_id)
