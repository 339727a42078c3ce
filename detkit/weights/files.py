"""Weights and training states on disk: saved atomically, checked before loading, never running code.

Weights are safetensors files with every key of a module's ``state_dict``; training states are ``torch.save`` archives
read with ``weights_only``. Every file is written under a temporary name in the same folder, flushed to disk and
renamed, so a process killed while saving leaves the earlier file intact (and at worst a file ``.NAME.*.tmp``, which the
next save under that name deletes).
"""

import os
import pickle
import re
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from detkit._disk import write_atomically
from detkit._door import door
from detkit._regular_file import open_regular
from detkit._wrappers import plain_keys

_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.Size, torch.dtype, torch.device)
_MAPPINGS = (dict, OrderedDict, Counter)
_SEQUENCES = (list, tuple)
_TENSORS = (Tensor, nn.Parameter)
_ARCHIVE, _PICKLE = b"PK", b"\x80\x02"  # how files of torch.save begin, and those of torch before 1.6


@door
def save_weights(module: nn.Module, path: str | os.PathLike[str], *, metadata: Mapping[str, str] | None = None) -> None:
    """Write the module's ``state_dict`` to a safetensors file, atomically.

    Every key is written with its own values, from any device: tensors that share memory are stored once per key, so
    that any reader can use the file. ``metadata`` is free text, read back by :func:`load_metadata`. Wrappers (of
    DistributedDataParallel, DataParallel and torch.compile) are looked through: the keys are those of what they wrap.

    Raises ValueError for an entry that is not a dense tensor with values or metadata that does not map str to str,
    FileNotFoundError for a missing folder, and OSError with path and reason where the disk is full.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "head.safetensors"
    >>> save_weights(nn.Linear(2, 3), path, metadata={"epoch": "7"})
    >>> load_weights(nn.Linear(2, 3), path), load_metadata(path)
    (([], []), {'epoch': '7'})
    """
    for key, value in (metadata or {}).items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise ValueError(f"save_weights: metadata {key!r}: {value!r} must be str to str")
    tensors: dict[str, Tensor] = {}
    state, keys = module.state_dict(), plain_keys(module)
    for key, value in ((keys[key], value) for key, value in state.items()):
        if not isinstance(value, Tensor) or value.is_meta or value.layout != torch.strided or value.is_quantized:
            raise ValueError(f"save_weights: {key} is {_kind(value)}; allowed are dense tensors that hold values")
        tensors[key] = value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
    content = safetensors.torch.save(tensors, metadata=dict(metadata or {}) or None)
    write_atomically(path, lambda file: file.write(content), owner="save_weights")


@door
def load_weights(
    module: nn.Module,
    path: str | os.PathLike[str],
    *,
    strict: bool = True,
    misfits: Literal["raise", "drop"] = "raise",
) -> tuple[list[str], list[str]]:
    """Copy a safetensors file into the module; returns the (missing, unexpected) keys: what of both was left.

    Everything is checked first, so that an error leaves the module unchanged. ``strict=False`` allows missing and
    unexpected keys, never another shape or floats for integers. ``misfits="drop"`` leaves values of another shape where
    they are and returns their keys in both lists: for weights of another number of classes. Values are converted to the
    module's precision and device. A key that shares its memory with a key of the file counts as present. Wrappers are
    looked through, as :func:`save_weights` does. A truncated file is detected, a flipped bit is not: safetensors has no
    checksum.

    A module built on the meta device takes the file after ``to_empty``: constants that no file holds (anchors, mean and
    deviation) come back by themselves, in detkit's modules; unsaved buffers of other libraries' modules do not.

    Raises ValueError naming the path and the mismatch, or saying that it is no regular file, no safetensors file, or
    that nothing in it fits, and what all of its keys must lose to do so.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "head.safetensors"
    >>> save_weights(nn.Linear(2, 3, bias=False), path)
    >>> load_weights(nn.Linear(2, 3), path, strict=False)
    (['bias'], [])
    """
    if misfits not in ("raise", "drop"):
        raise ValueError(f"load_weights: misfits={misfits!r}; allowed are 'drop' and 'raise'")
    with _open_weights(path, "load_weights") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
    keys, state = {plain: key for key, plain in plain_keys(module).items()}, module.state_dict()
    own = {plain: state[key] for plain, key in keys.items()}
    unfit = _misfits(own, tensors)
    some_fit = bool(tensors.keys() & own.keys() - unfit.keys())
    left = unfit.keys() if misfits == "drop" and some_fit else set()
    fit = {key: value for key, value in tensors.items() if key in own and key not in left}
    held = {_memory(own[key]) for key in fit}
    missing = [key for key, value in own.items() if key not in fit and _memory(value) not in held]
    unexpected = [key for key in tensors if key not in fit]
    way_out = _prefix_to_strip(tensors.keys(), own.keys())
    _check_fit(
        f"load_weights: {Path(path)} does not fit {type(module).__name__}",
        absent=[key for key in missing if strict and key not in left],
        spare=[key for key in unexpected if strict and key not in left],
        unfit=[] if left else [*unfit.values()],
        unwritten=[key for key in fit if _is_meta(own[key])],
        hint="" if misfits == "drop" else ' (misfits="drop" leaves other shapes and types)',
        way_out=way_out,
    )
    if tensors and own and not fit:
        title = f"load_weights: {Path(path)} has nothing that fits {type(module).__name__}"
        raise ValueError(f"{title}: {unexpected[:4]}{way_out}")
    module.load_state_dict({keys[key]: value for key, value in fit.items()}, strict=False)
    return missing, unexpected


