"""Draw which anchors or predictions each matcher gives to the digits of one scene: one panel for each matcher.

Run: python examples/draw_matching.py runs/matching.png

Positives have the color of their object; a yellow square is the center of an ignored anchor. The predictions that
three of the matchers ask for are made up: truths, moved at random.
"""

import argparse
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn.functional import one_hot

from detkit import anchors
from detkit.boxes import box_iou, xyxy_to_cxcywh
from detkit.data import DigitScenes
from detkit.structures import IGNORED, Predictions, Target, batch_images, pad_targets
from detkit.viz import draw_boxes, save_picture

STRIDES, SCENE, QUERIES, COLORS = (8, 16), 8, 20, torch.tensor([0, 1, 4, 3, 6, 5])


def predict(places: Tensor, target: Target, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Boxes (1, N, 4) and scores (1, N, 10) as of a half-trained network: better where an anchor fits better."""
    overlap, nearest = box_iou(places, target["boxes"]).max(1)
    boxes = target["boxes"][nearest] + torch.randn(len(places), 4, generator=generator) * 8 * (1 - overlap[:, None])
    scores = 0.05 + one_hot(target["labels"][nearest], 10) * (0.05 + 0.8 * overlap[:, None])
    return torch.cat((boxes[:, :2], boxes[:, 2:].maximum(boxes[:, :2] + 1)), 1)[None], scores[None]


def panel(image: Tensor, title: str, boxes: Tensor, matched: Tensor) -> Image.Image:
    """The positives among ``boxes`` on the scene, and where the ignored ones are."""
    picture = draw_boxes(image, boxes[matched >= 0], labels=COLORS[matched[matched >= 0]], enlarge=3)
    dots = 3 * xyxy_to_cxcywh(boxes[matched == IGNORED])[:, [0, 1, 0, 1]] + torch.tensor([-4, -4, 4, 4])
    picture = draw_boxes(picture, dots, labels=COLORS.new_full((len(dots),), 2), enlarge=1)
    framed = Image.new("RGB", (picture.width + 6, picture.height + 24), "white")
    framed.paste(picture, (0, 20))
    print(text := f"{title}: {int((matched >= 0).sum())} positive, {len(dots)} ignored, of {len(matched)}")
    ImageDraw.Draw(framed).text((2, 2), text, "black", font_size=13)
    return framed


def main() -> None:
    """Match one scene in six ways, and write the sheet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", nargs="?", default="runs/matching.png", help="PNG to write")
    arguments = parser.parse_args()
    image, target = DigitScenes(SCENE + 1)[SCENE]
    images, targets = batch_images([image.float() / 255]), pad_targets([target])
    features = [torch.zeros(1, 1, *(side // stride for side in image.shape[1:])) for stride in STRIDES]
    layout = anchors.DefaultBoxes([(16, 24), (32, 48)], aspect_ratios=[(2,), (2,)], strides=STRIDES)
    boxes = layout(features, images)
    cells = anchors.GridAnchors([(8,), (16,)], aspect_ratios=(1,), strides=STRIDES)(features, images)
    found, scores = predict(cells.boxes, target, torch.Generator().manual_seed(0))
    given = Predictions(found, scores)
    chosen = scores.amax(2).topk(QUERIES).indices[0]
    queries, logits, frame = found[:, chosen], scores[:, chosen].logit(), images.sizes.flip(1).repeat(1, 2)
    asked, fractions = Predictions(queries / frame, logits=logits), targets._replace(boxes=targets.boxes / frame)
    panels = {
        "Threshold": (boxes.boxes, anchors.ThresholdMatcher(positive_iou=0.5, negative_iou=0.4)(boxes, targets)),
        "Bipartite": (boxes.boxes, anchors.BipartiteMatcher(positive_iou=0.5)(boxes, targets)),
        "ATSS": (boxes.boxes, anchors.ATSSMatcher()(boxes, targets)),
        "TaskAligned": (cells.boxes, anchors.TaskAlignedMatcher()(cells, targets, given)),
        "SimOTA": (cells.boxes, anchors.SimOTAMatcher()(cells, targets, given)),
        "Hungarian": (queries[0], anchors.HungarianMatcher(class_cost="focal")(None, fractions, asked)),
    }
    pictures = [panel(image, title, rows, given.matched[0]) for title, (rows, given) in panels.items()]
    sheet = Image.new("RGB", (3 * pictures[0].width, 2 * pictures[0].height), "white")
    for i, picture in enumerate(pictures):
        sheet.paste(picture, (i % 3 * picture.width, i // 3 * picture.height))
    Path(arguments.path).parent.mkdir(parents=True, exist_ok=True)
    save_picture(arguments.path, sheet)
    print(f"picture={arguments.path}")


if __name__ == "__main__":
    main()
