"""What the metrics take in: every bad shape and value is named, every good form accepted."""

import numpy as np
import pytest
import torch
from strategies import unhooked
from torchvision import tv_tensors
from torchvision.transforms import v2

from detkit.metrics import CocoMetrics, ProposalRecall, SegmentationMetrics, VocMetrics
from detkit.metrics.records import Reader, corners, objects, read_images

NAN, INF = float("nan"), float("inf")


def found(boxes=((1, 1, 5, 5), (2, 2, 9, 9)), **entries):
    boxes = torch.as_tensor(boxes, dtype=torch.float32)
    return {
        "boxes": boxes,
        "scores": torch.full((len(boxes),), 0.5),
        "labels": torch.zeros(len(boxes)).long(),
    } | entries


def truth(boxes=((1, 1, 5, 5),), **entries):
    boxes = torch.as_tensor(boxes, dtype=torch.float32)
    return {"boxes": boxes, "labels": torch.zeros(len(boxes)).long()} | entries


def read(detection=None, target=None, **needs):
    reader = Reader("demo", 3, **needs)
    return read_images(reader, [detection or found()], [target or truth()], [(1, 0, 0)])[0]


@pytest.mark.parametrize(
    "row", [(NAN,) * 4, (0, 0, INF, 1), (-INF, 0, 1, 1), (5, 5, 4, 6), (5, 5, 6, 4), (0, 0, 1e20, 1)]
)
@pytest.mark.parametrize("metrics", [CocoMetrics(3), VocMetrics(3), ProposalRecall()])
def test_boxes_that_are_not_finite_or_inverted_are_refused_by_index_in_every_metric(row, metrics):
    good, bad = found(), found(((1, 1, 5, 5), row))
    with pytest.raises(
        ValueError, match=r"update: detections\[1\] \(image_id 8\)\['boxes'\]\[1\] = .*allowed are finite"
    ):
        metrics.update([good, bad], [truth(image_id=7), truth(image_id=8)])
    with pytest.raises(ValueError, match=r"update: targets\[0\]\['boxes'\]\[1\] = "):
        metrics.update([good], [truth(((1, 1, 5, 5), row))])


def test_the_error_counts_the_bad_rows():
    with pytest.raises(ValueError, match=r"\[0\] = \[nan, nan, nan, nan\] \(2 such here\)"):
        read(found(((NAN,) * 4, (NAN,) * 4)))


@pytest.mark.parametrize("score", [NAN, INF, -INF])
def test_scores_must_be_finite(score):
    with pytest.raises(ValueError, match=r"demo: detections\[0\]\['scores'\]\[1\] = (nan|inf|-inf) .*finite scores"):
        read(found(scores=torch.tensor([0.5, score])))


@pytest.mark.parametrize("label", [-1, 3, 91])
def test_labels_outside_the_classes_are_refused(label):
    with pytest.raises(ValueError, match=rf"detections\[0\]\['labels'\]\[1\] = {label} .*allowed are labels 0..2"):
        read(found(labels=torch.tensor([0, label])))
    with pytest.raises(ValueError, match=rf"targets\[0\]\['labels'\]\[0\] = {label} "):
        read(target=truth(labels=torch.tensor([label])))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"boxes": torch.zeros(2, 5)}, r"'boxes'\] have shape \(2, 5\); allowed is \(N, 4\)"),
        ({"boxes": torch.zeros(4)}, r"'boxes'\] have shape \(4,\)"),
        ({"scores": torch.ones(3)}, r"'scores'\] has shape \(3,\); allowed is \(2,\)"),
        ({"labels": torch.zeros(1).long()}, r"'labels'\] has shape \(1,\)"),
        ({"labels": torch.zeros(2)}, r"'labels'\] are torch.float32; allowed are integers"),
        ({"labels": torch.zeros(2, dtype=torch.bool)}, r"'labels'\] are torch.bool"),
        ({"scores": torch.ones(2, 1)}, r"'scores'\] has shape \(2, 1\)"),
    ],
)
def test_lengths_and_types_that_disagree_are_refused(entries, message):
    with pytest.raises(ValueError, match=message):
        read(found(**entries))


