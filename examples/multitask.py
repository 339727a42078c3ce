"""What tasks do for each other: nuclei as masks and as boxes, and how the picture was stained, in one network.

Run: python examples/multitask.py /data/nuclei_multitask tasks.jpg

Rows: segmentation alone; with one other task and with both, in branches that are stitched together; the latter with
equal weights of the losses; all from one encoder; and with frozen encoders of the other tasks, trained before. Each is
trained from scratch with every seed, and judged on the pictures it was trained on and on others.
"""

import argparse
from pathlib import Path
from statistics import mean

import torch
from nuclei.network import ROWS, build
from nuclei.scenes import draw, judge, read
from torchvision.utils import save_image
from tqdm import tqdm

COLUMNS = "mIoU train", "mIoU", "AP50", "accuracy"


def table(found: dict[str, list[dict[str, float]]]) -> str:
    """Means over seeds, and the lowest and highest."""
    lines = ["| | parameters | " + " | ".join(COLUMNS) + " |", "|---" * (2 + len(COLUMNS)) + "|"]
    for row, runs in found.items():
        cells = [row, f"{runs[0]['parameters']:,}"]
        for name in COLUMNS:
            values = [run[name] for run in runs if name in run]
            cells += [f"{mean(values):.3f} ({min(values):.3f} to {max(values):.3f})" if values else ""]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Train and judge all rows with all seeds; print the table, draw some pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder nuclei_multitask")
    parser.add_argument("picture", type=Path, help="rows: the truth, then each network of the first seed")
    for name, default in {"steps": 120, "seeds": 3, "images": 93}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    torch.set_num_threads(1)
    seen, unseen = (read(args.data, split)[: args.images] for split in ("train", "test"))
    shown = torch.linspace(0, len(unseen) - 1, min(6, len(unseen))).int().tolist()
    tiles = [draw(*unseen[i]) for i in shown]
    found: dict[str, list[dict[str, float]]] = {row: [] for row in ROWS}
    for seed, row in tqdm([(seed, row) for seed in range(args.seeds) for row in ROWS]):
        torch.manual_seed(seed)
        detector = build(row, seen, args.steps)
        results, judged = judge(detector, unseen)
        judged["mIoU train"] = judge(detector, seen)[1]["mIoU"]
        judged["parameters"] = sum(part.numel() for part in detector.parameters())
        found[row].append(judged)
        tqdm.write(f"{row}, seed {seed}: " + "  ".join(f"{name} {value:.4g}" for name, value in judged.items()))
        tiles += [draw(unseen[i][0], results[i]) for i in shown] if seed == 0 else []
    print(table(found))
    save_image(tiles, args.picture, nrow=len(shown))


if __name__ == "__main__":
    main()
