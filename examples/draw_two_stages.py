"""Draw what a two-stage detector learns on: from anchors over proposals and sampled boxes to masks.

Run: python examples/draw_two_stages.py runs/two_stages.png

An untrained small Mask R-CNN is led through one scene; its proposals are made up: truths, moved, and random boxes.
"""

import argparse
from functools import partial
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torchvision.utils import make_grid

from detkit.anchors import BalancedSampler, ThresholdMatcher
from detkit.boxes import clip_boxes_to_image, mask_iou
from detkit.data import DigitScenes
from detkit.detectors import box_stage, paste_masks, small_mask_rcnn
from detkit.losses import mask_targets
from detkit.proposals import pad_proposals
from detkit.structures import IGNORED, Target
from detkit.viz import draw_boxes, draw_detections, save_picture

SCENE, SIDE, BLUE, RED = 8, 96, 5, 0


def propose(truth: torch.Tensor) -> torch.Tensor:
    """Eight boxes about each of ``truth`` (T, 4), and twenty anywhere."""
    near = truth.repeat(8, 1)
    near += 0.1 * (near[:, 2:] - near[:, :2]).repeat(1, 2) * torch.randn(near.shape)
    corners = torch.rand(2, 20, 2) * SIDE
    return clip_boxes_to_image(torch.cat((near, torch.cat((corners.amin(0), corners.amax(0)), 1))), (SIDE, SIDE))


def main() -> None:
    """Lead one scene through the stages, and write the sheet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", nargs="?", default="runs/two_stages.png", type=Path, help="PNG to write")
    path, _ = parser.parse_args().path, torch.manual_seed(4)
    image, truth = DigitScenes(SCENE + 1, masks=True)[SCENE]
    detector = small_mask_rcnn(10, size=(SIDE, SIDE))
    images, targets = detector.preprocess([image], [truth])
    features = detector.trunk(images.tensors)
    anchors = detector.stages["rpn"](features, images, None).anchors.boxes
    best = ThresholdMatcher(positive_iou=0.7, negative_iou=0.3, low_quality=True)(anchors, targets).matched[0]
    proposals = pad_proposals([{"boxes": (near := propose(truth["boxes"])), "scores": torch.ones(len(near))}])
    box = box_stage(10, 64, (8, 16, 32), sampler=BalancedSampler(32, positive_fraction=0.25))
    sampled = box(features, images, proposals, targets)
    labels = sampled.assigned.labels[0]
    handed = box.handover(sampled, images, targets)
    assert handed.matched is not None
    assert targets.masks is not None
    boxes, matched = handed.boxes[handed.valid], handed.matched[handed.valid]
    wanted = mask_targets(targets.masks, boxes[None], matched[None], 28)[0]
    pasted = paste_masks(wanted, boxes, (SIDE, SIDE))
    same = mask_iou(pasted, targets.masks[0])[torch.arange(len(matched)), matched]
    back = Target(boxes=boxes, labels=truth["labels"][matched], masks=pasted)
    draw = partial(draw_boxes, image, enlarge=3)
    learn, known, colors = best >= 0, labels != IGNORED, torch.where(labels >= 0, RED, BLUE)
    panels = {
        "truth": draw_detections(image, truth, enlarge=3),
        f"{learn.sum()} of {len(anchors)} anchors": draw(anchors[learn], labels=truth["labels"][best[learn]]),
        f"{len(near)} proposals": draw(near),
        f"sampled: {len(boxes)} + {known.sum() - len(boxes)}": draw(sampled.boxes[0, known], labels=colors[known]),
        "what the positives learn": draw_boxes(make_grid(wanted[:, None], 3, pad_value=0.3), boxes[:0], enlarge=3),
        f"pasted back, mean IoU {same.mean():.2f}": draw_detections(image, back, enlarge=3),
    }
    sheet = Image.new("RGB", (3 * 294, 2 * 312), "white")
    for i, (title, panel) in enumerate(panels.items()):
        print(title)
        sheet.paste(panel, (i % 3 * 294, i // 3 * 312 + 20))
        ImageDraw.Draw(sheet).text((i % 3 * 294 + 2, i // 3 * 312 + 2), title, "black", font_size=13)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_picture(path, sheet)


if __name__ == "__main__":
    main()
