"""What each component of the hourglass RPN is worth: its source's table on COCO images and blood cells, and a picture.

Run: python examples/hourglass_components.py DATA runs/hourglass (DATA holds coco_open and bccd)

Structures, and what is added to the last of them; every row is trained alike for the same number of steps.
"""

import argparse
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from hourglass.training import proposed, recalls, scenes, train
from torch import Tensor, nn
from tqdm import tqdm

from detkit.anchors import BalancedSampler, GridAnchors
from detkit.backbones import SmallBackbone
from detkit.detectors import Detector, Preprocess, ProposalPostprocess, at_scales, hourglass_stage
from detkit.layers import ConvNormActivation
from detkit.necks import Hourglass, Neck
from detkit.tricks import NMSFusion, RandomObjectScale, TestTimeAugmentation
from detkit.viz import plot_bars, save_picture, side_by_side

SIZES, RATIOS = ((8, 16), (32, 64), (128, 256)), (0.15, 0.5, 1.0, 2.0, 6.7)


class Row(NamedTuple):
    """The components of a row: without ``up`` the way only goes down, without ``split`` all anchors are at its end."""

    up: bool = True
    split: bool = True
    blocks: int = 2
    sizes: tuple[tuple[int, ...], ...] = SIZES
    ratios: tuple[float, ...] = RATIOS
    scale: bool = False
    ratio: bool = False
    gray: bool = False


ROWS = {
    "down-sample alone": Row(up=False, split=False, blocks=1),
    "+ split anchors": Row(up=False, blocks=1),
    "deeper down-sample + split": Row(up=False),
    "deeper hourglass, 30 anchors": Row(),
    "hourglass, 9 anchors": Row(sizes=((12,), (48,), (192,)), ratios=(0.5, 1.0, 2.0)),
    "30 + dynamic scale": Row(scale=True),
    "30 + ratio control": Row(ratio=True),
    "30 + gray": Row(gray=True),
    "30 + all": Row(scale=True, ratio=True, gray=True),
}


class WayDown(Neck):
    """The levels as they come, each behind a convolution of its own; or the last one only."""

    def __init__(self, in_channels: tuple[int, ...], in_strides: tuple[int, ...], *, channels: int, first: int) -> None:
        super().__init__(in_channels, out_channels=[channels] * len(in_channels[first:]), strides=in_strides[first:])
        self.first = first
        self.blocks = nn.ModuleList(ConvNormActivation(own, channels) for own in in_channels[first:])

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """One map for each level that is left."""
        return [block(level) for block, level in zip(self.blocks, features[self.first :], strict=True)]


def compose(row: Row, size: tuple[int, int]) -> Detector:
    """A detector of the row's components."""
    backbone = SmallBackbone((16, 32, 64, 128), levels=(1, 2, 3), blocks=row.blocks)
    given: Any = backbone.out_channels, backbone.strides
    up = Hourglass(*given, channels=48, norm=nn.BatchNorm2d)
    neck = up if row.up else WayDown(*given, channels=48, first=0 if row.split else 2)
    sizes = row.sizes if row.split else (sum(row.sizes, ()),)
    sampler = BalancedSampler(
        300, negatives_per_positive=2.0 if row.ratio else None, gray_per_other=0.5 if row.gray else 0.0
    )
    stage = hourglass_stage(
        neck.out_channels,
        GridAnchors(sizes, aspect_ratios=row.ratios, strides=neck.strides),
        gray=row.gray,
        sampler=sampler,
        postprocess=ProposalPostprocess(candidates_per_level=1000, max_proposals=500, score_threshold=0.01),
    )
    return Detector(nn.Sequential(backbone, neck), preprocess=Preprocess(size, multiple_of=32), rpn=stage)


def judged(proposer: nn.Module, sets: list[list[Any]]) -> tuple[list[Any], dict[str, float]]:
    """Proposals for all images, and their recalls in percent; at IoU .5 also those of each set."""
    found = [proposed(proposer, own) for own in sets]
    values = recalls([*chain(*found)], [*chain(*sets)])
    for name, boxes, own in zip(("COCO", "cells"), found, sets, strict=True):
        values[name] = recalls(boxes, own)["Rec@.5"]
    return [*chain(*found)], {name: 100 * value for name, value in values.items()}


def main() -> None:
    """Train and judge all rows, print the table, draw its bars and the proposals of the last row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path, help="folder for the pictures")
    parser.add_argument("--size", type=int, nargs=2, default=(160, 224))
    for name, default in {"steps": 200, "batch-size": 4, "images": 1000, "seeds": 2}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    torch.set_num_threads(1)
    seen, sets = (scenes(args.data, split, args.size, args.images) for split in ("train", "val"))
    seen, unseen, (short, long) = [*chain(*seen)], [*chain(*sets)], sorted(args.size)
    scale = RandomObjectScale(short / 7, short / 4, shortest=short * 2 // 3, longest=long * 4 // 3)
    table: dict[str, list[dict[str, float]]] = {}
    found: list[Any] = []
    for seed, (name, row) in tqdm([(seed, pair) for seed in range(args.seeds) for pair in ROWS.items()]):
        orders = torch.Generator().manual_seed(seed)  # the same batches in all rows
        batches = [torch.randint(len(seen), (args.batch_size,), generator=orders).tolist() for _ in range(args.steps)]
        torch.manual_seed(seed)
        detector = compose(row, tuple(args.size))
        train(detector, seen, batches, args.steps, scale if row.scale else None)
        found, values = judged(detector, sets)
        table.setdefault(name, []).append(values)
        tqdm.write(f"seed {seed}: {name:29} Rec@.5 {values['Rec@.5']:.2f}")
        if row == ROWS["30 + all"]:
            scales = at_scales(detector, [short * 5 // 4, short, short * 3 // 4], max_size=2 * long, multiple_of=32)
            fused = TestTimeAugmentation(scales, flips=("none",), fusion=NMSFusion(0.5, max_detections=500))
            table.setdefault(f"{name}, 3 scales", []).append(judged(fused, sets)[1])
    for name, rows in table.items():
        means = {key: sum(one[key] for one in rows) / len(rows) for key in rows[0]}
        low, high = (end(one["Rec@.5"] for one in rows) for end in (min, max))
        shown = "  ".join(f"{key} {value:5.2f}" for key, value in means.items())
        print(f"{name:29}{shown}  ({low:.2f} to {high:.2f})")
    args.output.mkdir(parents=True, exist_ok=True)
    values = {name: [one["Rec@.5"] for one in rows] for name, rows in table.items()}
    title = f"{args.steps} steps of {args.batch_size}, {args.seeds} seeds"
    bars = plot_bars(values, label="recall at IoU .5 of 300 proposals, %", title=title)
    save_picture(args.output / "components.png", bars)
    shown = [2, len(sets[0]) - 1, len(unseen) - 1]
    top: list[Any] = [{key: rows[:20] for key, rows in found[i].items()} for i in shown]
    images, truths = zip(*(unseen[i] for i in shown), strict=True)
    plain: list[Any] = [{"boxes": one["boxes"], "labels": 0 * one["labels"]} for one in truths]
    save_picture(args.output / "proposals.png", side_by_side(images, plain, top, score_threshold=0.0))


if __name__ == "__main__":
    main()
