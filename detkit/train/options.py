"""The command line of ``python -m detkit.train``."""

import argparse
import difflib
import importlib.util
from pathlib import Path

import torch
from torchvision.transforms import v2

import detkit.train
from detkit.data import flip_augmentation, large_scale_jitter, ssd_augmentation
from detkit.data.transforms import sanitize
from detkit.detectors import recipes
from detkit.train.module import function_of

RECIPES = [name for name in recipes.__all__ if not name.endswith(("_stage", "_anchors", "_scales", "_neck"))]
"""Those that build a whole detector, not a part of one."""

_OTHERWISE = {"ssd", "ssdlite", "fast_rcnn", "rcnn", "segmenter", "three_tasks", "hourglass_rpn", "small_hourglass_rpn"}

TRAINABLE = sorted(set(RECIPES) - _OTHERWISE)
"""Those that need no trunk, and no proposals, handed over, and find classes of boxes."""

DEFAULT = "small_tood"
"""The recipe that learns most in the same time: examples/equal_time.py."""


AUGMENTATIONS = {
    "none": v2.Identity,
    "jitter": lambda: large_scale_jitter(scale_range=(0.8, 1.25)),
    "flip": flip_augmentation,
    "flips": lambda: v2.Compose([v2.RandomPhotometricDistort(p=0.5), flip_augmentation(vertical=True)]),
    "ssd": ssd_augmentation,
    "shift": lambda: v2.Compose(
        [v2.RandomInvert(), v2.RandomAffine((0, 0), translate=(0.1, 0.1), fill=128), sanitize(min_size=6)]
    ),  # for digits, which flipped are none
}


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line; ``--help`` shows it."""
    parser = argparse.ArgumentParser(
        prog="python -m detkit.train",
        usage="%(prog)s [--data KIND] [--recipe NAME] [options] --output DIR",  # argparse's own has 40 lines
        description=detkit.train.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--module", type=Path, help="file with datasets(), detector(num_classes), or both, instead of the next two")
    add("--data", choices=("coco", "voc", "yolo", "csv", "scenes"), help="default: that of --module, or scenes")
    named = f"{', '.join(TRAINABLE)}; default: that of --module, or {DEFAULT}"
    add("--recipe", type=trainable, metavar="NAME", help=named)
    add("--images", type=Path, help="coco, csv: folder of all images; without it each file's own folder")
    for split in ("train", "val", "test"):
        add(f"--{split}-images", type=Path, nargs="+", help=f"coco: folder of the {split} split, or one for each json")
        add(f"--{split}-json", type=Path, nargs="+", help=f"coco: annotations of the {split} split")
        add(f"--{split}-csv", type=Path, help=f"csv: table of the {split} split")
    root = "voc: folder with --folders: annotations, images, split lists; yolo: with data.yaml; coco: as of Roboflow"
    add("--root", type=Path, help=root)
    folders = "voc: folders below --root; default: PASCAL's, annotations and images, or all in --root itself"
    add("--folders", nargs=3, metavar=("XML", "IMAGES", "SPLITS"), help=folders)
    add("--val-fraction", type=float, help="of the images to train on, drawn by --seed, to validate on instead")
    add("--minus-one", action="store_true", help="voc: pixels are counted from 1, as PASCAL's own files do")
    add("--scenes", type=int, default=2000, help="scenes: how many to train on; a tenth of it to validate and to test")
    add("--trunk", type=Path, help="weights of another recipe, trained before, whose backbone to start from")
    add("--weights", type=Path, help="weights of this recipe to start from; values of other classes are left out")
    add("--tidy-categories", action="store_true", help="coco: no class for rows that only group others, one per name")
    add("--freeze", type=int, metavar="LAYERS", help="the first layers of the backbone, stem included, do not learn")
    add("--masks", action="store_true", help="not voc, csv: read masks, and judge them, for recipes that draw some")
    add(
        "--size",
        type=int,
        nargs=2,
        metavar=("H", "W"),
        help="input size, for recipes that take one; default: fitting, of scenes 96 96",
    )
    add("--finest", type=int, choices=(4, 8), help="stride of the finest level; default: what fits beside --size")
    add("--random-scale", type=float, nargs=2, metavar=("LOW", "HIGH"), help="every ten batches so many times --size")
    add("--group-norm", action="store_true", help="for recipes with a norm: N processes then equal one, to rounding")
    add("--sync-bn", action=argparse.BooleanOptionalAction, default=True, help="batch norms over all processes")
    kinds = "flip: left, right; jitter: flip and .8 to 1.25 times the size; flips: up, down, colors, too; ssd: colors, "
    kinds += "zooms, crops; shift: digits (default: jitter, of scenes none)"
    add("--augment", choices=AUGMENTATIONS, help=kinds)
    add("--epochs", type=int, default=30, help="passes over the images to train on (%(default)s)")
    add("--early-stop", type=int, metavar="N", help="end after so many evaluations without a better AP")
    add("--batch-size", type=int, help="images of each process (default: 4, of scenes 16)")
    add("--accumulate", type=int, default=1, help="batches whose gradients are added up for one step")
    add("--lr", type=float, default=2e-3, help="AdamW's highest learning rate (%(default)s)")
    add("--weight-decay", type=float, default=0.05, help="AdamW's, but not of biases and norms (%(default)s)")
    add("--warmup", type=int, default=100, help="steps of linear warm-up before the cosine (%(default)s)")
    add("--clip", type=float, default=10.0, help="largest norm of the gradient (%(default)s)")
    add("--nonfinite", choices=("stop", "skip"), default="stop", help="at a loss or gradient that is NaN or infinite")
    add("--ema", type=float, default=0.998, help="decay of the averaged weights, which are saved (%(default)s)")
    bf16 = "bfloat16 autocast; default: where the device has instructions for it"
    add("--bf16", action=argparse.BooleanOptionalAction, help=bf16)
    layout = "lay channels side by side (channels_last); default: but for narrow detectors on a processor"
    add("--channels-last", action=argparse.BooleanOptionalAction, help=layout)
    add("--evaluate-every", type=int, default=1, metavar="EPOCHS", help="on the set to validate on (%(default)s)")
    add("--checkpoint-steps", type=int, default=0, help="also checkpoint every so many steps within an epoch")
    add("--workers", type=int, default=0, help="data loading processes for each training process")
    add("--threads", type=int, help="CPU threads of each process")
    add("--seed", type=int, default=0, help="of weights, order, augmentation and --val-fraction (%(default)s)")
    add("--tensorboard", action="store_true", help="write events into --output; needs the extra tensorboard")
    add("--resume", action="store_true", help="go on from checkpoint.pt in --output, where there is one")
    add("--output", type=Path, required=True, help="folder of this run, which no other run has used")
    args = parser.parse_args(argv)
    try:
        complete(args)
    except ValueError as error:
        parser.error(str(error))
    return args


def trainable(name: str) -> str:
    """A recipe's name, as the type of an option.

    >>> trainable("fpn_sdd")
    Traceback (most recent call last):
    argparse.ArgumentTypeError: there is no recipe 'fpn_sdd' to train; did you mean fpn_ssd? All: ...
    """
    if name in TRAINABLE:
        return name
    close = difflib.get_close_matches(name, TRAINABLE)
    meant = f"; did you mean {' or '.join(close)}?" if close else "."
    raise argparse.ArgumentTypeError(f"there is no recipe {name!r} to train{meant} All: {', '.join(TRAINABLE)}")


def complete(args: argparse.Namespace) -> None:
    """Fill in what follows from other options. Raises ValueError for those that do not fit together."""
    if args.module and not args.module.is_file():
        raise ValueError(f"--module {args.module} is no regular file")
    for name, part, default in (("data", "datasets", "scenes"), ("recipe", "detector", DEFAULT)):
        own = function_of(args.module, part) is not None
        if own and getattr(args, name):
            raise ValueError(f"--{name} {getattr(args, name)}: --module {args.module} defines {part}() already")
        setattr(args, name, "module" if own else getattr(args, name) or default)
    args.bf16 = multiplies_bf16() if args.bf16 is None else args.bf16
    if args.batch_size is None:
        args.batch_size = 16 if args.data == "scenes" else 4
    args.size = args.size or ([96, 96] if args.data == "scenes" else None)
    args.augment = args.augment or ("none" if args.data == "scenes" else "jitter")
    if args.data == "coco" and args.root:
        find_roboflow(args)
    check_data(args)
    check_run(args)


def find_roboflow(args: argparse.Namespace) -> None:
    """The files of a COCO export of Roboflow, whose categories are always tidied."""
    for split, folders in {"train": ("train",), "val": ("valid", "val"), "test": ("test",)}.items():
        files = [args.root / folder / "_annotations.coco.json" for folder in folders]
        found = [file for file in files if file.is_file()][:1]
        setattr(args, f"{split}_json", getattr(args, f"{split}_json") or found or None)
    if not args.train_json:
        raise ValueError(f"--root {args.root}: there is no train/_annotations.coco.json")
    args.tidy_categories = True


def check_data(args: argparse.Namespace) -> None:
    """Raise ValueError where the options do not name a training and a validation set."""
    kind = {"coco": "json", "csv": "csv"}.get(args.data)
    if kind and not (getattr(args, f"train_{kind}") and (getattr(args, f"val_{kind}") or args.val_fraction)):
        root = ", or --root" if kind == "json" else ""
        raise ValueError(f"--data {args.data} needs --train-{kind} and --val-{kind} or --val-fraction{root}")
    for split in ("train", "val", "test"):
        folders, files = getattr(args, f"{split}_images") or (), getattr(args, f"{split}_json") or ()
        if len(folders) not in (0, 1, len(files)):
            raise ValueError(f"--{split}-images names {len(folders)} folders for {len(files)} files of --{split}-json")
    if args.data in ("voc", "yolo") and not args.root:
        raise ValueError(f"--data {args.data} needs --root")
    if args.val_fraction is not None and not (args.data != "scenes" and 0 < args.val_fraction < 1):
        fraction = f"--val-fraction {args.val_fraction:g}"
        raise ValueError(f"{fraction}: allowed is a number above 0 and below 1, with data other than scenes")
    if args.val_fraction is not None and kind and getattr(args, f"val_{kind}"):
        raise ValueError(f"--val-fraction: there is --val-{kind} already; give one of them")
    if args.masks and args.data in ("voc", "csv"):
        raise ValueError(f"--data {args.data} has no --masks")


def check_run(args: argparse.Namespace) -> None:
    """Raise ValueError for files that are not there, values out of range and packages that are missing."""
    named = ("trunk", "weights", *(f"{split}_{kind}" for split in ("train", "val", "test") for kind in ("json", "csv")))
    for name in named:
        given = getattr(args, name) or ()
        for path in [given] if isinstance(given, Path) else given:
            if not path.is_file():
                raise ValueError(f"--{name.replace('_', '-')} {path} is no regular file")
    for name in ("epochs", "batch_size", "accumulate", "evaluate_every", "early_stop", "freeze"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} {value}: allowed is a whole number of at least 1")
    low, high = args.random_scale or (1.0, 1.0)
    if not 0 < low <= high < 100:
        raise ValueError(f"--random-scale {low:g} {high:g}: allowed are two numbers between 0 and 100, the lower first")
    if args.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise ValueError('--tensorboard needs tensorboard: pip install "torch-detkit[tensorboard]"')


def multiplies_bf16() -> bool:
    """Whether this machine has instructions for products of bfloat16: others emulate them, and are slower for it."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(known.get("avx512_bf16") or known.get("amx_bf16"))
