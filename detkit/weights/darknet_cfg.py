"""Darknet's cfg files: sections of keys and values, each with the line that it stands on."""

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn, TypeVar

from detkit._regular_file import open_regular

T = TypeVar("T")
OWNER = "from_darknet"
_MAX_BYTES = 1 << 24
LARGEST = 1 << 16
_MAX_SECTIONS = 1 << 10  # YOLO v3 has 108
_SHOWN = 60  # characters of a value in a message
_SAME = {"network": "net", "conv": "convolutional", "max": "maxpool"}
KINDS = "net", "convolutional", "maxpool", "route", "shortcut", "upsample", "reorg", "yolo", "region"
_ONLY: Mapping[str, Mapping[str, float | None]] = {
    "net": {"channels": 3},
    "convolutional": {
        "groups": 1,
        "dilation": 1,
        "binary": 0,
        "xnor": 0,
        "flipped": 0,
        "antialiasing": 0,
        "dontload": 0,
        "dontloadscales": 0,
        "stride_x": None,
        "stride_y": None,
    },
    "maxpool": {"antialiasing": 0, "maxpool_depth": 0, "stride_x": None, "stride_y": None},
    "route": {"groups": 1},
    "shortcut": {"alpha": 1, "beta": 1},
    "upsample": {"scale": 1},
    "reorg": {"reverse": 0, "flatten": 0, "extra": 0},
    "yolo": {"scale_x_y": 1, "new_coords": 0},
    "region": {"coords": 4, "background": 0, "classfix": 0, "tree": None},
}
"""Keys of which one value is understood, the default, or none at all: another makes another network."""
_TRAINING = "batch subdivisions time_steps momentum decay adam B1 B2 eps"
_SCHEDULE = "learning_rate burn_in max_batches policy power gamma step scale steps scales"
_AUGMENTATION = "angle saturation exposure hue aspect flip center random max_crop min_crop max_ratio min_ratio"
_HARMLESS: Mapping[str, frozenset[str]] = {
    "net": frozenset(f"{_TRAINING} {_SCHEDULE} {_AUGMENTATION}".split()),
    "yolo": frozenset(["jitter", "random", "max"]),
    "region": frozenset(["jitter", "random", "max", "absolute", "log", "sqrt", "mask_scale"]),
}
"""Keys about Darknet's own training, which this library has other means for, or that Darknet reads and never uses."""


class Section:
    """A section of a cfg file, whose keys are asked for one by one; those that nobody asked for are found afterwards.

    ``number`` is Darknet's number of the layer, -1 for [net]. What is asked for raises ValueError with file, line and
    value where it is not of its kind or out of range, and where it is missing and has no default.

    >>> section = Section(Path("a.cfg"), "maxpool", line=12, number=3)
    >>> section.entries["stride"] = (13, "two")
    >>> section.whole("size", 2), str(section)
    (2, '[maxpool] of line 12')
    >>> section.whole("stride")
    Traceback (most recent call last):
    ValueError: from_darknet: a.cfg, line 13: stride=two of [maxpool]; allowed are whole numbers from 0 to 65536
    """

    def __init__(self, file: Path, kind: str, *, line: int, number: int) -> None:
        self.file, self.kind, self.line, self.number = file, kind, line, number
        self.entries: dict[str, tuple[int, str]] = {}
        self.notes: list[str] = []
        self._asked: set[str] = set()

    def __str__(self) -> str:
        return f"[{self.kind}] of line {self.line}"

    def fault(self, said: str, key: str | None = None) -> NoReturn:
        """Raise ValueError, about the value of ``key`` or the whole section."""
        if key in self.entries:
            line, value = self.entries[key]
            value = value if len(value) <= _SHOWN else f"{value[: _SHOWN - 3]}..."
            raise ValueError(f"{OWNER}: {self.file}, line {line}: {key}={value} of [{self.kind}]; {said}")
        of = ":" if key is None else f" has no {key};"
        raise ValueError(f"{OWNER}: {self.file}, line {self.line}: [{self.kind}]{of} {said}")

    def note(self, key: str, said: str) -> None:
        """Remember that a value is not followed."""
        line, value = self.entries.get(key, (self.line, "(default)"))
        self.notes.append(f"line {line}: {key}={value} of [{self.kind}] {said}")

    def text(self, key: str, default: str) -> str:
        """A value as it stands."""
        self._asked.add(key)
        return self.entries.get(key, (0, default))[1]

    def whole(self, key: str, default: int | None = None, *, lowest: int = 0, highest: int = LARGEST) -> int:
        """A whole number from ``lowest`` to ``highest``."""
        said = f"allowed are whole numbers from {lowest} to {highest}"
        value = self._one(self.wholes(key, default, lowest=lowest, said=said), key, said)
        return value if value <= highest else self.fault(said, key)

    def number_of(self, key: str, default: float, *, highest: float = math.inf) -> float:
        """A number from 0 to ``highest``."""
        said = "allowed are finite numbers" + (" of 0 or more" if highest == math.inf else f" from 0 to {highest:g}")
        value = self._one(self.numbers(key, default), key, said)
        return value if 0 <= value <= highest else self.fault(said, key)

    def wholes(
        self, key: str, default: int | None = None, *, lowest: int = -LARGEST, said: str = "allowed are whole numbers"
    ) -> list[int]:
        """The whole numbers of a list with commas."""
        parts = self._parts(key, default, said)
        if not all(re.fullmatch(r"[+-]?\d{1,9}", part, re.ASCII) and lowest <= int(part) <= LARGEST for part in parts):
            self.fault(said, key)
        return [int(part) for part in parts]

    def numbers(self, key: str, default: float | None = None) -> list[float]:
        """The finite numbers of a list with commas."""
        said = "allowed are finite numbers"
        parts = self._parts(key, default, said)
        try:
            values = [float(part) for part in parts]
        except ValueError:
            self.fault(said, key)
        if not all(map(math.isfinite, values)) or any("_" in part for part in parts):  # Python's own digit separator
            self.fault(said, key)
        return values

    def check_only(self) -> None:
        """Raise ValueError for a key of which only the default is understood, with another value."""
        for key, value in _ONLY.get(self.kind, {}).items():
            if value is None and key in self.entries:
                self.fault("allowed is to leave it out", key)
            if value is not None and self.number_of(key, value) != value:
                self.fault(f"allowed is {value:g}", key)

    def unread(self) -> list[str]:
        """What nobody asked for, and what is not followed, in words."""
        known = self._asked | _HARMLESS.get(self.kind, frozenset())
        keys = [(line, key) for key, (line, _) in self.entries.items() if key not in known]
        return self.notes + [f"line {line}: {key} of [{self.kind}] is not known" for line, key in keys]

    def _parts(self, key: str, default: float | None, said: str) -> list[str]:
        self._asked.add(key)
        if key not in self.entries and default is None:
            self.fault(said, key)
        return self.entries[key][1].split(",") if key in self.entries else [repr(default)]

    def _one(self, values: list[T], key: str, said: str) -> T:
        return values[0] if len(values) == 1 else self.fault(said, key)


