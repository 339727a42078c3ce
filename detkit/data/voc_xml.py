"""Pascal VOC's XML, one file per image: read with the standard library's parser, without entities, into arrays."""

import os
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from detkit._coco.columns import MAX_COORDINATE, read_flags, read_lists, read_numbers
from detkit._faults import Faults, shown
from detkit.data.files import check_pixels, open_inside
from detkit.data.named_objects import NamedObjects

MAX_XML_BYTES = 1 << 22
"""Larger annotation files are refused before they are parsed: this is room for some ten thousand objects."""
_EDGES = ("xmin", "ymin", "xmax", "ymax")


def read_voc(
    folder: str | Path, files: Sequence[str | None], faults: Faults, *, minus_one: bool = False
) -> list[NamedObjects]:
    """A record for every XML file below ``folder``; None stands for an image without annotations.

    ``minus_one`` subtracts 1 from xmin and ymin.

    Tags are read in any case, and without their namespace. ``faults`` is told of files that are broken, over 4 MiB or
    have a DOCTYPE, and of sizes that are no whole pixels. A size that is missing or not above 0 is not given. Raises
    ValueError and FileNotFoundError as :func:`~detkit.data.files.open_inside` does.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as root:
    ...     written = Path(root, "one.xml").write_text("<annotation><object><name>cat</name></object></annotation>")
    ...     (record,) = read_voc(root, ["one.xml"], Faults("VocDataset"))
    >>> record.size, record.names, record.unread
    ((0, 0), ['cat'], {0: ('no box', 'xmin is missing or empty')})
    """
    found: dict[str, list[str]] = {"xml": [], "size": []}
    records = [NamedObjects() if file is None else _read(folder, file, minus_one, found) for file in files]
    for words in found.values():
        faults.refuse([True] * len(words), words.__getitem__)
    return records


class _PlainTree(ElementTree.TreeBuilder):
    """Builds a tree of lower-case tags without namespaces, and stops at a DOCTYPE before any entity is declared."""

    def start(self, tag: str, attrs: dict[str, str], /) -> ElementTree.Element:
        return super().start(tag.rpartition("}")[2].lower(), attrs)

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ValueError("has a DOCTYPE, which is refused")


def _read(folder: str | Path, file: str, minus_one: bool, found: dict[str, list[str]]) -> NamedObjects:
    try:
        tree = _tree(folder, file)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        found["xml"].append(f"{shown(file)}: cannot be read as XML: {error}")
        return NamedObjects()
    objects = tree.findall("object")
    entries = [_texts(entry) for entry in objects]
    corners = [_texts(entry.find("bndbox")) for entry in objects]
    names, flags = ([entry.get(key, "") for entry in entries] for key in ("name", "difficult"))
    edges = [[corner.get(edge, "") for edge in _EDGES] for corner in corners]
    boxes = read_lists(edges, 4)
    difficult, unclear = read_flags(flags)
    unread = {
        t: ("no flag", f"difficult={shown(flags[t])}; allowed are 0 and 1") for t in np.flatnonzero(unclear).tolist()
    }
    bad = [t for t, name in enumerate(names) if not name or np.isnan(boxes[t]).any()]
    return NamedObjects(
        file_name=_texts(tree).get("filename", ""),
        size=_size(tree, file, found["size"]),
        names=names,
        boxes=(boxes - [minus_one, minus_one, 0, 0]).astype(np.float32),
        difficult=difficult.astype(np.int64),
        unread=unread | {t: _missing(names[t], edges[t], boxes[t]) for t in bad},
    )


def _tree(folder: str | Path, file: str) -> ElementTree.Element:
    with open_inside(folder, file, owner=shown(file)) as opened:
        size = os.fstat(opened.fileno()).st_size
        if size > MAX_XML_BYTES:
            raise ValueError(f"has {size} bytes; allowed are {MAX_XML_BYTES}")
        tree = ElementTree.fromstring(opened.read(), ElementTree.XMLParser(target=_PlainTree()))
    if tree.tag != "annotation":
        raise ValueError(f"the root is <{shown(tree.tag)[1:-1]}>; allowed is <annotation>, one image in a file")
    return tree


def _texts(element: ElementTree.Element | None) -> dict[str, str]:
    """The text of each child by its tag; of several the first counts."""
    return {} if element is None else {child.tag: (child.text or "").strip() for child in reversed(element)}


def _missing(name: str, edges: Sequence[str], box: NDArray[np.float64]) -> tuple[str, str]:
    if not name:
        return "no name", "name is missing or empty"
    edge, text = next((edge, text) for edge, text, value in zip(_EDGES, edges, box, strict=True) if np.isnan(value))
    if not text:
        return "no box", f"{edge} is missing or empty"
    return "no number", f"{edge}={shown(text)}; allowed is a finite number within {MAX_COORDINATE:g}"


def _size(tree: ElementTree.Element, file: str, found: list[str]) -> tuple[int, int]:
    """(height, width) as declared, 0 where they are not."""
    given = _texts(tree.find("size"))
    texts = [given.get(side, "") for side in ("height", "width")]
    height, width = read_numbers([text or 0 for text in texts]).clip(min=0).tolist()
    if not (height.is_integer() and width.is_integer()):
        words = f"size is {shown(texts[0])} x {shown(texts[1])} (height x width); allowed are whole pixels"
        found.append(f"{shown(file)}: {words}")
        return 0, 0
    try:
        check_pixels(max(1, int(height)), max(1, int(width)), owner=shown(file))
    except ValueError as error:
        found.append(str(error))
    return int(height), int(width)
