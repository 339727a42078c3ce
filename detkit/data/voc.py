"""Pascal VOC's format: one XML file per image, and one text file of image names per split."""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from detkit.data.files import check_pixels, open_inside, read_image, resolve_inside, shown
from detkit.data.truth import Degenerate, Transforms, check_degenerate, make_target, sized_boxes
from detkit.structures import Target

MAX_XML_BYTES = 1 << 22
"""Larger annotation files are refused before they are parsed: this is room for some ten thousand objects."""
_EDGES = ("xmin", "ymin", "xmax", "ymax")


class VocFolders(NamedTuple):
    """Folders of a data set in VOC's format, relative to its root; the defaults are VOC's own."""

    annotations: str = "Annotations"
    images: str = "JPEGImages"
    splits: str = "ImageSets/Main"


class _Record(NamedTuple):
    """One XML file: image name, (height, width), names (T,), boxes (T, 4), difficult (T,)."""

    file_name: str
    size: tuple[int, int]
    names: list[str]
    boxes: NDArray[np.float32]
    difficult: NDArray[np.int64]


class VocDataset(Dataset[tuple[Any, Target]]):
    """Images and targets of one split in Pascal VOC's format; all XML files are read and checked when it is built.

    An item is (image, target) as in :class:`~detkit.data.CocoDataset`; image_id is the position in the split file.
    ``classes`` fixes the labels; without it they are the sorted names found in this split, so give it if splits must
    agree. Objects marked *difficult* stay with iscrowd 1, so that they count in neither training nor evaluation, or are
    dropped with ``keep_difficult=False``. VOC's own files count pixels from 1 and include the last one:
    ``minus_one=True`` subtracts 1 from xmin and ymin, so that boxes are continuous.

    Boxes without width or height are dropped with one warning (``degenerate="drop"``) or refused (``"raise"``). Raises
    ValueError naming the file and object for XML that is broken, over 4 MiB or has a DOCTYPE (entities could grow
    without bound), for entries that are missing or of the wrong type, boxes that are not finite or inverted, unknown
    names, and for file names and images as :class:`~detkit.data.CocoDataset` does.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as root:
    ...     for folder in VocFolders():
    ...         os.makedirs(f"{root}/{folder}")
    ...     written = Path(root, "ImageSets/Main/train.txt").write_text("one")
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
        split: str,
        *,
        transforms: Transforms | None = None,
        classes: Sequence[str] | None = None,
        keep_difficult: bool = True,
        minus_one: bool = False,
        degenerate: Degenerate = "drop",
        folders: VocFolders = VocFolders(),  # noqa: B008 (a tuple of constants)
    ) -> None:
        check_degenerate(degenerate, owner="VocDataset")
        self.transforms = transforms
        self.image_folder = Path(root, folders.images)
        self.names = _read_split(Path(root, folders.splits), split)
        records = [_read_record(Path(root, folders.annotations), name, minus_one) for name in self.names]
        self.categories = sorted({n for record in records for n in record.names}) if classes is None else list(classes)
        self._labels = [
            _labels(name, record, self.categories) for name, record in zip(self.names, records, strict=True)
        ]
        kept = _kept(self.names, records, keep_difficult, degenerate, owner=f"VocDataset: {root} {split}")
        self._labels = [labels[rows] for labels, rows in zip(self._labels, kept, strict=True)]
        self._records = [
            record._replace(boxes=record.boxes[rows], difficult=record.difficult[rows])
            for record, rows in zip(records, kept, strict=True)
        ]
        for index, record in enumerate(self._records):
            resolve_inside(self.image_folder, record.file_name, owner=self._owner(index))

    @property
    def category_ids(self) -> list[int]:
        """Id of each label: the label itself, since VOC has names only."""
        return list(range(len(self.categories)))

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Any, Target]:
        target, record = self.target(index), self._records[index]
        image = read_image(self.image_folder, record.file_name, size=record.size, owner=self._owner(index))
        return self.transforms(image, target) if self.transforms else (image, target)

    def image_size(self, index: int) -> tuple[int, int]:
        """Declared (height, width) of an image."""
        return self._records[index].size

    def target(self, index: int) -> Target:
        """The target of an image, before transforms; the image is not opened."""
        record = self._records[index]
        sizes = (record.boxes[:, 2:] - record.boxes[:, :2]).astype(np.float64)
        return make_target(
            record.boxes,
            self._labels[index],
            size=record.size,
            image_id=range(len(self))[index],
            area=sizes.prod(1),
            iscrowd=record.difficult,
        )

    def _owner(self, index: int) -> str:
        return f"VocDataset: image id={range(len(self))[index]} ({self.names[index]})"


class _PlainTree(ElementTree.TreeBuilder):
    """Builds a tree, and stops at a DOCTYPE before any entity is declared."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ValueError("has a DOCTYPE, which is refused")


