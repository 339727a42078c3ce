"""What a run finds out: the metrics of every epoch, its best weights, and the numbers and pictures of the test set."""

import argparse
import importlib.util
import json
from typing import Any, cast

import torch
import torch.distributed as torch_dist
from torch.utils.data import DataLoader

from detkit import dist
from detkit.data import ResumableSampler, collate
from detkit.detectors import Detector
from detkit.metrics import CocoMetrics, format_table
from detkit.train.batches import autocast, progress
from detkit.train.run import Run
from detkit.viz import plot_curves, save_picture, side_by_side
from detkit.weights import load_weights, save_detector, save_weights

SHOWN = ("bbox/AP", "bbox/AP50", "segm/AP", "segm/AP50")


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


def keep_best(run: Run, categories: list[str]) -> None:
    """Save the averaged weights of the epoch that has just been judged, where none before had a higher AP."""
    if dist.rank() == 0 and run.stopping.improved:
        path, detector = run.args.output / "weights.safetensors", cast(Detector, run.average.module)
        if detector.recipe and not detector.recipe.unwritable:
            save_detector(detector, path, categories=categories)
        else:  # norms are functions, which no file can hold
            save_weights(detector, path)


def tensorboard(args: argparse.Namespace) -> Any:
    """A writer on the first process, if asked for."""
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


def finish(run: Run, data: Any, categories: list[str]) -> dict[str, float]:
    """Judge the best weights on the test set: table, result.json, pictures.png, and curve.png with matplotlib."""
    if dist.world_size() > 1:
        torch_dist.barrier()  # the first process may still be writing the weights
    load_weights(run.average.module, run.args.output / "weights.safetensors")
    metrics = evaluate(run, data, categories)
    result, rows = metrics.compute(), metrics.per_class()
    if dist.rank() != 0:
        return result
    output, names = run.args.output, list(run.sums)
    (output / "result.json").write_text(json.dumps(result | {row.name: row._asdict() for row in rows}, indent=1))
    if importlib.util.find_spec("matplotlib"):
        shown = [name for name in SHOWN if name in result]
        save_picture(output / "curve.png", plot_curves(run.records, losses=names, metrics=shown))
    else:
        print('no curve.png without matplotlib: pip install "torch-detkit[viz]"')
    images, targets = collate([data[i] for i in range(min(6, len(data)))])
    with torch.no_grad():
        found = run.average.module(images)
    save_picture(output / "pictures.png", side_by_side(images, targets, found, categories=categories, columns=2))
    print(format_table(rows))
    print(f"AP={result['bbox/AP']:.3f} AP50={result['bbox/AP50']:.3f} picture={output / 'pictures.png'}")
    return result
