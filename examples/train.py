"""Train any recipe on COCO, VOC or made scenes: the one complete script, on one process or many.

    python examples/train.py --data scenes --recipe fpn_ssd --size 96 96 --epochs 3 --output runs/scenes
    python examples/train.py --data coco --train-json F --val-json F --test-json F --output runs/mine
    python examples/train.py --data voc --root DIR --output runs/mine
    python examples/train.py --data voc --root DIR --folders . . . --val-share 0.2 --output runs/labelimg
    python examples/train.py --data yolo --root DIR --output runs/roboflow
    torchrun --nproc-per-node 2 examples/train.py ...

``--output`` then holds checkpoint.pt (every epoch; ``--resume`` continues from it), weights.safetensors (the average
that did best on the validation set), metrics.jsonl (a line for each epoch), curve.png, and from the test set
result.json and pictures.png. A batch is ``--batch-size`` images in each process, times ``--accumulate``. On several
machines ``--output`` lies in a folder that all of them share. Curves need matplotlib (the extra ``viz``).

COCO's file names are relative to the folder of their json, unless ``--images``, or for one split ``--train-images``,
``--val-images`` or ``--test-images``, names another. A resumed run has the same data, classes and options, or is
refused; only what MAY_CHANGE lists may be another. It is the same bit for bit where the number of threads and the
device are the same as well: sums in another order differ in their last bits, which training enlarges.
"""

import argparse
import contextlib
import hashlib
import importlib.util
import inspect
import json
import math
import os
import time
import warnings
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as torch_dist
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset
from torchvision.transforms import v2
from tqdm import tqdm

from detkit import dist, tricks
from detkit.data import (
    Augmented,
    CocoDataset,
    DigitScenes,
    ResumableSampler,
    VocDataset,
    VocFolders,
    YoloDataset,
    collate,
    flip_augmentation,
    ssd_augmentation,
)
from detkit.data.transforms import sanitize
from detkit.detectors import Detector, recipes
from detkit.metrics import CocoMetrics, format_table
from detkit.viz import plot_curves, save_picture, side_by_side
from detkit.weights import load_checkpoint, load_weights, save_checkpoint, save_detector, save_weights

try:
    import fcntl
except ImportError:  # Windows: there a folder in use is not noticed
    fcntl = None

RECIPES = [name for name in recipes.__all__ if not name.endswith(("_stage", "_anchors", "_scales"))]
"""Those that build a whole detector, not a part of one."""
OTHERWISE = {"ssd", "ssdlite", "fast_rcnn", "rcnn", "segmenter", "three_tasks", "hourglass_rpn", "small_hourglass_rpn"}
"""Recipes that need a trunk, or proposals, handed over; and those that find no classes of boxes."""
AUGMENTATIONS = {
    "none": v2.Identity,
    "flip": flip_augmentation,
    "flips": lambda: v2.Compose([v2.RandomPhotometricDistort(p=0.5), flip_augmentation(vertical=True)]),
    "ssd": ssd_augmentation,
    "shift": lambda: v2.Compose(
        [v2.RandomInvert(), v2.RandomAffine((0, 0), translate=(0.1, 0.1), fill=128), sanitize(min_size=6)]
    ),  # for digits, which flipped are none
}

