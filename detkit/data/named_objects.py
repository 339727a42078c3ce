"""Objects whose classes are names, as VOC's XML and Kaggle's table give them: judged, and made a data set."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from detkit._coco.crowds import warn_of_crowds
from detkit._faults import Faults, judge_boxes, shown
from detkit.data.files import decode_inside, open_inside
from detkit.data.images import StoredPicture
from detkit.data.named_pictures import complete_sizes, find_pictures
from detkit.data.truth import Transforms, make_target
from detkit.structures import Target


class NamedObjects(NamedTuple):
    """What a file says of one image: the picture's file name, (height, width) with 0 where it gives none, and T
    objects: names, boxes (T, 4) float32, difficult (T,), and perhaps polygons (x, y, x, y ...). ``unread``: kind and
    words of what is wrong with objects that have an empty name, a box that is NaN or a flag that means nothing.
    """

    file_name: str = ""
    size: tuple[int, int] = (0, 0)
    names: Sequence[str] = ()
    boxes: NDArray[np.float32] = np.zeros((0, 4), np.float32)
    difficult: NDArray[np.int64] = np.zeros(0, np.int64)
    unread: Mapping[int, tuple[str, str]] = {}
    polygons: Sequence[NDArray[np.float64]] = ()

    def take(self, rows: NDArray[np.bool_]) -> "NamedObjects":
        """Those of its objects that ``rows`` (T,) marks, without what was wrong with others.

        >>> objects = NamedObjects(names=["cat", "dog"], boxes=np.ones((2, 4), np.float32), difficult=np.zeros(2, int))
        >>> objects.take(np.array([False, True])).names
        ['dog']
        """
        names = [name for name, taken in zip(self.names, rows.tolist(), strict=True) if taken]
        polygons = [polygon for polygon, taken in zip(self.polygons, rows.tolist(), strict=False) if taken]
        kept = self._replace(names=names, boxes=self.boxes[rows], difficult=self.difficult[rows])
        return kept._replace(unread={}, polygons=polygons)


class NamedDataset(Dataset[tuple[Any, Target]]):
    """The data set of the images ``names`` below a folder and their ``records``; ``places`` are what errors call each.

    Everything is checked on the way: ``faults``, which the reader of the records has told of the rest, is settled here.
    Its source is the name of the data set. ``classes`` are the names of the labels, or all that occur.
    """

    def __init__(
        self,
        image_folder: Path,
        names: Sequence[str],
        records: Sequence[NamedObjects],
        places: Sequence[str],
        *,
        classes: Sequence[str] | None,
        transforms: Transforms | None,
        faults: Faults,
    ) -> None:
        self.image_folder, self.names, self.transforms = image_folder, list(names), transforms
        told = [record.file_name for record in records]
        self._pictures = find_pictures(image_folder, self.names, told, faults)
        self._sizes = complete_sizes(image_folder, self._pictures, [record.size for record in records], faults)
        self.categories = _categories(records, classes, faults.source)
        kept = _judge(records, self._sizes, places, self.categories, faults)
        faults.settle(np.concatenate([np.zeros(0, bool), *kept]))
        self._hold([record.take(rows) for record, rows in zip(records, kept, strict=True)])

    @property
    def category_ids(self) -> list[int]:
        """Id of each label: the label itself, since there are names only."""
        return list(range(len(self.categories)))

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Any, Target]:
        target, size = self.target(index), self._sizes[index]
        image = decode_inside(self.image_folder, self._pictures[index], size=size, owner=self._owner(index))
        return self.transforms(image, target) if self.transforms else (image, target)

    def image_size(self, index: int) -> tuple[int, int]:
        """(height, width) of an image, as declared, or as its header says where it is not."""
        return self._sizes[index]

    def stored_picture(self, index: int) -> StoredPicture:
        """The file of an image, as it is."""
        name = self._pictures[index]
        with open_inside(self.image_folder, name, owner=self._owner(index)) as file:
            return StoredPicture(file.read(), name, upright=False)

    def file_name(self, index: int) -> str:
        """The picture of an image, relative to ``image_folder``."""
        return self._pictures[index]

    def target(self, index: int) -> Target:
        """The target of an image, before transforms; the image is not opened."""
        record = self._records[index]
        sizes = (record.boxes[:, 2:] - record.boxes[:, :2]).astype(np.float64)
        return make_target(
            record.boxes,
            self._labels[index],
            size=self._sizes[index],
            image_id=range(len(self))[index],
            area=sizes.prod(1),
            iscrowd=record.difficult,
        )

    def _hold(self, records: list[NamedObjects]) -> None:
        """Keep the objects of these records, one for each image."""
        labels = {name: label for label, name in enumerate(self.categories)}
        self._records = records
        self._labels = [np.array([labels[name] for name in record.names], np.int64) for record in records]

    def _warn_of_nothing(self, source: str) -> None:
        """Warn of a data set without objects, and of classes all of whose objects are difficult."""
        labels = np.concatenate([np.zeros(0, np.int64), *self._labels])
        difficult = np.concatenate([np.zeros(0, np.int64), *(record.difficult for record in self._records)])
        remedy = "they are marked difficult in the XML"
        warn_of_crowds(labels, difficult == 1, self.categories, source=source, remedy=remedy)

    def _owner(self, index: int) -> str:
        return f"{type(self).__name__}: image id={range(len(self))[index]} ({self.names[index]})"


def _categories(records: Sequence[NamedObjects], classes: Sequence[str] | None, owner: str) -> list[str]:
    if classes is None:
        return sorted({name for record in records for name in record.names if name})
    are_names = isinstance(classes, Sequence) and all(isinstance(name, str) for name in classes)
    if not are_names or len(set(classes)) < len(classes):
        raise ValueError(f"{owner}: classes={shown(classes)}; allowed is a list of distinct names")
    return list(classes)


def _judge(
    records: Sequence[NamedObjects],
    sizes: Sequence[tuple[int, int]],
    places: Sequence[str],
    categories: Sequence[str],
    faults: Faults,
) -> list[NDArray[np.bool_]]:
    """Which objects of each record stay; those of all records are judged together."""
    starts = np.cumsum([0, *(len(record.names) for record in records)])
    image = np.repeat(np.arange(len(records)), np.diff(starts))

    def name(row: int) -> str:
        return f"{places[image[row]]}: object {row - starts[image[row]]}"

    _refuse_unknown([name for record in records for name in record.names], categories, name, faults)
    first = zip(starts.tolist(), records, strict=False)
    unread = {start + t: fault for start, record in first for t, fault in record.unread.items()}
    for kind in dict.fromkeys(kind for kind, _ in unread.values()):
        bad = [row in unread and unread[row][0] == kind for row in range(len(image))]
        faults.drop(bad, lambda row: f"{name(row)}: {unread[row][1]}")
    read = np.array([row not in unread for row in range(len(image))], bool)
    boxes = np.concatenate([np.zeros((0, 4), np.float32), *(record.boxes for record in records)])
    sound = judge_boxes(boxes, np.array(sizes, np.int64).reshape(-1, 2)[image], name, faults, among=read)
    return np.split(sound, starts[1:-1]) if records else []


def _refuse_unknown(
    names: Sequence[str], categories: Sequence[str], place: Callable[[int], str], faults: Faults
) -> None:
    known, unknown = {"", *categories}, dict[str, list[int]]()
    for row, name in enumerate(names):
        if name not in known:
            unknown.setdefault(name, []).append(row)
    for name, rows in unknown.items():
        words = f"{place(rows[0])}: name={shown(name)}; allowed are {list(categories)}"
        faults.refuse([True] * len(rows), lambda _, words=words: words)
