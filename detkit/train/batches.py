"""Batches of a run, their progress bar, and the precision they are computed in."""

from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from detkit import dist
from detkit.data import collate
from detkit.train.run import Run


def loader(run: Run, data: Dataset[Any]) -> DataLoader[Any]:
    """Batches of the samples that are left in this epoch; a generator of its own keeps torch's global one untouched."""
    options = {"num_workers": run.args.workers, "collate_fn": collate, "generator": torch.Generator()}
    return DataLoader(data, run.batch, sampler=run.sampler, **options)


def progress(batches: Any, title: Any, done: int = 0, total: int | None = None) -> Any:
    """A bar on the first process."""
    return tqdm(batches, f"{title}", total=total, initial=done, disable=dist.rank() != 0, leave=False, mininterval=1.0)


def autocast(run: Run) -> torch.autocast:
    """bfloat16 where asked for."""
    return torch.autocast(next(run.model.parameters()).device.type, torch.bfloat16, enabled=run.args.bf16)
