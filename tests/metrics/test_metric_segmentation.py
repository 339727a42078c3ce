"""SegmentationMetrics against a slow loop, scikit-learn's jaccard_score, and itself over processes."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import jaccard_score
from strategies import assert_refused

from detkit.metrics import SegmentationMetrics
from detkit.structures import VOID

CLASSES = 4


def target(segmentation, **more):
    return {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0), "segmentation": segmentation, **more}


def judged(pairs, classes=CLASSES):
    metrics = SegmentationMetrics(classes)
    for found, true in pairs:
        metrics.update([{"segmentation": found}], [target(true)])
    return metrics


def in_a_loop(pairs):
    """IoU of each class over all pixels, one by one; None where it does not occur."""
    shared, either = [0] * CLASSES, [0] * CLASSES
    for found, true in pairs:
        for a, b in zip(found.flatten().tolist(), true.flatten().tolist(), strict=True):
            if b == VOID:
                continue
            for c in range(CLASSES):
                shared[c] += a == c and b == c
                either[c] += c in (a, b)
    return [s / e if e else None for s, e in zip(shared, either, strict=True)]


def drawn(seed, count, *, highest=CLASSES):
    random = np.random.default_rng(seed)
    pairs = []
    for _ in range(count):
        size = random.integers(1, 6, 2)
        found, true = (torch.from_numpy(random.integers(0, random.integers(1, highest + 1), size)) for _ in "ab")
        true[torch.from_numpy(random.random(size) < 0.2)] = VOID
        pairs.append((found, true))
    return pairs


@given(st.integers(0, 2**31), st.integers(0, 4))
def test_it_is_the_loop_over_pixels_and_scikit_learns_jaccard_score(seed, count):
    pairs = drawn(seed, count)
    metrics, expected = judged(pairs), in_a_loop(pairs)
    assert [row.IoU for row in metrics.per_class()] == [-1 if value is None else value for value in expected]
    known = [value for value in expected if value is not None]
    assert metrics.compute()["mIoU"] == pytest.approx(np.mean(known) if known else -1, abs=1e-12)
    if known:
        found, true = (torch.cat([pair[side].flatten() for pair in pairs]) for side in (0, 1))
        found, true = found[true != VOID], true[true != VOID]
        labels = sorted({*found.tolist(), *true.tolist()})
        peer = jaccard_score(true, found, labels=labels, average="macro", zero_division=0)
        assert metrics.compute()["mIoU"] == pytest.approx(peer, abs=1e-12)
        assert metrics.compute()["pixel_accuracy"] == pytest.approx(float((found == true).float().mean()), abs=1e-6)


def test_by_hand():
    metrics = judged([(torch.tensor([[0, 1], [1, 1]]), torch.tensor([[0, 0], [1, VOID]]))], classes=3)
    assert metrics.confusion_matrix().tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert metrics.compute() == {"mIoU": 0.5, "pixel_accuracy": 2 / 3, "mean_accuracy": 0.75}
    assert [tuple(row)[1:] for row in metrics.per_class()] == [(0.5, 0.5, 2), (0.5, 1.0, 1), (-1.0, -1.0, 0)]
    metrics.reset()
    assert metrics.compute() == {"mIoU": -1, "pixel_accuracy": -1, "mean_accuracy": -1}


def test_it_is_not_the_mean_of_the_images_own():
    """A class in few pixels of one image weighs in the data set what it has there."""
    pairs = [
        (torch.tensor([[0, 0, 0, 1]]), torch.tensor([[0, 0, 0, 1]])),
        (torch.tensor([[0, 0, 1, 1]]), torch.tensor([[0, 0, 0, 0]])),
    ]
    per_image = np.mean([judged([pair]).compute()["mIoU"] for pair in pairs])
    assert judged(pairs).compute()["mIoU"] == pytest.approx((5 / 7 + 1 / 3) / 2)
    assert per_image == pytest.approx((1 + 0.25) / 2)


def test_scores_arrays_and_masks_say_the_same():
    found, true = drawn(3, 1)[0]
    expected = judged([(found, true)]).confusion_matrix()
    scores = torch.nn.functional.one_hot(found, CLASSES).permute(2, 0, 1).float()
    for other in ((scores, true), (found.numpy(), true.numpy()), (found.to(torch.uint8), true.to(torch.uint8))):
        assert (judged([other]).confusion_matrix() == expected).all()
    masks, labels = torch.stack([true == c for c in range(1, CLASSES)]), torch.arange(CLASSES - 1)
    by_masks, plain = SegmentationMetrics(CLASSES), torch.where(true == VOID, 0, true)
    by_masks.update([{"segmentation": found}], [{"boxes": torch.zeros(3, 4), "labels": labels, "masks": masks}])
    assert (by_masks.confusion_matrix() == judged([(found, plain)]).confusion_matrix()).all()


def test_an_image_seen_again_counts_once_and_must_have_the_same_truth():
    metrics, found = SegmentationMetrics(2), [{"segmentation": torch.tensor([[0, 1]])}]
    for _ in range(2):
        metrics.update(found, [target(torch.tensor([[1, 1]]), image_id=7)])
    assert metrics.confusion_matrix().sum() == 2
    said = "SegmentationMetrics: image_id 7 came twice with different targets"
    assert_refused(said, metrics.update, found, [target(torch.tensor([[0, 1]]), image_id=7)])
    assert metrics.confusion_matrix().sum() == 2
    metrics.update(found * 2, [target(torch.tensor([[1, 1]]))] * 2)
    assert metrics.confusion_matrix().sum() == 6


def test_what_is_no_segmentation_is_refused_by_name():
    update, good = SegmentationMetrics(2).update, torch.tensor([[0, 1]])
    said = "SegmentationMetrics.update: 1 detections but 2 targets"
    assert_refused(said, update, [{"segmentation": good}], [target(good)] * 2)
    for found, true, words in [
        (good, torch.tensor([[0, 2]]), "targets[0]: segmentation holds 2; allowed are 0..1, or VOID (255); 1 pixels"),
        (torch.tensor([[0, 255]]), good, "detections[0]: segmentation holds 255; allowed are 0..1; 1 pixels"),
        (good.float(), good, "detections[0]: segmentation is float32 of shape (1, 2); allowed is integers (H, W)"),
        (torch.zeros(1, 3, dtype=torch.int64), good, "detections[0]: segmentation of (1, 3) pixels; allowed (1, 2)"),
        (torch.zeros(3, 1, 2), good, "detections[0]: segmentation of shape (3, 1, 2); allowed 2 classes"),
        (torch.full((2, 1, 2), torch.nan), good, "detections[0]: segmentation of shape (2, 1, 2); allowed finite"),
    ]:
        assert_refused(f"SegmentationMetrics.update: {words}", update, [{"segmentation": found}], [target(true)])
    assert_refused("SegmentationMetrics.update: detections[0] has no segmentation", update, [{}], [target(good)])
    mask = torch.ones(1, 1, 2, dtype=torch.bool)
    for true, words in [
        ({"masks": mask[0], "labels": [0]}, "['masks'] have shape (1, 2) allowed is (1, height, width)"),
        ({"masks": mask, "labels": [0, 1]}, "['masks'] have shape (1, 1, 2) allowed is (2, height, width)"),
        ({"masks": mask, "labels": [0.7]}, "['labels'] are torch.float32; allowed are integers"),
        ({"masks": mask, "labels": [0], "iscrowd": [0, 0]}, "['iscrowd'] has shape (2,) allowed is (1,)"),
        ({"masks": mask, "labels": [0], "iscrowd": [float("nan")]}, "['iscrowd'][0] = nan allowed are 0 and 1"),
    ]:
        assert_refused(f"SegmentationMetrics.update: targets[0]{words}", update, [{"segmentation": good}], [true])
    assert_refused(
        "SegmentationMetrics.update: targets[0] has no segmentation and no masks",
        update,
        [{"segmentation": good}],
        [target(None)],
    )
    masks = {"boxes": torch.zeros(1, 4), "masks": torch.ones(1, 1, 2)}
    said = "SegmentationMetrics.update: targets[0] has masks and no labels"
    assert_refused(said, update, [{"segmentation": good}], [masks])
    said = "SegmentationMetrics: 256 classes; allowed are 255: class 255 is VOID"
    assert_refused(said, SegmentationMetrics, 256)


def test_an_image_twice_in_a_batch_must_have_the_same_truth():
    metrics, found = SegmentationMetrics(2), [{"segmentation": torch.tensor([[0, 1]])}] * 2
    truths = [target(torch.tensor([[1, 1]]), image_id=7), target(torch.tensor([[0, 1]]), image_id=7)]
    assert_refused("SegmentationMetrics: image_id 7 came twice with different targets", metrics.update, found, truths)
    metrics.update(found, truths[:1] * 2)
    assert metrics.confusion_matrix().sum() == 2
