"""Draw the elementary losses: what a prediction costs, over how wrong it is.

Run: python examples/draw_losses.py runs/losses.png    (needs matplotlib: the extra "viz")

Left, smooth L1; middle, losses of one logit whose target is 1, over the probability that it stands for; right, losses
whose target is a number between 0 and 1: their least value lies at the target, or tells that it does not.
"""

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure

from detkit import losses
from detkit.viz import class_color, save_picture

COLORS = [tuple(value / 255 for value in class_color(i)) for i in (5, 0, 3, 4)]


def main() -> None:
    """Compute and draw the curves, and print where those of a soft target are lowest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", nargs="?", default="runs/losses.png", help="PNG to write (default: runs/losses.png)")
    arguments = parser.parse_args()

    difference = torch.linspace(-3, 3, 121)
    probability = torch.linspace(0.01, 0.99, 197)
    logits, ones = probability.logit(), torch.ones_like(probability)
    soft = 0.7 * ones
    panels = {
        ("prediction - target", "smooth_l1_loss"): {
            f"beta = {beta:g}": losses.smooth_l1_loss(difference, torch.zeros_like(difference), beta=beta)
            for beta in (0.0, 0.5, 1.0, 2.0)
        },
        ("probability", "target 1"): {
            "focal, gamma = 0": losses.sigmoid_focal_loss(logits, ones, alpha=None, gamma=0.0),
            "focal, gamma = 1": losses.sigmoid_focal_loss(logits, ones, alpha=None, gamma=1.0),
            "focal, gamma = 2": losses.sigmoid_focal_loss(logits, ones, alpha=None, gamma=2.0),
            "focal, gamma = 5": losses.sigmoid_focal_loss(logits, ones, alpha=None, gamma=5.0),
        },
        ("probability ", "target 0.7"): {
            "quality focal": losses.quality_focal_loss(logits, soft),
            "varifocal": losses.varifocal_loss(logits, soft),
            "focal, alpha = None": losses.sigmoid_focal_loss(logits, soft, alpha=None),
        },
    }
    figure = Figure(figsize=(8.4, 2.8), layout="constrained")
    for axes, ((label, title), curves) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        places = difference if len(next(iter(curves.values()))) == len(difference) else probability
        for (name, values), color in zip(curves.items(), COLORS, strict=False):
            axes.plot(places, values, color=color, label=name)
            if title == "target 0.7":
                print(f"{name}: {values.min():.3f} at probability {places[values.argmin()]:.2f}")
        axes.set(xlabel=label, ylim=(0, min(3.0, 1.05 * max(values.max().item() for values in curves.values()))))
        axes.set_title(title, fontsize=9)
        axes.grid(color="0.9")
        axes.legend(frameon=False, fontsize=7)
    Path(arguments.path).parent.mkdir(parents=True, exist_ok=True)
    save_picture(arguments.path, figure)
    print(f"picture={arguments.path}")


if __name__ == "__main__":
    main()
