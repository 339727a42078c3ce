"""Which images a VOC data set holds: those that a split's list names, or those that have an XML file."""

import os
import re
from collections import Counter
from pathlib import Path

from detkit._faults import Faults, enumerated, shown
from detkit.data.files import check_name, open_inside
from detkit.data.pictures import EXTENSIONS

_OF_ONE_CLASS = re.compile(r"\S.*\s(-1|0|1)")


def list_files(
    annotations: Path, splits: Path, split: str | None, *, unlabeled: bool, faults: Faults
) -> dict[str, str | None]:
    """The name of each image, and its XML file below ``annotations``; None for one without, with ``unlabeled``.

    Without a split, these are all XML files, see :func:`all_files`; else see :func:`split_files`. ``faults`` is told
    of missing files.
    """
    if split is None:
        return {**all_files(annotations)}
    files = split_files(splits, split, annotations, faults)
    missing = [name for name, file in files.items() if file is None]
    words = f"there is no XML file below {annotations} for {enumerated(missing)}"
    way_out = "unlabeled=True takes these as images without objects"
    faults.refuse([bool(missing) and not unlabeled], lambda _: f"{words}; {way_out}", error=FileNotFoundError)
    return files


def all_files(folder: Path) -> dict[str, str]:
    """Every XML file below ``folder`` by its name without extension, sorted; hidden ones are left out.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as root:
    ...     for name in ("two.xml", "one.xml", "._one.xml", "one.png"):
    ...         Path(root, name).touch()
    ...     all_files(Path(root))
    {'one': 'one.xml', 'two': 'two.xml'}
    """
    found = {}
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for file in files:
            if file.lower().endswith(".xml") and not file.startswith("."):
                path = Path(place, file).relative_to(folder).as_posix()
                if path[:-4] in found:
                    raise ValueError(f"VocDataset: {shown(path)} and {shown(found[path[:-4]])} are of one image")
                found[path[:-4]] = path
    if not found:
        raise FileNotFoundError(f"VocDataset: there is no XML file below {folder}; name the folders with folders=")
    return dict(sorted(found.items()))


def split_files(folder: Path, split: str, annotations: Path, faults: Faults) -> dict[str, str | None]:
    """The names in the list ``split`` below ``folder``, in its order, and the XML file of each below ``annotations``.

    A name may have the extension of a picture; None stands for one without an XML file. ``faults`` is told of names
    and XML files that are meant twice. Raises ValueError for the list of a single class, and as
    :func:`~detkit.data.files.open_inside` does.
    """
    names = _lines(folder, split)
    files = {name: _annotation(annotations, name) for name in names}
    if names and not any(files.values()) and all(map(_OF_ONE_CLASS.fullmatch, names)):
        raise ValueError(
            f"VocDataset: split={split!r}: lists the images of one class, with 1, 0 or -1 ({shown(names[0])}); allowed "
            "is one name a line, as in the split of all classes, or split=None for every XML file"
        )
    for entries in (names, [file for file in files.values() if file]):
        twice = [entry for entry, count in Counter(entries).items() if count > 1]
        words = [f"split={split!r}: {shown(entry)} stands there more than once" for entry in twice]
        faults.refuse([True] * len(twice), words.__getitem__)
    return files


def _lines(folder: Path, split: str) -> list[str]:
    try:
        with open_inside(folder, f"{split}.txt", owner=f"VocDataset: split={split!r}") as file:
            content = file.read()
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{error}; split=None takes every XML file, folders= names other folders than VOC's"
        ) from None
    wide = content.startswith((b"\xff\xfe", b"\xfe\xff"))
    text = content.decode("utf-16" if wide else "utf-8-sig", "replace")
    return [line.strip() for line in text.splitlines() if line.strip()]


def _annotation(folder: Path, name: str) -> str | None:
    stem, extension = os.path.splitext(name)
    stems = [name, stem] if extension.lower() in EXTENSIONS | {".xml"} else [name]
    candidates = dict.fromkeys(stems + [stem.replace("\\", "/") for stem in stems])
    for file in [f"{candidate}{ending}" for candidate in candidates for ending in (".xml", ".XML")]:
        if os.path.exists(os.path.join(folder, check_name(file, owner=f"VocDataset: {shown(file)}"))):
            return file
    return None
