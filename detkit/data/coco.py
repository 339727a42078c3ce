"""COCO's format: one JSON file of images, annotations and categories, and a folder of images."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from torchvision import tv_tensors

from detkit._faults import Degenerate, check_degenerate
from detkit._rle import draw_mask
from detkit.data.coco_json import CocoRecords, read_coco
from detkit.data.files import decode_inside, open_inside
from detkit.data.images import StoredPicture
from detkit.data.truth import Transforms, make_target
from detkit.structures import Target


class CocoDataset(Dataset[tuple[Any, Target]]):
    """Images and targets of a COCO annotation file, checked as a whole when it is built; nothing is ever downloaded.

    An item is (image, target): image uint8 (3, H, W) RGB as tv_tensors.Image; target a dict with boxes (T, 4) float32
    xyxy pixels as tv_tensors.BoundingBoxes, labels (T,) int64 in 0..C-1 in the order of ascending category id,
    image_id, area (T,), iscrowd (T,) (1 for crowds and for entries with ``ignore``, which stay), masks (T, H, W) uint8
    as tv_tensors.Mask with ``masks=True``, keypoints (T, P, 3) as x, y, visibility with ``keypoints=True``. Images come
    in ascending order of id; images without objects stay, with boxes (0, 4). ``transforms`` maps image and target to
    both, as torchvision.transforms.v2 does.

    What can only mean one thing is taken: numbers and flags as text, a size that the file doesn't give from the
    picture's header, LVIS's ``coco_url`` as the name, categories repeated, no ``annotations`` as images without
    objects, keypoints of a category that names fewer as the first of them, the others not labeled. Objects that are
    none (no box, mask or keypoints of those asked for, no area, a mask without a pixel, wholly outside the picture,
    ...) are dropped with one warning that counts each kind (``degenerate="drop"``) or refused (``"raise"``), and so are
    polygons of a mask that has others. A category that only groups others, and names given twice, are labels of their
    own with a warning; ``tidy_categories=True`` drops the first and merges the second.

    Raises ValueError naming the file, and of each kind of fault the first entry and the count: ids that are no
    integers, repeated or unknown, names that are absolute, lead out of ``image_folder`` or are URLs; FileNotFoundError
    naming all missing pictures. On reading, ValueError for an image that is broken, larger than ``MAX_IMAGE_PIXELS``,
    or of another size than declared.

    >>> import json, tempfile
    >>> from PIL import Image
    >>> with tempfile.TemporaryDirectory() as root:
    ...     Image.new("RGB", (6, 4)).save(f"{root}/5.png")
    ...     written = Path(root, "a.json").write_text(json.dumps({
    ...         "images": [{"id": 5, "file_name": "5.png", "height": 4, "width": 6}],
    ...         "categories": [{"id": 90, "name": "toothbrush"}],
    ...         "annotations": [{"id": 1, "image_id": 5, "category_id": 90, "bbox": [1, 1, 2, 3]}]}))
    ...     dataset = CocoDataset(root, f"{root}/a.json")
    ...     image, target = dataset[0]
    >>> image.shape, target["boxes"].tolist(), target["labels"].tolist(), dataset.label_to_id
    (torch.Size([3, 4, 6]), [[1.0, 1.0, 3.0, 4.0]], [0], {0: 90})
    """

    def __init__(
        self,
        image_folder: str | Path,
        annotation_file: str | Path,
        *,
        transforms: Transforms | None = None,
        masks: bool = False,
        keypoints: bool = False,
        degenerate: Degenerate = "drop",
        tidy_categories: bool = False,
    ) -> None:
        check_degenerate(degenerate, owner="CocoDataset")
        self.image_folder = Path(image_folder)
        self.transforms = transforms
        self.records: CocoRecords = read_coco(
            annotation_file,
            self.image_folder,
            masks=masks,
            keypoints=keypoints,
            degenerate=degenerate,
            tidy_categories=tidy_categories,
        )

    @property
    def categories(self) -> list[str]:
        """Name of each label."""
        return self.records.categories

    @property
    def category_ids(self) -> list[int]:
        """Id of each label in the file, ascending."""
        return self.records.category_ids

    @property
    def label_to_id(self) -> dict[int, int]:
        """Category id of each label."""
        return dict(enumerate(self.records.category_ids))

    @property
    def id_to_label(self) -> dict[int, int]:
        """Label of each category id."""
        return dict(self.records.id_to_label)

    @property
    def image_ids(self) -> list[int]:
        """Id of each image, ascending, which is the order of the data set."""
        return self.records.image_ids.tolist()

    def __len__(self) -> int:
        return len(self.records.file_names)

    def __getitem__(self, index: int) -> tuple[Any, Target]:
        target = self.target(index)
        name = self.records.file_names[index]
        image = decode_inside(self.image_folder, name, size=self.image_size(index), owner=self._owner(index))
        return self.transforms(image, target) if self.transforms else (image, target)

    def file_name(self, index: int) -> str:
        """The picture of an image, relative to ``image_folder``."""
        return self.records.file_names[index]

    def image_size(self, index: int) -> tuple[int, int]:
        """Declared (height, width) of an image."""
        height, width = self.records.sizes[index].tolist()
        return height, width

    def stored_picture(self, index: int) -> StoredPicture:
        """The file of an image, as it is."""
        name = self.records.file_names[index]
        with open_inside(self.image_folder, name, owner=self._owner(index)) as file:
            return StoredPicture(file.read(), name, upright=False)

    def target(self, index: int) -> Target:
        """The target of an image, before transforms; the image is not opened."""
        records, size = self.records, self.image_size(index)
        index = range(len(self))[index]
        rows = slice(int(records.offsets[index]), int(records.offsets[index + 1]))
        target = make_target(
            records.boxes[rows],
            records.labels[rows],
            size=size,
            image_id=int(records.image_ids[index]),
            area=records.area[rows],
            iscrowd=records.iscrowd[rows],
        )
        if records.segmentations is not None:
            drawn = [draw_mask(segmentation, size) for segmentation in records.segmentations[rows]]
            masks = np.stack(drawn) if drawn else np.zeros((0, *size), np.uint8)
            target["masks"] = tv_tensors.Mask(torch.from_numpy(masks))
        if records.keypoints is not None:
            target["keypoints"] = torch.from_numpy(records.keypoints[rows].copy())
        return target

    def _owner(self, index: int) -> str:
        return f"CocoDataset: image id={self.records.image_ids[index]}"
