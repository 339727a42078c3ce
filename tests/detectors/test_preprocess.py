"""Preprocess against torchvision's GeneralizedRCNNTransform, and against numbers worked out by hand."""

import warnings

import numpy as np
import pytest
import torch
from strategies import unhooked
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision import tv_tensors
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.transforms.v2 import functional as tv_functional

from detkit.detectors import IMAGENET_MEAN, IMAGENET_STD, Preprocess, resize_target
from detkit.structures import VOID, Detections, Images, Target

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def random_boxes(count: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    corners = torch.rand(2, count, 2, generator=generator) * torch.tensor([width, height])
    return torch.cat((corners.amin(0), corners.amax(0)), dim=1)


def random_batch(generator: torch.Generator, images: int = 3) -> tuple[list[Tensor], list[Target]]:
    sizes = torch.randint(20, 160, (images, 2), generator=generator).tolist()
    pictures = [torch.rand(3, *size, generator=generator) for size in sizes]
    targets = [
        Target(
            boxes=random_boxes(count, *size, generator),
            labels=torch.arange(count),
            masks=(torch.rand(count, *size, generator=generator) > 0.5).to(torch.uint8),
        )
        for count, size in zip((2, 1, 3), sizes, strict=False)
    ]
    return pictures, targets


def detections(boxes: list[list[float]], valid: list[bool]) -> Detections:
    count = len(boxes)
    return Detections(
        boxes=torch.tensor(boxes)[None],
        scores=torch.linspace(0.9, 0.5, count)[None],
        labels=torch.arange(count)[None],
        valid=torch.tensor(valid)[None],
    )


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("size", "max_size"), [(64, 100), (120, 128), (33, 1000)])
def test_images_boxes_and_masks_are_resized_as_torchvision_does(size, max_size, seed):
    pictures, targets = random_batch(torch.Generator().manual_seed(seed))
    peer = GeneralizedRCNNTransform(size, max_size, list(IMAGENET_MEAN), list(IMAGENET_STD))
    expected, wanted = peer([image.clone() for image in pictures], [dict(one) for one in targets])
    batch, padded = Preprocess(size, max_size=max_size, multiple_of=32)(pictures, targets)
    torch.testing.assert_close(batch.tensors, expected.tensors, rtol=1e-5, atol=1e-5)
    assert [tuple(row) for row in batch.sizes.tolist()] == expected.image_sizes
    assert batch.original_sizes.tolist() == [list(image.shape[1:]) for image in pictures]
    for i, target in enumerate(wanted):
        count = len(target["boxes"])
        height, width = expected.image_sizes[i]
        assert padded.valid[i].sum() == count
        torch.testing.assert_close(padded.boxes[i, :count], target["boxes"], rtol=1e-5, atol=1e-5)
        assert torch.equal(padded.masks[i, :count, :height, :width], target["masks"])


def test_an_exact_size_is_resized_as_torchvision_does(generator):
    pictures, targets = random_batch(generator)
    peer = GeneralizedRCNNTransform(
        64, 64, list(IMAGENET_MEAN), list(IMAGENET_STD), size_divisible=1, fixed_size=(96, 64)
    )
    expected, wanted = peer([image.clone() for image in pictures], [dict(one) for one in targets])
    batch, padded = Preprocess((64, 96))(pictures, targets)  # torchvision's fixed_size is (width, height)
    torch.testing.assert_close(batch.tensors, expected.tensors, rtol=1e-5, atol=1e-5)
    for i, target in enumerate(wanted):
        torch.testing.assert_close(padded.boxes[i, : len(target["boxes"])], target["boxes"], rtol=1e-5, atol=1e-5)


def test_the_shorter_side_gets_the_size_unless_the_longer_would_pass_max_size():
    preprocess = Preprocess(100, max_size=150)
    batch, _ = preprocess([torch.zeros(3, 50, 60), torch.zeros(3, 200, 400), torch.zeros(3, 400, 200)])
    assert batch.sizes.tolist() == [[100, 120], [75, 150], [150, 75]]
    assert batch.tensors.shape == (3, 3, 150, 150)


