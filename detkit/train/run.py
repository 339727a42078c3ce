"""The state of a run, on disk and in memory."""

import argparse
import sys
import warnings
from typing import Any

import torch
from torch import Tensor

from detkit import dist, tricks
from detkit.data import ResumableSampler
from detkit.detectors import Detector
from detkit.train.building import batch_shapes
from detkit.train.identity import check_same_run
from detkit.weights import load_checkpoint, save_checkpoint

PARTS = ("model", "optimizer", "schedule", "average", "sampler")


VALUES = ("identity", "records", "sums", "skipped")


class Run:
    """Everything that changes while training, and so everything that a checkpoint holds."""

    def __init__(self, args: argparse.Namespace, model: Detector, length: int, identity: dict[str, Any]) -> None:
        self.args, self.model, self.identity = args, model, identity
        self.sampler = ResumableSampler(length, seed=args.seed, shuffle=True)
        self.batch = min(args.batch_size, len(self.sampler))
        self.batches = len(self.sampler) // self.batch  # an incomplete last batch is left out
        self.optimizer = torch.optim.AdamW(tricks.parameter_groups(model, args.lr, weight_decay=args.weight_decay))
        steps = args.epochs * -(-self.batches // args.accumulate)
        self.schedule = tricks.warmup_cosine(
            self.optimizer, warmup_steps=min(args.warmup, steps - 1), total_steps=steps
        )
        self.average = tricks.ExponentialMovingAverage(model, args.ema)  # keeps the size to judge at
        self.stopping = tricks.EarlyStopping(args.early_stop or sys.maxsize)
        self.shapes = batch_shapes(args.random_scale, model, args.seed)
        self.records: list[dict[str, float]] = []
        self.sums: dict[str, Tensor] = {}
        self.skipped = 0  # batches of this epoch

    def save(self, epoch: int) -> None:
        """Write checkpoint.pt: every process says its random state, the first one writes."""
        random = dist.gather_objects(random_state())
        parts = {name: getattr(self, name).state_dict() for name in PARTS}
        state = {**parts, **{name: getattr(self, name) for name in VALUES}, "epoch": epoch, "random": random}
        state["threads"] = torch.get_num_threads()
        if dist.rank() == 0:
            save_checkpoint(state, self.args.output / "checkpoint.pt")

    def load(self) -> int:
        """Read checkpoint.pt where there is one; the epoch to go on with."""
        path = self.args.output / "checkpoint.pt"
        if not (self.args.resume and path.exists()):
            return 0
        state = load_checkpoint(path)
        check_same_run(state.pop("identity", {}), self.identity, path)
        if dist.rank() == 0 and state["threads"] != torch.get_num_threads():
            threads = f"{state['threads']} threads before and {torch.get_num_threads()} now"
            warnings.warn(
                f"--resume with {threads}: the run goes on, but not bit for bit as it would have", stacklevel=2
            )
        state["schedule"] = self.lengthened(state["schedule"])
        for name in PARTS:
            getattr(self, name).load_state_dict(state[name])
        self.records, self.sums, self.skipped = state["records"], state["sums"], state["skipped"]
        for record in self.records:
            self.judged(record)
        restore_random_state(state["random"][dist.rank()])
        return state["epoch"]

    def lengthened(self, saved: dict[str, Any]) -> dict[str, Any]:
        """The state of a schedule at its step, in a run of this one's length: its rates depend on nothing else."""
        schedule: Any = self.schedule
        factors = zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
        rates = [base * factor(saved["last_epoch"]) for base, factor in factors]
        return {**saved, "lr_lambdas": schedule.state_dict()["lr_lambdas"], "_last_lr": rates}

    def judged(self, record: dict[str, float]) -> bool:
        """Count the AP of an epoch that was evaluated; whether to stop early."""
        return "bbox/AP" in record and self.stopping.update(record["bbox/AP"])


def random_state() -> dict[str, Tensor]:
    """The state of torch's generators in this process, as tensors."""
    state = {"cpu": torch.get_rng_state()}
    return state | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})


def restore_random_state(state: dict[str, Tensor]) -> None:
    """Put :func:`random_state` back."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
