"""Objects of 4 to 20 pixels: what size, a level of stride 4, clustered anchors and tiles are each worth.

Run: python examples/small_objects.py runs/small                                 (digits of 6 to 16 pixels)
     python examples/small_objects.py runs/cells --data bccd/images bccd/train.json bccd/val.json

Pictures are three by three scenes of digits, or photographs, at a third of their size. All rows have the same CPU time;
those that are in results.jsonl are not trained again.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from equal.small import ROWS, TILED, Patchwork, crops, in_tiles
from equal.training import train
from torchvision.transforms import v2
from tqdm import tqdm

from detkit import data, viz


def main() -> None:
    """Train what is missing, print the table, draw what the last detector found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--minutes", type=float, default=5.0, help="CPU time of each row, judging left out")
    parser.add_argument("--pictures", type=int, default=100, help="to train on; a quarter of that is judged")
    parser.add_argument("--only", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--data", type=Path, nargs=3, metavar=("IMAGES", "TRAIN", "VAL"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.output.mkdir(parents=True, exist_ok=True)
    file = args.output / "results.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    sets: list[Any] = [data.DigitScenes(10**4, split=split, size=(640, 640)) for split in ("train", "test")]
    if args.data:
        sets = [data.CocoDataset(args.data[0], path) for path in args.data[1:]]
    names = list(sets[0].categories)
    seen = [*map(Patchwork(sets[0], args.pictures).__getitem__, range(args.pictures))]
    unseen = [*map(Patchwork(sets[1], args.pictures // 4).__getitem__, range(args.pictures // 4))]
    height, width = seen[0][0].shape[-2:]
    for name in tqdm([name for name in args.only if name not in {row["name"] for row in rows}]):
        torch.manual_seed(0)
        detector = ROWS[name](len(names), (height, width), seen).to(memory_format=torch.channels_last)
        augment, view = (crops(), in_tiles) if name == TILED else (v2.Identity(), torch.nn.Identity())
        curve = train(detector, 2e-3, seen, unseen, names, 60 * args.minutes, augment=augment, view=view, batch=4)
        rows.append({"name": name, "curve": curve})
        with file.open("a") as lines:
            lines.write(json.dumps(rows[-1]) + "\n")
        image, _ = unseen[0]
        with torch.no_grad():
            (found,) = view(detector.eval())([image])
        picture = viz.draw_detections(image, found, categories=names, score_threshold=0.4, plates="none")
        viz.save_picture(args.output / f"{name.replace(', ', '_').replace(' ', '_')}.png", picture)
    print("| detector | AP | AP50 | AP of the small |\n|---|---|---|---|")
    for row in rows:
        print(f"| {row['name']} | " + " | ".join(f"{value:.3f}" for value in row["curve"][-1][1:]) + " |")


if __name__ == "__main__":
    main()
