"""Train any recipe on COCO, VOC or made scenes: the one complete script, on one process or many.

    python examples/train.py --data scenes --recipe fpn_ssd --size 96 96 --epochs 3 --output runs/scenes
    python examples/train.py --data coco --images DIR --train-json F --val-json F --test-json F --output runs/mine
    python examples/train.py --data voc --root DIR --output runs/mine
    torchrun --nproc-per-node 2 examples/train.py ...

``--output`` then holds checkpoint.pt (every epoch; ``--resume`` continues from it bit for bit), weights.safetensors
(the average that did best on the validation set), metrics.jsonl (a line for each epoch), curve.png, and from the test
set result.json and pictures.png. A batch is ``--batch-size`` images in each process, times ``--accumulate``.
On several machines ``--output`` lies in a folder that all of them share. Curves need matplotlib (the extra ``viz``).
"""

import argparse
import contextlib
import importlib.util
import inspect
import json
import os
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as torch_dist
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import ConcatDataset, DataLoader, Dataset
from torchvision.transforms import v2
from tqdm import tqdm

from detkit import dist
from detkit.data import (
    Augmented,
    CocoDataset,
    DigitScenes,
    ResumableSampler,
    VocDataset,
    VocFolders,
    collate,
    flip_augmentation,
    ssd_augmentation,
)
from detkit.data.transforms import sanitize
from detkit.detectors import Detector, recipes
from detkit.metrics import CocoMetrics, format_table
from detkit.tricks import ExponentialMovingAverage, warmup_cosine
from detkit.viz import plot_curves, save_picture, side_by_side
from detkit.weights import load_checkpoint, load_weights, save_checkpoint, save_weights