MAY_CHANGE = (
    *("images", "train_images", "val_images", "test_images", "train_json", "val_json", "test_json", "root", "folders"),
    *("trunk", "weights", "output", "resume", "workers", "threads", "tensorboard", "checkpoint_steps"),
    *("evaluate_every", "nonfinite"),
)
"""Options that a resumed run may change: where files lie (what they hold is compared), and what no step depends on."""


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line; ``--help`` shows it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", choices=("coco", "voc", "yolo", "scenes"), default="scenes")
    add("--images", type=Path, help="coco: folder of all images; without it each json's own folder")
    for split in ("train", "val", "test"):
        add(f"--{split}-images", type=Path, nargs="+", help=f"coco: folder of the {split} split, or one for each json")
        add(f"--{split}-json", type=Path, nargs="+", help=f"coco: annotations of the {split} split")
    add("--root", type=Path, help="voc: folder with --folders: annotations, images, split lists; yolo: with data.yaml")
    add("--folders", nargs=3, default=tuple(VocFolders()), metavar=("XML", "IMAGES", "SPLITS"))
    add("--val-share", type=float, help="voc, yolo: no splits, but this share of all images, by --seed, to validate")
    add("--minus-one", action="store_true", help="voc: pixels are counted from 1, as PASCAL's own files do")
    add("--scenes", type=int, default=2000, help="scenes: how many to train on; a tenth of it to validate and to test")
    add("--recipe", choices=sorted(set(RECIPES) - OTHERWISE), default="fpn_ssd")
    add("--trunk", type=Path, help="weights of another recipe, trained before, whose backbone to start from")
    add("--weights", type=Path, help="weights of this recipe to start from; values of other classes are left out")
    add("--tidy-categories", action="store_true", help="coco: no class for rows that only group others, one per name")
    add("--masks", action="store_true", help="coco and scenes: read masks, and judge them, for recipes that draw some")
    add("--size", type=int, nargs=2, metavar=("H", "W"), help="input size, for recipes that take one")
    add("--random-scale", type=float, nargs=2, metavar=("LOW", "HIGH"), help="every ten batches so many times --size")
    add("--group-norm", action="store_true", help="for recipes with a norm: N processes then equal one, to rounding")
    add("--sync-bn", action=argparse.BooleanOptionalAction, default=True, help="batch norms over all processes")
    add("--augment", choices=AUGMENTATIONS, default="flip")
    add("--epochs", type=int, default=30)
    add("--batch-size", type=int, default=16)
    add("--accumulate", type=int, default=1, help="batches whose gradients are added up for one step")
    add("--lr", type=float, default=2e-3)
    add("--weight-decay", type=float, default=0.05)
    add("--warmup", type=int, default=100, help="steps of linear warm-up before the cosine")
    add("--clip", type=float, default=10.0, help="largest norm of the gradient")
    add("--nonfinite", choices=("stop", "skip"), default="stop", help="at a loss or gradient that is NaN or infinite")
    add("--ema", type=float, default=0.998, help="decay of the averaged weights, which are evaluated and saved")
    add("--bf16", action="store_true", help="bfloat16 autocast")
    add("--evaluate-every", type=int, default=1, metavar="EPOCHS")
    add("--checkpoint-steps", type=int, default=0, help="also checkpoint every so many steps within an epoch")
    add("--workers", type=int, default=0, help="data loading processes for each training process")
    add("--threads", type=int, help="CPU threads of each process")
    add("--seed", type=int, default=0)
    add("--tensorboard", action="store_true")
    add("--resume", action="store_true", help="go on from checkpoint.pt in --output, where there is one")
    add("--output", type=Path, required=True)
    args = parser.parse_args(argv)
    if args.data == "coco" and not (args.train_json and args.val_json):
        parser.error("--data coco needs --train-json and --val-json")
    for split in ("train", "val", "test"):
        folders, files = getattr(args, f"{split}_images") or (), getattr(args, f"{split}_json") or ()
        if len(folders) not in (0, 1, len(files)):
            parser.error(f"--{split}-images names {len(folders)} folders for {len(files)} files of --{split}-json")
    for name in ("trunk", "weights"):
        if (path := getattr(args, name)) and not path.is_file():
            parser.error(f"--{name} {path} is no regular file")
    if args.data in ("voc", "yolo") and not args.root:
        parser.error(f"--data {args.data} needs --root")
    if args.val_share is not None and not (args.data in ("voc", "yolo") and 0 < args.val_share < 1):
        share = f"--val-share {args.val_share:g}"
        parser.error(f"{share}: allowed is a number above 0 and below 1, with --data voc or yolo")
    low, high = args.random_scale or (1.0, 1.0)
    if not 0 < low <= high < 100:
        parser.error(f"--random-scale {low:g} {high:g}: allowed are two numbers between 0 and 100, the lower first")
    if args.data == "voc" and args.masks:
        parser.error("--data voc has no --masks")
    if importlib.util.find_spec("matplotlib") is None:
        parser.error('curves need matplotlib: pip install "torch-detkit[viz]"')
    return args