@pytest.mark.parametrize("name", ["boxes", "scores", "labels"])
def test_a_missing_entry_is_named(name):
    detection = found()
    del detection[name]
    with pytest.raises(ValueError, match=name):
        read(detection)


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (torch.ones(2, 8, 9, dtype=torch.bool), r"masks.\] of height and width \(8, 9\) for an image of \(8, 8\)"),
        (torch.ones(1, 8, 8, dtype=torch.bool), r"allowed is \(2, height, width\)"),
        (torch.ones(2, 1, 8, 8), "threshold probabilities"),
        (torch.ones(2, 8, 8), "boolean or integer"),
        (torch.ones(2, 0, 8, dtype=torch.bool), r"shape \(2, 0, 8\)"),
    ],
)
def test_masks_must_be_hard_and_of_the_size_of_the_truth(masks, message):
    with pytest.raises(ValueError, match=message):
        read(found(masks=masks), truth(masks=torch.ones(1, 8, 8, dtype=torch.bool)), masks=True)


def test_masks_and_keypoints_that_are_judged_must_be_there():
    with pytest.raises(ValueError, match=r"detections\[0\]\['masks'\]"):
        read(masks=True)
    with pytest.raises(ValueError, match=r"detections\[0\]\['keypoints'\].*\(2, 17, 3\)"):
        read(keypoints=17)
    with pytest.raises(ValueError, match="finite x, y, visibility"):
        read(found(keypoints=torch.full((2, 5, 3), NAN)), keypoints=5)


@pytest.mark.parametrize("area", [torch.tensor([-1.0]), torch.tensor([NAN]), torch.ones(2)])
def test_given_areas_must_be_finite_and_one_per_object(area):
    with pytest.raises(ValueError, match="area"):
        read(target=truth(area=area))


@pytest.mark.parametrize("metrics", [CocoMetrics(3), VocMetrics(3), ProposalRecall(), SegmentationMetrics(3)])
@pytest.mark.parametrize("bad", [found(), None, "ab", torch.zeros(2, 4), iter([found()])])
def test_images_come_in_lists_in_every_metric(metrics, bad):
    with pytest.raises(
        TypeError, match=r"update: (detections|proposals) is a \w+; allowed is a list with one dict per"
    ):
        unhooked(metrics.update)(bad, [truth()])
    with pytest.raises(TypeError, match=r"update: targets is a \w+; allowed is a list with one dict per image"):
        unhooked(metrics.update)([found()], bad)
    with pytest.raises(ValueError, match=r"2 (detections|proposals) but 1 targets; allowed is one dict of each per"):
        metrics.update([found(), found()], [truth()])


@pytest.mark.parametrize("metrics", [CocoMetrics(3), VocMetrics(3), ProposalRecall()])
@pytest.mark.parametrize(
    ("boxes", "said"),
    [
        (torch.zeros(1, 4, dtype=torch.complex64), r" has type torch.complex64; allowed are real numbers"),
        (torch.zeros(1, 4).to_sparse(), r" has layout torch.sparse_coo; give a dense tensor: tensor.to_dense\(\)"),
        (torch.tensor(7.0), r" have shape \(\); allowed is \(N, 4\)"),
        (torch.zeros(0, 5), r" have shape \(0, 5\); allowed is \(N, 4\)"),
        ("cat", ": a str that holds no numbers; allowed is a tensor, a NumPy array or a nested list of numbers"),
    ],
)
def test_what_are_no_boxes_is_named_in_every_metric(metrics, boxes, said):
    with pytest.raises((TypeError, ValueError), match=rf"update: (detections|proposals)\[1\]\['boxes'\]{said}"):
        metrics.update([found(), {**found(), "boxes": boxes}], [truth(), truth()])


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"iscrowd": torch.tensor([NAN])}, r"\['iscrowd'\]\[0\] = nan .* allowed are 0 and 1"),
        ({"ignore": [2]}, r"\['ignore'\]\[0\] = 2.0 .* allowed are 0 and 1"),
        ({"negative_labels": [0.7]}, r"\['negative_labels'\] are torch.float32; allowed are integers"),
        ({"not_exhaustive_labels": [3]}, r"\['not_exhaustive_labels'\]\[0\] = 3 .* allowed are labels 0..2"),
    ],
)
def test_flags_and_labels_that_would_be_read_as_others_are_refused(entries, said):
    with pytest.raises(ValueError, match=rf"demo: targets\[0\]{said}"):
        read(target=truth(**entries))


