"""The detector of a run: a recipe or a module of the user's, and the weights that it starts from."""

import argparse
import inspect
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from detkit import dist, tricks
from detkit.detectors import Detector, MaskStage, recipes
from detkit.inspect.report import read_truth
from detkit.inspect.suggest import suggest
from detkit.train.module import function_of
from detkit.weights import load_weights

_LOOKED_AT = 1000  # images, as detkit.inspect does unless told otherwise: both then choose the same


def build(args: argparse.Namespace, num_classes: int) -> Detector:
    """The recipe, with those of the options that it takes."""
    recipe = function_of(args.module, "detector") or getattr(recipes, args.recipe)
    options = {
        "size": tuple(args.size) if args.size else None,
        "finest": args.finest,
        "norm": (lambda channels: nn.GroupNorm(8, channels)) if args.group_norm else None,
    }
    given = {name: value for name, value in options.items() if value is not None}
    taken = {name: value for name, value in given.items() if name in inspect.signature(recipe).parameters}
    drawn_in_size = {"size"} if args.data == "scenes" else set()
    if spare := given.keys() - taken.keys() - drawn_in_size:
        shown = ", ".join({"norm": "--group-norm"}.get(name, f"--{name}") for name in sorted(spare))
        raise ValueError(f"recipe {args.recipe} does not take {shown}; leave it out, or name another --recipe")
    detector = recipe(num_classes, **taken)
    if not isinstance(detector, Detector):
        raise ValueError(f"--module: detector() returns a {type(detector).__name__}; allowed is a detkit Detector")
    if args.data != "module" and not args.masks and any(isinstance(part, MaskStage) for part in detector.modules()):
        raise ValueError(
            f"recipe {args.recipe} learns from masks; read them with --masks, of --data coco, yolo or scenes"
        )
    if args.trunk:
        take_backbone(detector, args.trunk)
    if args.weights and not (args.resume and (args.output / "checkpoint.pt").exists()):
        left, _ = load_weights(detector, args.weights, misfits="drop")
        if left and dist.rank() == 0:
            print(f"--weights: {len(left)} values of other shapes are learned anew: {', '.join(left[:4])}")
    if args.freeze is not None:
        tricks.freeze(backbone_of(detector), args.freeze)
    return detector


def choose_input(args: argparse.Namespace, data: Any) -> None:
    """Fill in ``--size`` and ``--finest`` with what suits the objects to train on, where the recipe takes them.

    Nothing is chosen beside a ``--size``, beside weights to start from, for a detector of the user's, and for a data
    set that knows its targets only with the pictures.
    """
    if args.size or args.weights or args.recipe == "module":
        return
    try:
        found = suggest(read_truth(data, _LOOKED_AT)).taken_by(getattr(recipes, args.recipe))
    except (TypeError, ValueError):
        return
    args.size, args.finest = found.get("size"), args.finest or found.get("finest")
    if args.size and dist.rank() == 0:
        shown = " ".join(map(str, args.size)) + (f" --finest {args.finest}" if args.finest else "")
        print(f"chosen for these objects: --size {shown}")


def backbone_of(detector: Detector) -> nn.Module:
    """What stands below a neck, or all of the trunk."""
    return detector.trunk[0] if isinstance(detector.trunk, nn.Sequential) else detector.trunk


def batch_shapes(scale: Sequence[float] | None, detector: Detector, seed: int) -> tricks.RandomBatchShapes | None:
    """Input sizes of so many times the detector's own, in multiples of 32 and its ratio; None without ``scale``."""
    size = detector.preprocess.size
    if scale is None:
        return None
    if not isinstance(size, tuple):
        raise ValueError(f"--random-scale: the recipe has no size (height, width) to scale, but {size}")
    low, high = (math.ceil(scale[0] * size[0] / 32), math.floor(scale[1] * size[0] / 32))
    sizes = [(32 * rows, max(1, round(rows * size[1] / size[0])) * 32) for rows in range(max(1, low), high + 1)]
    if not sizes:
        raise ValueError(
            f"--random-scale {scale[0]:g} {scale[1]:g}: no multiple of 32 lies between these times {size[0]}, the "
            "height; give the lower number first, or a wider range"
        )
    return tricks.RandomBatchShapes(sizes, seed=seed)


def take_backbone(detector: Detector, path: Path) -> None:
    """Copy the backbone out of other weights, from whichever recipe; what they hold beyond it stays behind."""
    backbone = backbone_of(detector)
    found = {key.removeprefix("trunk.").removeprefix("0."): value for key, value in load_file(path).items()}
    own = backbone.state_dict()
    if missing := [key for key, value in own.items() if key not in found or found[key].shape != value.shape]:
        raise ValueError(f"--trunk {path} lacks {len(missing)} of {len(own)} values of the backbone: {missing[0]}, ...")
    backbone.load_state_dict({key: found[key] for key in own})


def channels_last(detector: nn.Module, device: torch.device, wanted: bool | None = None) -> bool:
    """Whether to train with the channels of a cell side by side: as ``wanted``, or else yes, mostly the faster layout.

    On a processor not where a 1 x 1 convolution reads fewer than eight channels: oneDNN's gradient of one can end the
    process.

    >>> channels_last(nn.Conv2d(8, 8, 1), torch.device("cpu")), channels_last(nn.Conv2d(4, 8, 1), torch.device("cpu"))
    (True, False)
    """
    convolutions = (part for part in detector.modules() if isinstance(part, nn.Conv2d))
    narrow = any(part.kernel_size == (1, 1) and part.in_channels < 8 for part in convolutions)
    return wanted if wanted is not None else device.type != "cpu" or not narrow
