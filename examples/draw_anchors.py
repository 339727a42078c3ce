"""Draw default boxes, and which of them the matcher gives to an object, on a scene of handwritten digits.

Run: python examples/draw_anchors.py runs/anchors.png

Left, the boxes of one cell at each level. Right, every default box that learns an object, in the color of its digit.
"""

import argparse
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from detkit.anchors import BipartiteMatcher, DefaultBoxes, gather_assigned
from detkit.data import DigitScenes
from detkit.structures import batch_images, pad_targets
from detkit.viz import draw_boxes, save_picture

STRIDES = (8, 16)


def one_cell_of_each_level(anchors: Tensor, per_cell: tuple[int, ...], grids: list[tuple[int, int]]) -> Tensor:
    """The boxes of the cell in the middle of each level, (K, 4): anchors run level, row, column, box."""
    chosen, start = [], 0
    for count, (height, width) in zip(per_cell, grids, strict=True):
        middle = start + (height // 2 * width + width // 2) * count
        chosen.append(anchors[middle : middle + count])
        start += height * width * count
    return torch.cat(chosen)


def main() -> None:
    """Lay, match and draw the boxes of one scene, and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", nargs="?", default="runs/anchors.png", help="PNG to write (default: runs/anchors.png)")
    parser.add_argument("--scene", type=int, default=4, help="number of the scene (default: 4)")
    parser.add_argument("--positive", type=float, default=0.5, help="IoU from which a box learns (default: 0.5)")
    arguments = parser.parse_args()

    scenes = DigitScenes(arguments.scene + 1)
    image, target = scenes[arguments.scene]
    images, targets = batch_images([image.float() / 255]), pad_targets([target])

    layout = DefaultBoxes([(16, 24), (32, 48)], aspect_ratios=[(2,), (2,)], strides=STRIDES)
    grids = [(scenes.size[0] // stride, scenes.size[1] // stride) for stride in STRIDES]
    anchors = layout([torch.zeros(1, 1, *grid) for grid in grids], images).boxes
    assignment = BipartiteMatcher(positive_iou=arguments.positive)(anchors, targets)
    labels = gather_assigned(assignment, targets).labels[0]
    learning = labels >= 0

    shown = one_cell_of_each_level(anchors, layout.per_cell, grids)
    colors = torch.arange(len(layout.per_cell)).repeat_interleave(torch.tensor(layout.per_cell))
    left = draw_boxes(image, shown, labels=colors)
    right = draw_boxes(image, anchors[learning], labels=labels[learning])
    sheet = Image.new("RGB", (left.width + right.width + 8, left.height), "white")
    sheet.paste(left, (0, 0))
    sheet.paste(right, (left.width + 8, 0))

    Path(arguments.path).parent.mkdir(parents=True, exist_ok=True)
    save_picture(arguments.path, sheet)
    counts = assignment.matched[0][learning].bincount(minlength=len(target["labels"])).tolist()
    for digit, count in zip(target["labels"].tolist(), counts, strict=True):
        print(f"digit {digit}: {count} of {len(anchors)} default boxes")
    print(f"picture={arguments.path}")


if __name__ == "__main__":
    main()
