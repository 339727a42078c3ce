"""Any data set as a COCO file: its ground truth, and the names of its pictures or the pictures themselves."""

import json
import os
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from detkit._disk import write_atomically
from detkit._inputs import white_of
from detkit.data.truth import coco_ground_truth
from detkit.data.wrapped import find_item


def save_coco(
    dataset: Any,
    path: str | os.PathLike[str],
    *,
    images: str | os.PathLike[str] | None = None,
    image_ids: Literal["own", "position"] = "own",
) -> None:
    """Write the ground truth of a data set as a COCO file, which :class:`CocoDataset` reads as the same objects.

    What is written is :func:`coco_ground_truth`: boxes, areas, crowds (VOC's difficult objects are some), and where the
    data set was built with them masks, as compressed runs, and keypoints. ``file_name`` is that of each picture,
    relative to the data set's own folder, which stays where it is; with ``images`` the pictures themselves are written
    into that folder, as PNG, numbered by position: for data sets without files, or of several folders, and for
    transforms that change the pictures (their objects are those before). Keypoints have numbers for names, which no
    data set keeps. The file is written atomically.

    Raises TypeError and ValueError as :func:`coco_ground_truth` does, and ValueError for a data set without files or of
    several folders where ``images`` is not given, and for a picture of another size than its target says.

    >>> import tempfile
    >>> from detkit.data import CocoDataset, DigitScenes
    >>> folder, scenes = tempfile.mkdtemp(), DigitScenes(2)
    >>> save_coco(scenes, f"{folder}/digits.json", images=folder)
    >>> CocoDataset(folder, f"{folder}/digits.json").target(1)["boxes"].equal(scenes.target(1)["boxes"])
    True
    """
    truth = coco_ground_truth(dataset, image_ids=image_ids)
    names = _file_names(dataset) if images is None else _written(dataset, Path(images))
    for image, name in zip(truth["images"], names, strict=True):
        image["file_name"] = name
    if points := max((len(entry.get("keypoints", ())) // 3 for entry in truth["annotations"]), default=0):
        for category in truth["categories"]:
            category["keypoints"] = [str(number) for number in range(points)]
    write_atomically(path, lambda file: file.write(json.dumps(truth).encode()), owner="save_coco")


def _file_names(dataset: Any) -> list[str]:
    found = [find_item(dataset, index, function="save_coco") for index in range(len(dataset))]
    without = next((part for part, _ in found if not hasattr(part, "file_name")), None)
    if without is not None:
        raise ValueError(f"save_coco: a {type(without).__name__} has no files; give a folder to write them to, images=")
    folders = sorted({str(part.image_folder) for part, _ in found})
    if len(folders) > 1:
        raise ValueError(f"save_coco: pictures lie in {len(folders)} folders, {folders[:3]}; copy them to one, images=")
    return [part.file_name(place) for part, place in found]


def _written(dataset: Any, folder: Path) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for index in range(len(dataset)):
        part, place = find_item(dataset, index, function="save_coco")
        picture = _picture(dataset[index][0])
        if (picture.height, picture.width) != tuple(part.image_size(place)):
            raise ValueError(
                f"save_coco: image {index} is {picture.height} x {picture.width}, its target of "
                f"{part.image_size(place)}; allowed are transforms that keep the size"
            )
        names.append(f"{index:06d}.png")
        picture.save(folder / names[-1])
    return names


def _picture(image: Any) -> Image.Image:
    if not isinstance(image, Tensor):
        return image
    white = white_of(image.dtype, where="save_coco: image")
    return to_pil_image((image.double() / white * 255).round().clamp(0, 255).to(torch.uint8))
