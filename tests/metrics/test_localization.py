"""ILSVRC's measures, by hand and against a loop over guesses."""

import pytest
import torch

from detkit.metrics import LocalizationMetrics

BOX = [0.0, 0, 10, 10]
HALF = [0.0, 0, 10, 5]  # an IoU of exactly one half
LESS = [0.0, 0, 10, 4]


def found(*rows):
    """Detections of (label, score, box)."""
    labels, scores, boxes = zip(*rows, strict=True) if rows else ((), (), ())
    return {
        "boxes": torch.tensor(boxes).reshape(-1, 4),
        "scores": torch.tensor(scores),
        "labels": torch.tensor(labels, dtype=torch.int64),
    }


def truth(*rows, **more):
    labels, boxes = zip(*rows, strict=True) if rows else ((), ())
    return {"boxes": torch.tensor(boxes).reshape(-1, 4), "labels": torch.tensor(labels, dtype=torch.int64), **more}


def judged(detections, targets, **settings):
    metrics = LocalizationMetrics(6, **settings)
    metrics.update(detections, targets)
    return metrics.compute()


@pytest.mark.parametrize(
    ("guesses", "accuracy", "error"),
    [
        ([(0, 0.9, BOX)], 1, 0),
        ([(0, 0.9, HALF)], 1, 0),
        ([(0, 0.9, LESS)], 1, 1),
        ([(1, 0.9, BOX)], 0, 1),
        ([(1, 0.9, BOX), (0, 0.8, BOX)], 0, 1),
        ([(0, 0.8, LESS), (0, 0.9, BOX)], 1, 0),
        ([(0, 0.9, LESS), (0, 0.8, BOX)], 1, 1),
        ([], 0, 1),
    ],
)
def test_the_first_guess_needs_the_class_and_an_iou_of_one_half(guesses, accuracy, error):
    result = judged([found(*guesses)], [truth((0, BOX))])
    assert (result["accuracy@1"], result["localization_error@1"]) == (accuracy, error)


def test_of_several_guesses_one_needs_to_be_right():
    guesses = [(label, 0.9 - label / 10, BOX) for label in range(6)]
    targets = [truth((4, BOX)), truth((5, BOX))]
    result = judged([found(*guesses)] * 2, targets, top=(1, 5, 6))
    assert result == {
        "accuracy@1": 0,
        "accuracy@5": 0.5,
        "accuracy@6": 1,
        "localization_error@1": 1,
        "localization_error@5": 0.5,
        "localization_error@6": 0,
    }


def test_many_boxes_of_a_class_are_one_guess():
    guesses = [*((0, 0.9 - t / 100, BOX) for t in range(5)), (1, 0.1, BOX)]
    assert judged([found(*guesses)], [truth((1, BOX))])["localization_error@5"] == 0


def test_any_object_of_the_class_will_do():
    away = [50.0, 50, 60, 60]
    result = judged([found((1, 0.9, BOX))], [truth((0, BOX), (1, away), (1, BOX))])
    assert result["localization_error@1"] == 0
    assert judged([found((1, 0.9, BOX))], [truth((0, BOX), (1, away))])["localization_error@1"] == 1


def test_equal_scores_keep_their_order():
    assert judged([found((1, 0.5, BOX), (0, 0.5, BOX))], [truth((1, BOX))])["accuracy@1"] == 1


def test_crowds_and_images_of_nothing_else_do_not_count():
    crowd = truth((0, BOX), (1, BOX), iscrowd=torch.tensor([1, 0]))
    targets = [crowd, truth(), truth((0, BOX), iscrowd=torch.tensor([1]))]
    assert judged([found((0, 0.9, BOX))] * 3, targets)["accuracy@1"] == 0
    assert set(judged([found()] * 2, targets[1:]).values()) == {-1.0}


def test_random_guesses_are_judged_as_a_loop_judges_them():
    generator = torch.Generator().manual_seed(0)

    def boxes(count):
        corners = torch.rand(count, 2, generator=generator) * 3
        return torch.cat((corners, corners + 4), dim=1)

    def labels(count):
        return torch.randint(6, (count,), generator=generator)

    detections = [
        {"boxes": boxes(12), "scores": torch.rand(12, generator=generator), "labels": labels(12)} for _ in range(40)
    ]
    targets = [{"boxes": boxes(2), "labels": labels(2)} for _ in range(40)]
    right = {1: 0, 3: 0}
    for one, target in zip(detections, targets, strict=True):
        guesses, seen = [], set()
        for row in one["scores"].argsort(descending=True).tolist():
            label = int(one["labels"][row])
            if label not in seen:
                guesses.append((label, one["boxes"][row].tolist()))
                seen.add(label)
        pairs = [*zip(target["labels"].tolist(), target["boxes"].tolist(), strict=True)]
        for k in right:
            both = [(guess, pair) for guess in guesses[:k] for pair in pairs]
            right[k] += any(name == label and iou(box, place) >= 0.5 for (name, box), (label, place) in both)
    result = judged(detections, targets, top=(1, 3))
    assert 0 < right[1] < right[3] < 40
    for k, count in right.items():
        assert result[f"localization_error@{k}"] == pytest.approx(1 - count / 40)


def iou(one, other):
    width, height = (max(min(one[i + 2], other[i + 2]) - max(one[i], other[i]), 0) for i in (0, 1))
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return width * height / (areas - width * height)


def test_batches_add_up_and_reset_forgets():
    metrics = LocalizationMetrics(6)
    for label in (0, 1):
        metrics.update([found((0, 0.9, BOX))], [truth((label, BOX))])
    assert metrics.compute()["accuracy@1"] == 0.5
    metrics.reset()
    assert metrics.compute()["accuracy@1"] == -1


@pytest.mark.parametrize("top", [(), (1, 1)])
def test_the_values_of_k_are_distinct(top):
    with pytest.raises(ValueError, match=r"LocalizationMetrics: top=.*all distinct"):
        LocalizationMetrics(2, top=top)


def test_a_label_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"LocalizationMetrics\.update: targets\[0\]\['labels'\].*labels 0\.\.5"):
        judged([found()], [truth((6, BOX))])
