"""The data of a run: training, validation and test set, and the names of the classes."""

import argparse
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset

from detkit.data import CocoDataset, CsvDataset, DigitScenes, VocDataset, VocFolders, YoloDataset
from detkit.train.module import function_of


def datasets(args: argparse.Namespace) -> tuple[Any, Any, Any, list[str]]:
    """Training, validation and test set, and the names of the classes; without a test set, the validation set again."""
    train, *others = SOURCES[args.data](args)
    names = list(train.categories) if hasattr(train, "categories") else common_categories([train, *others])
    if args.val_fraction is not None:
        train, val = shares(train, args.val_fraction, args.seed)
        others = [val, *others[-1:]]
    if args.data == "scenes":
        train = [train[i] for i in range(len(train))]  # once: to draw a scene takes longer than to augment it
    return train, others[0], others[-1], names


def scenes(args: argparse.Namespace) -> list[Any]:
    """Made scenes; a tenth of their number to validate and to test."""
    counts = {"train": args.scenes, "val": max(1, args.scenes // 10), "test": max(1, args.scenes // 10)}
    size = tuple(args.size)
    return [
        DigitScenes(count, split=split, size=size, masks=args.masks)  # pyright: ignore[reportArgumentType]
        for split, count in counts.items()
    ]


def voc(args: argparse.Namespace) -> list[Any]:
    """The lists train, val and perhaps test, or all images to be shared out."""
    folders = VocFolders(*args.folders) if args.folders else VocFolders.find(args.root) or VocFolders()
    options = {"folders": folders, "minus_one": args.minus_one}
    if args.val_fraction is not None:
        return [VocDataset(args.root, None, **options)]
    if not (lists := args.root / folders.splits / "train.txt").is_file():
        raise FileNotFoundError(f"there is no list {lists}: --folders names its folder, --val-fraction needs none")
    last = ["test"] if (args.root / folders.splits / "test.txt").exists() else []  # VOC 2012 names no test images
    train = VocDataset(args.root, "train", **options)
    return [train, *(VocDataset(args.root, s, classes=train.categories, **options) for s in ("val", *last))]


def yolo(args: argparse.Namespace) -> list[Any]:
    """The splits train and val, or all images to be shared out."""
    splits = ("train", "val") if args.val_fraction is None else (None,)
    return [YoloDataset(args.root, split, masks=args.masks) for split in splits]


def table(args: argparse.Namespace) -> list[Any]:
    """The tables of the splits, with the classes of the first."""
    files = [file for file in (args.train_csv, args.val_csv, args.test_csv) if file]
    train = CsvDataset(args.images or files[0].parent, files[0])
    others = (CsvDataset(args.images or file.parent, file, classes=train.categories) for file in files[1:])
    return [train, *others]


def coco(args: argparse.Namespace) -> list[Any]:
    """The annotation files of each split, each file with the folder of its images."""
    return [ConcatDataset(coco_files(args, s)) for s in ("train", "val", "test") if getattr(args, f"{s}_json")]


def coco_files(args: argparse.Namespace, split: str) -> list[CocoDataset]:
    """The annotation files of a split."""
    files = getattr(args, f"{split}_json")
    folders = getattr(args, f"{split}_images") or [args.images or file.parent for file in files]
    folders = folders * len(files) if len(folders) == 1 else folders
    options = {"masks": args.masks, "tidy_categories": args.tidy_categories}
    return [CocoDataset(folder, file, **options) for folder, file in zip(folders, files, strict=True)]


def own(args: argparse.Namespace) -> list[Any]:
    """What ``datasets()`` of the user's module returns."""
    returned = cast(Any, function_of(args.module, "datasets"))()
    sets = list(returned) if isinstance(returned, (list, tuple)) else [returned]
    fewest, most = (1, 1) if args.val_fraction is not None else (2, 3)
    if not fewest <= len(sets) <= most:
        allowed = "one, with --val-fraction" if most == 1 else "train, val and perhaps test; one with --val-fraction"
        raise ValueError(f"--module {args.module}: datasets() returns {len(sets)} sets; allowed are {allowed}")
    for data in sets:
        if not hasattr(data, "categories"):
            raise ValueError(
                f"--module {args.module}: a {type(data).__name__} of datasets() has no categories; allowed is a data "
                "set with the names of its classes, whose items are (image, target)"
            )
        image, _ = data[0]
        if not isinstance(image, Tensor):
            raise ValueError(
                f"--module {args.module}: the image of item 0 of datasets() is a {type(image).__name__}; allowed is a "
                "tensor (3, H, W), as detkit.data.read_image returns it"
            )
    return sets


SOURCES = {"scenes": scenes, "voc": voc, "yolo": yolo, "csv": table, "coco": coco, "module": own}
"""Where the sets come from: the first is trained on, the second validates, the last tests."""


def common_categories(sets: Sequence[Any]) -> list[str]:
    """The class names of all annotation files. Raises ValueError where they differ."""
    names = [list(dataset.categories) for whole in sets for dataset in whole.datasets]
    if any(categories != names[0] for categories in names):
        raise ValueError(f"the annotation files differ in their categories: {names}")
    return names[0]


def shares(whole: Any, fraction: float, seed: int) -> tuple[Subset[Any], Subset[Any]]:
    """All images but a share, and that share to validate on."""
    if (held := max(1, round(fraction * len(whole)))) >= len(whole):
        raise ValueError(f"--val-fraction {fraction:g} of {len(whole)} images leaves none to train on")
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(seed)).tolist()
    return Subset(whole, sorted(order[held:])), Subset(whole, sorted(order[:held]))
