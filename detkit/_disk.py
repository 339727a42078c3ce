"""Files on disk: written whole or not at all."""

import contextlib
import glob
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows, where no file can be deleted that a process is writing
    fcntl = None

_TOKEN_BYTES = 6


def write_atomically(path: str | os.PathLike[str], write: Callable[[BinaryIO], object], *, owner: str) -> None:
    """``write`` into a temporary file of the same folder, flush it to the disk, and rename it to ``path``.

    Whatever happens, ``path`` holds what it held before or all that was written. Temporary files that killed processes
    left behind are deleted first; those being written are locked, and stay. Raises OSError with the path and the
    reason, such as a full disk, and FileNotFoundError for a missing folder.
    """
    target = Path(path).resolve()  # through a link, as open() would
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{owner}: cannot save {target}: there is no folder {target.parent}")
    sweep(target)
    try:
        _write_beside(target, write)
    except (OSError, RuntimeError) as error:  # torch raises the latter while it handles the former
        reason = _reason(error)
        if reason is None:
            raise
        raise OSError(
            reason.errno, f"{owner}: cannot save {target}, which is left as it was: {reason.strerror}"
        ) from error
    _sync_folder(target.parent)


def sweep(target: Path) -> None:
    """Delete the temporary files beside ``target`` that nobody writes any more."""
    for temporary in target.parent.glob(f".{glob.escape(target.name)}.{'[0-9a-f]' * 2 * _TOKEN_BYTES}.tmp"):
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            if fcntl is not None:
                _lock(stack.enter_context(temporary.open("rb")))
            temporary.unlink()


def _write_beside(target: Path, write: Callable[[BinaryIO], object]) -> None:
    temporary, file = _temporary(target)
    try:
        with file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
            if fcntl is not None:
                temporary.replace(target)  # while it is locked: nobody may take it for a dead one
        if fcntl is None:
            temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _temporary(target: Path) -> tuple[Path, BinaryIO]:
    """A new file beside ``target``, locked."""
    while True:
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(_TOKEN_BYTES)}.tmp")
        file = temporary.open("xb")
        if _is_ours(file) and temporary.exists():
            return temporary, file
        file.close()


def _is_ours(file: BinaryIO) -> bool:
    """Lock a new file; False where another process, taking it for a dead one, was faster."""
    try:
        _lock(file)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks: nothing is swept there
        return True
    return True


def _lock(file: BinaryIO) -> None:
    """Lock an open file until it is closed or its process ends. Raises BlockingIOError where another has done so."""
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _reason(error: BaseException | None) -> OSError | None:
    """The error of the system behind a chain of errors."""
    while error is not None:
        if isinstance(error, OSError) and error.errno:
            return error
        error = error.__cause__ or error.__context__
    return None


def _sync_folder(folder: Path) -> None:
    """The rename itself must reach the disk; Windows has no such call."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