def datasets(args: argparse.Namespace) -> tuple[Any, Any, Any, list[str]]:
    """Training, validation and test set, and the names of the classes; without a test set, the validation set again."""
    if args.data == "scenes":
        counts = {"train": args.scenes, "val": max(1, args.scenes // 10), "test": max(1, args.scenes // 10)}
        size = tuple(args.size or (96, 96))
        train, val, test = (
            DigitScenes(count, split=split, size=size, masks=args.masks)  # pyright: ignore[reportArgumentType]
            for split, count in counts.items()
        )
        drawn = [train[i] for i in range(len(train))]  # once: to draw a scene takes longer than to augment it
        return drawn, val, test, train.categories
    if args.data == "voc":
        folders = VocFolders(*args.folders)
        options = {"folders": folders, "minus_one": args.minus_one}
        if args.val_share is not None:
            return shares(args, VocDataset(args.root, None, **options))
        if not (lists := args.root / folders.splits / "train.txt").is_file():
            raise FileNotFoundError(f"there is no list {lists}: --folders names its folder, --val-share needs none")
        last = "test" if (args.root / folders.splits / "test.txt").exists() else "val"  # VOC 2012 names no test images
        train = VocDataset(args.root, "train", **options)
        val, test = (VocDataset(args.root, s, classes=train.categories, **options) for s in ("val", last))
        return train, val, test, train.categories
    if args.data == "yolo":
        if args.val_share is not None:
            return shares(args, YoloDataset(args.root, None, masks=args.masks))
        train, val = (YoloDataset(args.root, split, masks=args.masks) for split in ("train", "val"))
        return train, val, val, train.categories
    train, val = coco_files(args, "train"), coco_files(args, "val")
    test = coco_files(args, "test") if args.test_json else val
    names = [dataset.categories for dataset in (*train, *val, *test)]
    if any(categories != names[0] for categories in names):
        raise ValueError(f"the annotation files differ in their categories: {names}")
    return ConcatDataset(train), ConcatDataset(val), ConcatDataset(test), names[0]


def shares(args: argparse.Namespace, whole: Any) -> tuple[Any, Any, Any, list[str]]:
    """A share of all images to validate on, the others to train on."""
    if (held := max(1, round(args.val_share * len(whole)))) >= len(whole):
        raise ValueError(f"--val-share {args.val_share:g} of {len(whole)} images leaves none to train on")
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(args.seed)).tolist()
    val, train = (Share(whole, sorted(part)) for part in (order[:held], order[held:]))
    return train, val, val, whole.categories


class Share(Subset):
    """Some images of a data set, with their targets."""

    def target(self, index: int) -> Any:
        """That of an image, which is not opened."""
        return self.dataset.target(self.indices[index])  # pyright: ignore[reportAttributeAccessIssue]


def coco_files(args: argparse.Namespace, split: str) -> list[CocoDataset]:
    """The annotation files of a split, each with the folder of its images."""
    files = getattr(args, f"{split}_json")
    folders = getattr(args, f"{split}_images") or [args.images or file.parent for file in files]
    folders = folders * len(files) if len(folders) == 1 else folders
    options = {"masks": args.masks, "tidy_categories": args.tidy_categories}
    return [CocoDataset(folder, file, **options) for folder, file in zip(folders, files, strict=True)]


def identity(args: argparse.Namespace, categories: list[str], data: dict[str, Any]) -> dict[str, Any]:
    """What makes a run the one that it is, by name: a resumed one must say the same."""
    options = {f"--{name.replace('_', '-')}": value for name, value in vars(args).items() if name not in MAY_CHANGE}
    files = {"train": args.train_json, "val": args.val_json, "test": args.test_json or args.val_json}
    prints = {f"{split} data": fingerprint(part, files[split] or []) for split, part in data.items()}
    return {**options, "processes": dist.world_size(), "classes": list(categories), **prints}


def fingerprint(data: Any, files: list[Path], *, pictures: int = 64) -> str:
    """A hash of all annotations (those of COCO as they stand in their files), and of pictures spread over the set."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    targets = [] if files else (data.target(i) for i in range(len(data)) if hasattr(data, "target"))
    spread = (data[i] for i in range(0, len(data), -(-len(data) // pictures)))
    for image, target in (*((torch.zeros(0), target) for target in targets), *spread):
        for part in (image, *(target[key] for key in sorted(target))):
            digest.update(part.numpy().tobytes() if isinstance(part, Tensor) else repr(part).encode())
    return f"{len(data)} images, {digest.hexdigest()[:16]}"


def claim(args: argparse.Namespace) -> Any:
    """Lock the output folder until the result is closed, and sweep what a killed run left behind.

    Raises ValueError, in every process, for a folder that another run is using, or that holds the checkpoint of an
    earlier run which is not to be resumed.
    """
    problem, lock = None, None
    if dist.rank() == 0:
        lock = (args.output / ".lock").open("w")
        try:
            if fcntl is not None:
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            problem = f"--output {args.output} is in use by another run; wait for its end, or name another folder"
        if problem is None and (args.output / "checkpoint.pt").exists() and not args.resume:
            problem = (
                f"--output {args.output} holds checkpoint.pt of an earlier run; --resume it, or name another folder"
            )
        for name in () if problem else ("checkpoint.pt", "weights.safetensors"):
            for temporary in args.output.glob(f".{name}.*.tmp"):
                temporary.unlink()
    if problem := dist.gather_objects(problem)[0]:
        raise ValueError(problem)
    return lock or contextlib.nullcontext()


def build(args: argparse.Namespace, num_classes: int) -> Detector:
    """The recipe, with those of the options that it takes."""
    recipe = getattr(recipes, args.recipe)
    options = {
        "size": tuple(args.size) if args.size else None,
        "norm": (lambda channels: nn.GroupNorm(8, channels)) if args.group_norm else None,
    }
    given = {name: value for name, value in options.items() if value is not None}
    taken = {name: value for name, value in given.items() if name in inspect.signature(recipe).parameters}
    drawn_in_size = {"size"} if args.data == "scenes" else set()
    if spare := given.keys() - taken.keys() - drawn_in_size:
        raise ValueError(f"recipe {args.recipe} does not take {sorted(spare)}")
    detector = recipe(num_classes, **taken)
    if args.trunk:
        take_backbone(detector, args.trunk)
    if args.weights and not (args.resume and (args.output / "checkpoint.pt").exists()):
        left, _ = load_weights(detector, args.weights, misfits="drop")
        if left and dist.rank() == 0:
            print(f"--weights: {len(left)} values of other shapes are learned anew: {', '.join(left[:4])}")
    return detector


def batch_shapes(scale: tuple[float, float] | None, detector: Detector, seed: int) -> tricks.RandomBatchShapes | None:
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
    backbone = detector.trunk[0] if isinstance(detector.trunk, nn.Sequential) else detector.trunk
    found = {key.removeprefix("trunk.").removeprefix("0."): value for key, value in load_file(path).items()}
    own = backbone.state_dict()
    if missing := [key for key, value in own.items() if key not in found or found[key].shape != value.shape]:
        raise ValueError(f"--trunk {path} lacks {len(missing)} of {len(own)} values of the backbone: {missing[0]}, ...")
    backbone.load_state_dict({key: found[key] for key in own})


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
        for name in PARTS:
            getattr(self, name).load_state_dict(state[name])
        self.records, self.sums, self.skipped = state["records"], state["sums"], state["skipped"]
        restore_random_state(state["random"][dist.rank()])
        return state["epoch"]


PARTS = ("model", "optimizer", "schedule", "average", "sampler")
VALUES = ("identity", "records", "sums", "skipped")


def check_same_run(saved: dict[str, Any], own: dict[str, Any], path: Path) -> None:
    """Raise ValueError naming every option, class list and data set that differs from the checkpoint's."""
    differ = [
        f"{name} was {saved.get(name)!r}, is {own.get(name)!r}"
        for name in {**own, **saved}
        if saved.get(name) != own.get(name)
    ]
    if differ:
        free = ", ".join(f"--{name.replace('_', '-')}" for name in MAY_CHANGE)
        raise ValueError(f"--resume: {path} is of another run: {'; '.join(differ)}. Only these may change: {free}")


def random_state() -> dict[str, Tensor]:
    """The state of torch's generators in this process, as tensors."""
    state = {"cpu": torch.get_rng_state()}
    return state | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})