RECIPES = [name for name in recipes.__all__ if not name.endswith(("_stage", "_anchors"))]
"""Those that build a whole detector, not a part of one."""
OTHERWISE = {"ssd", "fast_rcnn", "rcnn"}
"""Recipes that need a trunk, or proposals, handed over."""
AUGMENTATIONS = {
    "none": v2.Identity,
    "flip": flip_augmentation,
    "flips": lambda: v2.Compose([v2.RandomPhotometricDistort(p=0.5), flip_augmentation(vertical=True)]),
    "ssd": ssd_augmentation,
    "shift": lambda: v2.Compose(
        [v2.RandomInvert(), v2.RandomAffine((0, 0), translate=(0.1, 0.1), fill=128), sanitize(min_size=6)]
    ),  # for digits, which flipped are none
}


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line; ``--help`` shows it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", choices=("coco", "voc", "scenes"), default="scenes")
    add("--images", type=Path, help="coco: folder of all images")
    for split in ("train", "val", "test"):
        add(f"--{split}-json", type=Path, nargs="+", help=f"coco: annotations of the {split} split")
    add("--root", type=Path, help="voc: folder with --folders: annotations, images, split lists")
    add("--folders", nargs=3, default=tuple(VocFolders()), metavar=("XML", "IMAGES", "SPLITS"))
    add("--minus-one", action="store_true", help="voc: pixels are counted from 1, as PASCAL's own files do")
    add("--scenes", type=int, default=2000, help="scenes: how many to train on; a tenth of it to validate and to test")
    add("--recipe", choices=sorted(set(RECIPES) - OTHERWISE), default="fpn_ssd")
    add("--trunk", type=Path, help="weights of another recipe, trained before, whose backbone to start from")
    add("--masks", action="store_true", help="coco and scenes: read masks, and judge them, for recipes that draw some")
    add("--size", type=int, nargs=2, metavar=("H", "W"), help="input size, for recipes that take one")
    add("--group-norm", action="store_true", help="for recipes with a norm: N processes then equal one, to rounding")
    add("--augment", choices=AUGMENTATIONS, default="flip")
    add("--epochs", type=int, default=30)
    add("--batch-size", type=int, default=16)
    add("--accumulate", type=int, default=1, help="batches whose gradients are added up for one step")
    add("--lr", type=float, default=2e-3)
    add("--weight-decay", type=float, default=0.05)
    add("--warmup", type=int, default=100, help="steps of linear warm-up before the cosine")
    add("--clip", type=float, default=10.0, help="largest norm of the gradient")
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
    if args.data == "coco" and not (args.images and args.train_json and args.val_json):
        parser.error("--data coco needs --images, --train-json and --val-json")
    if args.data == "voc" and not args.root:
        parser.error("--data voc needs --root")
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
        last = "test" if (args.root / folders.splits / "test.txt").exists() else "val"  # VOC 2012 names no test images
        train = VocDataset(args.root, "train", **options)
        val, test = (VocDataset(args.root, s, classes=train.categories, **options) for s in ("val", last))
        return train, val, test, train.categories
    train, val, test = (
        [CocoDataset(args.images, file, masks=args.masks) for file in files]
        for files in (args.train_json, args.val_json, args.test_json or args.val_json)
    )
    names = [dataset.categories for dataset in (*train, *val, *test)]
    if any(categories != names[0] for categories in names):
        raise ValueError(f"the annotation files differ in their categories: {names}")
    return ConcatDataset(train), ConcatDataset(val), ConcatDataset(test), names[0]


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
    return detector


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

    def __init__(self, args: argparse.Namespace, model: Detector, length: int) -> None:
        self.args, self.model = args, model
        self.sampler = ResumableSampler(length, seed=args.seed, shuffle=True)
        self.batch = min(args.batch_size, len(self.sampler))
        self.batches = len(self.sampler) // self.batch  # an incomplete last batch is left out
        decayed = [p for p in model.parameters() if p.ndim > 1]
        others = [p for p in model.parameters() if p.ndim <= 1]
        groups = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=args.lr, weight_decay=args.weight_decay)
        steps = args.epochs * -(-self.batches // args.accumulate)
        self.schedule = warmup_cosine(self.optimizer, warmup_steps=min(args.warmup, steps - 1), total_steps=steps)
        self.average = ExponentialMovingAverage(model, args.ema)
        self.records: list[dict[str, float]] = []
        self.sums: dict[str, Tensor] = {}

    def save(self, epoch: int) -> None:
        """Write checkpoint.pt: every process says its random state, the first one writes."""
        random = dist.gather_objects(random_state())
        parts = {name: getattr(self, name).state_dict() for name in PARTS}
        state = {**parts, "epoch": epoch, "random": random, "records": self.records, "sums": self.sums}
        if dist.rank() == 0:
            save_checkpoint(state, self.args.output / "checkpoint.pt")

    def load(self) -> int:
        """Read checkpoint.pt where there is one; the epoch to go on with."""
        path = self.args.output / "checkpoint.pt"
        if not (self.args.resume and path.exists()):
            return 0
        state = load_checkpoint(path)
        saved, own = state["schedule"]["lr_lambdas"], self.schedule.state_dict()["lr_lambdas"]
        if saved != own:  # or it would go on along the old schedule, at a rate of 0 behind its end
            raise ValueError(f"--resume: {path} has the schedule {saved[0]}, these options give {own[0]}")
        for name in PARTS:
            getattr(self, name).load_state_dict(state[name])
        self.records, self.sums = state["records"], state["sums"]
        restore_random_state(state["random"][dist.rank()])
        return state["epoch"]


PARTS = ("model", "optimizer", "schedule", "average", "sampler")


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
    """One pass over the training set; the mean of each loss."""
    args = run.args
    run.sampler.set_epoch(epoch)
    data.set_epoch(epoch)
    if run.sampler.position == 0:
        run.sums = {}
    done = run.sampler.position // run.batch
    model.train()
    for batch, (images, targets) in enumerate(progress(loader(run, data), epoch, done, run.batches), start=done + 1):
        last = batch % args.accumulate == 0 or batch == run.batches
        group = min(args.accumulate, run.batches - (batch - 1) // args.accumulate * args.accumulate)
        wait = model.no_sync() if isinstance(model, DistributedDataParallel) and not last else contextlib.nullcontext()
        with wait:
            with autocast(run):
                losses = model(images, targets)
            (sum(losses.values()) / group).backward()
        for name, loss in losses.items():
            run.sums[name] = run.sums.get(name, torch.zeros(())).to(loss.device) + loss.detach()
        run.sampler.advance(run.batch)
        if last:
            nn.utils.clip_grad_norm_(model.parameters(), args.clip)
            run.optimizer.step()
            run.optimizer.zero_grad()
            run.schedule.step()
            run.average.update_parameters(run.model)
        steps = -(-batch // args.accumulate)
        if args.checkpoint_steps and last and steps % args.checkpoint_steps == 0 and batch < run.batches:
            run.save(epoch)
        if batch == run.batches:
            break
    means = {name: float(total) / run.batches for name, total in run.sums.items()}
    everywhere = dist.gather_objects(means)
    return {name: sum(rank[name] for rank in everywhere) / len(everywhere) for name in means}


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
    run = Run(args, detector, len(data))
    model: nn.Module = detector
    if dist.world_size() > 1:
        if device.type == "cuda":
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
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
            keep_best(run, record)
        record["seconds"] = round(time.perf_counter() - began, 2)
        run.records.append(record)
        report(args, run.records, writer)
        run.sampler.set_epoch(epoch + 1)
        run.save(epoch + 1)
    return finish(run, test_data, categories)


def keep_best(run: Run, record: dict[str, float]) -> None:
    """Save the averaged weights where no epoch before had a higher AP."""
    earlier = max((old["bbox/AP"] for old in run.records if "bbox/AP" in old), default=-2.0)
    if dist.rank() == 0 and record["bbox/AP"] > earlier:
        save_weights(run.average.module, run.args.output / "weights.safetensors")


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
        return train(args, device)
    finally:
        if torch_dist.is_initialized():
            torch_dist.destroy_process_group()


if __name__ == "__main__":
    main()