def _read_split(folder: Path, split: str) -> list[str]:
    with open_inside(folder, f"{split}.txt", owner=f"VocDataset: split={split!r}") as file:
        names = [line.strip() for line in file.read().decode("utf-8", "replace").splitlines() if line.strip()]
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise ValueError(f"VocDataset: split={split!r}: {shown(twice[0])} stands there more than once")
    return names


def _read_record(folder: Path, name: str, minus_one: bool) -> _Record:
    owner = f"VocDataset: {shown(f'{name}.xml')}"
    tree = _read_tree(folder, name, owner)
    height, width = (_number(tree.find(f"size/{key}"), key, owner=owner) for key in ("height", "width"))
    if not (height.is_integer() and width.is_integer()):
        raise ValueError(f"{owner}: size is {height} x {width}; allowed are whole pixels")
    check_pixels(int(height), int(width), owner=owner)
    objects = tree.findall("object")
    owners = [f"{owner}: object {t} ({shown(entry.findtext('name'))})" for t, entry in enumerate(objects)]
    boxes = [_box(entry, minus_one, owner=words) for entry, words in zip(objects, owners, strict=True)]
    difficult = [_flag(entry, owner=words) for entry, words in zip(objects, owners, strict=True)]
    return _Record(
        file_name=(tree.findtext("filename") or "").strip(),
        size=(int(height), int(width)),
        names=[_text(entry.find("name"), "name", owner=words) for entry, words in zip(objects, owners, strict=True)],
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        difficult=np.array(difficult, np.int64),
    )


def _read_tree(folder: Path, name: str, owner: str) -> ElementTree.Element:
    with open_inside(folder, f"{name}.xml", owner=owner) as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_XML_BYTES:
            raise ValueError(f"{owner}: has {size} bytes; allowed are {MAX_XML_BYTES}")
        try:
            return ElementTree.fromstring(file.read(), ElementTree.XMLParser(target=_PlainTree()))
        except (ElementTree.ParseError, ValueError, LookupError) as error:
            raise ValueError(f"{owner}: cannot be read as XML: {error}") from error


def _text(element: ElementTree.Element | None, key: str, *, owner: str) -> str:
    text = (element.text or "").strip() if element is not None else ""
    if not text:
        raise ValueError(f"{owner}: {key} is missing or empty")
    return text


def _number(element: ElementTree.Element | None, key: str, *, owner: str) -> float:
    text = _text(element, key, owner=owner)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not abs(value) < 1 << 31:
        raise ValueError(f"{owner}: {key}={shown(text)}; allowed is a finite number within 2**31")
    return value


def _box(entry: ElementTree.Element, minus_one: bool, *, owner: str) -> list[float]:
    x1, y1, x2, y2 = (_number(entry.find(f"bndbox/{key}"), key, owner=owner) for key in _EDGES)
    if x2 < x1 or y2 < y1:
        raise ValueError(f"{owner}: box {[x1, y1, x2, y2]}; allowed is xmin <= xmax and ymin <= ymax")
    return [x1 - minus_one, y1 - minus_one, x2, y2]


def _flag(entry: ElementTree.Element, *, owner: str) -> int:
    text = (entry.findtext("difficult") or "0").strip()
    if text not in ("0", "1"):
        raise ValueError(f"{owner}: difficult={shown(text)}; allowed are 0 and 1")
    return int(text)


def _labels(image: str, record: _Record, categories: list[str]) -> NDArray[np.int64]:
    for t, name in enumerate(record.names):
        if name not in categories:
            raise ValueError(f"VocDataset: {image}.xml: object {t}: name={shown(name)}; allowed are {categories}")
    return np.array([categories.index(name) for name in record.names], np.int64)


def _kept(
    images: list[str], records: list[_Record], keep_difficult: bool, degenerate: Degenerate, *, owner: str
) -> list[NDArray[np.bool_]]:
    """Which objects of each image stay; zero-size boxes of all images are counted together."""
    places = [
        f"{image}.xml: object {t}"
        for image, record in zip(images, records, strict=True)
        for t in range(len(record.names))
    ]
    boxes = np.concatenate([np.zeros((0, 4), np.float32), *(record.boxes for record in records)])
    kept = sized_boxes(boxes, policy=degenerate, name=places.__getitem__, owner=owner)
    if not keep_difficult:
        kept &= np.concatenate([np.zeros(0, np.int64), *(record.difficult for record in records)]) == 0
    return np.split(kept, np.cumsum([len(record.names) for record in records])[:-1]) if records else []
