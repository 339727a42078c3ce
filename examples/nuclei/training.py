"""How each network of the table is trained."""

from typing import Any

import torch
from nuclei.scenes import Scene

from detkit import data, multitask, tricks

Weights = multitask.DynamicWeightAverage | multitask.FixedWeights


def train(detector: Any, scenes: list[Scene], steps: int, weights: Weights | None = None) -> Any:
    """Batches of 8, flipped; tasks weighed by their pace unless told otherwise, stitches ten times as fast."""
    weights = weights or multitask.DynamicWeightAverage(detector.stage_names)
    groups: dict[str, Any] = {"weight_decay": 0.01}
    if stitches := getattr(detector.trunk[0], "stitches", None):
        groups |= {"backbone": stitches, "backbone_factor": 10.0, "undecayed": ["shares"]}
    optimizer = torch.optim.AdamW(tricks.parameter_groups(detector, 4e-3, **groups))
    schedule = tricks.warmup_cosine(optimizer, total_steps=steps, warmup_steps=steps // 10)
    flip = data.flip_augmentation(vertical=True)
    order = torch.cat([torch.randperm(len(scenes)) for _ in range(8 * steps // len(scenes) + 1)]).tolist()
    for step in range(steps):
        batch = data.collate([flip(*scenes[i]) for i in order[8 * step : 8 * step + 8]])
        optimizer.zero_grad()
        torch.stack([*weights(detector.train()(*batch)).values()]).sum().backward()
        optimizer.step()
        schedule.step()
        epoch_is_over = 8 * (step + 1) // len(scenes) > 8 * step // len(scenes)
        if epoch_is_over and isinstance(weights, multitask.DynamicWeightAverage):
            weights.end_epoch()
    return detector.eval()
