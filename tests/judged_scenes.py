"""Random detections on random objects, and what average precision matches as a slow, obvious loop."""

import numpy as np
import torch

from detkit.metrics import CocoMetrics

NAMES = ("ant", "bee", "cat", "dog")


def scenes(seed, count=6, *, crowds=False, scores=10_000):
    """Detections and targets, boxes of whole pixels. Most detections lie near an object; few ``scores`` repeat."""
    draw = np.random.RandomState(seed)  # whose numbers are the same in every version of numpy
    detections, targets = [], []
    for _ in range(count):
        truth = _boxes(draw, draw.randint(0, 7))
        near = truth[draw.randint(0, len(truth), draw.randint(0, 9))] if len(truth) else truth
        found = np.concatenate([_boxes(draw, draw.randint(0, 4)), near + draw.randint(-3, 4, near.shape)])
        found[:, 2:] = np.maximum(found[:, 2:], found[:, :2] + 1)
        labels, guesses = (draw.randint(0, len(NAMES), len(boxes)) for boxes in (truth, found))
        targets.append({"boxes": truth, "labels": labels, "iscrowd": (draw.rand(len(truth)) < 0.25) & crowds})
        detections.append({"boxes": found, "labels": guesses, "scores": draw.randint(1, scores, len(found)) / scores})
    return [_tensors(row) for row in detections], [_tensors(row) for row in targets]


def judged_scenes(seed, iou_threshold=0.5, **options):
    detections, targets = scenes(seed, **options)
    metrics = CocoMetrics(NAMES)
    metrics.update(detections, targets)
    return metrics.judged(iou_threshold=iou_threshold)


def iou(first, second, *, crowd=False):
    """Of two xyxy boxes; in a crowd the share of the first that lies in the second."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    shared = max(0, width) * max(0, height)
    own, other = ((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second))
    return shared / (own if crowd else own + other - shared)


def loop_match(detection, target, iou_threshold=0.5):
    """(row of the detection, row of the object or None) of those that count, best first; and the objects that count."""
    boxes, labels, crowds = (target[key].tolist() for key in ("boxes", "labels", "iscrowd"))
    real = [row for row in range(len(labels)) if not crowds[row]]
    taken, pairs = set(), []
    for row in sorted(range(len(detection["scores"])), key=lambda row: -detection["scores"][row]):
        box, label = detection["boxes"][row].tolist(), int(detection["labels"][row])
        best, found = iou_threshold, None
        for object_row in real:
            overlap = iou(box, boxes[object_row])
            if labels[object_row] == label and object_row not in taken and overlap >= best:
                best, found = overlap, object_row
        in_crowd = any(
            crowds[other] and labels[other] == label and iou(box, boxes[other], crowd=True) >= iou_threshold
            for other in range(len(labels))
        )
        if found is not None:
            taken.add(found)
        if found is not None or not in_crowd:
            pairs.append((row, found))
    return pairs, real


def _boxes(draw, count):
    corner, size = draw.randint(0, 60, (count, 2)), draw.randint(8, 40, (count, 2))
    return np.concatenate([corner, corner + size], axis=1).astype(np.float64)


def _tensors(row):
    return {name: torch.from_numpy(values) for name, values in row.items()}
