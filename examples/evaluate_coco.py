"""Judge detections by COCO's AP: of two COCO files, or of detections made here by disturbing the truth of scenes.

Run: python examples/evaluate_coco.py
     python examples/evaluate_coco.py --truth instances_val.json --results results.json --iou-types bbox segm
"""

import argparse

import torch

from detkit.data import DigitScenes
from detkit.metrics import CocoMetrics, format_table
from detkit.structures import Detection, Target


def disturbed(target: Target, generator: torch.Generator, *, noise: float) -> Detection:
    """The truth with corners moved by about ``noise`` pixels, one object in ten lost, random scores from 0.5 up."""
    kept = torch.rand(len(target["labels"]), generator=generator) > 0.1
    boxes = target["boxes"].as_subclass(torch.Tensor)[kept]
    boxes = boxes + noise * torch.randn(boxes.shape, generator=generator)
    corners = torch.cat((torch.minimum(boxes[:, :2], boxes[:, 2:]), torch.maximum(boxes[:, :2], boxes[:, 2:])), dim=1)
    scores = 0.5 + 0.5 * torch.rand(len(corners), generator=generator)
    return {"boxes": corners, "scores": scores, "labels": target["labels"][kept]}


def metrics_of_scenes(count: int, noise: float) -> CocoMetrics:
    """Metrics of ``count`` scenes, given image by image as a loop over a data loader would."""
    scenes = DigitScenes(count, split="val")
    metrics, generator = CocoMetrics(scenes.categories), torch.Generator().manual_seed(0)
    for i in range(count):
        target = scenes.target(i)
        metrics.update([disturbed(target, generator, noise=noise)], [target])
    return metrics


def main() -> None:
    """Print every number and the table of classes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--truth", help="COCO annotation file; without it, scenes of digits")
    parser.add_argument("--results", help="COCO result file: a list of image_id, category_id, bbox, score")
    parser.add_argument("--iou-types", nargs="+", default=["bbox"], help="bbox, segm, keypoints (default: bbox)")
    parser.add_argument("--images", type=int, default=50, help="number of scenes (default: 50)")
    parser.add_argument("--noise", type=float, default=1.0, help="pixels that the scenes' boxes are off (default: 1)")
    arguments = parser.parse_args()
    if bool(arguments.truth) != bool(arguments.results):
        parser.error("--truth and --results go together")

    if arguments.truth:
        metrics = CocoMetrics.from_json(arguments.truth, arguments.results, iou_types=arguments.iou_types)
    else:
        metrics = metrics_of_scenes(arguments.images, arguments.noise)
    for name, value in metrics.compute().items():
        print(f"{name:12s} {value:.4f}")
    print(format_table(metrics.per_class()))


if __name__ == "__main__":
    main()