def test_an_image_thin_as_a_line_keeps_a_pixel():
    batch, _ = Preprocess(10, max_size=20)([torch.zeros(3, 1, 400)])
    assert batch.sizes.tolist() == [[1, 20]]


def test_without_a_size_pixels_are_only_normalized_and_padded_with_zeros():
    preprocess = Preprocess(None, mean=(0.5, 0.5, 0.5), std=(0.25, 0.5, 1.0), multiple_of=4)
    batch, _ = preprocess([torch.ones(3, 2, 3), torch.full((3, 1, 5), 255, dtype=torch.uint8)])
    assert batch.tensors.shape == (2, 3, 4, 8)
    assert batch.tensors[0, :, :2, :3].amin((1, 2)).tolist() == [2.0, 1.0, 0.5]
    assert batch.tensors[1, :, :1, :5].amax((1, 2)).tolist() == [2.0, 1.0, 0.5]
    assert not batch.tensors[0, :, 2:].any()
    assert not batch.tensors[0, :, :, 3:].any()
    assert batch.sizes.tolist() == batch.original_sizes.tolist() == [[2, 3], [1, 5]]


def test_results_go_back_to_the_pixels_of_an_image_whose_ratio_was_kept():
    preprocess = Preprocess(100, max_size=150, multiple_of=32)
    batch, _ = preprocess([torch.zeros(3, 200, 400)])  # 0.375 times: 75 x 150 in a frame of 96 x 160
    assert batch.tensors.shape == (1, 3, 96, 160)
    found = detections([[15.0, 7.5, 75, 37.5], [0, 0, 1, 1], [-3, 60, 160, 96]], [True, False, True])
    (result,) = preprocess.undo(found, batch)
    assert result["boxes"].tolist() == [[40, 20, 200, 100], [0, 160, 400, 200]]
    assert result["labels"].tolist() == [0, 2]
    assert result["scores"].tolist() == pytest.approx([0.9, 0.5])


def test_results_go_back_to_the_pixels_of_an_image_whose_ratio_was_given_up():
    preprocess = Preprocess((50, 200))
    batch, _ = preprocess([torch.zeros(3, 100, 100)])
    (result,) = preprocess.undo(detections([[10.0, 10, 20, 20], [0, 0, 200, 50]], [True, True]), batch)
    assert result["boxes"].tolist() == [[5, 20, 10, 40], [0, 0, 100, 100]]


def test_boxes_that_go_in_come_back(generator):
    preprocess = Preprocess(48, max_size=70)
    pictures, targets = random_batch(generator)
    batch, padded = preprocess(pictures, targets)
    scores = padded.valid.float()
    results = preprocess.undo(Detections(padded.boxes, scores, padded.labels, padded.valid), batch)
    for result, target in zip(results, targets, strict=True):
        torch.testing.assert_close(result["boxes"], target["boxes"], rtol=1e-5, atol=1e-4)
        assert result["labels"].tolist() == target["labels"].tolist()


def test_images_without_original_sizes_are_their_own_originals():
    images = Images(torch.zeros(1, 3, 20, 20), torch.tensor([[10, 20]]))
    (result,) = Preprocess(None).undo(detections([[0.0, 0, 30, 30]], [True]), images)
    assert result["boxes"].tolist() == [[0, 0, 20, 10]]


def test_resizing_a_target_keeps_what_has_no_pixels_and_scales_what_has():
    target = Target(
        boxes=torch.tensor([[1, 2, 3, 4]]),
        labels=torch.tensor([5]),
        keypoints=torch.tensor([[[1.0, 2.0, 2.0]]]),
        masks=torch.tensor([[[True, False], [False, True]]]),
        iscrowd=torch.tensor([0]),
        image_id=9,
    )
    resized = resize_target(target, (4, 6), (2, 2))
    assert resized["boxes"].tolist() == [[3, 4, 9, 8]]
    assert resized["keypoints"].tolist() == [[[3, 4, 2]]]
    assert resized["masks"].int().tolist() == [[[1, 1, 1, 0, 0, 0]] * 2 + [[0, 0, 0, 1, 1, 1]] * 2]
    assert resized["masks"].dtype == torch.bool
    assert (resized["labels"].tolist(), resized["iscrowd"].tolist(), resized["image_id"]) == ([5], [0], 9)
    assert target["boxes"].tolist() == [[1, 2, 3, 4]]


