"""The samples in WebDataset shards: found by the headers of the tar files, and read by seeking.

A sample is a picture and what has its name before the last dot: ``a.1.jpg`` and ``a.1.json``, wherever in the shard
they stand. The published rule cuts at the first dot, where names such as a.1 and a.2 become one; of names without dots
both rules say the same.
"""

import os
import tarfile
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from detkit._faults import shown
from detkit._regular_file import open_regular
from detkit.data.pictures import EXTENSIONS

MAX_MEMBER_BYTES = 1 << 30
"""Larger members of a shard are refused before they are read."""
_PADDED = 1 << 16  # bytes looked at behind the last member: what stands there was joined to it
_LISTED = 1 << 20  # samples whose places are held: some 100 bytes each
_SEGMENTATION = ".segmentation.png"
Part = Literal["picture", "target", "segmentation"]
_PARTS: tuple[Part, ...] = ("picture", "target", "segmentation")
_NONE = (-1, -1)


class Listing(NamedTuple):
    """Where the N samples of a shard are: key of each, (offset, size) of its parts (N, 3, 2), -1 where it has none."""

    keys: bytes  # joined: texts of their own would take three times the memory
    ends: NDArray[np.int64]  # of each key
    places: NDArray[np.int64]
    stamp: tuple[int, int]  # size and time of change of the file

    def key(self, place: int) -> str:
        """The name of a sample in its shard."""
        first = int(self.ends[place - 1]) if place else 0
        return self.keys[first : int(self.ends[place])].decode(errors="surrogateescape")


class ShardFiles:
    """The samples of several shards, in the order of the files and of the pictures in each.

    ``counts`` are the numbers of samples, and ``sizes`` the bytes of each file, where they are known; without them
    every shard is listed at once, else when it is first read. Listings of about a million samples are held; files are
    opened for each sample and closed again, so that workers share nothing. Raises ValueError, naming the shard, for
    files that are no tar or compressed, truncated, of other sizes or counts than given, or that change meanwhile.
    """

    def __init__(
        self, paths: Sequence[Path], *, counts: Sequence[int] | None = None, sizes: Sequence[int] | None = None
    ) -> None:
        self.paths, self._sizes = list(paths), sizes
        self._listings: OrderedDict[int, Listing] = OrderedDict()
        self._given = counts
        self.counts = [len(self._listing(shard).places) for shard in range(len(paths))] if counts is None else counts
        self._ends = list(accumulate(self.counts))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def name(self, index: int) -> str:
        """The path of the shard and the key of the sample, as errors say it."""
        shard, place = self._find(index)
        return f"{self.paths[shard]}/{self._listing(shard).key(place)}"

    def names(self) -> Iterator[str]:
        """:meth:`name` of every sample, in order."""
        for shard, path in enumerate(self.paths):
            listing = self._listing(shard)
            yield from (f"{path}/{listing.key(place)}" for place in range(len(listing.places)))

    def read(self, index: int, part: Part) -> bytes | None:
        """The bytes of one part of a sample, None where it has none."""
        shard, place = self._find(index)
        listing = self._listing(shard)
        offset, size = listing.places[place, _PARTS.index(part)].tolist()
        if offset < 0:
            return None
        with open_regular(self.paths[shard], owner="ShardDataset") as file:
            if _stamp(file.fileno()) != listing.stamp:
                raise ValueError(f"ShardDataset: {self.paths[shard]} has changed since it was first read; build anew")
            file.seek(offset)
            return file.read(size)

    def _find(self, index: int) -> tuple[int, int]:
        """The shard of a sample, and its position there."""
        index = range(len(self))[index]
        shard = bisect_right(self._ends, index)
        return shard, index - (self._ends[shard - 1] if shard else 0)

    def _listing(self, shard: int) -> Listing:
        if shard in self._listings:
            self._listings.move_to_end(shard)  # the last that goes
            return self._listings[shard]
        found = list_shard(self.paths[shard])
        self._check(shard, found)
        self._listings[shard] = found
        while len(self._listings) > 1 and sum(len(held.places) for held in self._listings.values()) > _LISTED:
            self._listings.popitem(last=False)
        return found

    def _check(self, shard: int, found: Listing) -> None:
        for given, of, what in ((self._given, len(found.places), "samples"), (self._sizes, found.stamp[0], "bytes")):
            if given is not None and given[shard] != of:
                raise ValueError(
                    f"ShardDataset: {self.paths[shard]} has {of} {what}, but its index says {given[shard]}: it is of "
                    "another set, or copied in part"
                )


