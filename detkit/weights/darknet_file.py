"""Darknet's .weights files: a header of integers, then the numbers of all convolutions, nothing between."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from detkit._disk import write_atomically
from detkit._regular_file import open_regular

_MAX_VERSION = 1000  # Darknet takes what follows a larger one for transposed matrices
_NUMBER = np.dtype("<f4")


class Header(NamedTuple):
    """The version (major, minor, revision) of a file, and how many images its network has seen in training."""

    version: tuple[int, int, int] = (0, 2, 0)
    seen: int = 0

    @property
    def seen_type(self) -> np.dtype:
        """The integer that holds ``seen``: 32 bits until version 0.1, 64 from 0.2.

        >>> Header((0, 1, 0)).seen_type.itemsize, Header((0, 2, 0)).seen_type.itemsize
        (4, 8)
        """
        major, minor, _ = self.version
        return np.dtype("<i8" if 10 * major + minor >= 2 else "<i4")


class Stored(NamedTuple):
    """One run of numbers in a file: the name of its convolution, what they are, and the tensor that holds them."""

    layer: str
    part: str
    tensor: Tensor


def stored(layer: str, convolution: nn.Conv2d, norm: nn.Module | None) -> list[Stored]:
    """The tensors of a convolution, with its batch norm or its own bias, in the order of the file.

    >>> [(part, tuple(tensor.shape)) for _, part, tensor in stored("a", nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4))]
    [('biases', (4,)), ('scales', (4,)), ('means', (4,)), ('variances', (4,)), ('kernels', (4, 2, 3, 3))]
    """
    if norm is None:
        parts = {"biases": convolution.bias}
    else:
        names = {"biases": "bias", "scales": "weight", "means": "running_mean", "variances": "running_var"}
        parts = {part: getattr(norm, name) for part, name in names.items()}
    tensors = {**parts, "kernels": convolution.weight}
    return [Stored(layer, part, tensor.detach()) for part, tensor in tensors.items() if tensor is not None]


def read_numbers(path: str | os.PathLike[str], wanted: Sequence[Stored], *, owner: str) -> tuple[Header, list[Tensor]]:
    """The header, and numbers of the shapes that are ``wanted`` (tensors on the meta device will do).

    Raises ValueError naming the file for one that is no Darknet file, too short (and the first layer that it lacks
    numbers of), too long, or holds NaN, infinite numbers or negative variances (and where).
    """
    total = sum(run.tensor.numel() for run in wanted)
    with open_regular(path, owner=owner) as file:
        header, start = _read_header(file.read(20), Path(path), owner)
        found = os.fstat(file.fileno()).st_size - start
        if found != total * _NUMBER.itemsize:
            raise ValueError(f"{owner}: {Path(path)} {_misfit(found, wanted, total)}")
        file.seek(start)
        numbers = np.frombuffer(file.read(found), _NUMBER).astype(np.float32)
    values = torch.from_numpy(numbers).split([run.tensor.numel() for run in wanted])
    for run, own in zip(wanted, values, strict=True):
        _check_numbers(own, run, f"{owner}: {Path(path)}")
    return header, [own.view(run.tensor.shape) for run, own in zip(wanted, values, strict=True)]


def write_numbers(path: str | os.PathLike[str], header: Header, runs: Iterable[Stored], *, owner: str) -> None:
    """Write a file that :func:`read_numbers` reads, as float32, atomically.

    Raises ValueError where the number of images does not fit the header of its version, and as :func:`read_numbers`
    for numbers.

    >>> import tempfile
    >>> path, runs = Path(tempfile.mkdtemp()) / "a.weights", stored("a", nn.Conv2d(1, 1, 1), None)
    >>> write_numbers(path, Header(seen=7), runs, owner="to_darknet")
    >>> read_numbers(path, runs, owner="from_darknet")[0]
    Header(version=(0, 2, 0), seen=7)
    """
    if not 0 <= header.seen <= np.iinfo(header.seen_type).max:
        version = ".".join(map(str, header.version))
        raise ValueError(
            f"{owner}: {header.seen} images were seen; a file of version {version} holds 0 to "
            f"{np.iinfo(header.seen_type).max}"
        )
    content = [np.array(header.version, "<i4").tobytes(), np.array(header.seen, header.seen_type).tobytes()]
    for run in runs:
        values = run.tensor.to("cpu", torch.float32).flatten()
        _check_numbers(values, run, owner)
        content.append(values.numpy().astype(_NUMBER).tobytes())
    write_atomically(path, lambda file: file.writelines(content), owner=owner)


def _read_header(start: bytes, file: Path, owner: str) -> tuple[Header, int]:
    """The header at the ``start`` of a file, and its length in bytes."""
    if len(start) >= 16:
        major, minor, revision = (int(number) for number in np.frombuffer(start[:12], "<i4"))
        header = Header((major, minor, revision))
        end = 12 + header.seen_type.itemsize
        if not all(0 <= number < _MAX_VERSION for number in header.version):
            raise ValueError(
                f"{owner}: {file} is no file of Darknet's weights: its header says version {major}.{minor}.{revision}; "
                f"allowed are numbers from 0 to {_MAX_VERSION - 1}"
            )
        if len(start) >= end:
            seen = int(np.frombuffer(start[12:end], header.seen_type)[0])
            if seen < 0:
                raise ValueError(f"{owner}: {file}: its header says that {seen} images were seen; allowed is 0 or more")
            return header._replace(seen=seen), end
    raise ValueError(f"{owner}: {file} has {len(start)} bytes; the header alone has 16, or from version 0.2 on 20")


def _check_numbers(values: Tensor, run: Stored, owner: str) -> None:
    """Raise ValueError for the first of the ``values`` (N,) of a run that is not finite, or a negative variance."""
    good = values.isfinite() if run.part != "variances" else values.isfinite() & (values >= 0)
    if not bool(good.all()):
        first = int((~good).nonzero()[0])
        allowed = "finite numbers" + (" of 0 or more" if run.part == "variances" else "")
        raise ValueError(f"{owner}: {run.part}[{first}]={values[first]:g} of {run.layer}; allowed are {allowed}")


def _misfit(found: int, wanted: Sequence[Stored], total: int) -> str:
    """What is wrong with ``found`` bytes."""
    numbers, rest = divmod(found, _NUMBER.itemsize)
    holds = f"holds {numbers} numbers" + (f" and {rest} bytes" if rest else "") + f", and the cfg needs {total}"
    if numbers >= total:
        return f"{holds}: {found - total * _NUMBER.itemsize} bytes are left over; the cfg is that of another network"
    for run in wanted:
        if numbers < run.tensor.numel():
            return f"{holds}: it ends in the {run.part} of {run.layer}; it is truncated, or of another network"
        numbers -= run.tensor.numel()
    raise AssertionError(found)