def test_a_target_without_objects_is_resized_too():
    empty = Target(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64))
    batch, padded = Preprocess((20, 20), **PLAIN)([torch.zeros(3, 5, 8)], [empty])
    assert batch.tensors.shape == (1, 3, 20, 20)
    assert not padded.valid.any()


def test_gray_images_work_with_one_mean():
    batch, _ = Preprocess((4, 4), mean=(0.5,), std=(0.5,))([torch.ones(1, 2, 2)])
    assert batch.tensors.unique().tolist() == [1.0]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
def test_whole_numbers_as_mean_and_deviation_are_as_good_as_others(dtype, generator):
    image = torch.rand(3, 9, 12, generator=generator)
    image = (255 * image).to(dtype) if dtype == torch.uint8 else image.to(dtype)
    whole = Preprocess((6, 8), mean=(0, 0, 0), std=(1, 1, 1))
    others = Preprocess((6, 8), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    for precision in (torch.float32, torch.float64):
        (found, _), (expected, _) = whole.to(precision)([image]), others.to(precision)([image])
        assert found.tensors.dtype == precision
        assert torch.equal(found.tensors, expected.tensors)
        assert found.tensors.mean() > 0.2


def test_the_state_dict_holds_no_constants():
    assert Preprocess(10).state_dict() == {}


# What is wrong with targets


SOLID, FLAT = [1.0, 2, 9, 8], [5.0, 5, 5, 9]


def with_boxes(*boxes: list[float]) -> Target:
    return Target(boxes=torch.tensor(boxes).reshape(-1, 4), labels=torch.arange(len(boxes)))


@pytest.mark.parametrize(
    "bad", [FLAT, [1.0, 5, 9, 5], [9.0, 1, 3, 8], [1.0, 9, 8, 3], [float("nan"), 0, 5, 5], [0.0, 0, 5, float("nan")]]
)
def test_a_degenerate_box_is_an_error_that_names_it_or_taken_out(bad):
    images, targets = [torch.zeros(3, 10, 10)] * 2, [with_boxes(SOLID), with_boxes(SOLID, bad, SOLID)]
    with pytest.raises(ValueError, match=r"^Preprocess: targets\[1\]: boxes\[1\].*; x2 > x1.*y2 > y1.*, 1"):
        Preprocess(None, **PLAIN)(images, targets)
    _, padded = Preprocess(None, degenerate="drop", **PLAIN)(images, targets)
    assert padded.valid.tolist() == [[True, False, False, False], [True, False, True, False]]
    assert padded.labels[1][padded.valid[1]].tolist() == [0, 2]


@pytest.mark.parametrize("letterbox", [False, True])
@pytest.mark.parametrize("bad", [[-4.0, 2, 0, 8], [1.0, -9, 9, -1], [20.0, 2, 24, 8], [1.0, 10, 9, 12]])
def test_a_box_outside_its_image_is_refused_or_taken_out_and_one_that_touches_it_stays(bad, letterbox):
    settings = {"size": (40, 40), "letterbox": letterbox, **PLAIN}
    images, targets = [torch.zeros(3, 10, 20)], [with_boxes([-4.0, 2, 0.5, 8], bad, [19.5, 9.5, 24, 12])]
    frame = r"\[0, 10, 40, 30\]" if letterbox else r"\[0, 0, 40, 40\]"
    with pytest.raises(ValueError, match=rf"^Preprocess: targets\[0\]: boxes\[1\].*inside the image {frame}.*, 1 are"):
        Preprocess(**settings)(images, targets)
    _, padded = Preprocess(degenerate="drop", **settings)(images, targets)
    assert padded.valid.tolist() == [[True, False, True, False]]


def test_without_a_degenerate_box_the_policies_agree():
    images, targets = [torch.zeros(3, 10, 10)] * 2, [with_boxes(SOLID), with_boxes()]
    for target in (targets, [with_boxes()] * 2):
        both = [Preprocess(7, degenerate=policy)(images, target)[1] for policy in ("raise", "drop")]
        for one, other in zip(*both, strict=True):
            assert one is other is None or torch.equal(one, other)


# Masks, keypoints and proposals


def with_parts(**parts: Tensor) -> Detections:
    """Two detections in each of two images, the second of the second not valid."""
    boxes = torch.tensor([[[2.0, 4, 12, 14], [0, 0, 20, 20]], [[1, 1, 9, 9], [0, 0, 5, 5]]])
    valid = torch.tensor([[True, True], [True, False]])
    return Detections(boxes, valid.float(), torch.zeros(2, 2, dtype=torch.int64), valid, **parts)


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 1.0, None])
def test_masks_come_back_as_torchvision_pastes_them_into_images_of_their_own_size(threshold, generator):
    masks = torch.rand(2, 2, 28, 28, generator=generator)
    preprocess = Preprocess((20, 20), mask_threshold=threshold, **PLAIN)
    batch, _ = preprocess([torch.zeros(3, 40, 30), torch.zeros(3, 10, 60)])
    found = preprocess.undo(with_parts(masks=masks), batch)
    for i, (result, size) in enumerate(zip(found, ((40, 30), (10, 60)), strict=True)):
        count = 2 - i
        expected = paste_masks_in_image(masks[i, :count, None], result["boxes"], size)[:, 0]
        assert result["masks"].shape == (count, *size)
        if threshold is None:
            torch.testing.assert_close(result["masks"], expected, rtol=0, atol=1e-5)
        else:
            assert result["masks"].dtype == torch.bool
            clear = (expected - threshold).abs() > 1e-5
            assert clear.float().mean() > 0.05
            assert torch.equal(result["masks"][clear], (expected >= threshold)[clear])