def test_areas_are_those_given_else_of_the_mask_else_of_the_box():
    mask = torch.zeros(1, 8, 8, dtype=torch.uint8)
    mask[0, :2, :3] = 255
    assert read().truth.areas.tolist() == [16]
    assert read(found(masks=mask.repeat(2, 1, 1)), truth(masks=mask), masks=True).truth.areas.tolist() == [6]
    given = truth(masks=mask, area=torch.tensor([4.5]))
    assert read(found(masks=mask.repeat(2, 1, 1)), given, masks=True).truth.areas.tolist() == [4.5]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int32, torch.uint8])
def test_boxes_of_every_type_are_read_in_double_precision(dtype):
    boxes = torch.tensor([[1, 1, 5, 5], [2, 2, 9, 9]]).to(dtype)
    assert read(found(boxes=boxes)).detections.boxes.tolist() == [[1, 1, 4, 4], [2, 2, 7, 7]]


def test_empty_images_gradients_and_tv_tensors_are_taken_as_they_come():
    nothing = {"boxes": torch.tensor([]), "scores": torch.tensor([]), "labels": torch.tensor([])}
    assert read(nothing, {"boxes": torch.tensor([]), "labels": torch.tensor([])}).detections.boxes.shape == (0, 4)
    wrapped = tv_tensors.BoundingBoxes(torch.ones(1, 4), format="XYXY", canvas_size=(9, 9))
    assert read(target=truth(boxes=wrapped)).truth.boxes.tolist() == [[1, 1, 0, 0]]
    assert read(found(scores=torch.ones(2, requires_grad=True))).detections.scores.tolist() == [1, 1]


def test_the_batch_is_kept_whole_or_not_at_all():
    metrics = CocoMetrics(3)
    with pytest.raises(ValueError, match="labels"):
        metrics.update([found(), found(labels=torch.tensor([5, 5]))], [truth(), truth()])
    assert metrics.gathered() == []


def test_rows_are_taken_in_order_and_corners_come_back():
    rows = objects(np.array([[0.0, 1, 2, 3], [4, 5, 6, 7]]), np.array([3, 4])).take(np.array([1, 0]))
    assert rows.labels.tolist() == [4, 3]
    assert corners(rows.boxes).tolist() == [[4, 5, 10, 12], [0, 1, 2, 4]]


# What the border takes


@pytest.mark.parametrize("form", ["XYXY", "XYWH", "CXCYWH"])
def test_a_perfect_detector_is_perfect_in_every_format_of_tv_tensors(form):
    corners = tv_tensors.BoundingBoxes([[10, 20, 50, 40], [5, 5, 9, 9]], format="XYXY", canvas_size=(60, 60))
    boxes = v2.functional.convert_bounding_box_format(corners, new_format=form)
    for metrics in (CocoMetrics(2), VocMetrics(2)):
        metrics.update(
            [{"boxes": boxes, "scores": torch.tensor([0.9, 0.8]), "labels": torch.arange(2)}],
            [{"boxes": boxes, "labels": torch.arange(2)}],
        )
        assert next(iter(metrics.compute().values())) == pytest.approx(1)
    recall = ProposalRecall((2,), match="any")
    recall.update([{"boxes": boxes}], [{"boxes": corners, "labels": torch.arange(2)}])
    assert recall.compute() == {"AR@2": 1}


