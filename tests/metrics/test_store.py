"""An image is counted once, under its id."""

import pytest
import torch

from detkit.metrics import CocoMetrics


def image(score=0.9, box=(0.0, 0, 50, 50), **entries):
    boxes, label = torch.tensor([box]), torch.tensor([0])
    return [{"boxes": boxes, "scores": torch.tensor([score]), "labels": label}], [
        {"boxes": boxes, "labels": label} | entries
    ]


def test_an_image_given_again_counts_once_with_its_latest_detections():
    metrics = CocoMetrics(1)
    for score in (0.9, 0.8):
        metrics.update(*image(score, image_id=3))
    (record,) = metrics.gathered()
    assert record.detections.scores.tolist() == pytest.approx([0.8])


def test_images_without_an_id_are_all_different():
    metrics = CocoMetrics(1)
    for _ in range(3):
        metrics.update(*image())
    assert metrics.per_class()[0].objects == 3


def test_one_id_for_two_images_is_refused_and_nothing_is_lost():
    metrics = CocoMetrics(1)
    metrics.update(*image(image_id=0))
    with pytest.raises(ValueError, match=r"image_id 0 came twice with different targets \(1 and 1 objects\)"):
        metrics.update(*image(box=(0.0, 0, 40, 50), image_id=0))
    assert metrics.per_class()[0].objects == 1


@pytest.mark.parametrize("image_id", ["7", 1.5, True, torch.tensor([1, 2])])
def test_image_ids_must_be_integers(image_id):
    with pytest.raises(ValueError, match=r"targets\[0\]\['image_id'\] = .*allowed is an integer"):
        CocoMetrics(1).update(*image(image_id=image_id))


@pytest.mark.parametrize("image_id", [torch.tensor(7), torch.tensor([7]), 7])
def test_ids_may_be_tensors_of_one_integer(image_id):
    metrics = CocoMetrics(1)
    metrics.update(*image(image_id=image_id))
    assert metrics.gathered()[0].key == (0, 7, 0)


def test_reset_forgets_and_new_images_are_seen_after_a_compute():
    metrics = CocoMetrics(1)
    assert metrics.compute()["bbox/AP"] == -1
    metrics.update(*image())
    assert metrics.compute()["bbox/AP"] == pytest.approx(1)
    metrics.reset()
    assert metrics.compute()["bbox/AP"] == -1
    metrics.update(image()[0], image(box=(60.0, 0, 90, 50))[1])
    assert metrics.compute()["bbox/AP"] == 0