def test_keypoints_come_back_in_the_pixels_of_each_image():
    points = torch.tensor([4.0, 10, 2]).repeat(2, 2, 3, 1)
    preprocess = Preprocess((20, 20), **PLAIN)
    batch, _ = preprocess([torch.zeros(3, 40, 30), torch.zeros(3, 10, 60)])
    scores = torch.arange(12.0).reshape(2, 2, 3)
    first, second = preprocess.undo(with_parts(keypoints=points, keypoint_scores=scores), batch)
    assert first["keypoints"].tolist() == [[[6, 20, 2]] * 3] * 2
    assert second["keypoints"].tolist() == [[[12, 5, 2]] * 3]
    assert first["keypoints_scores"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert second["keypoints_scores"].tolist() == [[6, 7, 8]]
    plain = preprocess.undo(with_parts(), batch)
    assert all(sorted(one) == ["boxes", "labels", "scores"] for one in plain)


def test_no_detections_have_no_masks_but_their_size():
    preprocess = Preprocess((20, 20), **PLAIN)
    batch, _ = preprocess([torch.zeros(3, 40, 30), torch.zeros(3, 10, 60)])
    nothing = Detections(*(part[:, :0] for part in with_parts()[:4]), masks=torch.zeros(2, 0, 28, 28))
    assert [one["masks"].shape for one in preprocess.undo(nothing, batch)] == [(0, 40, 30), (0, 10, 60)]


def test_proposals_go_where_targets_go(generator):
    pictures, targets = random_batch(generator)
    preprocess = Preprocess(48, max_size=70)
    batch, padded = preprocess(pictures, targets)
    given = [{"boxes": one["boxes"], "scores": torch.linspace(1, 0.5, len(one["boxes"]))} for one in targets]
    found = preprocess.proposals(given, batch)
    counts = [len(one["boxes"]) for one in targets]
    assert found.valid.sum(1).tolist() == counts
    for i, count in enumerate(counts):
        torch.testing.assert_close(found.boxes[i, :count], padded.boxes[i, :count], rtol=1e-5, atol=1e-4)
        assert torch.equal(found.scores[i, :count], given[i]["scores"])
        assert not found.boxes[i, count:].any()


def test_each_image_needs_proposals_of_its_own():
    batch, _ = Preprocess(None)([torch.zeros(3, 9, 9)] * 2)
    with pytest.raises(ValueError, match=r"^Preprocess: 2 images.*1 proposals"):
        Preprocess(None).proposals([{"boxes": torch.zeros(0, 4), "scores": torch.zeros(0)}], batch)


@pytest.mark.parametrize(
    ("size", "settings", "message"),
    [
        (10, {"mask_threshold": 1.5}, r"mask_threshold=1.5 must lie in \[0, 1\]"),
        (0, {}, "size=0"),
        ((10, -1), {}, r"size\[1\]=-1"),
        (10, {"multiple_of": 0}, "multiple_of=0 must be at least 1"),
        (10, {"max_size": 9}, "max_size=9 needs an int size that it is not below; size=10"),
        ((10, 10), {"max_size": 20}, r"max_size=20 needs an int size"),
        (None, {"max_size": 20}, "max_size=20 needs an int size"),
    ],
)
def test_wrong_settings_are_named(size, settings, message):
    with pytest.raises(ValueError, match=rf"Preprocess: .*{message}"):
        Preprocess(size, **settings)


def test_another_policy_for_degenerate_boxes_is_refused():
    with pytest.raises(ValueError, match=r"^Preprocess: degenerate='skip'.*'drop'.*'raise'"):
        unhooked(Preprocess.__init__)(Preprocess.__new__(Preprocess), 10, degenerate="skip")


def test_whole_numbers_of_keypoints_are_resized_as_others():
    points = torch.tensor([[[10, 21, 2], [30, 33, 1]]])
    target: Target = {"boxes": torch.tensor([[5.0, 5, 40, 40]]), "labels": torch.tensor([0]), "keypoints": points}
    found = resize_target(target, (32, 96), (64, 64))["keypoints"]
    assert found.tolist() == [[[15.0, 10.5, 2.0], [45.0, 16.5, 1.0]]]


@pytest.mark.parametrize("nothing", [torch.zeros(0), torch.zeros(0, 0, 0), torch.zeros(0, 64, 64)])
def test_an_image_without_objects_may_say_so_in_any_shape(nothing):
    image, boxes = torch.rand(3, 64, 64), torch.tensor([[4.0, 4, 40, 40]])
    empty: Target = {"boxes": torch.zeros(0), "labels": torch.zeros(0, dtype=torch.int64)}
    full: Target = {"boxes": boxes, "labels": torch.tensor([0])}
    objects = full | {"masks": torch.ones(1, 64, 64), "keypoints": torch.ones(1, 2, 3)}
    _, padded = Preprocess((32, 32))([image, image], [empty | {"masks": nothing, "keypoints": torch.zeros(0)}, objects])
    assert padded is not None
    assert padded.masks.shape == (2, 1, 32, 32)
    assert padded.keypoints.shape == (2, 1, 2, 3)


# The table of fields


def test_all_that_was_found_comes_back_under_its_name(generator):
    parts = {
        "embeddings": torch.rand(2, 2, 5, generator=generator),
        "class_scores": torch.rand(2, 2, 3, generator=generator),
        "image_scores": torch.rand(2, 4, generator=generator),
        "matched": torch.zeros(2, 2, dtype=torch.int64),
    }
    preprocess = Preprocess((20, 20), **PLAIN)
    batch, _ = preprocess([torch.zeros(3, 40, 30), torch.zeros(3, 10, 60)])
    for i, found in enumerate(preprocess.undo(with_parts(**parts), batch)):
        count = 2 - i
        assert sorted(found) == ["boxes", "class_scores", "embeddings", "image_scores", "labels", "scores"]
        assert torch.equal(found["embeddings"], parts["embeddings"][i, :count])
        assert torch.equal(found["class_scores"], parts["class_scores"][i, :count])
        assert torch.equal(found["image_scores"], parts["image_scores"][i])


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool])
def test_a_segmentation_that_goes_in_comes_back(dtype):
    preprocess = Preprocess(20, multiple_of=16, **PLAIN)  # 20 x 40 and 20 x 20 in a frame of 32 x 48
    batch, _ = preprocess([torch.zeros(3, 10, 20), torch.zeros(3, 5, 5)])
    classes = torch.zeros(2, 32, 48, dtype=dtype)
    classes[0, :10, :20] = classes[1, :20, :8] = 1
    first, second = preprocess.undo(with_parts(segmentation=classes), batch)
    expected = torch.zeros(10, 20, dtype=dtype)
    expected[:5, :10] = 1
    assert torch.equal(first["segmentation"], expected)
    assert second["segmentation"].shape == (5, 5)
    assert second["segmentation"].sum(0).tolist() == [5, 5, 0, 0, 0]


