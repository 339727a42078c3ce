"""Does Mask R-CNN here reach exactly the AP that torchvision's reaches with the same weights? Judged by pycocotools.

    DETKIT_DATA=... python -m benchmarks.segmentation_parity [--minutes 4] [--write]

torchvision's MaskRCNN becomes a Detector by ``from_torchvision``, which learns a few images of coco_open by heart,
crowds among them; ``to_torchvision`` carries the weights back. Both find objects in those images and in as many that
were never shown, at a score threshold so low that a hundred detections come of each. A pixel belongs to a mask whose
probability is at least 0.5, on both sides. APs must agree to 1e-6.
"""

import argparse
import datetime
import os
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from tqdm import tqdm

from benchmarks.__main__ import _device as device_name
from detkit.data import CocoDataset
from detkit.detectors import Detector
from detkit.metrics import CocoMetrics
from detkit.weights import from_torchvision, to_torchvision

ALLOWED, PIXEL = 1e-6, 0.5
IOU_TYPES = ("bbox", "segm")
SHOWN = ("bbox/AP", "bbox/AP50", "bbox/AR@100", "segm/AP", "segm/AP50", "segm/AP75", "segm/AR@100")
Pairs = list[tuple[Tensor, Any]]


def main() -> None:
    """Train, carry back, judge both, print the table; exit with an error where they differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=8, help="to learn by heart")
    parser.add_argument("--minutes", type=float, default=4.0, help="of training, at most")
    parser.add_argument("--wanted", type=float, default=0.2, help="mask AP at which training may end")
    parser.add_argument("--write", action="store_true", help="keep the table under benchmarks/results/")
    options = parser.parse_args()
    torch.manual_seed(0)
    shown, unseen = pictures("train", options.images), pictures("val", options.images)
    classes = 1 + max(int(target["labels"].max()) for _, target in shown + unseen)
    detector = from_torchvision(torchvision_model(classes))
    steps = train(detector, shown, classes, seconds=60 * options.minutes, wanted=options.wanted)
    model = torchvision_model(classes)
    model.load_state_dict(to_torchvision(detector))
    rows, worst = [], 0.0
    for name, pairs in ((f"{len(shown)} images, learned", shown), (f"{len(unseen)} images, unseen", unseen)):
        ours, theirs = (
            judged(found_by_ours(detector, pairs), pairs, classes),
            judged(found_by_theirs(model, pairs), pairs, classes),
        )
        worst = max(worst, *(abs(ours[key] - theirs[key]) for key in theirs))
        rows += [
            f"| {name} | {key} | {ours[key]:.8f} | {theirs[key]:.8f} | {abs(ours[key] - theirs[key]):.1e} |"
            for key in SHOWN
        ]
    text = report(rows, worst, steps, shown + unseen)
    print(text)
    if options.write:
        path = Path(__file__).parent / "results" / f"{datetime.date.today()}-segmentation-parity.md"
        path.write_text(text)
    if not worst <= ALLOWED:
        raise SystemExit(f"the APs differ by {worst:.2e}, more than {ALLOWED:.0e}")


def torchvision_model(classes: int) -> Any:
    """A MaskRCNN on ResNet-18 for images of about 128 x 180 pixels, its heads narrowed to learn within minutes."""
    backbone = resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, norm_layer=nn.BatchNorm2d, trainable_layers=5
    )
    return MaskRCNN(
        backbone,
        min_size=128,
        max_size=192,
        rpn_anchor_generator=AnchorGenerator(((10,), (20,), (40,), (80,), (130,)), ((0.5, 1.0, 2.0),) * 5),
        rpn_pre_nms_top_n_train=500,
        rpn_post_nms_top_n_train=200,
        rpn_post_nms_top_n_test=200,
        box_batch_size_per_image=48,
        box_head=TwoMLPHead(256 * 7 * 7, 256),
        box_predictor=FastRCNNPredictor(256, classes + 1),
        mask_head=MaskRCNNHeads(256, (64, 64), 1),
        mask_predictor=MaskRCNNPredictor(64, 64, classes + 1),
        box_score_thresh=0.001,
    )


def pictures(split: str, count: int) -> Pairs:
    """The images of ``split`` with crowds first, then those with 2 to 8 objects; masks included."""
    root = Path(os.environ["DETKIT_DATA"]) / "coco_open"
    data = CocoDataset(root / "images", root / "annotations" / f"instances_{split}.json", masks=True)
    targets: list[Any] = [data.target(i) for i in range(len(data))]
    crowds = [i for i, target in enumerate(targets) if bool(target["iscrowd"].any()) and len(target["labels"]) <= 20]
    plain = [i for i, target in enumerate(targets) if i not in crowds and 2 <= len(target["labels"]) <= 8]
    chosen = [*crowds[: count // 4], *plain][:count]
    return [(data[i][0], data[i][1]) for i in tqdm(chosen, desc=f"reading {split}", unit="image")]


def train(detector: Detector, pairs: Pairs, classes: int, *, seconds: float, wanted: float) -> int:
    """Learn ``pairs`` by heart, 4 at a time, until the mask AP is ``wanted`` or time is up; the number of steps."""
    optimizer = torch.optim.AdamW(detector.parameters(), lr=5e-4, weight_decay=1e-4)
    end, steps, bar = time.monotonic() + seconds, 0, tqdm(desc="training", unit="step")
    while time.monotonic() < end:
        order = torch.randperm(len(pairs)).tolist()
        for some in (order[i : i + 4] for i in range(0, len(order), 4)):
            images, targets = zip(*(pairs[i] for i in some), strict=True)
            losses = detector.train()(images, targets)
            optimizer.zero_grad()
            sum(losses.values(), torch.zeros(())).backward()
            nn.utils.clip_grad_norm_(detector.parameters(), 5.0)
            optimizer.step()
            steps += 1
            bar.update()
            bar.set_postfix({name: f"{loss.item():.2f}" for name, loss in losses.items()})
        if steps % 40 == 0:
            reached = judged(found_by_ours(detector, pairs), pairs, classes)["segm/AP"]
            bar.write(f"step {steps}: segm/AP {reached:.3f}")
            if reached >= wanted:
                break
    bar.close()
    return steps


@torch.no_grad()
def found_by_ours(detector: Detector, pairs: Pairs) -> list[Any]:
    """Detections with boolean masks, cut by the detector itself."""
    detector.preprocess.mask_threshold = PIXEL
    return [detector.eval()([image])[0] for image, _ in pairs]


@torch.no_grad()
def found_by_theirs(model: Any, pairs: Pairs) -> list[Any]:
    """torchvision's detections in our form: labels from 0, masks (N, H, W) where the probability is at least 0.5."""
    results = [model.eval()([image / 255])[0] for image, _ in pairs]
    return [found | {"labels": found["labels"] - 1, "masks": found["masks"][:, 0] >= PIXEL} for found in results]


