"""Finding the pictures that annotations name: with any extension, or none, and only inside the given folder."""

import os
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from detkit.data.files import check_name, resolve_inside

EXTENSIONS = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".pbm", ".pgm", ".pnm", ".ppm", ".tif", ".tiff", ".webp")
)
"""Of the formats that are read."""


class _Listing(NamedTuple):
    """A folder's files, and those of its pictures that share a name without extension."""

    files: set[str]
    pictures: dict[str, list[str]]


class Pictures:
    """The pictures below a folder; each of its folders is listed once.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as root:
    ...     written = Path(root, "one.JPG").touch()
    ...     pictures = Pictures(root)
    ...     pictures.named("one", owner="a"), pictures.named("one.png", owner="a"), pictures.named("two", owner="a")
    (['one.JPG'], ['one.JPG'], [])
    """

    def __init__(self, root: str | Path) -> None:
        self._root = Path(root)
        self._listings: dict[str, _Listing] = {}

    def named(self, name: str, *, owner: str) -> list[str]:
        """The file ``name``, or else the pictures that differ from it in their extension, relative to the folder.

        A backslash is a slash where no file has one. Raises ValueError as :func:`~detkit.data.files.resolve_inside`
        does, errors begin with ``owner``.
        """
        folder, base = os.path.split(os.path.normpath(check_name(name, owner=owner)))
        found = [os.path.join(folder, file) for file in self._found(folder, base, owner)]
        return self.named(name.replace("\\", "/"), owner=owner) if not found and "\\" in name else found

    def _found(self, folder: str, base: str, owner: str) -> list[str]:
        files, pictures = self._listing(folder, owner)
        stem, extension = os.path.splitext(base)
        if base in files and extension.lower() in EXTENSIONS:
            return [base]
        others = pictures.get(stem, []) if extension.lower() in EXTENSIONS | {".xml"} else []
        return pictures.get(base, []) or others or ([base] if base in files and not extension else [])

    def _listing(self, folder: str, owner: str) -> _Listing:
        if folder not in self._listings:
            path = resolve_inside(self._root, folder, owner=owner) if folder else self._root
            self._listings[folder] = _list(path)
        return self._listings[folder]


def pictures_below(folder: Path) -> list[Path]:
    """All pictures in a folder and in its folders, sorted by path; what begins with a dot is left out.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as root:
    ...     for name in ("b.png", "a.JPG", ".hidden.png", "notes.txt"):
    ...         Path(root, name).touch()
    ...     [path.name for path in pictures_below(Path(root))]
    ['a.JPG', 'b.png']
    """
    found = (file for file in folder.rglob("*") if file.suffix.lower() in EXTENSIONS and file.is_file())
    return sorted(file for file in found if not any(part[0] == "." for part in file.relative_to(folder).parts))


def _list(path: Path) -> _Listing:
    listing = _Listing(set(), defaultdict(list))
    if path.is_dir():
        with os.scandir(path) as entries:
            listing.files.update(entry.name for entry in entries if entry.is_file())
    for file in sorted(listing.files):
        stem, extension = os.path.splitext(file)
        if extension.lower() in EXTENSIONS:
            listing.pictures[stem].append(file)
    return listing