def test_scores_of_a_coarse_segmentation_are_enlarged_to_the_frame_and_cut_to_the_image():
    preprocess = Preprocess(None, multiple_of=8, **PLAIN)
    batch, _ = preprocess([torch.zeros(3, 12, 20), torch.zeros(3, 16, 24)])
    scores = torch.rand(2, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    first, second = preprocess.undo(with_parts(segmentation=scores), batch)
    whole = F.interpolate(scores, size=(16, 24), mode="bilinear", align_corners=False)
    torch.testing.assert_close(first["segmentation"], whole[0, :, :12, :20])
    torch.testing.assert_close(second["segmentation"], whole[1])


def test_a_segmentation_is_resized_by_the_nearest_pixel_and_padded_to_the_frame():
    classes = torch.tensor([[1, 2], [3, 4]], dtype=torch.uint8)
    targets = [with_boxes([0, 0, 2, 2]) | {"segmentation": classes}, with_boxes(SOLID)]
    batch, padded = Preprocess(4, multiple_of=8, **PLAIN)([torch.zeros(3, 2, 2), torch.zeros(3, 4, 6)], targets)
    assert padded.segmentation.shape == (2, *batch.tensors.shape[-2:]) == (2, 8, 8)
    expected = torch.full((8, 8), VOID)
    expected[:4, :4] = classes.repeat_interleave(2, 0).repeat_interleave(2, 1)
    assert torch.equal(padded.segmentation[0], expected)
    assert (padded.segmentation[1] == VOID).all()


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int16, torch.int64, torch.float16, torch.float32])
@pytest.mark.parametrize("new", [(7, 90), (33, 11), (20, 30)])
def test_masks_of_every_type_are_resized_alike(dtype, new, generator):
    masks = torch.rand(3, 20, 30, generator=generator) > 0.5
    found = resize_target(with_boxes(SOLID, SOLID, SOLID) | {"masks": masks.to(dtype)}, new, (20, 30))["masks"]
    assert found.dtype == dtype
    assert torch.equal(found.bool(), F.interpolate(masks[:, None].float(), size=new, mode="nearest")[:, 0].bool())


