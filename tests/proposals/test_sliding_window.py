"""Windows are where the formula says, and one convolutional pass says of each what its crop alone would."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import unhooked
from torch import nn

from detkit.proposals.sliding_window import CROPS_AT_ONCE, SlidingWindow, crop_windows, scan_windows, sliding_windows

SIZE, STRIDE = (12, 8), 4


def valid_network(classes: int = 4, seed: int = 0) -> nn.Sequential:
    """Unpadded convolutions with a stride of 4 in all, for which a window of SIZE is one cell."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, stride=2),
        nn.ReLU(),
        nn.Conv2d(8, classes, (2, 1)),
    ).eval()


class Brightness(nn.Module):
    """Two classes, bright and dark, and a background between: fully convolutional for windows of 8 x 8, stride 4."""

    def forward(self, crops):
        mean = nn.functional.avg_pool2d(crops.mean(1, keepdim=True), 8, stride=4)
        return 20 * torch.cat((mean - 0.5, -mean - 0.5, torch.full_like(mean, 0.1)), dim=1)


def gray_scene(height: int = 40, width: int = 56) -> torch.Tensor:
    """One white and one black square of 8 pixels on gray."""
    image = torch.zeros(3, height, width)
    image[:, 8:16, 12:20] = 1
    image[:, 24:32, 40:48] = -1
    return image


@given(
    sides=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    size=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    stride=st.tuples(st.integers(1, 9), st.integers(1, 9)),
)
def test_the_windows_are_those_of_two_loops(sides, size, stride):
    (height, width), (high, wide) = sides, size
    slow = [
        [x, y, x + wide, y + high]
        for y in range(0, height - high + 1, stride[0])
        for x in range(0, width - wide + 1, stride[1])
    ]
    boxes = sliding_windows(height, width, size=size, stride=stride)
    assert boxes.tolist() == slow
    down, right = ((side - k) // s + 1 if side >= k else 0 for side, k, s in zip(sides, size, stride, strict=True))
    assert len(boxes) == down * right


def test_an_aspect_ratio_keeps_the_area_and_is_width_by_height():
    boxes = sliding_windows(100, 100, size=20, stride=50, aspect_ratios=(1.0, 4.0, 0.25))
    shapes = (boxes[:, 2:] - boxes[:, :2]).unique(dim=0).tolist()
    assert shapes == [[10, 40], [20, 20], [40, 10]]
    assert len(boxes) == 4 + 4 + 4


def test_the_last_window_may_end_at_the_border_but_never_beyond():
    assert sliding_windows(10, 10, size=10, stride=3).tolist() == [[0, 0, 10, 10]]
    assert sliding_windows(9, 10, size=10, stride=3).shape == (0, 4)


@pytest.mark.parametrize(("height", "width"), [(12, 8), (15, 11), (16, 12), (47, 61), (64, 38)])
def test_one_convolutional_pass_equals_the_crops(height, width):
    network = valid_network()
    image = torch.rand(3, height, width, generator=torch.Generator().manual_seed(height))
    with torch.no_grad():
        boxes, logits = scan_windows(network, image, size=SIZE, stride=STRIDE)
        alone = crop_windows(network, image, boxes, size=SIZE)
    assert boxes.tolist() == sliding_windows(height, width, size=SIZE, stride=STRIDE).tolist()
    assert len(boxes) == ((height - 12) // 4 + 1) * ((width - 8) // 4 + 1)
    torch.testing.assert_close(logits, alone, atol=1e-5, rtol=0)
    assert len(boxes) == 1 or logits.std(dim=0).min() > 1e-3, "windows must differ, or the order is not seen"


def test_an_image_smaller_than_the_window_has_no_windows_in_either_way():
    network, image = valid_network(), torch.rand(3, 11, 30)
    boxes, logits = scan_windows(network, image, size=SIZE, stride=STRIDE)
    assert boxes.shape == (0, 4)
    assert logits.shape == crop_windows(network, image, boxes, size=SIZE).shape == (0, 4)


def test_crops_are_cut_in_batches_that_change_nothing():
    image = torch.rand(3, 40, 40)
    boxes = sliding_windows(40, 40, size=SIZE, stride=1)
    assert len(boxes) > 3 * CROPS_AT_ONCE
    network = valid_network()
    with torch.no_grad():
        together = crop_windows(network, image, boxes, size=SIZE)
        apart = torch.cat([crop_windows(network, image, box[None], size=SIZE) for box in boxes[250:260]])
    assert together.shape == (len(boxes), 4)
    torch.testing.assert_close(together[250:260], apart, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("network", "stride"),
    [(nn.Conv2d(3, 2, 5, padding=2), 1), (nn.Conv2d(3, 2, 5, stride=2), 1), (nn.AdaptiveAvgPool2d(1), 1)],
    ids=["padded", "another stride", "global pooling"],
)
def test_a_network_that_does_not_see_windows_is_refused(network, stride):
    with pytest.raises(ValueError, match=r"scan_windows: network gave .* allowed is \(1, C, 8, 10\)"):
        scan_windows(network, torch.zeros(3, 12, 14), size=5, stride=stride)


@pytest.mark.parametrize("scores_by", ["crops", "scan"])
def test_each_object_is_found_once_with_its_class(scores_by):
    detector = SlidingWindow(Brightness(), size=8, stride=4, score_threshold=0.5, iou_threshold=0.1)
    (found,) = detector([gray_scene()], scores_by=scores_by)
    order = found["labels"].argsort()
    assert found["boxes"][order].tolist() == [[12, 8, 20, 16], [40, 24, 48, 32]]
    assert found["labels"][order].tolist() == [0, 1]
    torch.testing.assert_close(found["scores"], torch.full((2,), 1 / (1 + 2.718281828**-8)), atol=1e-3, rtol=0)


def test_images_of_different_sizes_and_without_objects_pass():
    detector = SlidingWindow(Brightness(), size=8, stride=4)
    found = detector([torch.zeros(3, 20, 30), gray_scene(), torch.zeros(3, 4, 4)])
    assert [len(image["boxes"]) for image in found] == [0, 2, 0]
    assert found[2]["boxes"].shape == (0, 4)
    assert found[2]["labels"].dtype == torch.int64


def test_a_larger_scale_finds_a_larger_object_in_both_ways():
    image = torch.zeros(3, 64, 96)
    image[:, 16:32, 32:48] = 1
    small = SlidingWindow(Brightness(), size=8, stride=4, scales=(2.0,), score_threshold=0.9)
    for scores_by in ("crops", "scan"):
        (found,) = small([image], scores_by=scores_by)
        assert found["boxes"].tolist() == [[32, 16, 48, 32]]


def test_a_wide_window_finds_a_wide_object_in_both_ways():
    image = torch.zeros(3, 32, 64)
    image[:, 8:12, 16:32] = 1
    wide = SlidingWindow(Brightness(), size=8, stride=4, aspect_ratios=(4.0,), score_threshold=0.9)
    assert wide([image])[0]["boxes"].tolist() == [[16, 8, 32, 12]]
    # The scan steps by 4 of its own pixels: 8 across and 2 down in the image.
    assert wide([image], scores_by="scan")[0]["boxes"].tolist() == [[16, 8, 32, 12]]


def test_overlapping_windows_of_an_object_are_suppressed_and_counted():
    image = gray_scene()
    loose = SlidingWindow(Brightness(), size=8, stride=1, score_threshold=0.5, iou_threshold=1.0)
    strict = SlidingWindow(Brightness(), size=8, stride=1, score_threshold=0.5, iou_threshold=0.2, max_detections=1)
    assert len(loose([image])[0]["boxes"]) > 10
    assert strict([image])[0]["boxes"].shape == (1, 4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 0, "stride": 1}, r"size=0 must be at least 1"),
        ({"size": 4, "stride": (1, 0)}, r"stride\[1\]=0"),
        ({"size": (4, -4), "stride": 1}, r"size\[1\]=-4"),
        ({"size": 4, "stride": 1, "aspect_ratios": (1.0, -1.0)}, r"aspect_ratios\[1\]=-1.0"),
        ({"size": 4, "stride": 1, "aspect_ratios": ()}, r"aspect_ratios=\(\)"),
        ({"size": 4, "stride": 1, "aspect_ratios": (float("nan"),)}, r"aspect_ratios\[0\]=nan"),
    ],
)
def test_a_wrong_setting_is_named(settings, message):
    with pytest.raises(ValueError, match=message):
        sliding_windows(20, 20, **settings)
    with pytest.raises(ValueError, match=message):
        SlidingWindow(Brightness(), **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scales": (0.0,)}, "scales"),
        ({"score_threshold": 1.5}, "score_threshold=1.5"),
        ({"iou_threshold": float("nan")}, "iou_threshold=nan"),
        ({"max_detections": 0}, "max_detections=0"),
    ],
)
def test_a_wrong_detector_setting_is_named(settings, message):
    with pytest.raises(ValueError, match=f"SlidingWindow: {message}"):
        SlidingWindow(Brightness(), size=8, stride=4, **settings)