def test_rotated_boxes_are_refused_by_name():
    rotated = tv_tensors.BoundingBoxes([[5.0, 5, 2, 2, 30]], format="CXCYWHR", canvas_size=(9, 9))
    with pytest.raises(ValueError, match=r"^demo: targets\[0\]\['boxes'\]: BoundingBoxes of format CXCYWHR; allowed"):
        read({"boxes": torch.zeros(0, 4), "scores": [], "labels": []}, {"boxes": rotated, "labels": [0]})


def test_arrays_and_lists_are_read_as_tensors_are():
    tensors = found(), truth(iscrowd=torch.tensor([1]), area=torch.tensor([3.0]), masks=torch.ones(1, 9, 9).bool())
    expected = read(*tensors)
    for convert in (torch.Tensor.numpy, torch.Tensor.tolist):
        given = read(*({key: convert(values) for key, values in one.items()} for one in tensors))
        for side in ("detections", "truth"):
            for one, other in zip(getattr(given, side), getattr(expected, side), strict=True):
                np.testing.assert_array_equal(one, other)
    with pytest.raises(TypeError, match=r"^demo: detections\[0\]\['labels'\]: a list that holds no numbers"):
        read(found(labels=["cat", "dog"]))


def test_none_is_as_if_it_were_not_there_and_an_image_alone_has_no_objects():
    record = read(found(masks=None), truth(iscrowd=None, area=None, ignore=None))
    assert record.truth.areas.tolist() == [16]
    assert not record.truth.crowd.any()
    assert len(read(found(), {"image_id": 3}).truth.labels) == 0
    metrics = ProposalRecall()
    metrics.update([{"boxes": np.zeros((0, 4)), "scores": None}], [{"image_id": 3}])
    assert metrics.compute()["AR@100"] == -1
    with pytest.raises(ValueError, match=r"demo: detections\[0\] has no 'boxes'"):
        read({"image_id": 3})


@pytest.mark.parametrize(("near", "known"), [("score", "scores"), ("bbox", "boxes"), ("class", "labels")])
def test_a_key_close_to_a_known_one_is_refused(near, known):
    with pytest.raises(ValueError, match=rf"^demo: detections\[0\]: unknown key '{near}'; did you mean '{known}'\?"):
        read(found(**{near: torch.zeros(2)}))
    with pytest.raises(ValueError, match=r"^ProposalRecall.update: proposals\[0\]: unknown key"):
        ProposalRecall().update([found(**{near: torch.zeros(2)})], [truth()])


def test_keypoints_that_are_not_labeled_may_hold_anything():
    points = torch.tensor([[[1.0, 2, 2], [NAN, NAN, 0]]])
    truth = {"boxes": torch.tensor([[0.0, 0, 9, 9]]), "labels": torch.tensor([0]), "keypoints": points}
    result = {**truth, "scores": torch.ones(1), "keypoints": torch.tensor([[[1.0, 2, 1], [3, 4, 1]]])}
    record = read_images(Reader("f", 2, keypoints=2), [result], [truth], [(1, 0, 0)])[0]
    assert record.truth.keypoints.tolist() == [[[1, 2, 2], [0, 0, 0]]]


def test_boxes_and_masks_of_an_image_lie_on_one_canvas():
    def on(*size):
        return tv_tensors.BoundingBoxes([[1.0, 1, 5, 5]], format="XYXY", canvas_size=size)

    assert read(found(on(9, 9)), truth() | {"boxes": on(9, 9)}).size is None
    for detection, target, place in (
        (found(((1, 1, 5, 5),)) | {"boxes": on(18, 9)}, truth() | {"boxes": on(9, 9)}, r"detections\[0\]\['boxes'\]"),
        (found(((1, 1, 5, 5),), masks=torch.ones(1, 18, 9).int()), truth() | {"boxes": on(9, 9)}, r"\['masks'\]"),
    ):
        masks = {"masks": torch.ones(1, 9, 9).int()}
        with pytest.raises(ValueError, match=place + r" of height and width \(18, 9\) for an image of \(9, 9\)"):
            read({**masks, **detection}, {**masks, **target}, masks=True)