def test_an_empty_segmentation_is_not_read_as_class_0():
    target = with_boxes(SOLID) | {"segmentation": torch.zeros(0, 8)}
    with pytest.raises(ValueError, match=r"^Preprocess: targets\[0\]: segmentation of height and width \(0, 8\)"):
        Preprocess((5, 5), **PLAIN)([torch.zeros(3, 10, 8)], [target])


@pytest.mark.parametrize(("key", "values"), [("masks", torch.ones(1, 8, 10)), ("segmentation", torch.ones(8, 10))])
@pytest.mark.parametrize("size", [None, (5, 5)])
def test_masks_of_another_size_than_the_image_are_refused_with_both(key, values, size):
    images, targets = [torch.zeros(3, 10, 8)] * 2, [with_boxes(SOLID), with_boxes(SOLID) | {key: values}]
    with pytest.raises(
        ValueError, match=rf"^Preprocess: targets\[1\]: {key} of height and width \(8, 10\) for an image of \(10, 8\)"
    ):
        Preprocess(size, **PLAIN)(images, targets)


def test_what_does_not_move_with_the_pixels_stays_as_it_is():
    own = {"file_name": "a.png", "image_id": 3, "track": [1, 2]}
    extra = {"identities": torch.tensor([4, 5]), "label_sets": torch.eye(2), "area": torch.tensor([1.0, 2])}
    resized = resize_target(
        with_boxes(SOLID, SOLID) | own | extra | {"image_labels": torch.tensor([1, 0])}, (5, 5), (9, 9)
    )
    assert {key: resized[key] for key in own} == own
    for key, values in extra.items():
        assert torch.equal(resized[key], values)
    assert resized["image_labels"].tolist() == [1, 0]


