"""The folder of a run, which belongs to one process at a time."""

import argparse
import contextlib
from typing import Any

from detkit import dist

try:
    import fcntl
except ImportError:  # Windows: there a folder in use is not noticed
    fcntl = None


def claim(args: argparse.Namespace) -> Any:
    """Lock the output folder until the result is closed, and sweep what a killed run left behind.

    Raises ValueError, in every process, for a folder that another run is using, or that holds the checkpoint of an
    earlier run which is not to be resumed.
    """
    problem, lock = None, None
    if dist.rank() == 0:
        lock = (args.output / ".lock").open("w")
        try:
            if fcntl is not None:
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            problem = f"--output {args.output} is in use by another run; wait for its end, or name another folder"
        if problem is None and (args.output / "checkpoint.pt").exists() and not args.resume:
            problem = (
                f"--output {args.output} holds checkpoint.pt of an earlier run; --resume it, or name another folder"
            )
        for name in () if problem else ("checkpoint.pt", "weights.safetensors"):
            for temporary in args.output.glob(f".{name}.*.tmp"):
                temporary.unlink()
    if problem := dist.gather_objects(problem)[0]:
        raise ValueError(problem)
    return lock or contextlib.nullcontext()
