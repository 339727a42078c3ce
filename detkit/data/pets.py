"""The Oxford-IIIT Pet data set in its published layout: breeds, trimaps, and boxes of heads in VOC's XML."""

import os
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch

from detkit._faults import Degenerate, Faults, check_degenerate, shown
from detkit.data.files import check_name, decode_inside, open_inside, picture_size, read_class_map
from detkit.data.named_objects import NamedDataset, NamedObjects
from detkit.data.pictures import Pictures
from detkit.data.truth import Transforms
from detkit.data.voc_xml import read_voc
from detkit.structures import VOID, Target

SPECIES = ("cat", "dog")
BREEDS = 37
_TRIMAP = {"void": (VOID, 1, 0, VOID), "pet": (VOID, 1, 0, 1)}  # the class of the values 0 (none), 1, 2 and 3


class _Row(NamedTuple):
    """A line of a list: the image's name, its breed from 1, and its species."""

    name: str
    breed: int
    species: int


class PetDataset(NamedDataset):
    """Pets with a head box, the class of the image and of each pixel, from the folders ``images`` and ``annotations``.

    ``split`` is the name of a list there: trainval, test, or list for all. An item is (image, target) as in
    :class:`~detkit.data.CocoDataset`; the target has besides ``image_labels``, the species (cat 0, dog 1) or with
    ``classes="breeds"`` the breed 0..36, and ``segmentation`` (H, W): 1 is pet, 0 background; the border that trimaps
    mark is VOID, or with ``border="pet"`` pet. Boxes are those of heads, as the files have them, labeled by species;
    ``categories`` and ``image_classes`` are the names.

    Head boxes are published for most images of trainval and none of test. ``without_box`` says what happens to an image
    without an XML file, or with one that has no object: with "crowd" one region of iscrowd 1 covers it, so that its
    boxes count in neither training nor evaluation, with one warning; "drop" leaves the image out, with one warning;
    "raise" refuses it. Pictures and trimaps that are missing or not readable, or differ in size, and XML that is
    broken, spoil an image: such images are dropped with one warning (``degenerate="drop"``) or refused (``"raise"``).
    Headers are read when it is built; with ``thorough`` all pixels are. Boxes that are none fall under ``degenerate``,
    too: see :class:`~detkit.data.VocDataset`. Raises ValueError for lines that are not "name breed species number", and
    names that occur twice.

    Source: Parkhi et al. 2012 and the README of its annotations.

    >>> PetDataset("/nowhere", "trainval")
    Traceback (most recent call last):
    FileNotFoundError: PetDataset: split='trainval': there is no file /nowhere/annotations/trainval.txt
    """

    def __init__(
        self,
        root: str | Path,
        split: str,
        *,
        transforms: Transforms | None = None,
        classes: Literal["species", "breeds"] = "species",
        border: Literal["void", "pet"] = "void",
        without_box: Literal["crowd", "drop", "raise"] = "crowd",
        degenerate: Degenerate = "drop",
        thorough: bool = False,
    ) -> None:
        check_degenerate(degenerate, owner="PetDataset")
        _check_options(classes=classes, border=border, without_box=without_box)
        self._annotations, self._classes = Path(root, "annotations"), torch.tensor(_TRIMAP[border])
        rows, breeds = _rows(self._annotations, split), classes == "breeds"
        found = [_Pet(root, row, thorough=thorough) for row in rows]
        _judge(found, without_box, degenerate)
        pets = [pet for pet in found if not pet.fault and (pet.file or without_box != "drop")]
        self.image_labels = [pet.row.breed - 1 if breeds else pet.row.species - 1 for pet in pets]
        self.image_classes = _breeds(rows) if breeds else list(SPECIES)
        super().__init__(
            Path(root, "images"),
            [pet.row.name for pet in pets],
            [pet.record for pet in pets],
            [f"{self._annotations / (pet.file or pet.row.name)}" for pet in pets],
            classes=SPECIES,
            transforms=transforms,
            faults=Faults("PetDataset", policy=degenerate),
        )

    def target(self, index: int) -> Target:
        """The target of an image, before transforms; its trimap is read, the image is not opened."""
        target, place = super().target(index), range(len(self))[index]
        trimap = _trimap(self._annotations, self.names[place], self.image_size(place), self._owner(place))
        target["segmentation"] = self._classes[trimap.long()]
        target["image_labels"] = torch.tensor(self.image_labels[place])
        return target