def test_formats_and_arrays_are_taken_in_whole_batches():
    image = torch.zeros(3, 10, 10)
    given = tv_tensors.BoundingBoxes([[2.0, 2, 4, 6]], format="XYWH", canvas_size=(10, 10))
    targets = [{"boxes": given, "labels": [1]}, {"boxes": np.array([[2, 2, 6, 8]]), "labels": np.array([1])}]
    _, padded = Preprocess((20, 20), **PLAIN)([image, image], targets)
    assert padded.boxes.tolist() == [[[4, 4, 12, 16]]] * 2


def test_targets_by_name_are_prepared_each_for_itself():
    images = [torch.zeros(3, 10, 10), torch.zeros(3, 20, 10)]
    ones, others = [with_boxes(SOLID), with_boxes()], [with_boxes(SOLID, SOLID, SOLID), with_boxes(SOLID)]
    preprocess = Preprocess((20, 20), **PLAIN)
    _, padded = preprocess(images, [{"a": one, "b": other} for one, other in zip(ones, others, strict=True)])
    assert list(padded) == ["a", "b"]
    for name, alone in (("a", ones), ("b", others)):
        for found, expected in zip(padded[name], preprocess(images, alone)[1], strict=True):
            assert found is expected is None or torch.equal(found, expected)
    with pytest.raises(ValueError, match=r"^Preprocess: targets\[1\].*names \['a'\].*\['a', 'b'\]"):
        preprocess(images, [{"a": ones[0], "b": others[0]}, {"a": ones[1]}])


def test_detections_by_name_come_back_by_name():
    preprocess = Preprocess((20, 20), **PLAIN)
    batch, _ = preprocess([torch.zeros(3, 40, 30), torch.zeros(3, 10, 60)])
    parts = {"a": with_parts(), "b": with_parts(embeddings=torch.rand(2, 2, 3))}
    found = preprocess.undo(parts, batch)
    for name, part in parts.items():
        for one, alone in zip(found, preprocess.undo(part, batch), strict=True):
            assert one[name].keys() == alone.keys()
            assert all(torch.equal(one[name][key], alone[key]) for key in alone)