def restore_random_state(state: dict[str, Tensor]) -> None:
    """Put :func:`random_state` back."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def train_epoch(run: Run, model: nn.Module, data: Augmented, epoch: int) -> dict[str, float]:
    """One pass over the training set; the mean of each loss, and how many batches were left out, if any."""
    args = run.args
    run.sampler.set_epoch(epoch)
    data.set_epoch(epoch)
    if run.sampler.position == 0:
        run.sums, run.skipped = {}, 0
    done = run.sampler.position // run.batch
    model.train()
    step = Step(run)
    for batch, (images, targets) in enumerate(progress(loader(run, data), epoch, done, run.batches), start=done + 1):
        last = batch % args.accumulate == 0 or batch == run.batches
        group = min(args.accumulate, run.batches - (batch - 1) // args.accumulate * args.accumulate)
        wait = model.no_sync() if isinstance(model, DistributedDataParallel) and not last else contextlib.nullcontext()
        if run.shapes is not None:
            run.model.preprocess.size = run.shapes(epoch * run.batches + batch - 1)
        with wait:
            with autocast(run):
                losses = model(images, targets)
            (sum(losses.values()) / group).backward()
        step.add(losses)
        run.sampler.advance(run.batch)
        if last:
            step.end(f"epoch {epoch}, batch {batch}", group)
            step = Step(run)
        steps = -(-batch // args.accumulate)
        if args.checkpoint_steps and last and steps % args.checkpoint_steps == 0 and batch < run.batches:
            run.save(epoch)
        if batch == run.batches:
            break
    if run.skipped == run.batches:
        raise FloatingPointError(f"epoch {epoch}: no loss was finite: nothing was learned")
    means = {name: float(total) / (run.batches - run.skipped) for name, total in run.sums.items()}
    everywhere = dist.gather_objects(means)
    means = {name: sum(rank[name] for rank in everywhere) / len(everywhere) for name in means}
    return means | ({"skipped": run.skipped} if run.skipped else {})


class Step:
    """The batches whose gradients are added up for one step of the optimizer, which is taken or left out as a whole."""

    def __init__(self, run: Run) -> None:
        self.run, self.sums = run, {}
        self.buffers = {name: buffer.clone() for name, buffer in run.model.named_buffers()}

    def add(self, losses: dict[str, Tensor]) -> None:
        """Count the losses of one batch."""
        for name, loss in losses.items():
            self.sums[name] = self.sums.get(name, 0) + loss.detach()

    def end(self, place: str, batches: int) -> None:
        """Take the step, if losses and gradients are finite; name them and stop or leave it out, if not."""
        run = self.run
        if bad := tricks.nonfinite(self.sums, run.model):
            self.leave_out(f"{place}: {', '.join(bad[:4])}" + (f" and {len(bad) - 4} more" if len(bad) > 4 else ""))
            run.skipped += batches
        else:
            for name, total in self.sums.items():
                run.sums[name] = run.sums.get(name, torch.zeros(())).to(total.device) + total
            nn.utils.clip_grad_norm_(run.model.parameters(), run.args.clip)
            run.optimizer.step()
            run.average.update_parameters(run.model)
        run.optimizer.zero_grad()
        run.schedule.step()

    def leave_out(self, reason: str) -> None:
        """Put back the statistics that forward passes moved. Raises FloatingPointError with ``--nonfinite stop``."""
        for name, buffer in self.run.model.named_buffers():
            buffer.copy_(self.buffers[name])
        if self.run.args.nonfinite == "stop":
            raise FloatingPointError(f"{reason}; --nonfinite skip would leave out the step")
        if dist.rank() == 0:
            tqdm.write(f"step left out: {reason}")


def loader(run: Run, data: Dataset[Any]) -> DataLoader[Any]:
    """Batches of the samples that are left in this epoch; a generator of its own keeps torch's global one untouched."""
    options = {"num_workers": run.args.workers, "collate_fn": collate, "generator": torch.Generator()}
    return DataLoader(data, run.batch, sampler=run.sampler, **options)