def read_cfg(path: str | os.PathLike[str]) -> tuple[bytes, list[Section]]:
    """A cfg file as it stands, and its sections, [net] first.

    As in Darknet spaces do not count, and # and ; begin a comment line; of a key that is given twice the first value
    counts. Raises ValueError naming the file, and the line, where it is not a cfg, a line is neither section nor
    key=value, or a section is not among those that are understood.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "a.cfg"
    >>> _ = path.write_text("[net]\\nwidth = 32\\n# a comment\\n[maxpool]\\nsize=2")
    >>> [(str(section), section.entries) for section in read_cfg(path)[1]]
    [('[net] of line 1', {'width': (2, '32')}), ('[maxpool] of line 4', {'size': (5, '2')})]
    """
    file = Path(path)
    with open_regular(path, owner=OWNER) as opened:
        content = opened.read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise ValueError(f"{OWNER}: {file} has more than {_MAX_BYTES} bytes, and is no cfg file")
    sections: list[Section] = []
    for line, text in enumerate(content.decode("utf-8-sig", errors="replace").split("\n"), start=1):
        text = "".join(text.split())
        if not text or text[0] in "#;":
            continue
        if text[0] == "[":
            if len(sections) == _MAX_SECTIONS:
                raise ValueError(f"{OWNER}: {file}, line {line}: a further section; allowed are {_MAX_SECTIONS}")
            sections.append(_section(file, text, line, len(sections) - 1))
        elif not sections:
            break
        else:
            _read_entry(sections[-1], text, line)
    if not sections:
        raise ValueError(f"{OWNER}: {file} does not begin with the section [net]; allowed is a cfg file of Darknet")
    return content, sections


def _section(file: Path, text: str, line: int, number: int) -> Section:
    kind = _SAME.get(text[1:-1], text[1:-1])
    if kind not in KINDS or text[-1] != "]":
        understood = " ".join(f"[{kind}]" for kind in KINDS)
        raise ValueError(
            f"{OWNER}: {file}, line {line}: the section {text[:_SHOWN]} is not known; allowed are {understood}"
        )
    section = Section(file, kind, line=line, number=number)
    if (kind == "net") != (number < 0):
        section.fault("allowed is one section [net], the first")
    return section


def _read_entry(section: Section, text: str, line: int) -> None:
    key, found, value = text.partition("=")
    if not found or not key:
        raise ValueError(f"{OWNER}: {section.file}, line {line}: {text[:_SHOWN]!r} is neither a section nor key=value")
    if key in section.entries:
        section.notes.append(f"line {line}: {key} of [{section.kind}] is given again; the first value counts")
    else:
        section.entries[key] = (line, value)
