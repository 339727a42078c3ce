"""Memory over an epoch: of files that CocoDataset reads, of the same in WebDataset shards, of all pictures in a list.

Run: python examples/draw_memory.py FOLDER/images FOLDER/annotations/instances_train.json docs/images/memory.png

The set is repeated, under other names, until it has ``--count`` pictures. Each curve is the memory of a process of its
own and its two workers, in which pages that they share count once (Pss of Linux). Needs matplotlib (the extra "viz").
"""

import argparse
import json
import multiprocessing
import os
import shutil
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from torch.utils.data import DataLoader

from detkit.data import CocoDataset, ResumableSampler, ShardDataset, collate, write_shards
from detkit.viz import save_picture


def repeated(images: Path, annotations: Path, folder: Path, count: int) -> Path:
    """A COCO file of ``count`` pictures, copies of those of a smaller set."""
    about = json.loads(annotations.read_text())
    entries, objects = [], []
    for number in range(count):
        image = about["images"][number % len(about["images"])]
        entries.append({**image, "id": number, "file_name": f"{number:06}.jpg"})
        shutil.copy(images / image["file_name"], folder / entries[-1]["file_name"])
        objects += [{**entry, "image_id": number} for entry in about["annotations"] if entry["image_id"] == image["id"]]
    objects, path = [{**entry, "id": number} for number, entry in enumerate(objects, 1)], folder / "set.json"
    path.write_text(json.dumps({**about, "images": entries, "annotations": objects}))
    return path


def memory() -> float:
    """Megabytes of this process and its workers."""
    pids = [os.getpid(), *(child.pid for child in multiprocessing.active_children())]
    texts = [Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in pids]
    return sum(int(text.partition("\nPss:")[2].split()[0]) for text in texts) / 1024


def curve(dataset: Any, blocks: list[int] | None, keep: bool) -> list[float]:
    """Memory after each batch of a shuffled epoch, whose pictures are kept or not."""
    sampler, seen, kept = ResumableSampler(len(dataset), blocks=blocks), [], []
    for images, _ in DataLoader(dataset, 8, sampler=sampler, num_workers=2, collate_fn=collate):
        kept += [image.clone() for image in images] if keep else []
        seen.append(memory())
    return seen


def main() -> None:
    """Make the set, go through it in three ways, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("images", "annotations", "path"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--count", type=int, default=2400)
    options, axes = parser.parse_args(), (figure := Figure((7, 4), layout="constrained")).subplots()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        files = CocoDataset(folder, repeated(options.images, options.annotations, folder, options.count))
        shards = ShardDataset(write_shards(files, folder / "shards.json", samples_per_shard=200))
        sizes = shards.shard_sizes
        runs = {"files": (files, None, False), "shards": (shards, sizes, False), "a list": (files, None, True)}
        for name, arguments in runs.items():
            with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as process:
                seen = process.submit(curve, *arguments).result()
            axes.plot(range(8, 8 * len(seen) + 8, 8), seen, label=name)
            print(f"{name}: {seen[len(seen) // 4]:.0f} MB after a quarter of the epoch, {seen[-1]:.0f} at its end")
    axes.set(xlabel="pictures read", ylabel="memory of three processes, MB", ylim=(0, None))
    axes.legend()
    save_picture(options.path, figure)


if __name__ == "__main__":
    main()
