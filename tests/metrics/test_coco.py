"""CocoMetrics: known answers, properties, options."""

import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detkit.metrics import ClassResult, CocoMetrics, format_table


def xyxy(rows):
    boxes = torch.tensor(rows, dtype=torch.float64).reshape(-1, 4)
    return torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1)


def detections_of(rows):
    """Rows of (class, x, y, w, h, score)."""
    table = torch.tensor(rows, dtype=torch.float64).reshape(-1, 6)
    return {"boxes": xyxy(table[:, 1:5].tolist()), "labels": table[:, 0].long(), "scores": table[:, 5]}


def target_of(rows, **entries):
    """Rows of (class, x, y, w, h)."""
    table = torch.tensor(rows, dtype=torch.float64).reshape(-1, 5)
    return {"boxes": xyxy(table[:, 1:].tolist()), "labels": table[:, 0].long()} | entries


A, B = 0, 1
TWO_IMAGES = (
    [
        detections_of(
            [
                (A, 12, 12, 40, 40, 0.9),
                (A, 11, 9, 38, 42, 0.8),
                (B, 100, 105, 60, 30, 0.7),
                (A, 150, 150, 20, 20, 0.95),
            ]
        ),
        detections_of([(A, 22, 20, 20, 20, 0.6), (B, 60, 60, 100, 90, 0.5), (A, 0, 0, 30, 30, 0.55)]),
    ],
    [
        target_of([(A, 10, 10, 40, 40), (B, 100, 100, 60, 30)]),
        target_of([(A, 20, 20, 20, 20), (B, 60, 60, 100, 100)]),
    ],
)


def run(detections, targets, classes=2, **options):
    metrics = CocoMetrics(classes, **options)
    metrics.update(detections, targets)
    return metrics.compute()


@pytest.mark.parametrize("engine", ["pycocotools", "hotcoco"])
def test_two_images_worked_out_by_hand(engine):
    if engine == "hotcoco":
        pytest.importorskip("hotcoco")
    numbers = run(*TWO_IMAGES, engine=engine)
    wanted = {"AP": 0.492327, "AP50": 0.75, "AP75": 0.376238, "APs": 0.35, "APm": 0.65, "APl": 0.9}
    wanted |= {"AR@1": 0.525, "AR@10": 0.75, "AR@100": 0.75, "ARs": 0.7, "ARm": 0.7, "ARl": 0.9}
    for name, value in wanted.items():
        assert numbers[f"bbox/{name}"] == pytest.approx(value, abs=5e-7), name


def test_keys_name_the_type_the_number_and_the_k():
    options = {"iou_types": ("bbox", "keypoints"), "keypoint_sigmas": (0.1,)}
    shape = {"keypoints": torch.ones(0, 1, 3)}
    numbers = run([detections_of([]) | shape], [target_of([]) | shape], **options)
    box = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR@1", "AR@10", "AR@100", "AR50", "AR75", "ARs", "ARm", "ARl"]
    points = ["AP", "AP50", "AP75", "APm", "APl", "AR@20", "AR50", "AR75", "ARm", "ARl"]
    assert list(numbers) == [f"bbox/{name}" for name in box] + [f"keypoints/{name}" for name in points]
    assert set(numbers.values()) == {-1.0}


def test_frequencies_of_the_categories_give_their_own_ap():
    categories = [{"name": "cat", "frequency": "r"}, {"name": "dog", "frequency": "f"}]
    metrics = CocoMetrics(categories)
    metrics.update(*TWO_IMAGES)
    numbers, rows = metrics.compute(), metrics.per_class()
    assert (numbers["bbox/APr"], numbers["bbox/APf"], numbers["bbox/APc"]) == (rows[0].AP, rows[1].AP, -1)


def test_each_class_has_its_row_and_their_mean_is_ap():
    metrics = CocoMetrics(["cat", "dog", "cow"])
    metrics.update(*TWO_IMAGES)
    rows = metrics.per_class()
    assert [(row.name, row.objects) for row in rows] == [("cat", 2), ("dog", 2), ("cow", 0)]
    assert rows[2].AP == rows[2].AP50 == -1
    assert metrics.compute()["bbox/AP"] == pytest.approx((rows[0].AP + rows[1].AP) / 2)
    assert format_table(rows).splitlines()[-1].split() == ["cow", "0", "-1.000", "-1.000"]
    with pytest.raises(ValueError, match=r"per_class: iou_type='segm'; allowed are \('bbox',\)"):
        metrics.per_class("segm")


