"""What transformers' DETRs are compared by: a batch of two images, three objects, and every loss by name."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from detkit.boxes import cxcywh_to_xyxy
from detkit.structures import Detections, Images, Target

SIZES = torch.tensor([[64, 96], [40, 72]])


def batch(dtype: torch.dtype = torch.float32) -> tuple[Images, Tensor]:
    """Two images in one frame, and transformers' mask of where they are."""
    pixels = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1)).to(dtype)
    mask = (torch.arange(64) < SIZES[:, :1])[:, :, None] & (torch.arange(96) < SIZES[:, 1:])[:, None]
    return Images(pixels, SIZES), mask.long()


def truth(dtype: torch.dtype = torch.float32) -> tuple[list[Target], list[dict[str, Tensor]]]:
    """Three objects in the first image and none in the second, ours and theirs."""
    rows = torch.tensor([[0.5, 0.4, 0.3, 0.2], [0.3, 0.6, 0.5, 0.4], [0.4, 0.4, 0.6, 0.6]], dtype=dtype)
    labels, scale = torch.tensor([2, 0, 1]), SIZES[0].flip(0).repeat(2)
    empty = torch.zeros(0, dtype=torch.int64)
    ours = [Target(boxes=cxcywh_to_xyxy(rows) * scale, labels=labels), Target(boxes=rows[:0], labels=empty)]
    return ours, [{"boxes": rows, "class_labels": labels}, {"boxes": rows[:0], "class_labels": empty}]


def assert_costs_the_same(losses: dict[str, Tensor], peer: nn.Module, expected: Any, close: Callable) -> None:
    """Each loss of each layer, and their sum."""
    config, names = peer.config, {"ce": "classification", "bbox": "l1", "giou": "giou"}
    weights = {"ce": 1, "bbox": config.bbox_loss_coefficient, "giou": config.giou_loss_coefficient}
    theirs = {}
    for key, value in expected.loss_dict.items():
        kind, _, layer = key.removeprefix("loss_").partition("_")
        if kind in names:
            theirs[f"objects.{f'layer{layer}.' if layer else ''}{names[kind]}"] = value * weights[kind]
    assert losses.keys() == theirs.keys()
    assert len(losses) == (9 if config.auxiliary_loss else 3)
    for key, value in losses.items():
        close(value, theirs[key])
    close(sum(losses.values()), expected.loss)


def assert_finds_the_same(found: Detections, processor: Any, expected: Any, close: Callable) -> None:
    """In both images, the best first; boxes are clipped here."""
    for i, one in enumerate(processor.post_process_object_detection(expected, threshold=0.0, target_sizes=SIZES)):
        order = one["scores"].argsort(descending=True, stable=True)
        assert found.labels[i].tolist() == one["labels"][order].tolist()
        close(found.scores[i], one["scores"][order])
        limits = SIZES[i].flip(0).repeat(2)
        close(found.boxes[i] / limits, one["boxes"][order].clamp(min=0).minimum(limits) / limits)
