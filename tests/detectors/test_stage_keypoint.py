"""KeypointStage: learns on positives, places keypoints as torchvision's functions do; and what every stage promises."""

import pytest
import torch
from region_stages import IMAGES, SIZES, features, learned, positives
from strategies import unhooked
from torch import Tensor
from torchvision.models.detection.roi_heads import heatmaps_to_keypoints, keypointrcnn_loss

from detkit.boxes import PyramidRoIAlign
from detkit.detectors import keypoint as module
from detkit.detectors.keypoint import KeypointOutputs, KeypointStage, decode_heatmaps
from detkit.heads.keypoint import KeypointHead
from detkit.structures import Detections, Images, Targets, pad_targets

POINTS = 5


def stage(**settings) -> KeypointStage:
    torch.manual_seed(0)
    return KeypointStage(PyramidRoIAlign(4, strides=(4, 8)), KeypointHead(6, POINTS, channels=(8,)), **settings)


def truth(**more: Tensor) -> Targets:
    """Two objects in the first image, one in the second; some keypoints are not visible, some outside."""
    generator = torch.Generator().manual_seed(2)
    targets = []
    for i, boxes in enumerate(([[4, 5, 40, 60], [30, 8, 96, 50]], [[5, 5, 70, 50]])):
        keypoints = torch.rand(len(boxes), POINTS, 3, generator=generator) * torch.tensor([90.0, 60, 3])
        keypoints[..., 2] = keypoints[..., 2].floor()
        own = {name: values[i] for name, values in more.items()}
        labels = torch.zeros(len(boxes), dtype=torch.int64)
        targets.append({"boxes": torch.tensor(boxes).float(), "labels": labels, "keypoints": keypoints, **own})
    return pad_targets(targets)


# Decoding


def heatmaps(count: int, cells: int = 8, *, points: int = 3, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(count + cells)
    return torch.randn(count, points, cells, cells, generator=generator).to(dtype)


HOSTILE = torch.tensor(
    [
        [-9.5, -7.25, 12, 15],  # reaches out of the image
        [5.2, 5.3, 5.6, 5.4],  # less than a pixel
        [8.0, 8, 8, 8],  # no size
        [0.0, 0, 32, 24],  # whole pixels
        [0.0, 0, 3.0001, 99],
        [30.0, 20, 10, 40],  # inverted
        [1000.3, 2000.7, 1234.5, 2099.1],
    ]
)


@pytest.mark.parametrize("cells", [1, 8, 56])
def test_places_and_scores_are_exactly_torchvisions(cells):
    logits = heatmaps(len(HOSTILE), cells)
    points, scores = decode_heatmaps(logits, HOSTILE)
    expected_points, expected_scores = heatmaps_to_keypoints(logits, HOSTILE)
    assert torch.equal(points, expected_points)
    assert torch.equal(scores, expected_scores)


def test_of_equal_maxima_the_first_counts_as_in_torchvision():
    logits, boxes = torch.zeros(2, 2, 8, 8), torch.tensor([[0.0, 0, 8, 8], [3, 3, 20, 9]])
    logits[:, 1, 2:5, 3:6] = 1
    assert torch.equal(decode_heatmaps(logits, boxes)[0], heatmaps_to_keypoints(logits, boxes)[0])
    assert decode_heatmaps(logits, boxes)[0][0, 0].tolist() == [0.5, 0.5, 1]


def test_rows_that_are_not_valid_or_not_finite_hold_zeros_and_leave_the_others_alone():
    logits, boxes = heatmaps(4), HOSTILE[[0, 3, 4, 6]].clone()
    expected = decode_heatmaps(logits, boxes)
    boxes[1, 2], boxes[3, 0] = torch.inf, torch.nan
    found = decode_heatmaps(logits, boxes, torch.tensor([True, True, False, True]))
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one[0], other[0])
        assert not one[1:].any()


def test_a_box_of_any_length_is_read_in_bounded_memory():
    logits = torch.zeros(1, 1, 4, 4)
    logits[0, 0, 1, 2] = 5
    points, _ = decode_heatmaps(logits, torch.tensor([[0.0, 0, 40_000_000, 400]]))
    torch.testing.assert_close(points[0, 0], torch.tensor([25_000_000, 150, 1.0]), rtol=1e-3, atol=0.6)