def test_class_agnostic_numbers_have_one_row_and_read_no_labels():
    metrics = CocoMetrics(2, class_agnostic=True)
    metrics.update(*TWO_IMAGES)
    assert [(row.name, row.objects) for row in metrics.per_class()] == [("all", 4)]
    swapped = [found | {"labels": 1 - found["labels"]} for found in TWO_IMAGES[0]]
    assert run(swapped, TWO_IMAGES[1], class_agnostic=True) == metrics.compute()
    assert run(swapped, TWO_IMAGES[1])["bbox/AP"] == 0


def test_the_table_of_no_class_is_its_head():
    assert format_table([]) == "class  objects     AP   AP50"
    assert format_table([ClassResult("x", 1.0, 1.0, 1)]).count("\n") == 1


def test_masks_are_judged_by_their_own_area():
    mask = torch.zeros(1, 100, 100, dtype=torch.bool)
    mask[0, 10:60, 10] = mask[0, 10, 10:60] = True  # 99 pixels in a box of 2500: small as a mask, medium as a box
    one = {"masks": mask}
    numbers = run(
        [detections_of([(A, 10, 10, 50, 50, 0.9)]) | one],
        [target_of([(A, 10, 10, 50, 50)]) | one],
        iou_types=("bbox", "segm"),
    )
    assert numbers["segm/APs"] == pytest.approx(1)
    assert numbers["segm/APm"] == -1


@pytest.mark.parametrize("class_agnostic", [False, True])
@pytest.mark.parametrize("engine", ["pycocotools", "hotcoco"])
def test_keypoints_of_any_number_are_judged_by_their_sigmas(engine, class_agnostic):
    if engine == "hotcoco":
        pytest.importorskip("hotcoco")
    area, offset, sigma = 2500.0, 5.0, 0.1
    true = torch.tensor([[[20.0, 20, 2], [30, 30, 2], [0, 0, 0]]])
    found = true + torch.tensor([offset, 0, 0])
    similarity = np.exp(-(offset**2) / (2 * area * (2 * sigma) ** 2))  # 0.8825: reached at 8 of 10 thresholds
    options = {"iou_types": ("keypoints",), "keypoint_sigmas": [sigma] * 3, "engine": engine}
    numbers = run(
        [detections_of([(A, 0, 0, 50, 50, 0.9)]) | {"keypoints": found}],
        [target_of([(A, 0, 0, 50, 50)]) | {"keypoints": true}],
        class_agnostic=class_agnostic,
        **options,
    )
    assert numbers["keypoints/AR@20"] == pytest.approx(np.mean(np.linspace(0.5, 0.95, 10) <= similarity))


def test_objects_without_a_visible_keypoint_are_not_counted():
    hidden = {"keypoints": torch.zeros(1, 2, 3)}
    metrics = CocoMetrics(1, iou_types=("keypoints",), keypoint_sigmas=(0.1, 0.1))
    metrics.update([detections_of([]) | {"keypoints": torch.zeros(0, 2, 3)}], [target_of([(A, 0, 0, 9, 9)]) | hidden])
    assert metrics.per_class()[0].objects == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"iou_types": ("box",)}, r"iou_types=.*allowed are one or more of \('bbox', 'segm', 'keypoints'\)"),
        ({"iou_types": ()}, "iou_types="),
        ({"iou_types": ("bbox", "bbox")}, "iou_types="),
        ({"max_detections": ()}, "max_detections=.*distinct integers >= 1"),
        ({"max_detections": (0, 1)}, r"max_detections\[0\]=0"),
        ({"max_detections": (1, 1)}, "max_detections="),
        ({"max_detections": (1.5,)}, r"max_detections\[0\]=1.5"),
        ({"keypoint_sigmas": ()}, "keypoint_sigmas="),
        ({"keypoint_sigmas": (0.1, 0.0)}, r"keypoint_sigmas\[1\]=0.0"),
        ({"keypoint_sigmas": (float("nan"),)}, r"keypoint_sigmas\[0\]=nan"),
        ({"federated": True, "class_agnostic": True}, "federated=True goes with"),
        ({"federated": True, "iou_types": ("keypoints",)}, "federated=True goes with"),
    ],
)
def test_options_that_mean_nothing_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        CocoMetrics(2, **options)


