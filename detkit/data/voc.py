"""Pascal VOC's format: one XML file per image, and one text file of image names per split."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from detkit._coco.crowds import warn_of_crowds
from detkit._faults import Degenerate, Faults, check_degenerate, judge_boxes, shown
from detkit.data.files import read_image
from detkit.data.truth import Transforms, make_target
from detkit.data.voc_pictures import complete_sizes, find_pictures
from detkit.data.voc_split import list_files
from detkit.data.voc_xml import VocRecord, read_voc
from detkit.structures import Target


class VocFolders(NamedTuple):
    """Folders of a data set in VOC's format, relative to its root; the defaults are VOC's own."""

    annotations: str = "Annotations"
    images: str = "JPEGImages"
    splits: str = "ImageSets/Main"


class VocDataset(Dataset[tuple[Any, Target]]):
    """Images and targets in Pascal VOC's format; all XML files are read and checked when it is built.

    ``split`` is the name of a list of names, one a line; None takes every XML file, sorted by name, for the many tools
    that write no lists. An item is (image, target) as in :class:`~detkit.data.CocoDataset`; image_id is the position.
    The picture of ``one`` is the file one.jpg, one.png, ... of the image folder; what ``<filename>`` says counts only
    where there is none. A size that is missing or 0 is read from the picture. ``unlabeled=True`` takes names without an
    XML file as images without objects.

    ``classes`` fixes the labels; without it they are the sorted names found in this split, so give it if splits must
    agree. Objects marked *difficult* stay with iscrowd 1, so that they count in neither training nor evaluation, or are
    dropped with ``keep_difficult=False``; false, Unspecified or nothing is not difficult. VOC's own files count pixels
    from 1 and include the last one: ``minus_one=True`` subtracts 1 from xmin and ymin, so that boxes are continuous.
    The page on annotation tools says for which tools to set it.

    Objects without a name or with a box that is missing, not finite, inverted, without width or height or outside its
    picture are dropped with one warning (``degenerate="drop"``) or refused (``"raise"``). Raises ValueError telling
    every kind of fault with its first file and object: XML that is broken, over 4 MiB, not of one image or has a
    DOCTYPE (entities could grow without bound), sizes and flags that are none, names not in ``classes``, a name or
    picture that occurs twice, and file names and images as :class:`~detkit.data.CocoDataset` does; FileNotFoundError
    naming all XML files or pictures that are missing.

    >>> import os, tempfile
    >>> with tempfile.TemporaryDirectory() as root:
    ...     for folder in VocFolders():
    ...         os.makedirs(f"{root}/{folder}")
    ...     written = Path(root, "ImageSets/Main/train.txt").write_text("one")
    ...     Path(root, "JPEGImages/one.jpg").touch()
    ...     written = Path(root, "Annotations/one.xml").write_text(
    ...         "<annotation><filename>one.jpg</filename><size><width>6</width><height>4</height></size><object>"
    ...         "<name>cat</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>3</xmax><ymax>4</ymax></bndbox></object>"
    ...         "</annotation>")
    ...     dataset = VocDataset(root, "train")
    >>> dataset.categories, dataset.target(0)["boxes"].tolist()
    (['cat'], [[1.0, 1.0, 3.0, 4.0]])
    """

    def __init__(
        self,
        root: str | Path,
        split: str | None,
        *,
        transforms: Transforms | None = None,
        classes: Sequence[str] | None = None,
        keep_difficult: bool = True,
        minus_one: bool = False,
        degenerate: Degenerate = "drop",
        unlabeled: bool = False,
        folders: VocFolders = VocFolders(),  # noqa: B008 (a tuple of constants)
    ) -> None:
        check_degenerate(degenerate, owner="VocDataset")
        self.transforms = transforms
        self.image_folder, annotations = Path(root, folders.images), Path(root, folders.annotations)
        faults = Faults("VocDataset", policy=degenerate)
        files = list_files(annotations, Path(root, folders.splits), split, unlabeled=unlabeled, faults=faults)
        self.names = list(files)
        records = read_voc(annotations, list(files.values()), faults, minus_one=minus_one)
        told = [record.file_name for record in records]
        self._pictures = find_pictures(self.image_folder, self.names, told, faults)
        self._sizes = complete_sizes(self.image_folder, self._pictures, [record.size for record in records], faults)
        self.categories = _categories(records, classes)
        paths = [str(annotations / (file or "")) for file in files.values()]
        kept = _judge(records, self._sizes, paths, self.categories, faults)
        self._records = [
            _taken(record, rows if keep_difficult else rows & (record.difficult == 0))
            for record, rows in zip(records, kept, strict=True)
        ]
        labels = {name: label for label, name in enumerate(self.categories)}
        self._labels = [np.array([labels[name] for name in record.names], np.int64) for record in self._records]
        self._warn_of_difficult(f"VocDataset: {root}, split={split!r}")

    @property
    def category_ids(self) -> list[int]:
        """Id of each label: the label itself, since VOC has names only."""
        return list(range(len(self.categories)))

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Any, Target]:
        target, size = self.target(index), self._sizes[index]
        image = read_image(self.image_folder, self._pictures[index], size=size, owner=self._owner(index))
        return self.transforms(image, target) if self.transforms else (image, target)

    def image_size(self, index: int) -> tuple[int, int]:
        """(height, width) of an image, as declared, or as its header says where it is not."""
        return self._sizes[index]

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

    def _warn_of_difficult(self, source: str) -> None:
        labels = np.concatenate([np.zeros(0, np.int64), *self._labels])
        difficult = np.concatenate([np.zeros(0, np.int64), *(record.difficult for record in self._records)])
        remedy = "they are marked difficult in the XML"
        warn_of_crowds(labels, difficult == 1, self.categories, source=source, remedy=remedy)

    def _owner(self, index: int) -> str:
        return f"VocDataset: image id={range(len(self))[index]} ({self.names[index]})"


def _categories(records: Sequence[VocRecord], classes: Sequence[str] | None) -> list[str]:
    if classes is None:
        return sorted({name for record in records for name in record.names if name})
    if isinstance(classes, str) or len(set(classes)) < len(classes):
        raise ValueError(f"VocDataset: classes={shown(classes)}; allowed is a list of distinct names")
    return list(classes)


def _judge(
    records: Sequence[VocRecord],
    sizes: Sequence[tuple[int, int]],
    paths: Sequence[str],
    categories: Sequence[str],
    faults: Faults,
) -> list[NDArray[np.bool_]]:
    """Which objects of each record stay; those of all records are judged together."""
    starts = np.cumsum([0, *(len(record.names) for record in records)])
    image = np.repeat(np.arange(len(records)), np.diff(starts))

    def name(row: int) -> str:
        return f"{paths[image[row]]}: object {row - starts[image[row]]}"

    _refuse_unknown([name for record in records for name in record.names], categories, name, faults)
    first = zip(starts.tolist(), records, strict=False)
    unread = {start + t: fault for start, record in first for t, fault in record.unread.items()}
    for kind in dict.fromkeys(kind for kind, _ in unread.values()):
        bad = [row in unread and unread[row][0] == kind for row in range(len(image))]
        faults.drop(bad, lambda row: f"{name(row)}: {unread[row][1]}")
    read = np.array([row not in unread for row in range(len(image))], bool)
    boxes = np.concatenate([np.zeros((0, 4), np.float32), *(record.boxes for record in records)])
    sound = judge_boxes(boxes, np.array(sizes).reshape(-1, 2)[image], name, faults, among=read)
    faults.settle(sound)
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


def _taken(record: VocRecord, rows: NDArray[np.bool_]) -> VocRecord:
    names = [name for name, taken in zip(record.names, rows.tolist(), strict=True) if taken]
    return VocRecord(names=names, boxes=record.boxes[rows], difficult=record.difficult[rows])
