"""Draw what each kind of non-maximum suppression leaves of the same noisy detections: one panel for each.

Run: python examples/draw_suppression.py runs/suppression.png

Three objects, two of which overlap, seen by three made-up detectors that each find every object twice, and once
something that is not there. The numbers are scores; where scores are lowered, what .
"""

import argparse
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from detkit.boxes import matrix_nms, nms, soft_nms, weighted_boxes_fusion
from detkit.viz import draw_boxes, save_picture

OBJECTS = torch.tensor([[10.0, 14, 74, 40], [29, 14, 93, 40], [66, 56, 96, 86]])
WRONG = torch.tensor([[12.0, 60, 42, 82]])
SIZE, DETECTORS, THRESHOLD, SHOWN = (106, 94), 3, 0.5, 0.4
SEED = 43  # of 400 seeds, one of the 19 where nms loses an object that DIoU spares


def detect(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes (N, 4), scores (N,) and the number of the detector that found each (N,)."""
    truth = OBJECTS.repeat(2 * DETECTORS, 1)
    boxes = truth + 1.5 * torch.randn(truth.shape, generator=generator)
    scores = 0.5 + 0.45 * torch.rand(len(boxes), generator=generator)
    owner = torch.arange(DETECTORS).repeat_interleave(2 * len(OBJECTS))
    return torch.cat((boxes, WRONG)), torch.cat((scores, torch.tensor([0.5]))), torch.cat((owner, torch.tensor([0])))


def panel(scene: Image.Image, title: str, boxes: Tensor, scores: Tensor) -> Image.Image:
    """The boxes that score enough, on the scene."""
    shown = scores >= SHOWN
    texts = [f"{score:.2f}" for score in scores[shown].tolist()] if shown.sum() < 12 else None
    picture = draw_boxes(scene, boxes[shown], texts=texts, enlarge=3)
    framed = Image.new("RGB", (picture.width + 6, picture.height + 26), "white")
    ImageDraw.Draw(framed).text((2, 2), f"{title}: {int(shown.sum())}", "black", font_size=14)
    framed.paste(picture, (0, 20))
    print(f"{title}: {int(shown.sum())} boxes with a score of at least {SHOWN}, {len(shown)} in all")
    return framed


def main() -> None:
    """Suppress the same detections in every way, and write the sheet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", nargs="?", default="runs/suppression.png", help="PNG to write")
    arguments = parser.parse_args()
    scene = Image.new("RGB", SIZE, (238, 238, 238))
    for box in OBJECTS.tolist():
        ImageDraw.Draw(scene).rectangle(box, fill=(190, 190, 190), outline=(140, 140, 140))
    boxes, scores, owner = detect(torch.Generator().manual_seed(SEED))
    kept, apart = nms(boxes, scores, THRESHOLD), nms(boxes, scores, THRESHOLD, measure="diou")
    linear, linear_scores = soft_nms(boxes, scores, method="linear", iou_threshold=THRESHOLD)
    gaussian, gaussian_scores = soft_nms(boxes, scores, method="gaussian", sigma=0.5)
    parts = [[rows[owner == i] for i in range(DETECTORS)] for rows in (boxes, scores, torch.zeros_like(owner))]
    fused, fused_scores, _ = weighted_boxes_fusion(*parts)
    panels = {
        "all detections": (boxes, scores),
        "nms": (boxes[kept], scores[kept]),
        'nms, measure="diou"': (boxes[apart], scores[apart]),
        "soft_nms, linear": (boxes[linear], linear_scores),
        "soft_nms, gaussian": (boxes[gaussian], gaussian_scores),
        "matrix_nms, linear": (boxes, matrix_nms(boxes, scores, method="linear")),
        "matrix_nms, gaussian": (boxes, matrix_nms(boxes, scores)),
        "weighted_boxes_fusion": (fused, fused_scores),
    }
    pictures = [panel(scene, title, *rows) for title, rows in panels.items()]
    sheet = Image.new("RGB", (4 * pictures[0].width, 2 * pictures[0].height), "white")
    for i, picture in enumerate(pictures):
        sheet.paste(picture, (i % 4 * picture.width, i // 4 * picture.height))
    Path(arguments.path).parent.mkdir(parents=True, exist_ok=True)
    save_picture(arguments.path, sheet)
    print(f"picture={arguments.path}")


if __name__ == "__main__":
    main()
