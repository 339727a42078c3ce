"""The confusion matrix: equal to a loop, and to hotcoco's where their rules agree."""

import numpy as np
import pytest
import torch
from judged_scenes import NAMES, iou, judged_scenes, loop_match, scenes

from detkit.metrics import CocoMetrics, confusion_matrix


@pytest.mark.parametrize("score_threshold", [0.0, 0.4])
@pytest.mark.slow
def test_counts_are_those_of_a_loop(score_threshold):
    for seed in range(8):
        expected = np.zeros((5, 5), int)
        for detection, target in zip(*scenes(seed, crowds=True, scores=30), strict=True):
            pairs, real = loop_match(detection, target)
            pairs = [(row, found) for row, found in pairs if detection["scores"][row] >= score_threshold]
            free = set(real) - {found for _, found in pairs}
            for row, found in pairs:
                overlap = {
                    other: iou(detection["boxes"][row].tolist(), target["boxes"][other].tolist()) for other in free
                }
                if found is None and overlap and max(overlap.values()) >= 0.5:
                    found = min(overlap, key=lambda other: (-overlap[other], other))
                    free.remove(found)
                expected[4 if found is None else target["labels"][found], detection["labels"][row]] += 1
            for missed in free:
                expected[target["labels"][missed], 4] += 1
        judged = judged_scenes(seed, crowds=True, scores=30)
        assert confusion_matrix(judged, score_threshold=score_threshold).counts.tolist() == expected.tolist()


def test_the_right_class_has_an_object_before_a_better_score_and_crowds_are_no_alarms():
    box = torch.tensor([[0.0, 0, 10, 10]])
    crowd = torch.tensor([[50.0, 50, 90, 90]])
    found = {
        "boxes": torch.cat([box, box, crowd[:, [0, 1, 0, 1]] + torch.tensor([0.0, 0, 9, 9])]),
        "labels": torch.tensor([1, 0, 0]),
        "scores": torch.tensor([0.9, 0.6, 0.8]),
    }
    truth = {"boxes": torch.cat([box, crowd]), "labels": torch.tensor([0, 0]), "iscrowd": torch.tensor([0, 1])}
    metrics = CocoMetrics(["cat", "dog"])
    metrics.update([found], [truth])
    assert confusion_matrix(metrics.judged(), score_threshold=0).counts.tolist() == [[1, 0, 0], [0, 0, 0], [0, 1, 0]]
    assert confusion_matrix(metrics.judged(), score_threshold=0.7).counts.tolist() == [[0, 1, 0], [0, 0, 0], [0, 0, 0]]


def test_rows_and_columns_add_up():
    judged = judged_scenes(3, count=20, crowds=True)
    matrix = confusion_matrix(judged, score_threshold=0.3)
    assert matrix.counts[:-1].sum(axis=1).tolist() == judged.object_counts().tolist()
    assert matrix.counts[:, :-1].sum() == len(judged.above(0.3).ranked().scores)
    assert matrix.names == NAMES
    shares = matrix.shares()
    assert shares.sum(axis=1) == pytest.approx((matrix.counts.sum(axis=1) > 0).astype(float))


def test_it_is_hotcocos_where_no_object_has_two_detections():
    hotcoco = pytest.importorskip("hotcoco")
    corners = torch.tensor([[x, y, x + 20.0, y + 20] for x in range(0, 200, 50) for y in range(0, 200, 50)])
    draw = torch.Generator().manual_seed(0)
    labels, guesses = (torch.randint(4, (16,), generator=draw) for _ in range(2))
    moved = corners + torch.randint(-4, 5, (16, 1), generator=draw)
    scores = torch.rand(16, generator=draw, dtype=torch.float64)
    metrics = CocoMetrics(NAMES)
    metrics.update(
        [{"boxes": moved[3:], "labels": guesses[3:], "scores": scores[3:]}], [{"boxes": corners, "labels": labels}]
    )
    sides = [
        [
            {"id": i, "image_id": 1, "category_id": int(label), "bbox": [*box[:2].tolist(), 20.0, 20.0], "area": 400.0}
            | {"iscrowd": 0, "score": float(score)}
            for i, (box, label, score) in enumerate(zip(boxes, classes, scores, strict=True), 1)
        ]
        for boxes, classes, scores in ((corners, labels, torch.ones(16)), (moved[3:], guesses[3:], scores[3:]))
    ]
    table = {"images": [{"id": 1}], "categories": [{"id": i, "name": name} for i, name in enumerate(NAMES)]}
    judge = hotcoco.COCOeval(*(hotcoco.COCO(table | {"annotations": rows}) for rows in sides), "bbox")
    theirs = judge.confusion_matrix(min_score=0.3)["matrix"]
    assert confusion_matrix(metrics.judged(), score_threshold=0.3).counts.tolist() == theirs.tolist()