def progress(batches: Any, title: Any, done: int = 0, total: int | None = None) -> Any:
    """A bar on the first process."""
    return tqdm(batches, f"{title}", total=total, initial=done, disable=dist.rank() != 0, leave=False, mininterval=1.0)


def autocast(run: Run) -> torch.autocast:
    """bfloat16 where asked for."""
    return torch.autocast(next(run.model.parameters()).device.type, torch.bfloat16, enabled=run.args.bf16)


@torch.no_grad()
def evaluate(run: Run, data: Any, categories: list[str]) -> CocoMetrics:
    """COCO metrics of the averaged weights, each image judged by one process."""
    model = run.average.module.eval()
    for buffer in model.buffers():  # running statistics are each process's own: take the first one's
        if dist.world_size() > 1:
            torch_dist.broadcast(buffer, 0)
    metrics = CocoMetrics(categories, iou_types=("bbox", "segm") if run.args.masks else ("bbox",))
    sampler = ResumableSampler(len(data), shuffle=False)
    mine = iter(sampler)
    batches = DataLoader(data, run.batch, sampler=sampler, num_workers=run.args.workers, collate_fn=collate)
    for images, targets in progress(batches, "evaluate"):
        with autocast(run):
            detections = model(images)
        # The position, not the file's image_id, names an image: several files may use one id.
        for target, i in zip(targets, mine, strict=False):
            target["image_id"] = i
        metrics.update(detections, targets)
    return metrics


