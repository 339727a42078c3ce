"""Weights and training states on disk: saved atomically, checked before loading, never running code.

Weights are safetensors files with every key of a module's ``state_dict``; training states are ``torch.save`` archives
read with ``weights_only``. Every file is written under a temporary name in the same folder, flushed to disk and
renamed, so a process killed while saving leaves the earlier file intact (and at worst a file ``.NAME.*.tmp`` to
delete).
"""

import os
import pickle
import re
import secrets
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.Size, torch.dtype, torch.device)
_MAPPINGS = (dict, OrderedDict, Counter)
_SEQUENCES = (list, tuple)
_TENSORS = (Tensor, nn.Parameter)


def save_weights(module: nn.Module, path: str | os.PathLike[str], *, metadata: Mapping[str, str] | None = None) -> None:
    """Write the module's ``state_dict`` to a safetensors file, atomically.

    Every key is written with its own values, from any device: tensors that share memory are stored once per key, so
    that any reader can use the file. ``metadata`` is free text, read back by :func:`load_metadata`. A module wrapped by
    DistributedDataParallel or torch.compile has prefixed keys: save what it wraps.

    Raises ValueError for an entry that is not a dense tensor with values or metadata that does not map str to str, and
    FileNotFoundError for a missing folder.

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
    for key, value in module.state_dict().items():
        if not isinstance(value, Tensor) or value.is_meta or value.layout != torch.strided or value.is_quantized:
            raise ValueError(f"save_weights: {key} is {_kind(value)}; allowed are dense tensors that hold values")
        tensors[key] = value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
    content = safetensors.torch.save(tensors, metadata=dict(metadata or {}) or None)
    _write_atomically(path, lambda file: file.write(content))


def load_weights(
    module: nn.Module, path: str | os.PathLike[str], *, strict: bool = True
) -> tuple[list[str], list[str]]:
    """Copy a safetensors file into the module; returns the (missing, unexpected) keys, both empty if ``strict``.

    Everything is checked first, so that an error leaves the module unchanged. ``strict=False`` allows missing and
    unexpected keys, never another shape or floats for integers. Values are converted to the module's precision and
    device. A key that shares its memory with a key of the file counts as present. A truncated file is detected, a
    flipped bit is not: safetensors has no checksum.

    Raises ValueError naming the path and the mismatch, or saying that it is not a safetensors file.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "head.safetensors"
    >>> save_weights(nn.Linear(2, 3, bias=False), path)
    >>> load_weights(nn.Linear(2, 3), path, strict=False)
    (['bias'], [])
    """
    with _open_weights(path, "load_weights") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
    own = module.state_dict()
    held = {_memory(own[key]) for key in tensors if key in own}
    missing = [key for key, value in own.items() if key not in tensors and _memory(value) not in held]
    unexpected = [key for key in tensors if key not in own]
    problems = [
        *([_listing("missing keys", missing), _listing("unexpected keys", unexpected)] if strict else []),
        _listing("other shapes or types", _misfits(own, tensors)),
        _listing("keys without memory (call to_empty first)", [key for key in tensors if _is_meta(own.get(key))]),
    ]
    if any(problems):
        found = "; ".join(filter(None, problems))
        hint = " (strict=False allows missing and unexpected keys)" if strict and (missing or unexpected) else ""
        raise ValueError(f"load_weights: {Path(path)} does not fit {type(module).__name__}: {found}{hint}")
    module.load_state_dict(tensors, strict=False)
    return missing, unexpected


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
    _write_atomically(path, lambda file: torch.save(state, file))


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
    with Path(path).open("rb") as file:  # outside the try: a missing file stays a FileNotFoundError
        try:
            damaged = zipfile.ZipFile(file).testzip()
            if damaged is not None:
                raise ValueError(f"checksum of {damaged} differs")
            file.seek(0)
            state = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged pickle raises anything, KeyError and struct.error included
            raise ValueError(
                f"load_checkpoint: {Path(path)} is truncated, corrupt or no training state written by save_checkpoint; "
                f"nothing in it was run: {_reason(error)}"
            ) from error
    if not isinstance(state, dict):
        raise ValueError(f"load_checkpoint: {Path(path)} holds a value {_kind(state)}; allowed is a dict")
    return state


def _write_atomically(path: str | os.PathLike[str], write: Callable[[BinaryIO], object]) -> None:
    """``write`` into a temporary file of the same folder, flush it to the disk, and rename it to ``path``."""
    target = Path(path).resolve()  # through a link, as open() would
    if not target.parent.is_dir():
        raise FileNotFoundError(f"cannot save {target}: there is no folder {target.parent}")
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(6)}.tmp")
    try:
        with temporary.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(target.parent)


def _sync_folder(folder: Path) -> None:
    """The rename itself must reach the disk; Windows has no such call."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _open_weights(path: str | os.PathLike[str], function: str) -> Any:
    """A safetensors reader; its header (sizes, offsets, file length) is checked when it opens."""
    Path(path).open("rb").close()  # a missing or forbidden file keeps its own OSError
    try:
        return safetensors.safe_open(os.fspath(path), framework="pt", device="cpu")
    except Exception as error:
        raise ValueError(
            f"{function}: {Path(path)} is truncated, corrupt or no safetensors file: {_reason(error)}"
        ) from error


def _misfits(own: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> list[str]:
    """Keys whose values cannot be copied faithfully: another shape, or floats into integers."""
    pairs = [(key, value, own[key]) for key, value in tensors.items() if isinstance(own.get(key), Tensor)]
    return [
        f"{key} (file {tuple(value.shape)} {value.dtype}, module {tuple(place.shape)} {place.dtype})"
        for key, value, place in pairs
        if place.shape != value.shape or not torch.can_cast(value.dtype, place.dtype)
    ]


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
