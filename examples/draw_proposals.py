"""Draw where proposals come from: windows of a grid, and the regions of selective search as they grow together.

Run: python examples/draw_proposals.py runs/proposals.png

Above: each 7th window; the segments of one view; its hierarchy at 12 regions and at 6. Below: the first proposals in
the paper's order and in OpenCV's; what is nearest to the objects, with the IoU. Needs scikit-image.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torchvision.transforms.v2.functional import pil_to_tensor

from detkit.boxes import box_iou
from detkit.proposals import selective_search, sliding_windows
from detkit.proposals.hierarchy import group
from detkit.proposals.segments import segment, to_color_space
from detkit.proposals.similarity import describe, pixel_bins
from detkit.viz import draw_boxes, save_picture

OBJECTS = torch.tensor([[24.0, 30, 84, 110], [110, 20, 190, 76], [128, 34, 164, 64], [120, 96, 196, 136]])
COLORS = ((196, 60, 50), (70, 120, 190), (240, 210, 90), (60, 150, 90))


def scene() -> Image.Image:
    """Four objects, one of them on another, under uneven light."""
    picture = Image.new("RGB", (216, 152), (205, 200, 190))
    for (x1, y1, x2, y2), color in zip(OBJECTS.tolist(), COLORS, strict=True):
        ImageDraw.Draw(picture).rectangle((x1, y1, x2 - 1, y2 - 1), fill=color)
    light = 1 + 0.06 * np.random.default_rng(0).standard_normal((152, 216, 1)) - np.linspace(0, 0.3, 216)[:, None]
    return Image.fromarray((np.asarray(picture) * light).clip(0, 255).astype(np.uint8))


def grouped(picture: Image.Image, counts: tuple[int, ...]) -> dict[str, Image.Image]:
    """The regions of one view in mean colors: all segments, then as many as ``counts`` say."""
    pixels = np.asarray(picture, np.float64) / 255
    channels = to_color_space(pixels, "lab")
    segments = segment(channels, scale=20, min_size=40)
    parents = group(describe(segments.labels, pixel_bins(channels)), segments.pairs).parents
    shown = {}
    for left in (int(segments.labels.max()) + 1, *counts):
        made = len(parents) + 1 - left  # so many regions exist, the merged ones too, when so many are left
        owner = np.arange(len(parents))
        for region in reversed(range(made)):
            owner[region] = owner[parents[region]] if parents[region] < made else region
        labels = owner[segments.labels]
        sums = np.stack([np.bincount(labels.ravel(), rows) for rows in 255 * pixels.reshape(-1, 3).T], axis=1)
        means = sums / np.maximum(np.bincount(labels.ravel()), 1)[:, None]
        shown[f"{left} regions"] = Image.fromarray(means[labels].astype(np.uint8))
    return shown


def main() -> None:
    """Propose in each way, and write the sheet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", nargs="?", default="runs/proposals.png", type=Path, help="PNG to write")
    path, picture = parser.parse_args().path, scene()
    image, windows, panels = pil_to_tensor(picture), sliding_windows(152, 216, size=56, stride=16), {}
    panels[f"{len(windows)} windows (each 7th)"] = draw_boxes(picture, windows[::7], enlarge=2)
    panels |= {title: draw_boxes(view, OBJECTS[:0], enlarge=2) for title, view in grouped(picture, (12, 6)).items()}
    found = {o: selective_search(image, order=o, generator=torch.manual_seed(0))[0] for o in ("paper", "opencv")}
    panels |= {f'first 12, order="{o}"': draw_boxes(picture, boxes[:12], enlarge=2) for o, boxes in found.items()}
    for name, boxes in (("windows", windows), (f"{len(found['paper'])} proposals", found["paper"])):
        best = box_iou(OBJECTS, boxes).max(dim=1)
        texts = [f"{iou:.2f}" for iou in best.values.tolist()]
        panels[f"nearest of {name}"] = draw_boxes(picture, boxes[best.indices], texts=texts, enlarge=2)
        print(f"nearest of {name}: IoU {' '.join(texts)}")
    sheet = Image.new("RGB", (4 * 440, 2 * 328), "white")
    for i, (title, panel) in enumerate(panels.items()):
        sheet.paste(panel, (i % 4 * 440, i // 4 * 328 + 22))
        ImageDraw.Draw(sheet).text((i % 4 * 440 + 2, i // 4 * 328 + 2), title, "black", font_size=16)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_picture(path, sheet)


if __name__ == "__main__":
    main()