@pytest.mark.slow
def test_a_thousand_images_with_a_hundred_thousand_boxes_are_taken_in_seconds(generator):
    corner = torch.rand(1000, 100, 2, generator=generator) * 500
    boxes = torch.cat([corner, corner + 40], dim=2)
    scores, labels = torch.rand(1000, 100, generator=generator), torch.arange(100).expand(1000, 100) % 80
    rows = [
        {"boxes": box, "scores": score, "labels": label}
        for box, score, label in zip(boxes, scores, labels, strict=True)
    ]
    metrics = CocoMetrics(80)
    start = time.process_time()
    metrics.update(rows, [{"boxes": row["boxes"][:8], "labels": row["labels"][:8]} for row in rows])
    assert time.process_time() - start < 5  # 0.2 s where this was written; the type checker of the tests adds to it
    assert sum(len(record.detections.labels) for record in metrics.gathered()) == 100_000


@st.composite
def data_sets(draw, distinct=True):
    """Up to four images of jittered objects and stray boxes, with distinct scores."""
    seed = draw(st.integers(0, 2**32 - 1))
    random = np.random.default_rng(seed)
    detections, targets = [], []
    for image in range(draw(st.integers(1, 4))):
        corner, size = random.uniform(0, 150, (3, 2)), random.uniform(5, 150, (3, 2))
        true = np.c_[corner, corner + size]
        moved = np.sort((true + random.normal(0, 6, true.shape)).reshape(-1, 2, 2), axis=1).reshape(-1, 4)
        boxes = np.concatenate([moved, true[:1] + 1, random.permutation(true)[:1]])
        labels = random.integers(0, 2, 3)
        found = {"boxes": boxes, "scores": random.random(5), "labels": np.r_[labels, labels[:1], random.integers(0, 2)]}
        detections.append({name: torch.from_numpy(np.asarray(value)) for name, value in found.items()})
        targets.append({"boxes": torch.from_numpy(true), "labels": torch.from_numpy(labels), "image_id": image})
    return detections, targets


@given(data_sets(), st.randoms(use_true_random=False))
@settings(max_examples=25)
def test_the_order_of_images_and_of_detections_does_not_matter(data, random):
    order = random.sample(range(len(data[0])), len(data[0]))
    shuffled = []
    for i in order:
        rows = torch.tensor(random.sample(range(5), 5))
        shuffled.append({name: value[rows] for name, value in data[0][i].items()})
    assert run(shuffled, [data[1][i] for i in order]) == run(*data)


@given(data_sets())
@settings(max_examples=25)
def test_a_rising_map_of_the_scores_changes_nothing(data):
    mapped = [found | {"scores": torch.exp(3 * found["scores"]) - 7} for found in data[0]]
    assert run(mapped, data[1]) == run(*data)


@given(data_sets(), st.integers(0, 2))
@settings(max_examples=25)
def test_finding_a_missed_object_exactly_never_lowers_recall(data, which):
    before = run(*data)
    found, target = data[0][0], data[1][0]
    added = {
        "boxes": torch.cat([found["boxes"], target["boxes"][which : which + 1]]),
        "labels": torch.cat([found["labels"], target["labels"][which : which + 1]]),
        "scores": torch.cat([found["scores"], found["scores"].new_full((1,), -1.0)]),
    }
    after = run([added, *data[0][1:]], data[1])
    for name in ("AR@100", "AR50", "AR75"):
        assert after[f"bbox/{name}"] >= before[f"bbox/{name}"]


@given(data_sets())
@settings(max_examples=10)
def test_the_truth_itself_scores_1(data):
    perfect = [
        {"boxes": t["boxes"], "labels": t["labels"], "scores": torch.arange(len(t["labels"])).double()} for t in data[1]
    ]
    numbers = run(perfect, data[1])
    assert numbers["bbox/AP"] == pytest.approx(1)
    assert numbers["bbox/AR@100"] == pytest.approx(1)


def test_one_kind_of_iou_may_be_one_text():
    assert CocoMetrics(1, iou_types="segm").iou_types == CocoMetrics(1, iou_types=["segm"]).iou_types == ("segm",)
