"""From a command line to trained weights."""

import argparse
import os
import time
from typing import Any

import torch
import torch.distributed as torch_dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from detkit import dist, tricks
from detkit.data import Augmented
from detkit.train.building import build, channels_last, choose_input
from detkit.train.epoch import train_epoch
from detkit.train.fit import warn_of_misfits
from detkit.train.folder import claim
from detkit.train.identity import identity
from detkit.train.options import AUGMENTATIONS, arguments
from detkit.train.results import evaluate, finish, keep_best, report, tensorboard
from detkit.train.run import Run
from detkit.train.sets import datasets


def train(args: argparse.Namespace, device: torch.device) -> dict[str, float]:
    """Everything, from the data to the final table; the numbers of the test set."""
    torch.manual_seed(args.seed)
    train_data, val_data, test_data, categories = datasets(args)
    choose_input(args, train_data)
    detector = build(args, len(categories)).to(device)
    if channels_last(detector, device, args.channels_last):
        detector = detector.to(memory_format=torch.channels_last)
    if dist.rank() == 0:
        warn_of_misfits(train_data, detector)
    data = Augmented(train_data, AUGMENTATIONS[args.augment](), seed=args.seed)
    sets = {"train": train_data, "val": val_data, "test": test_data}
    run = Run(args, detector, len(data), identity(args, categories, sets))
    model: nn.Module = detector
    if dist.world_size() > 1:
        if args.sync_bn:
            model = tricks.SyncBatchNorm.convert(model)
        model = DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)
    first = run.load()
    writer = tensorboard(args)
    for epoch in range(first, args.epochs):
        if run.stopping.stopped:
            break
        began = time.perf_counter()
        record: dict[str, Any] = {"epoch": epoch}
        record |= train_epoch(run, model, data, epoch)
        record["lr"] = run.schedule.get_last_lr()[0]
        if (epoch + 1) % args.evaluate_every == 0 or epoch + 1 == args.epochs:
            record |= evaluate(run, val_data, categories).compute()
            run.judged(record)
            keep_best(run, categories)
        record["seconds"] = round(time.perf_counter() - began, 2)
        run.records.append(record)
        report(args, run.records, writer)
        run.sampler.set_epoch(epoch + 1)
        run.save(epoch + 1)
    return finish(run, test_data, categories)


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Join the process group that torchrun describes, if any, and train."""
    args = arguments(argv)
    args.output.mkdir(parents=True, exist_ok=True)
    if args.threads:
        torch.set_num_threads(args.threads)
    local = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if "WORLD_SIZE" in os.environ:
        torch_dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        with claim(args):
            return train(args, device)
    finally:
        if torch_dist.is_initialized():
            torch_dist.destroy_process_group()