def judged(found: list[Any], pairs: Pairs, classes: int) -> dict[str, float]:
    """Every number of pycocotools, of boxes and of masks."""
    metrics = CocoMetrics(classes, iou_types=IOU_TYPES, engine="pycocotools")
    metrics.update(found, [target for _, target in pairs])
    return metrics.compute()


def report(rows: list[str], worst: float, steps: int, pairs: Pairs) -> str:
    """The table and what it was measured on."""
    objects = sum(len(target["labels"]) for _, target in pairs)
    crowds = sum(int(target["iscrowd"].sum()) for _, target in pairs)
    return "\n".join(
        (
            "# `python -m benchmarks.segmentation_parity`",
            "",
            f"{datetime.date.today()}, {device_name()}, Python {platform.python_version()}, torch {torch.__version__}, "
            f"torchvision {torchvision.__version__}, pycocotools {version('pycocotools')}. "
            f"MaskRCNN of torchvision on ResNet-18, {steps} steps of training in this library on images of coco_open, "
            f"the weights carried back; {objects} objects, {crowds} of them crowds. A pixel is in a mask from "
            f"probability {PIXEL} on (>=), on both sides. Largest difference of all APs and ARs: {worst:.1e}, "
            f"allowed {ALLOWED:.0e}.",
            "",
            "| images | number | detkit | torchvision | difference |",
            "|---|---|---|---|---|",
            *rows,
            "",
        )
    )


if __name__ == "__main__":
    main()
