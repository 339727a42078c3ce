"""One loop for all: the same batches, augmentation, schedule and average of the weights, by CPU time."""

import math
import time
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn
from torch.utils.data import DataLoader, RandomSampler

from detkit import data, metrics, tricks

MARKS = 5  # judged so often, at equal times


def train(
    detector: Any,
    rate: float,
    pictures: list[Any],
    unseen: list[Any],
    names: list[str],
    seconds: float,
    *,
    augment: Callable[..., Any],
    view: Callable[[nn.Module], nn.Module] = lambda detector: detector,
    batch: int = 8,
    bf16: bool = False,
) -> list[list[float]]:
    """Train for so many seconds of CPU time; [seconds, AP, AP50, APs] of the averaged weights at every mark.

    ``augment`` is called with an image and its target; ``view`` makes of the detector what is judged.
    """
    optimizer = torch.optim.AdamW(tricks.parameter_groups(detector, rate, weight_decay=0.05), betas=(0.9, 0.98))
    average = tricks.ExponentialMovingAverage(detector, decay=0.998)
    sampler = RandomSampler(pictures, replacement=True, num_samples=10**9)
    curve: list[list[float]] = []
    began = time.process_time()
    for images, targets in DataLoader(cast(Any, pictures), batch, sampler=sampler, collate_fn=data.collate):
        spent = (time.process_time() - began) / seconds
        if spent >= (len(curve) + 1) / MARKS:
            paused = time.process_time()
            curve.append([spent * seconds, *judge(view(average.module.eval()), unseen, names)])
            began += time.process_time() - paused
        if spent >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, 20 * spent) * (1 + math.cos(math.pi * spent)) / 2
        images, targets = zip(*map(augment, images, targets), strict=True)
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            losses = detector.train()([*images], [*targets])
        torch.stack([loss.float() for loss in losses.values()]).sum().backward()
        nn.utils.clip_grad_norm_(detector.parameters(), 10.0)
        optimizer.step()
        average.update_parameters(detector)
    return curve


@torch.no_grad()
def judge(detector: nn.Module, unseen: Any, names: list[str]) -> list[float]:
    """AP, AP50, and AP of objects below 32 x 32 pixels."""
    judged = metrics.CocoMetrics(names, max_detections=(1, 10, 300))  # pictures of tiny objects hold more than 100
    for images, targets in DataLoader(unseen, 8, collate_fn=data.collate):
        judged.update(detector(images), targets)
    numbers = judged.compute()
    return [numbers[f"bbox/{name}"] for name in ("AP", "AP50", "APs")]