def test_heatmaps_enlarged_in_parts_are_the_same(monkeypatch):
    expected = decode_heatmaps(heatmaps(7, points=5), HOSTILE)
    monkeypatch.setattr(module, "_MOST_CELLS", 2000)
    for one, other in zip(decode_heatmaps(heatmaps(7, points=5), HOSTILE), expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_half_precision_is_promoted_and_double_kept(dtype):
    logits = heatmaps(7, dtype=dtype)
    points, scores = decode_heatmaps(logits, HOSTILE)
    assert points.dtype == scores.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    expected = heatmaps_to_keypoints(logits.to(points.dtype), HOSTILE)
    torch.testing.assert_close(points.float(), expected[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(scores.float(), expected[1], rtol=1e-6, atol=1e-6)


def test_no_boxes_and_no_keypoints_give_none():
    assert [part.shape for part in decode_heatmaps(heatmaps(0), torch.zeros(0, 4))] == [(0, 3, 3), (0, 3)]
    assert decode_heatmaps(torch.zeros(2, 0, 4, 4), HOSTILE[:2])[0].shape == (2, 0, 3)


def test_shapes_that_disagree_are_refused():
    with pytest.raises(ValueError, match=r"^decode_heatmaps: logits \(2, 3, 8, 8\), boxes \(7, 4\), valid \(7,\)"):
        unhooked(decode_heatmaps)(heatmaps(2), HOSTILE)


# The stage


def test_its_loss_is_torchvisions_over_the_positives():
    keypoint, found, targets = stage(), positives(), truth()
    loss, gradients = learned(keypoint, found, targets)
    kept = [found.boxes[i][found.valid[i]] for i in range(2)]
    matched = [found.matched[i][found.valid[i]] for i in range(2)]
    rows = found.valid.flatten().nonzero().squeeze(1)
    keypoint.zero_grad()
    logits = keypoint.head(keypoint.pool(features(), found.boxes, rows))
    expected = keypointrcnn_loss(logits, kept, list(targets.keypoints), matched)
    expected.backward()
    assert loss > 0
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    for gradient, parameter in zip(gradients, keypoint.parameters(), strict=False):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-4, atol=1e-6)


def test_it_adds_torchvisions_keypoints_and_keeps_the_rest():
    keypoint = stage()
    found = positives()._replace(matched=None, masks=torch.rand(2, 4, 6, 6))
    placed = keypoint.detections(keypoint(features(), IMAGES, found), IMAGES)
    rows = found.valid.flatten().nonzero().squeeze(1)
    logits = keypoint.head(keypoint.pool(features(), found.boxes, rows))
    points, scores = heatmaps_to_keypoints(logits, found.boxes.flatten(0, 1)[rows])
    torch.testing.assert_close(placed.keypoints[found.valid], points, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(placed.keypoint_scores[found.valid], scores, rtol=1e-6, atol=1e-6)
    assert placed.keypoints.shape == (2, 4, POINTS, 3)
    assert not placed.keypoints[~found.valid].any()
    assert not placed.keypoint_scores[~found.valid].any()
    assert placed._replace(keypoints=None, keypoint_scores=None) == found


def test_without_positives_the_loss_is_0_and_everything_has_a_gradient_of_zeros():
    blind = truth()
    blind.keypoints[..., 2] = 0
    none = truth()._replace(valid=torch.zeros(2, 2, dtype=torch.bool), keypoints=None)
    for found, targets in ((positives(valid=(0, 0)), truth()), (positives(valid=(0, 0)), none), (positives(), blind)):
        loss, gradients = learned(stage(), found, targets)
        assert loss == 0
        for gradient in gradients:
            assert gradient is not None
            assert not gradient.any()


def test_rows_of_padding_teach_nothing_whatever_they_hold():
    targets = truth()
    expected, gradients = learned(stage(), positives(rows=3), targets)
    for boxes in (0.0, 40.0, torch.nan, torch.inf):
        found = positives()
        found = found._replace(boxes=torch.where(found.valid[..., None], found.boxes, boxes))
        loss, same = learned(stage(), found, targets)
        torch.testing.assert_close(loss, expected)
        for one, other in zip(same, gradients, strict=True):
            torch.testing.assert_close(one, other)


def test_logits_of_padding_that_are_not_finite_change_nothing():
    keypoint, found, targets = stage(), positives(), truth()
    outputs = keypoint(features(), IMAGES, found, targets)
    logits = torch.where(found.valid[..., None, None, None], outputs.logits, torch.nan).detach().requires_grad_()
    loss = keypoint.loss(KeypointOutputs(logits, found), targets)["keypoint"]
    loss.backward()
    torch.testing.assert_close(loss, keypoint.loss(outputs, targets)["keypoint"])
    assert torch.isfinite(logits.grad).all()


def test_an_image_alone_places_what_it_does_in_a_batch():
    keypoint, found = stage(), positives()
    together = keypoint.detections(keypoint(features(), IMAGES, found), IMAGES)
    for i in range(2):
        one = Detections(*(None if rows is None else rows[i : i + 1] for rows in found))
        maps, images = [level[i : i + 1] for level in features()], Images(IMAGES.tensors[i : i + 1], SIZES[i : i + 1])
        alone = keypoint.detections(keypoint(maps, images, one), images)
        torch.testing.assert_close(alone.keypoints, together.keypoints[i : i + 1], rtol=1e-5, atol=1e-5)


def test_the_loss_is_a_mean_by_weight_and_a_sum_where_all_weigh_less_than_1_together():
    def loss(*weights: float, weight: float = 1.0) -> Tensor:
        values = torch.tensor(weights)
        return learned(stage(weight=weight), positives(), truth(weights=[values[:2], values[2:]]))[0]

    assert loss(0, 0, 0) == 0
    parts = [loss(0.01, 0, 0), loss(0, 0.01, 0), loss(0, 0, 0.01)]
    assert all(part > 0 for part in parts)
    torch.testing.assert_close(loss(0.02, 0.05, 0.03), 2 * parts[0] + 5 * parts[1] + 3 * parts[2])
    torch.testing.assert_close(loss(200, 500, 300), loss(2, 5, 3))
    torch.testing.assert_close(loss(1, 1, 1), learned(stage(), positives(), truth())[0])
    torch.testing.assert_close(loss(1, 1, 1, weight=2.5), 2.5 * loss(1, 1, 1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_heads_are_promoted(dtype):
    keypoint, found, targets = stage(), positives(), truth()
    expected = keypoint.loss(keypoint(features(), IMAGES, found, targets), targets)["keypoint"]
    with torch.autocast("cpu", dtype=dtype):
        outputs = keypoint(features(), IMAGES, found, targets)
        loss = keypoint.loss(outputs, targets)["keypoint"]
        placed = keypoint.detections(outputs, IMAGES)
    loss.backward()
    assert outputs.logits.dtype == loss.dtype == placed.keypoint_scores.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=2e-2, atol=2e-2)
    assert all(torch.isfinite(parameter.grad).all() for parameter in keypoint.parameters())


def test_no_rows_are_as_good_as_any():
    keypoint = stage()
    none = Detections(*(rows[:, :0] for rows in positives()[:4]))
    placed = keypoint.detections(keypoint(features(), IMAGES, none), IMAGES)
    assert placed.keypoints.shape == (2, 0, POINTS, 3)
    assert placed.keypoint_scores.shape == (2, 0, POINTS)
    loss, gradients = learned(keypoint, none._replace(matched=torch.zeros(2, 0, dtype=torch.int64)), truth())
    assert loss == 0
    assert all(gradient is not None for gradient in gradients)


def test_what_is_missing_is_named():
    keypoint, found, targets = stage(), positives(), truth()
    with pytest.raises(ValueError, match="KeypointStage: got no boxes; put a stage that finds them before it"):
        keypoint(features(), IMAGES, None)
    with pytest.raises(ValueError, match="KeypointStage: the boxes to learn on have no matched"):
        keypoint(features(), IMAGES, found._replace(matched=None), targets)
    outputs = keypoint(features(), IMAGES, found, targets)
    with pytest.raises(ValueError, match="KeypointStage: targets have no keypoints; give every target with objects"):
        keypoint.loss(outputs, targets._replace(keypoints=None))
    with pytest.raises(ValueError, match="KeypointStage: targets have 4 keypoints; the head draws 5"):
        keypoint.loss(outputs, targets._replace(keypoints=targets.keypoints[:, :, :4]))


def test_it_prints_its_parts():
    text = repr(stage(weight=2.0))
    assert all(part in text for part in ("KeypointStage", "weight=2.0", "PyramidRoIAlign", "KeypointHead"))
