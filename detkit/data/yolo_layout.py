"""Where a data set in YOLO's form has its pictures, label files and class names, in all the ways tools lay them out."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any, NamedTuple

from detkit._faults import shown
from detkit.data.files import open_inside, resolve_inside
from detkit.data.pictures import pictures_below

_OWNER = "YoloDataset"
_NAMES = ("classes.txt", "obj.names", "_darknet.labels")
MAX_LABEL_BYTES = 1 << 26
"""Larger label files and lists are refused before they are read."""


class YoloLayout(NamedTuple):
    """Pictures and their label files (None: there is none), relative to the root; the names of the classes."""

    pictures: list[str]
    labels: list[str | None]
    categories: list[str]


def find_layout(root: Path, split: str | None, classes: Sequence[str] | None) -> YoloLayout:
    """The images of ``split`` below ``root``.

    With a yaml file its entry of that name counts: a folder, a list file or several. Without one the split is the
    folder ``images/SPLIT``, ``SPLIT/images`` or ``SPLIT``, or the list ``SPLIT.txt``; None takes every picture. A label
    file stands in the folder ``labels`` instead of ``images``, or beside its picture; folders may be called ``Images``
    and ``Labels``. Paths of other machines are cut down to what is found below the root. Raises ValueError and
    FileNotFoundError that say what was looked for.
    """
    about = _read_yaml(root)
    categories = list(classes) if classes is not None else _names(root, about)
    if about and split is not None:
        entries = _entries(about, split)
        chosen = [place for entry in entries if (place := _below(root, entry, any_case=True)) is not None]
    else:
        entries = _folders(split)
        chosen = [found for entry in entries if (found := _in_any_case(root, entry)) is not None][:1]
    if not chosen:
        raise FileNotFoundError(f"{_OWNER}: {root} has none of {', '.join(map(shown, entries))} for split={split!r}")
    pictures = list(dict.fromkeys(picture for place in chosen for picture in _pictures(root, place)))
    if not pictures:
        raise FileNotFoundError(f"{_OWNER}: there is no picture below {', '.join(chosen)} of {root}")
    return YoloLayout(pictures, [_label_file(root, picture) for picture in pictures], categories)


def read_lines(root: Path, name: str) -> list[str]:
    """The lines of a small text file below ``root``, without what is blank at their ends."""
    return [line.strip() for line in _read_text(root, name).splitlines()]


def _read_text(root: Path, name: str) -> str:
    with open_inside(root, name, owner=_OWNER) as file:
        text = file.read(MAX_LABEL_BYTES + 1)
    if len(text) > MAX_LABEL_BYTES:
        raise ValueError(f"{_OWNER}: {name} has more than {MAX_LABEL_BYTES} bytes")
    try:
        return text.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{_OWNER}: {name} cannot be read as text in UTF-8: {error}") from error


def _read_yaml(root: Path) -> dict[str, Any] | None:
    files = sorted(file.name for file in root.iterdir() if file.suffix.lower() in (".yaml", ".yml"))
    known = [name for name in files if Path(name).stem in ("data", "dataset")] or files
    if not known:
        return None
    if len(known) > 1:
        raise ValueError(f"{_OWNER}: {root} has several yaml files, {known}; keep the one of this data set")
    try:
        import yaml
    except ImportError as error:
        raise ImportError(f"{_OWNER}: {known[0]} needs the package pyyaml: pip install 'torch-detkit[yolo]'") from error
    try:
        about = yaml.safe_load(_read_text(root, known[0]))
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{_OWNER}: {known[0]} cannot be read as yaml: {error}") from error
    if not isinstance(about, dict):
        raise ValueError(
            f"{_OWNER}: {known[0]} holds a {type(about).__name__}; allowed are keys: names, train, val ..."
        )
    if "kpt_shape" in about:
        raise ValueError(f"{_OWNER}: {known[0]} has kpt_shape: labels with keypoints are not read, use COCO's format")
    return about


def _names(root: Path, about: dict[str, Any] | None) -> list[str]:
    """Class names by number: of the yaml file, or of a list of names."""
    if about is not None and "names" in about:
        names = about["names"]
        if isinstance(names, dict):
            if set(names) != set(range(len(names))):
                raise ValueError(f"{_OWNER}: names has the numbers {shown(list(names))}; allowed are 0, 1, 2 ...")
            names = [names[number] for number in range(len(names))]
        if not isinstance(names, list) or not names:
            raise ValueError(f"{_OWNER}: names={shown(names)}; allowed is a list of names, or numbers with names")
        return [str(name) for name in names]
    for name in _NAMES:
        for place in (name, f"train/{name}", f"labels/{name}"):
            if (root / place).is_file():
                return _listed(root, place)
    raise FileNotFoundError(f"{_OWNER}: {root} has no data.yaml, {', '.join(_NAMES)}; give classes=[...] by number")


def _listed(root: Path, place: str) -> list[str]:
    lines = read_lines(root, place)
    last = max((number for number, line in enumerate(lines, 1) if line), default=0)
    if not all(lines[:last]):
        raise ValueError(f"{_OWNER}: {place} has an empty line before its last: a class without a name")
    return lines[:last]


def _entries(about: dict[str, Any], split: str) -> list[str]:
    values = about.get(split, about.get("valid") if split == "val" else None)
    entries: list[Any] = values if isinstance(values, list) else [values]
    if not entries or not all(isinstance(entry, str) for entry in entries):
        known = [key for key in ("train", "val", "valid", "test") if key in about]
        raise ValueError(f"{_OWNER}: split={split!r} is {shown(values)} in the yaml file, which has {known}")
    top = about.get("path")
    return [f"{top}/{entry}" if isinstance(top, str) else entry for entry in entries]


def _folders(split: str | None) -> list[str]:
    return ["images", "."] if split is None else [f"images/{split}", f"{split}/images", split, f"{split}.txt"]


def _below(root: Path, entry: str, *, any_case: bool = False) -> str | None:
    """The longest end of a path that is found below the root: what is before it belongs to another machine."""
    parts = [part for part in PureWindowsPath(entry).parts if part not in ("..", ".", "/", "\\")]
    parts = parts[1:] if parts and PureWindowsPath(parts[0]).anchor else parts
    ends = (os.path.join(*parts[first:]) for first in range(len(parts)))
    found = next((end for end in ends if (root / end).exists()), None)
    if found is None and any_case:
        ends = (os.path.join(*parts[first:]) for first in range(len(parts)))
        found = next((place for end in ends if (place := _in_any_case(root, end)) is not None), None)
    return "." if found is None and not parts else found


def _pictures(root: Path, place: str) -> Iterator[str]:
    if (root / place).is_file():
        for line in read_lines(root, place):
            if line:
                found = _below(root, line)
                if found is None:
                    raise FileNotFoundError(f"{_OWNER}: {place} names {shown(line)}, which is not below {root}")
                yield found
        return
    if place != ".":
        resolve_inside(root, place, owner=_OWNER)
    yield from (file.relative_to(root).as_posix() for file in pictures_below(root / place))


def _label_file(root: Path, picture: str) -> str | None:
    beside = os.path.splitext(picture)[0] + ".txt"
    parts = Path(beside).parts
    last = max((place for place, part in enumerate(parts[:-1]) if part.lower() == "images"), default=None)
    places = [beside]
    if last is not None:
        names = dict.fromkeys((_labels_like(parts[last]), "labels"))
        places = [*(os.path.join(*parts[:last], name, *parts[last + 1 :]) for name in names), beside]
    return next((file for file in places if (root / file).is_file()), None)


def _labels_like(images: str) -> str:
    """The name of the folder of labels beside one called images, Images or IMAGES."""
    return "LABELS" if images.isupper() else "Labels" if images[0].isupper() else "labels"


def _in_any_case(root: Path, entry: str) -> str | None:
    """What is there under a relative path, with the letters that its parts have on the disk; None if nothing is."""
    if (root / entry).exists():
        return entry
    found = ""
    for part in Path(entry).parts:
        folder = root / found
        names = sorted(child.name for child in folder.iterdir()) if folder.is_dir() else []
        name = next((name for name in names if name.lower() == part.lower()), None)
        if name is None:
            return None
        found = os.path.join(found, name)
    return found
