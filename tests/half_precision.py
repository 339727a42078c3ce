"""Training under autocast in half precision: what a family's losses were, step by step.

``python tests/half_precision.py`` trains every family for 200 steps in three types and prints a table.
"""

import math
import sys
from typing import NamedTuple

import torch
from families import FAMILIES, scene, small_family
from torch import Tensor

from detkit.structures import Target

SCENES = 6


class Trained(NamedTuple):
    """The losses of every step; steps that the scaler left out because a gradient had overflowed; what was not finite
    after the last step: names of parameters and buffers."""

    losses: list[float]
    left_out: int
    spoiled: list[str]


def batch(step: int) -> tuple[list[Tensor], list[Target]]:
    """Two of a few scenes, over and over; one of them shows nothing."""
    drawn = [scene(count=(2 * step + place) % SCENES, seed=(2 * step + place) % SCENES) for place in (0, 1)]
    images, targets = zip(*drawn, strict=True)
    return list(images), list(targets)


def trained(name: str, dtype: torch.dtype, steps: int, *, scale: float = 2.0**16) -> Trained:
    """A small detector of the family after so many steps of AdamW; float16 with a gradient scaler from ``scale`` on."""
    detector = small_family(name).train()
    optimizer = torch.optim.AdamW(detector.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, enabled=dtype == torch.float16)
    losses, left_out = [], 0
    for step in range(steps):
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss = torch.stack(list(detector(*batch(step)).values())).sum()
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(detector.parameters(), 10.0)
        before = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        left_out += scaler.get_scale() < before
        losses.append(loss.item())
    state = detector.state_dict()
    spoiled = [name for name, rows in state.items() if rows.is_floating_point() and not rows.isfinite().all()]
    return Trained(losses, left_out, spoiled)


def main(steps: int = 200, *names: str) -> None:
    """A line for each family: mean loss of the first and the last six steps in three types; what was not finite."""
    print(
        "| family | float32 | bfloat16 | float16 | steps that the scaler left out |\n|---|---|---|---|---|", flush=True
    )
    for name in names or FAMILIES:
        print(f"| {name} |", end="", flush=True)
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            losses, left_out, spoiled = trained(name, dtype, steps)
            first, last = (sum(some) / len(some) for some in (losses[:6], losses[-6:]))
            spoiled += [f"loss of step {step}" for step, loss in enumerate(losses) if not math.isfinite(loss)]
            spoiled = f", NOT FINITE: {', '.join(spoiled)}" if spoiled else ""
            print(f" {first:.2f} → {last:.3f}{spoiled} |", end="", flush=True)
        print(f" {left_out} |", flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]), *sys.argv[2:])
