"""R-CNN on scenes of digits: windows are warped, described by a network, judged by SVMs, refined by regressions.

Run: python examples/train_rcnn.py --picture rcnn.png    (a few minutes on two cores)
"""

import argparse

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detkit.backbones import SmallBackbone
from detkit.boxes import box_iou
from detkit.data import DigitScenes
from detkit.detectors import Detector, rcnn
from detkit.fitting import fit_rcnn
from detkit.metrics import CocoMetrics
from detkit.proposals import Proposals, sliding_windows
from detkit.viz import save_picture, side_by_side

SIZE, DIGITS = 96, 10


def fine_tune(detector: Detector, head: nn.Linear, scenes: DigitScenes, windows: Tensor, steps: int) -> None:
    """Train the backbone as a classifier of crops, 4 of digits (IoU of at least 0.5) and 12 others from each scene."""
    optimizer = torch.optim.AdamW([*detector.parameters(), *head.parameters()], lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    for step in range(steps):
        chosen = [scenes[i] for i in torch.randint(len(scenes), (8,)).tolist()]
        batch, targets = detector.preprocess(*zip(*chosen, strict=True))
        near = targets.boxes.repeat(1, 16, 1)
        near = near + torch.randn_like(near) * 0.1 * (near[..., 2:] - near[..., :2]).repeat(1, 1, 2)
        boxes = torch.cat((near, windows.expand(len(near), -1, -1)), dim=1)
        quality, best = box_iou(boxes, targets.boxes).max(-1)
        labels = torch.where(quality >= 0.5, targets.labels.gather(1, best), DIGITS)
        luck, digit = torch.rand(labels.shape), labels < DIGITS
        rows = torch.cat(((luck + digit).topk(4).indices, (luck + ~digit).topk(12).indices), dim=1)
        crops = boxes.gather(1, rows[..., None].expand(-1, -1, 4))
        logits = head(detector.get_submodule("region.describe")(batch.tensors, crops, batch.sizes))
        loss = F.cross_entropy(logits.flatten(0, 1), labels.gather(1, rows).flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            print(f"step {step:3d}: cross-entropy {loss.item():.3f}")


def main() -> None:
    """Fine-tune, fit, evaluate, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=90, help="scenes to learn from; a third of it to be tested on")
    parser.add_argument("--steps", type=int, default=250, help="steps of fine-tuning")
    parser.add_argument("--picture", help="PNG file to write truth and detections to")
    args = parser.parse_args()

    torch.manual_seed(0)
    train, test = DigitScenes(args.scenes), DigitScenes(max(3, args.scenes // 3), split="test")
    windows = [sliding_windows(SIZE, SIZE, size=s, stride=s // 4, aspect_ratios=(0.75,)) for s in (16, 22, 30, 40)]
    windows = torch.cat(windows)
    detector = rcnn(DIGITS, SmallBackbone((32, 64, 128), stem_stride=2), feature_size=512, size=32, context=3, grid=2)
    fine_tune(detector.train(), nn.Linear(512, DIGITS + 1), train, windows, args.steps)
    print(f"{len(windows)} windows a scene;", fit_rcnn(detector.eval(), train, [windows] * len(train)))

    proposals = [Proposals(boxes=windows, scores=torch.ones(len(windows)))]
    with torch.no_grad():
        found = [detector([image], proposals=proposals)[0] for image, _ in test]
    metrics = CocoMetrics(test.categories)
    metrics.update(found, [target for _, target in test])
    print("  ".join(f"{name} {value:.3f}" for name, value in metrics.compute().items() if name[5:] in ("AP", "AP50")))
    if args.picture:
        images, truths = zip(*[test[i] for i in range(3)], strict=True)
        save_picture(args.picture, side_by_side(images, truths, found[:3], score_threshold=0.5))


if __name__ == "__main__":
    main()