def list_shard(path: Path) -> Listing:
    """The samples of one shard, from its headers alone.

    Raises ValueError as :class:`ShardFiles` does, and for a name that occurs twice, several pictures of one name, JSON
    without a picture, and links.

    >>> import io, tempfile
    >>> path = Path(tempfile.mkdtemp(), "a.tar")
    >>> with tarfile.open(path, "w") as tar:
    ...     for name in ("a.1.jpg", "a.2.jpg", "a.1.json"): tar.addfile(tarfile.TarInfo(name))
    >>> listing = list_shard(path)
    >>> listing.key(1), (listing.places[:, :, 0] >= 0).tolist()
    ('a.2', [[True, True, False], [True, False, False]])
    """
    with open_regular(path, owner="ShardDataset") as file:
        stamp = _stamp(file.fileno())
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                members = list(_members(tar, path))
                file.seek(tar.offset)
                rest = file.read(_PADDED)
                if len(rest) < tarfile.BLOCKSIZE or rest.count(0) < len(rest):  # tarfile takes any end for the end
                    raise tarfile.ReadError(f"no header, or not nulls alone to the end, at byte {tar.offset}")
        except (tarfile.TarError, EOFError, UnicodeError) as error:
            words = "allowed is one tar, whole and not compressed (pictures are already)"
            raise ValueError(f"ShardDataset: {path} cannot be read: {error}; {words}") from error
    places: dict[str, tuple[int, int]] = {}
    for name, offset, size in members:
        if name in places:
            raise ValueError(f"ShardDataset: {path} holds {shown(name)} twice")
        if size > MAX_MEMBER_BYTES or offset + size > stamp[0]:
            raise ValueError(
                f"ShardDataset: {path}: {shown(name)} has {size} bytes; allowed are {MAX_MEMBER_BYTES}, inside the file"
            )
        places[name] = (offset, size)
    return _listing_of(places, path, stamp)


def _members(tar: tarfile.TarFile, path: Path) -> Iterator[tuple[str, int, int]]:
    """Name, offset and size of each plain file; WebDataset's own have names in underscores, those of desktops a dot."""
    for member in tar:
        base = member.name.rpartition("/")[2]
        aside = base[:1] == "." or base[:2] == base[-2:] == "__"
        if member.isreg() and not member.issparse() and not aside:
            yield member.name, member.offset_data, member.size
        elif os.path.splitext(base)[1].lower() in EXTENSIONS | {".json"} and not (aside or member.isdir()):
            words = "write the tar anew with --dereference --hard-dereference, and without --sparse"
            raise ValueError(f"ShardDataset: {path}: {shown(member.name)} is a link or sparse, no plain file; {words}")


def _listing_of(places: Mapping[str, tuple[int, int]], path: Path, stamp: tuple[int, int]) -> Listing:
    pictures, targets = _by_stem(places, EXTENSIONS, path), _by_stem(places, {".json"}, path)
    keys = [stem for stem in pictures if stem in targets or not _is_field(stem, targets)]
    lonely = next((name for stem, name in targets.items() if stem not in pictures), None)
    if lonely is not None or (places and not keys):
        words = f"{shown(lonely)} without a picture of its name" if lonely else "no picture"
        raise ValueError(f"ShardDataset: {path} holds {words}; looked for {', '.join(sorted(EXTENSIONS))}")
    rows = [
        (places[pictures[key]], places.get(targets.get(key, ""), _NONE), places.get(key + _SEGMENTATION, _NONE))
        for key in keys
    ]
    encoded = [key.encode(errors="surrogateescape") for key in keys]
    ends = np.cumsum([len(key) for key in encoded], dtype=np.int64)
    return Listing(b"".join(encoded), ends, np.array(rows, np.int64).reshape(-1, 3, 2), stamp)


def _by_stem(names: Mapping[str, object], endings: set[str] | frozenset[str], path: Path) -> dict[str, str]:
    """The member with one of ``endings``, by its name without it."""
    found: dict[str, str] = {}
    for name in names:
        stem, ending = os.path.splitext(name)
        if ending.lower() in endings and found.setdefault(stem, name) != name:
            raise ValueError(
                f"ShardDataset: {path} holds {shown(found[stem])} and {shown(name)}: which is the sample's?"
            )
    return found


def _is_field(stem: str, targets: Mapping[str, str]) -> bool:
    """Whether a picture without JSON belongs to a sample that has some, as x.segmentation.png to x."""
    folder, slash, base = stem.rpartition("/")
    return any(folder + slash + base[:end] in targets for end, letter in enumerate(base) if letter == ".")


def _stamp(descriptor: int) -> tuple[int, int]:
    about = os.fstat(descriptor)
    return about.st_size, about.st_mtime_ns
