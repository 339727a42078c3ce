"""Draw what IoU, GIoU, DIoU and CIoU say of two boxes while one moves, shrinks or changes its shape.

Run: python examples/draw_overlap.py runs/overlap.png    (needs matplotlib: the extra "viz")

A column for each way of going wrong. Top, the fixed box (gray) and some places of the other; middle, every measure;
bottom, how hard the measure pulls: the length of its gradient by the corners of the other box.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from detkit import boxes as measures
from detkit.viz import class_color, save_picture

FIXED = torch.tensor([0.0, 0.0, 40.0, 40.0], dtype=torch.float64)
MEASURES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], str]] = {
    "IoU": (measures.paired_box_iou, "-"),
    "GIoU": (measures.paired_generalized_box_iou, "--"),
    "DIoU": (measures.paired_distance_box_iou, "-"),
    "DIoU unsquared": (lambda a, b: measures.paired_distance_box_iou(a, b, variant="unsquared"), ":"),
    "CIoU": (measures.paired_complete_box_iou, "-."),
}
COLORS = [tuple(value / 255 for value in class_color(i)) for i in (0, 5, 3, 3, 4)]


def ways(t: Tensor) -> dict[str, tuple[str, Tensor, Tensor]]:
    """Name -> (what is on the axis, its values (S,), the other box at each (S, 4)), for steps t (S,) from 0 to 1."""
    zero, full = torch.zeros_like(t), torch.full_like(t, 40)
    shift, side, ratio = 100 * t, 36 - 34 * t, 16**t
    width, height = 40 * ratio.sqrt(), 40 / ratio.sqrt()
    around = (20 - width / 2, 20 - height / 2, 20 + width / 2, 20 + height / 2)
    return {
        "moves away": ("shift, pixels", shift, torch.stack((shift, zero, shift + full, full), 1)),
        "shrinks inside, off center": ("side, pixels", side, torch.stack((zero + 2, zero + 2, side + 2, side + 2), 1)),
        "same center and area": ("width / height", ratio, torch.stack(around, 1)),
    }


def main() -> None:
    """Measure, differentiate and draw every way, and print where two boxes that no longer touch still pull."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", nargs="?", default="runs/overlap.png", help="PNG to write (default: runs/overlap.png)")
    arguments = parser.parse_args()
    figure = Figure(figsize=(6.8, 5.4), layout="constrained")
    panels = figure.subplots(3, 3, height_ratios=(1, 1.7, 1.4))
    for column, (title, (label, values, boxes)) in enumerate(ways(torch.linspace(0, 1, 201).double()).items()):
        scene, curves, pulls = panels[:, column]
        scene.add_patch(Rectangle((0, 0), 40, 40, color="0.8"))
        for x1, y1, x2, y2 in boxes[::50].tolist():
            scene.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, linewidth=1.6))
        scene.set_title(title, fontsize=9)
        scene.set(xlim=(-62, 144), ylim=(62, -22), aspect="equal", xticks=[], yticks=[])
        for (name, (measure, dashes)), color in zip(MEASURES.items(), COLORS, strict=True):
            moving = boxes.clone().requires_grad_()
            overlaps = measure(moving, FIXED)
            (gradient,) = torch.autograd.grad(overlaps.sum(), moving)
            curves.plot(values, overlaps.detach(), dashes, color=color, label=name)
            pulls.plot(values[1:], gradient.norm(dim=1)[1:], dashes, color=color)
            if title == "moves away":
                print(f"{name}: {overlaps[-1]:+.3f} at a shift of 100 pixels, gradient {gradient[-1].norm():.5f}")
        pulls.set(xlabel=label, ylim=(0, None))
        for axes in (curves, pulls):
            axes.grid(color="0.9")
            axes.tick_params(labelsize=7)
    panels[1, 0].set_ylabel("measure")
    panels[2, 0].set_ylabel("length of the gradient")
    panels[1, 0].legend(frameon=False, fontsize=7)
    Path(arguments.path).parent.mkdir(parents=True, exist_ok=True)
    save_picture(arguments.path, figure)
    print(f"picture={arguments.path}")


if __name__ == "__main__":
    main()