@pytest.mark.parametrize("box", [[0.5, 0, 4, 4], [0, 0, 9, 4], [-1, 0, 4, 4], [4, 0, 4, 4], [0, 0, float("nan"), 4]])
def test_a_box_that_cannot_be_cut_out_is_named(box):
    boxes = torch.tensor([[0.0, 0, 4, 4], box])
    with pytest.raises(ValueError, match=r"crop_windows: boxes\[1\]=.*inside the image of 6 x 8"):
        crop_windows(nn.AdaptiveAvgPool2d(1), torch.zeros(3, 6, 8), boxes, size=4)


def test_boxes_of_any_shape_are_resized_to_what_the_classifier_sees():
    image = torch.zeros(3, 20, 20)
    image[:, :, 10:] = 1
    logits = crop_windows(Brightness(), image, torch.tensor([[0.0, 0, 10, 20], [10, 3, 20, 7]]), size=8)
    torch.testing.assert_close(logits[:, 0], torch.tensor([-10.0, 10.0]))


def test_a_classifier_without_a_background_is_refused():
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 1))
    with pytest.raises(ValueError, match="gives 1 logits for a window; allowed are C \\+ 1, at least 2"):
        SlidingWindow(flat, size=8, stride=4)([gray_scene()])


def test_results_hold_no_graph_so_that_batches_of_crops_bound_the_memory():
    torch.manual_seed(0)
    trained = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 3))
    (found,) = SlidingWindow(trained, size=8, stride=4, score_threshold=0.1)([gray_scene()])
    assert len(found["scores"]) > 0
    assert not found["scores"].requires_grad


def test_no_boxes_may_come_as_an_empty_list():
    assert unhooked(crop_windows)(nn.AdaptiveAvgPool2d(1), gray_scene(), torch.tensor([]), size=8).shape == (0, 3)