class Largest(TorchDispatchMode):
    """Remembers the bytes of the largest tensor that any operation made."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor):
            self.bytes = max(self.bytes, made.nbytes)
        return made


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.int64])
@pytest.mark.parametrize("size", [None, 70, 90])
def test_many_masks_are_never_held_in_a_larger_type(size, dtype):
    target = with_boxes(*[SOLID] * 64) | {"masks": torch.ones(64, 80, 80, dtype=dtype)}
    with Largest() as largest:
        _, padded = Preprocess(size, **PLAIN)([torch.zeros(3, 80, 80)], [target])
    assert largest.bytes <= max(target["masks"].nbytes, padded.masks.nbytes)


WHITE = {torch.uint8: 255, torch.uint16: 65535, torch.bool: 1, torch.float16: 1, torch.float32: 1, torch.float64: 1}


@pytest.mark.parametrize(("dtype", "white"), WHITE.items(), ids=str)
def test_white_is_white_in_every_type_of_pixels(dtype, white):
    image = torch.full((3, 4, 4), white, dtype=torch.int32).to(dtype)
    batch, _ = Preprocess(None, mean=(0.0, 0.5, 0.5), std=(1.0, 0.5, 0.25))([image])
    assert batch.tensors.amax((0, 2, 3)).tolist() == [1, 1, 2]


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.int64])
def test_types_that_do_not_say_what_white_is_are_refused(dtype):
    with pytest.raises(ValueError, match=rf"^Preprocess: images\[0\] has type {dtype}; .*uint8, uint16 and bool"):
        Preprocess(None)([torch.ones(3, 4, 4).to(dtype)])


@pytest.mark.parametrize("value", [200.0, torch.nan, -torch.inf])
def test_floats_far_outside_of_zero_to_one_are_refused_by_image_and_range(value):
    images = [torch.ones(3, 9, 9), torch.full((3, 9, 9), value)]
    with pytest.raises(ValueError, match=rf"^Preprocess: images\[1\] has pixels from {value:g} to.*\[0, 1\].*255"):
        unhooked(Preprocess(None))(images)


def test_pixels_in_units_of_their_own_are_taken_with_a_mean_of_theirs():
    batch, _ = Preprocess(None, mean=(100.0,) * 3, std=(50.0,) * 3)([torch.full((3, 4, 4), 200.0)])
    assert batch.tensors.unique().tolist() == [2]


def test_proposals_on_another_canvas_than_the_image_are_refused():
    preprocess = Preprocess((64, 64), **PLAIN)
    batch, _ = preprocess([torch.zeros(3, 32, 48)])

    def on(size):
        boxes = tv_tensors.BoundingBoxes([[0.0, 1, 2, 3]], format="XYXY", canvas_size=size)
        return [{"boxes": boxes, "scores": torch.ones(1)}]

    assert preprocess.proposals(on((32, 48)), batch).valid.tolist() == [[True]]
    with pytest.raises(ValueError, match=r"^Preprocess: proposals\[0\]: boxes of height and width \(64, 64\)"):
        preprocess.proposals(on((64, 64)), batch)


def test_boxes_on_another_canvas_than_the_image_are_refused():
    make = tv_tensors.BoundingBoxes
    target = {"boxes": make([[1.0, 1, 5, 7]], format="XYXY", canvas_size=(80, 90)), "labels": torch.tensor([0])}
    with pytest.raises(ValueError, match=r"^Preprocess: targets\[0\]: boxes of height and width \(80, 90\).*\(8, 8\)"):
        Preprocess(None)([torch.zeros(3, 8, 8)], [target])


@pytest.mark.parametrize("form", ["XYWH", "CXCYWH"])
def test_boxes_of_another_format_are_converted(form):
    boxes = tv_tensors.BoundingBoxes([[1.0, 1, 5, 7]], format="XYXY", canvas_size=(8, 8))
    boxes = tv_functional.convert_bounding_box_format(boxes, new_format=form)
    _, targets = Preprocess(None)([torch.zeros(3, 8, 8)], [{"boxes": boxes, "labels": torch.tensor([0])}])
    assert targets.boxes.tolist() == [[[1, 1, 5, 7]]]


def test_boxes_in_fractions_are_warned_of_and_true_tiny_ones_are_not():
    image, boxes = torch.zeros(3, 32, 32), torch.tensor([[0.1, 0.2, 0.5, 0.6]])

    def target(rows):
        return {"boxes": rows, "labels": torch.zeros(len(rows), dtype=torch.int64)}

    with pytest.warns(UserWarning, match=r"all 2 boxes of the batch lie in 0\.\.1; .* multiply them by its \(width"):
        Preprocess(None)([image, image], [target(boxes), target(boxes)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Preprocess(None)([image, image], [target(boxes), target(boxes + 1)])
        Preprocess(None)([image[:, :16, :16]], [target(boxes)])
        Preprocess(None)([image], [target(boxes[:0])])
