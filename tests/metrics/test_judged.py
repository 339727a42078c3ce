"""Which detection finds which object: equal to a loop, and to the AP that it explains."""

import pytest
import torch
from judged_scenes import NAMES, judged_scenes, loop_match, scenes

from detkit.metrics import CocoMetrics

ENGINES = ("pycocotools", "hotcoco")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("iou_threshold", [0.3, 0.5, 0.75])
def test_matches_are_those_of_a_loop(engine, iou_threshold):
    if engine == "hotcoco":
        pytest.importorskip("hotcoco")
    for seed in range(8):
        detections, targets = scenes(seed, crowds=True, scores=30)
        metrics = CocoMetrics(NAMES, engine=engine)
        metrics.update(detections, targets)
        images = metrics.judged(iou_threshold=iou_threshold).images
        for image, detection, target in zip(images, detections, targets, strict=True):
            pairs, real = loop_match(detection, target, iou_threshold)
            rows = [row for row, _ in pairs]
            assert image.detections.scores.tolist() == detection["scores"][rows].tolist()
            assert image.detections.labels.tolist() == detection["labels"][rows].tolist()
            assert image.truth.labels.tolist() == target["labels"][real].tolist()
            found = [-1 if found is None else real.index(found) for _, found in pairs]
            assert image.objects.tolist() == found


def test_a_score_threshold_leaves_the_matches_of_the_better_detections():
    for seed in range(4):
        detections, targets = scenes(seed, crowds=True)
        few = [{key: value[row["scores"] >= 0.6] for key, value in row.items()} for row in detections]
        whole, part = CocoMetrics(NAMES), CocoMetrics(NAMES)
        whole.update(detections, targets)
        part.update(few, targets)
        for cut, alone in zip(whole.judged().above(0.6).images, part.judged().images, strict=True):
            assert cut.objects.tolist() == alone.objects.tolist()
            assert cut.detections.scores.tolist() == alone.detections.scores.tolist()


def test_ranked_detections_come_best_first_and_equal_scores_in_order():
    box = torch.tensor([[0.0, 0, 9, 9], [50, 50, 60, 60]])
    metrics = CocoMetrics(2)
    for image_id, scores in ((7, [0.5, 0.9]), (3, [0.5, 0.5])):
        found = {"boxes": box, "scores": torch.tensor(scores), "labels": torch.tensor([image_id % 2, 0])}
        metrics.update([found], [{"boxes": box[:1], "labels": torch.tensor([1]), "image_id": image_id}])
    ranked = metrics.judged().ranked()
    assert ranked.scores.tolist() == pytest.approx([0.9, 0.5, 0.5, 0.5])
    assert ranked.labels.tolist() == [0, 1, 0, 1]
    assert ranked.hits.tolist() == [False, True, False, True]
    assert metrics.judged().object_counts().tolist() == [0, 2]


def test_no_more_detections_of_a_class_count_than_in_ap():
    detections, targets = scenes(1)
    metrics = CocoMetrics(NAMES, max_detections=(1,))
    metrics.update(detections, targets)
    for image in metrics.judged().images:
        assert len(set(image.detections.labels.tolist())) == len(image.detections.labels)


def test_class_agnostic_metrics_have_one_class():
    detections, targets = scenes(2)
    metrics = CocoMetrics(NAMES, class_agnostic=True)
    metrics.update(detections, targets)
    judged = metrics.judged()
    assert judged.names == ("all",)
    assert judged.object_counts().tolist() == [sum(len(target["labels"]) for target in targets)]


def test_federated_ground_truth_judges_only_what_is_known():
    box = torch.tensor([[0.0, 0, 9, 9]])
    metrics = CocoMetrics(NAMES, federated=True)
    four = {"boxes": box.repeat(4, 1), "scores": torch.ones(4) / 2, "labels": torch.arange(4)}
    target = {"boxes": box, "labels": torch.tensor([2]), "negative_labels": [1], "not_exhaustive_labels": [3]}
    metrics.update([four], [target])
    (image,) = metrics.judged().images
    assert image.detections.labels.tolist() == [1, 2]
    assert image.objects.tolist() == [-1, 0]


@pytest.mark.parametrize("engine", ENGINES)
def test_what_is_empty_and_what_overflows_is_judged(engine):
    if engine == "hotcoco":
        pytest.importorskip("hotcoco")
    none = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long()}
    metrics = CocoMetrics(2, engine=engine)
    metrics.update([{**none, "scores": torch.zeros(0)}], [none])
    assert len(metrics.judged().images) == 1
    flat = torch.tensor([[5.0, 5, 5, 9], [0, 0, 1e-200, 1e-200], [0, 0, 1e15, 1e15]]).double()
    found = {"boxes": flat, "scores": torch.rand(3), "labels": torch.zeros(3).long()}
    metrics.update([found], [{"boxes": flat[:2], "labels": torch.zeros(2).long()}])
    assert not metrics.judged().ranked().hits.any()


def test_a_wrong_threshold_and_a_wrong_kind_are_refused():
    metrics = CocoMetrics(NAMES)
    with pytest.raises(ValueError, match=r"iou_threshold.*\[0, 1\]"):
        metrics.judged(iou_threshold=1.5)
    with pytest.raises(ValueError, match=r"CocoMetrics.judged: iou_type='segm'; allowed are \('bbox',\)"):
        metrics.judged("segm")
    with pytest.raises(ValueError, match="score_threshold"):
        judged_scenes(0).above(float("nan"))
