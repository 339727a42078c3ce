"""Shared by all data sets of this unit: building targets, and ground truth in COCO's form."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision import tv_tensors

from detkit._inputs import as_boxes
from detkit._rle import encode_masks
from detkit.data.wrapped import find_categories, find_item
from detkit.structures import Target

Transforms = Callable[[Any, Any], tuple[Any, Any]]
"""From (image, target) to (image, target), as torchvision.transforms.v2 does it."""


@runtime_checkable
class Annotated(Protocol):
    """A data set that returns ground truth without decoding an image: the readers and DigitScenes."""

    @property
    def categories(self) -> Sequence[str]:
        """Name of each label."""
        ...

    @property
    def category_ids(self) -> Sequence[int]:
        """Id of each label in the annotation file."""
        ...

    def __len__(self) -> int: ...

    def target(self, index: int) -> Target:
        """Ground truth of an image."""
        ...

    def image_size(self, index: int) -> tuple[int, int]:
        """(height, width) of an image."""
        ...


def make_target(
    boxes: NDArray[np.float32],
    labels: NDArray[np.int64],
    *,
    size: tuple[int, int],
    image_id: int,
    area: NDArray[np.floating[Any]],
    iscrowd: NDArray[np.int64],
) -> Target:
    """A target of tv_tensors from arrays: boxes (T, 4) xyxy, labels, area and iscrowd (T,); size (height, width).

    >>> none = np.zeros(0, np.int64)
    >>> target = make_target(np.zeros((0, 4), np.float32), none, size=(4, 6), image_id=3, area=none * 1.0, iscrowd=none)
    >>> target["boxes"].shape, target["labels"].dtype
    (torch.Size([0, 4]), torch.int64)
    """
    # The constructor of BoundingBoxes has overloads that no type checker follows, hence the Any.
    make_boxes: Any = tv_tensors.BoundingBoxes
    return Target(
        boxes=make_boxes(torch.from_numpy(boxes.copy()), format="XYXY", canvas_size=size),
        labels=torch.from_numpy(labels.copy()),
        area=torch.from_numpy(area.astype(np.float32)),
        iscrowd=torch.from_numpy(iscrowd.copy()),
        image_id=image_id,
    )


def coco_ground_truth(
    dataset: Any, *, image_ids: Literal["own", "position"] = "own"
) -> dict[str, list[dict[str, Any]]]:
    """The ground truth of a whole data set as the dict that COCO's evaluators read; no image is decoded.

    Annotation ids start at 1 (0 means "unmatched" to pycocotools), image ids are those of the targets, category ids
    those of the data set. Masks, as compressed RLE, are included if the data set was built with ``masks=True``;
    keypoints likewise. torch's Subset and ConcatDataset, and wrappers such as :class:`~detkit.data.Augmented`, are
    looked through: the truth is that of the files, before any transform.

    Raises TypeError for a data set that does not know its truth, ValueError where the parts of one differ in their
    categories, and where two images have one id, as in several files: ``image_ids="position"`` numbers images by their
    position instead; then use it for the detections as well.

    >>> from detkit.data import DigitScenes
    >>> truth = coco_ground_truth(DigitScenes(2))
    >>> sorted(truth), len(truth["images"]), truth["categories"][7]
    (['annotations', 'categories', 'images'], 2, {'id': 7, 'name': '7'})
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    names, ids = find_categories(dataset, function="coco_ground_truth")
    places: dict[Any, int] = {}
    for index in range(len(dataset)):
        part, place = find_item(dataset, index, function="coco_ground_truth")
        target, (height, width) = part.target(place), part.image_size(place)
        image_id = index if image_ids == "position" else target.get("image_id", index)
        if image_id in places:
            raise ValueError(
                f"coco_ground_truth: the images at {places[image_id]} and {index} both have the id {image_id}; "
                'image_ids="position" numbers them by position'
            )
        places[image_id] = index
        images.append({"id": image_id, "height": height, "width": width})
        for entry in _annotations(target, ids):
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, **entry})
    pairs = zip(ids, names, strict=True)
    categories = [{"id": category_id, "name": name} for category_id, name in pairs]
    return {"images": images, "annotations": annotations, "categories": categories}


def _annotations(target: Target, category_ids: Sequence[int]) -> list[dict[str, Any]]:
    boxes = as_boxes(target["boxes"], function="coco_ground_truth").to(torch.float64)
    corners, sizes = boxes[:, :2], boxes[:, 2:] - boxes[:, :2]
    area = target.get("area", sizes.prod(1))
    iscrowd = target.get("iscrowd", torch.zeros(len(boxes)))
    entries = []
    for t in range(len(boxes)):
        entry: dict[str, Any] = {
            "category_id": category_ids[int(target["labels"][t])],
            "bbox": [*corners[t].tolist(), *sizes[t].tolist()],
            "area": float(area[t]),
            "iscrowd": int(iscrowd[t]),
        }
        if "masks" in target:
            entry["segmentation"] = _encode(target["masks"][t].numpy())
        if "keypoints" in target:
            entry["keypoints"] = target["keypoints"][t].reshape(-1).tolist()
            entry["num_keypoints"] = int((target["keypoints"][t, :, 2] > 0).sum())
        entries.append(entry)
    return entries


def _encode(mask: NDArray[np.uint8]) -> dict[str, Any]:
    (encoded,) = encode_masks(mask[None])
    return {**encoded, "counts": encoded["counts"].decode("ascii")}
