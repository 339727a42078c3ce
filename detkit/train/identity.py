"""What makes a run the one that it is: a resumed one has the same data, classes and options."""

import argparse
import hashlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detkit import dist
from detkit.data.wrapped import find_item

MAY_CHANGE = (
    *("images", "train_images", "val_images", "test_images", "train_json", "val_json", "test_json", "root", "folders"),
    *("train_csv", "val_csv", "test_csv", "module", "trunk", "weights", "output", "resume", "workers", "threads"),
    *("tensorboard", "checkpoint_steps", "evaluate_every", "early_stop", "nonfinite"),
)
"""Options that a resumed run may change: where files lie (what they hold is compared), and what no step depends on."""


def identity(args: argparse.Namespace, categories: list[str], data: dict[str, Any]) -> dict[str, Any]:
    """What makes a run the one that it is, by name: a resumed one must say the same."""
    options = {f"--{name.replace('_', '-')}": value for name, value in vars(args).items() if name not in MAY_CHANGE}
    files = {"train": args.train_json, "val": args.val_json, "test": args.test_json or args.val_json}
    options |= {"module": hashlib.sha256(args.module.read_bytes()).hexdigest()[:16]} if args.module else {}
    prints = {f"{split} data": fingerprint(part, files[split] or []) for split, part in data.items()}
    return {**options, "processes": dist.world_size(), "classes": list(categories), **prints}


def fingerprint(data: Any, files: list[Path], *, pictures: int = 64) -> str:
    """A hash of all annotations (those of COCO as they stand in their files), and of pictures spread over the set."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    targets = [] if files else known_targets(data)
    spread = (data[i] for i in range(0, len(data), -(-len(data) // pictures)))
    for image, target in (*((torch.zeros(0), target) for target in targets), *spread):
        for part in (image, *(target[key] for key in sorted(target))):
            digest.update(part.numpy().tobytes() if isinstance(part, Tensor) else repr(part).encode())
    return f"{len(data)} images, {digest.hexdigest()[:16]}"


def known_targets(data: Any) -> Iterator[Any]:
    """The targets of a data set that knows them without opening pictures, or that wraps such a one."""
    try:
        places = (find_item(data, index, function="fingerprint") for index in range(len(data)))
        yield from (part.target(place) for part, place in places)
    except TypeError:
        return


def check_same_run(saved: dict[str, Any], own: dict[str, Any], path: Path) -> None:
    """Raise ValueError naming every option, class list and data set that differs from the checkpoint's.

    More epochs are a longer run, not another one.
    """
    longer = own.get("--epochs", 0) > saved.get("--epochs", math.inf)
    differ = [
        f"{name} was {saved.get(name)!r}, is {own.get(name)!r}"
        for name in {**own, **saved}
        if saved.get(name) != own.get(name) and not (longer and name == "--epochs")
    ]
    if differ:
        free = ", ".join(f"--{name.replace('_', '-')}" for name in MAY_CHANGE)
        raise ValueError(
            f"--resume: {path} is of another run: {'; '.join(differ)}. Only these may change: {free}; --epochs may grow"
        )