def train(args: argparse.Namespace, device: torch.device) -> dict[str, float]:
    """Everything, from the data to the final table; the numbers of the test set."""
    torch.manual_seed(args.seed)
    train_data, val_data, test_data, categories = datasets(args)
    detector = build(args, len(categories)).to(memory_format=torch.channels_last).to(device)  # the faster layout
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
        began = time.perf_counter()
        record: dict[str, Any] = {"epoch": epoch}
        record |= train_epoch(run, model, data, epoch)
        record["lr"] = run.schedule.get_last_lr()[0]
        if (epoch + 1) % args.evaluate_every == 0 or epoch + 1 == args.epochs:
            record |= evaluate(run, val_data, categories).compute()
            keep_best(run, record, categories)
        record["seconds"] = round(time.perf_counter() - began, 2)
        run.records.append(record)
        report(args, run.records, writer)
        run.sampler.set_epoch(epoch + 1)
        run.save(epoch + 1)
    return finish(run, test_data, categories)


def keep_best(run: Run, record: dict[str, float], categories: list[str]) -> None:
    """Save the averaged weights where no epoch before had a higher AP."""
    earlier = max((old["bbox/AP"] for old in run.records if "bbox/AP" in old), default=-2.0)
    if dist.rank() == 0 and record["bbox/AP"] > earlier:
        path, detector = run.args.output / "weights.safetensors", cast(Detector, run.average.module)
        if detector.recipe and not detector.recipe.unwritable:
            save_detector(detector, path, categories=categories)
        else:  # norms are functions, which no file can hold
            save_weights(detector, path)


def tensorboard(args: argparse.Namespace) -> Any:
    """A writer on the first process, if asked for; needs the package tensorboard."""
    if not args.tensorboard or dist.rank() != 0:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(args.output)


def report(args: argparse.Namespace, records: list[dict[str, float]], writer: Any) -> None:
    """metrics.jsonl as it stands, one printed line, and TensorBoard."""
    if dist.rank() != 0:
        return
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (args.output / "metrics.jsonl").write_text(lines)
    record = records[-1]
    print("  ".join(f"{name}={value:.4g}" for name, value in record.items() if "/" not in name or name in SHOWN))
    if writer is not None:
        for name, value in record.items():
            writer.add_scalar(name, value, int(record["epoch"]))
        writer.flush()  # it would lose what it still holds when the process ends


SHOWN = ("bbox/AP", "bbox/AP50", "segm/AP", "segm/AP50")


def finish(run: Run, data: Any, categories: list[str]) -> dict[str, float]:
    """Judge the best weights on the test set: table, result.json, curve.png and pictures.png."""
    if dist.world_size() > 1:
        torch_dist.barrier()  # the first process may still be writing the weights
    load_weights(run.average.module, run.args.output / "weights.safetensors")
    metrics = evaluate(run, data, categories)
    result, rows = metrics.compute(), metrics.per_class()
    if dist.rank() != 0:
        return result
    output, names = run.args.output, list(run.sums)
    (output / "result.json").write_text(json.dumps(result | {row.name: row._asdict() for row in rows}, indent=1))
    save_picture(
        output / "curve.png", plot_curves(run.records, losses=names, metrics=[name for name in SHOWN if name in result])
    )
    images, targets = collate([data[i] for i in range(min(6, len(data)))])
    with torch.no_grad():
        found = run.average.module(images)
    save_picture(output / "pictures.png", side_by_side(images, targets, found, categories=categories, columns=2))
    print(format_table(rows))
    print(f"AP={result['bbox/AP']:.3f} AP50={result['bbox/AP50']:.3f} picture={output / 'pictures.png'}")
    return result


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


if __name__ == "__main__":
    main()