class _Pet:
    """What the files say of one image, and what is wrong with them ("" if nothing is)."""

    def __init__(self, root: str | Path, row: _Row, *, thorough: bool) -> None:
        self.row, self.record, self.file = row, NamedObjects(), f"xmls/{row.name}.xml"
        self.fault, self.spoiled = "", "picture"  # what is wrong, and where: what is looked at next
        annotations, owner = Path(root, "annotations"), f"PetDataset: {shown(row.name)}"
        try:
            size = _picture(Path(root, "images"), row.name, owner, thorough=thorough)
            self.spoiled, trimap = "trimap", f"trimaps/{row.name}.png"
            if (other := picture_size(annotations, trimap, owner=owner)) != size:
                raise ValueError(f"{owner}: the trimap is {other[0]} x {other[1]}, the picture {size[0]} x {size[1]}")
            if thorough:
                _trimap(annotations, row.name, size, owner)
            self.spoiled = "box"
            if os.path.exists(annotations / self.file):
                faults = Faults("PetDataset")
                (record,) = read_voc(annotations, [self.file], faults)
                faults.settle()
                self.record = record._replace(size=size, file_name="")
            if not len(self.record.boxes):
                self.file, whole = "", np.array([[0, 0, size[1], size[0]]], np.float32)
                names = [SPECIES[row.species - 1]]
                self.record = NamedObjects(names=names, boxes=whole, difficult=np.ones(1, np.int64), size=size)
        except (ValueError, FileNotFoundError) as error:
            self.fault = str(error)


def _picture(folder: Path, name: str, owner: str, *, thorough: bool) -> tuple[int, int]:
    """(height, width) of the picture, whose pixels are read, too, with ``thorough``."""
    file = check_name(f"{name}.jpg", owner=owner)
    files = [file] if (folder / file).is_file() else Pictures(folder).named(name, owner=owner)
    if not files:
        raise FileNotFoundError(f"{owner}: there is no picture below {folder}")
    size = picture_size(folder, files[0], owner=owner)
    if thorough:
        decode_inside(folder, files[0], size=size, owner=owner)
    return size


def _trimap(annotations: Path, name: str, size: tuple[int, int], owner: str) -> torch.Tensor:
    values = read_class_map(annotations, f"trimaps/{name}.png", size=size, owner=owner)
    if not 1 <= int(values.min()) <= int(values.max()) <= 3:
        words = "allowed are 1 (pet), 2 (background) and 3 (border)"
        raise ValueError(f"{owner}: the trimap holds {int(values.min())}..{int(values.max())}; {words}")
    return values


def _judge(pets: Sequence[_Pet], without_box: str, degenerate: Degenerate) -> None:
    """Raise or warn for images that are spoiled, and for those without a box."""
    faults = Faults("PetDataset", policy=degenerate)
    for kind in ("picture", "trimap", "box"):
        words = [pet.fault.removeprefix("PetDataset: ") for pet in pets if pet.fault and pet.spoiled == kind]
        faults.drop([True] * len(words), words.__getitem__)
    faults.settle(np.array([not pet.fault for pet in pets], np.bool_), things="images")
    lonely = [pet.row.name for pet in pets if not pet.fault and not pet.file]
    if not lonely:
        return
    words = (
        f"PetDataset: {len(lonely)} of {len(pets)} images have no XML file with a head box, {shown(lonely[0])} first"
    )
    if without_box == "raise":
        raise ValueError(f"{words}; without_box='crowd' leaves their boxes out of training, 'drop' the images")
    done = "they are dropped" if without_box == "drop" else "nothing is learned or judged of their boxes"
    warnings.warn(f"{words}; {done}", stacklevel=3)


def _rows(folder: Path, split: str) -> list[_Row]:
    with open_inside(folder, f"{split}.txt", owner=f"PetDataset: split={split!r}") as file:
        lines = file.read().decode("utf-8-sig", "replace").splitlines()
    rows, faults = [], Faults(f"PetDataset: {folder / split}.txt")
    for number, line in enumerate(lines, start=1):
        if not (words := line.split()) or line.startswith("#"):
            continue
        if len(words) != 4 or not _in_range(words[1], BREEDS) or not _in_range(words[2], len(SPECIES)):
            text = f"line {number}: {shown(line)}; allowed is a name, a breed 1..{BREEDS}, a species 1..2 and a number"
            faults.refuse([True], _saying(text))
            continue
        rows.append(_Row(words[0], int(words[1]), int(words[2])))
    twice = [name for name, count in Counter(row.name for row in rows).items() if count > 1]
    faults.refuse([True] * len(twice), lambda i: f"{shown(twice[i])} stands there more than once")
    faults.settle()
    return rows


def _saying(text: str) -> Callable[[int], str]:
    return lambda _: text


def _in_range(word: str, highest: int) -> bool:
    return word.isascii() and word.isdigit() and len(word) < 9 and 1 <= int(word) <= highest


def _breeds(rows: Sequence[_Row]) -> list[str]:
    """The name of each breed as the images' names have it; its number where the list has none."""
    names = {row.breed: row.name.rpartition("_")[0] for row in reversed(rows)}
    return [names.get(breed) or str(breed) for breed in range(1, BREEDS + 1)]


def _check_options(**options: str) -> None:
    allowed = {"classes": ("species", "breeds"), "border": tuple(_TRIMAP), "without_box": ("crowd", "drop", "raise")}
    for name, value in options.items():
        if value not in allowed[name]:
            raise ValueError(f"PetDataset: {name}={shown(value)}; allowed are {allowed[name]}")
