"""Which picture belongs to each image that annotations name, and how large it is."""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path, PureWindowsPath

from detkit._faults import Faults, enumerated, shown
from detkit.data.files import picture_size, resolve_inside
from detkit.data.pictures import Pictures


def find_pictures(folder: Path, names: Sequence[str], told: Sequence[str], faults: Faults) -> list[str]:
    """The picture of each of ``names``, relative to ``folder``; empty for those that ``faults`` is told of.

    It is the picture of that name, with any extension. ``told`` (what VOC's ``<filename>`` says, or "") decides between
    several, and counts where there is none. ``faults`` is told of pictures that are missing, undecided or of two names,
    and of what ``<filename>`` says where it counts and leads out of the folder; one warning counts the names whose
    ``<filename>`` is another picture, which is there too. Raises ValueError for a name that leads out of the folder.
    Errors begin with the source of ``faults``.
    """
    pictures, found, elsewhere, outside = Pictures(folder), [], [], list[str]()
    for index, (name, file) in enumerate(zip(names, told, strict=True)):
        owner = f"{faults.source}: image id={index} ({name})"
        own = pictures.named(name, owner=owner)
        others, problem = _told(pictures, file, owner)
        if own and _is_another(file, own, others):
            elsewhere.append(f"{shown(name)} has <filename>{file}</filename>")
        outside += [] if own or not problem else [problem]
        own = own or others
        found.append([path for path in own if os.path.basename(path) == PureWindowsPath(file).name] or own)
    if elsewhere:
        words = f"{elsewhere[0]}, which is another picture ({len(elsewhere)} such); the one of its own name is taken"
        warnings.warn(f"{faults.source}: {folder}: {words}", stacklevel=4)
    missing = [name for name, paths in zip(names, found, strict=True) if not paths]
    several = [index for index, paths in enumerate(found) if len(paths) > 1]
    words = f"there is no picture below {folder} for {enumerated(missing)}"
    faults.refuse([bool(missing)], lambda _: words, error=FileNotFoundError)
    faults.refuse([True] * len(outside), outside.__getitem__)
    faults.refuse([True] * len(several), lambda i: f"{shown(names[several[i]])} may be any of {found[several[i]]}")
    paths = [paths[0] if len(paths) == 1 else "" for paths in found]
    _refuse_twice(folder, names, paths, faults)
    return paths


def complete_sizes(
    folder: Path, pictures: Sequence[str], sizes: Sequence[tuple[int, int]], faults: Faults
) -> list[tuple[int, int]]:
    """(height, width) of each picture: what is 0 in ``sizes`` is read from its header."""
    complete, broken = [], []
    for picture, (height, width) in zip(pictures, sizes, strict=True):
        if picture and not (height and width):
            try:
                own = picture_size(folder, picture, owner="size")
                height, width = height or own[0], width or own[1]
            except ValueError as error:
                broken.append(str(error))
        complete.append((height, width))
    faults.refuse([True] * len(broken), broken.__getitem__)
    return complete


def _told(pictures: Pictures, file: str, owner: str) -> tuple[list[str], str]:
    """The pictures that ``<filename>`` names, and what is wrong with it."""
    try:
        return (pictures.named(file, owner=owner) if file else []), ""
    except ValueError as error:
        return [], f"{error}; or name the picture as its annotation file"


def _is_another(file: str, own: Sequence[str], others: Sequence[str]) -> bool:
    """Whether ``file`` is a picture that is there (``others``), but none of those of the name."""
    stem = os.path.splitext(os.path.basename(own[0]))[0]
    return PureWindowsPath(file).stem not in ("", stem) and bool(others) and not set(others) & set(own)


def _refuse_twice(folder: Path, names: Sequence[str], paths: Sequence[str], faults: Faults) -> None:
    first: dict[Path, str] = {}
    twice = []
    for index, (name, path) in enumerate(zip(names, paths, strict=True)):
        if path:
            picture = resolve_inside(folder, path, owner=f"{faults.source}: image id={index} ({name})")
            if first.setdefault(picture, name) != name:
                twice.append(f"{shown(first[picture])} and {shown(name)} have one picture, {shown(path)}")
    faults.refuse([True] * len(twice), twice.__getitem__)
