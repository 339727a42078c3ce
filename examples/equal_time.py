"""Which recipe learns most in the same time: AP over seconds of one CPU core, beside two of torchvision's detectors.

Run: python examples/equal_time.py runs/equal --minutes 5 --data bccd/images bccd/train.json bccd/val.json
     python examples/equal_time.py runs/digits --minutes 2 --size 96 96                 (scenes of digits)

All see the same pictures in the same order, at the same size, with the same augmentation and schedule, which are those
of detkit.train. A cell that is in results.jsonl is not trained again, so a run may be stopped, and lengthened by other
--only, --minutes and --seeds; for other pictures give another folder.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from equal.detectors import ENTRIES
from equal.training import train
from torchvision.transforms import v2
from tqdm import tqdm

from detkit import data, viz
from detkit.train.options import AUGMENTATIONS, multiplies_bf16


def main() -> None:
    """Train what is missing, print the table, draw the curves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--minutes", type=float, default=5.0, help="CPU time of each cell, judging left out")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--augment", choices=AUGMENTATIONS, default="jitter")
    parser.add_argument("--float32", action="store_true", help="no bfloat16")
    parser.add_argument("--size", type=int, nargs=2, default=(240, 320))
    parser.add_argument("--only", nargs="+", choices=list(ENTRIES), default=list(ENTRIES))
    parser.add_argument("--data", type=Path, nargs=3, metavar=("IMAGES", "TRAIN", "VAL"))
    parser.add_argument("--scenes", type=int, nargs=2, default=(2000, 300), help="of digits, to learn from and judge")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.output.mkdir(parents=True, exist_ok=True)
    file, size = args.output / "results.jsonl", tuple(args.size)
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    cells = [(args.minutes, seed, name) for seed in range(args.seeds) for name in args.only]
    cells = [cell for cell in cells if cell not in {(row["minutes"], row["seed"], row["name"]) for row in rows}]
    sets: list[Any] = [data.DigitScenes(args.scenes[0]), data.DigitScenes(args.scenes[1], split="test")]
    if args.data:
        sets = [data.CocoDataset(args.data[0], path, transforms=v2.Resize(size)) for path in args.data[1:]]
    names = list(sets[0].categories)
    seen, unseen = ([*map(own.__getitem__, range(len(own) if cells else 0))] for own in sets)  # read once
    for minutes, seed, name in tqdm(cells):
        torch.manual_seed(seed)
        build, rate, bf16 = ENTRIES[name]
        detector = build(len(names), size).to(memory_format=torch.channels_last)
        augment = AUGMENTATIONS[args.augment]() if args.data else v2.Identity()  # digits don't flip
        bf16 = bf16 and not args.float32 and multiplies_bf16()
        curve = train(detector, rate, seen, unseen, names, 60 * minutes, augment=augment, bf16=bf16, batch=args.batch)
        rows.append({"minutes": minutes, "seed": seed, "name": name, "curve": curve})
        with file.open("a") as lines:
            lines.write(json.dumps(rows[-1]) + "\n")
        tqdm.write(f"{name:28} seed {seed}, {minutes:g} min: AP {curve[-1][1]:.3f}, AP50 {curve[-1][2]:.3f}")
    longest = max(row["minutes"] for row in rows)
    for row in sorted(rows, key=lambda row: (row["minutes"], -row["curve"][-1][1])):
        _, ap, ap50, _ = row["curve"][-1]
        print(f"| {row['name']} | {row['minutes']:g} | {row['seed']} | {ap:.3f} | {ap50:.3f} |")
    best = {row["name"]: row for row in rows if row["minutes"] == longest}
    points = [{"seconds": t, name: ap} for name, row in best.items() for t, ap, *_ in row["curve"]]
    title = f"{longest:g} minutes of one CPU core each"
    viz.save_picture(
        args.output / "equal.png", viz.plot_curves(points, losses=[], metrics=[*best], over="seconds", title=title)
    )


if __name__ == "__main__":
    main()