@door
def load_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The free text stored with :func:`save_weights`; empty if there is none. ValueError for another kind of file.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "head.safetensors"
    >>> save_weights(nn.Linear(2, 3), path)
    >>> load_metadata(path)
    {}
    """
    with _open_weights(path, "load_metadata") as file:
        return dict(file.metadata() or {})


@door
def save_checkpoint(state: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Write a training state with ``torch.save``, atomically; :func:`load_checkpoint` reads it back bit for bit.

    state: dicts, lists and tuples, nested at will, of tensors, numbers, strings, bytes, None, and torch sizes, dtypes
    and devices: the ``state_dict`` of modules, optimizers and schedules, random states as tensors.

    Raises ValueError naming the position of anything else (convert NumPy numbers with ``float(value)``), and
    FileNotFoundError for a missing folder.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "last.pt"
    >>> save_checkpoint({"epoch": 7, "random": [torch.tensor([1, 2])]}, path)
    >>> load_checkpoint(path)
    {'epoch': 7, 'random': [tensor([1, 2])]}
    """
    _check_plain(state, "state")
    write_atomically(path, lambda file: torch.save(state, file), owner="save_checkpoint")


@door
def load_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a training state on the CPU, with ``weights_only``: no code in the file is ever run.

    Checksums are verified first. Raises ValueError naming the path for a file that is truncated, corrupt, of another
    kind, or holds anything but plain values (see :func:`save_checkpoint`).

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "last.pt"
    >>> save_checkpoint({"lr": 0.1}, path)
    >>> load_checkpoint(path)["lr"]
    0.1
    """
    with open_regular(path, owner="load_checkpoint") as file:
        try:
            damaged = zipfile.ZipFile(file).testzip()
            if damaged is not None:
                raise ValueError(f"checksum of {damaged} differs")
            file.seek(0)
            state = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged pickle raises anything, KeyError and struct.error included
            raise ValueError(
                f"load_checkpoint: {Path(path)} is truncated, corrupt or no training state written by save_checkpoint; "
                f"nothing in it was run: {_reason(error)}{_way_out(path, _PICKLE)}"
            ) from error
    if not isinstance(state, dict):
        raise ValueError(f"load_checkpoint: {Path(path)} holds a value {_kind(state)}; allowed is a dict")
    return state


def _open_weights(path: str | os.PathLike[str], function: str) -> Any:
    """A safetensors reader; its header (sizes, offsets, file length) is checked when it opens."""
    open_regular(path, owner=function).close()
    try:
        return safetensors.safe_open(os.fspath(path), framework="pt", device="cpu")
    except Exception as error:
        raise ValueError(
            f"{function}: {Path(path)} is truncated, corrupt or no safetensors file: {_reason(error)}"
            f"{_way_out(path, _ARCHIVE, _PICKLE)}"
        ) from error


def _way_out(path: str | os.PathLike[str], *kinds: bytes) -> str:
    """How to read a file of torch.save, if it begins as one of these ``kinds`` does."""
    with open(path, "rb") as file:
        begins = file.read(2) in kinds
    return "; torch.load(path, map_location='cpu', weights_only=True) reads what torch.save wrote" if begins else ""


def _check_fit(
    title: str, *, absent: list[str], spare: list[str], unfit: list[str], unwritten: list[str], hint: str, way_out: str
) -> None:
    """Raise ValueError with everything that does not fit, and what allows it."""
    found = [
        _listing("missing keys", absent),
        _listing("unexpected keys", spare),
        _listing("other shapes or types", unfit),
        _listing("keys without memory (call to_empty first)", unwritten),
    ]
    if any(found):
        loose = " (strict=False allows missing and unexpected keys)" if absent or spare else ""
        raise ValueError(f"{title}: {'; '.join(filter(None, found))}{loose}{hint if unfit else ''}{way_out}")


def _prefix_to_strip(keys: Collection[str], own: Collection[str]) -> str:
    """What to do about a name that all keys begin with, ``module.`` or ``model.`` say, if some fit without it."""
    prefix = f"{next(iter(keys), '').partition('.')[0]}."
    stripped = {key.removeprefix(prefix) for key in keys if key.startswith(prefix)}
    if len(stripped) < len(keys) or {*keys} & {*own} or not stripped & {*own}:
        return ""
    strip = f"{{key.removeprefix({prefix!r}): value for key, value in load_file(path).items()}}"
    return f"; all keys begin with {prefix!r}, which a wrapper has added: strip it, and save {strip}"


def _misfits(own: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Keys whose values cannot be copied faithfully (another shape, or floats into integers), each with the reason."""
    pairs = [(key, value, own[key]) for key, value in tensors.items() if isinstance(own.get(key), Tensor)]
    return {
        key: f"{key} (file {tuple(value.shape)} {value.dtype}, module {tuple(place.shape)} {place.dtype})"
        for key, value, place in pairs
        if place.shape != value.shape or not torch.can_cast(value.dtype, place.dtype)
    }


