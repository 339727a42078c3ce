"""Equal scores: the order in which detections are handed over counts, then the order of the images."""

import pytest
import torch

from detkit.metrics import CocoMetrics, ProposalRecall, VocMetrics

HIT, MISS = [10.0, 10.0, 50.0, 50.0], [60.0, 60.0, 90.0, 90.0]
METRICS = {
    "pycocotools": lambda: CocoMetrics(1, engine="pycocotools"),
    "hotcoco": lambda: CocoMetrics(1, engine="hotcoco"),
    "voc": lambda: VocMetrics(1),
}


def judged(name, *images):
    """AP of images of one object each, with the given boxes found at equal scores; in ascending order of image id."""
    metrics = METRICS[name]()
    for image_id, boxes in images:
        zeros = torch.zeros(len(boxes), dtype=torch.int64)
        found = {"boxes": torch.tensor(boxes), "scores": torch.full((len(boxes),), 0.5), "labels": zeros}
        metrics.update([found], [{"boxes": torch.tensor([HIT]), "labels": torch.tensor([0]), "image_id": image_id}])
    return next(iter(metrics.compute().values()))


@pytest.mark.parametrize("name", METRICS)
def test_of_equal_scores_in_an_image_the_earlier_row_counts_first(name):
    assert judged(name, (1, [HIT, MISS])) == pytest.approx(1)
    assert judged(name, (1, [MISS, HIT])) == pytest.approx(0.5)
    assert judged(name, (1, [*[MISS] * 18, HIT])) == pytest.approx(1 / 19)


@pytest.mark.parametrize("name", METRICS)
def test_of_equal_scores_in_several_images_the_smaller_image_id_counts_first(name):
    first, second = [HIT], [MISS, MISS]
    assert judged(name, (1, first), (2, second)) == judged(name, (2, second), (1, first))
    assert judged(name, (1, first), (2, second)) > judged(name, (2, first), (1, second)) + 0.2


@pytest.mark.parametrize("engine", ["pycocotools", "hotcoco"])
def test_class_agnostic_the_smaller_label_counts_before_the_earlier_row(engine):
    metrics = CocoMetrics(2, class_agnostic=True, engine=engine)
    found = {"boxes": torch.tensor([HIT, MISS]), "scores": torch.full((2,), 0.5), "labels": torch.tensor([1, 0])}
    metrics.update([found], [{"boxes": torch.tensor([HIT]), "labels": torch.tensor([1])}])
    assert metrics.compute()["bbox/AP"] == pytest.approx(0.5)


@pytest.mark.parametrize("engine", ["pycocotools", "hotcoco"])
def test_of_equal_scores_in_a_file_the_earlier_result_counts_first(engine):
    truth = {
        "images": [{"id": 1, "height": 100, "width": 100}],
        "categories": [{"id": 3, "name": "cat"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 3, "bbox": [10, 10, 40, 40], "area": 1600, "iscrowd": 0}
        ],
    }
    boxes = [[10, 10, 40, 40], [60, 60, 30, 30]]
    results = [{"image_id": 1, "category_id": 3, "bbox": box, "score": 0.5} for box in boxes]
    for given, expected in ((results, 1), (results[::-1], 0.5)):
        assert CocoMetrics.from_json(truth, given, engine=engine).compute()["bbox/AP"] == pytest.approx(expected)


def test_without_scores_proposals_come_best_first_and_with_equal_ones_the_earlier_first():
    truth = [{"boxes": torch.tensor([HIT]), "labels": torch.tensor([0])}]
    for proposal in ({}, {"scores": torch.ones(2)}):
        for boxes, expected in (([HIT, MISS], 1), ([MISS, HIT], 0)):
            metrics = ProposalRecall((1,))
            metrics.update([{"boxes": torch.tensor(boxes), **proposal}], truth)
            assert metrics.compute()["AR@1"] == pytest.approx(expected)