def _memory(value: Any) -> tuple[Any, ...]:
    """An identifier that two keys of a state share if they hold the same memory."""
    if not isinstance(value, Tensor) or value.numel() == 0 or value.is_meta:
        return (id(value),)
    return value.device, value.data_ptr(), tuple(value.shape), value.stride(), value.dtype


def _listing(title: str, entries: Sequence[str], *, shown: int = 4) -> str:
    more = ", ..." if len(entries) > shown else ""
    return f"{len(entries)} {title}: {', '.join(entries[:shown])}{more}" if entries else ""


def _check_plain(value: Any, place: str) -> None:
    if type(value) in _MAPPINGS:
        for key, entry in value.items():
            _check_plain(key, f"a key of {place}")
            _check_plain(entry, f"{place}[{key!r}]")
    elif type(value) in _SEQUENCES:
        for i, entry in enumerate(value):
            _check_plain(entry, f"{place}[{i}]")
    elif type(value) not in (*_PLAIN, *_TENSORS):
        raise ValueError(
            f"save_checkpoint: {place} is {_kind(value)}; allowed are dicts, lists, tuples, tensors, numbers, "
            "strings, bytes and None, because only those are read back without running code"
        )


def _is_meta(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_meta


def _kind(value: Any) -> str:
    name = f"{type(value).__module__}.{type(value).__qualname__}"
    return f"a {value.layout} {value.device.type} tensor" if isinstance(value, Tensor) else f"of type {name}"


def _reason(error: BaseException) -> str:
    """The error in one line; only the refused name is kept of the unpickler's advice on how to trust a file."""
    if isinstance(error, pickle.UnpicklingError):
        refused = re.search(r"GLOBAL (\S+)", str(error))
        return f"it asks for {refused[1]}, which is no plain value" if refused else "its pickle is malformed"
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"
