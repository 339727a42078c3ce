"""The keypoint loss and its targets: torchvision's, for a whole padded batch at once."""

import math

import pytest
import torch
from strategies import assert_refused
from torch import Tensor
from torchvision.models.detection.roi_heads import keypointrcnn_loss, keypoints_to_heatmap

from detkit.losses.keypoint import keypoint_loss, keypoint_targets

HOSTILE = torch.tensor(
    [
        [-9.0, -7, 12, 15],  # reaches out at the top left
        [20.0, 10, 47, 39],  # and at the bottom right
        [5.2, 5.3, 5.6, 5.4],  # less than a pixel
        [8.0, 8, 8, 8],  # no size
        [8.0, 2, 8, 20],  # no width
        [-50.0, -50, -40, -40],  # outside
    ]
)


def scene(images: int, count: int, *, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Keypoints (B, 3, 5, 3), boxes with hostile ones (B, K, 4), and matches."""
    generator = torch.Generator().manual_seed(seed)
    keypoints = torch.rand(images, 3, 5, 3, generator=generator) * torch.tensor([36.0, 28, 3])
    keypoints[..., 2] = keypoints[..., 2].floor()
    corners = torch.rand(2, images, count, 2, generator=generator) * torch.tensor([32.0, 24])
    boxes = torch.cat((corners.amin(0), corners.amax(0)), dim=-1)
    boxes = torch.cat((boxes, HOSTILE[: 6 if count else 0].expand(images, -1, -1)), dim=1)
    keypoints[:, 0, 0, :2] = 8.0  # on the box without size
    keypoints[:, 0, 1, :2] = torch.tensor([12.0, 15.0])  # on right and lower border of the first hostile one
    keypoints[:, :, :2, 2] = 2
    return keypoints, boxes, torch.randint(0, 3, boxes.shape[:2], generator=generator)


def test_cells_are_torchvisions_for_every_image():
    keypoints, boxes, matched = scene(3, 40)
    matched[:, -6:] = 0
    found = keypoint_targets(keypoints, boxes, matched, 7)
    for i in range(3):
        cells, usable = keypoints_to_heatmap(keypoints[i][matched[i]], boxes[i], 7)
        assert torch.equal(found.usable[i], usable.bool())
        assert torch.equal(found.cells[i], cells)
    assert 0.05 < found.usable.float().mean() < 0.95
    assert found.usable[:, -6, 1].all()  # the border belongs to the last cell
    assert (found.cells[:, -6, 1] == 48).all()
    assert found.usable[:, -3, 0].all()


def test_the_rule_of_the_cells_in_numbers():
    points = torch.tensor(
        [[0.0, 0, 1], [9.99, 9.99, 1], [10, 0, 1], [0, 10, 2], [5, 5, 0], [10.01, 5, 1], [-0.01, 5, 1]]
    )
    found = keypoint_targets(points[None, None], torch.tensor([[[0.0, 0, 10, 10]]]), torch.tensor([[0]]), 4)
    assert found.usable[0, 0].tolist() == [True, True, True, True, False, False, False]
    assert found.cells[0, 0].tolist() == [0, 15, 3, 12, 0, 0, 0]


def test_what_is_not_a_number_is_not_usable_and_no_box_is_inverted():
    points = torch.tensor([[torch.nan, 1, 1], [1, torch.inf, 1], [1e30, 1, 1], [1, 1, torch.nan], [5, 5, 1]])
    boxes = torch.tensor([[[0.0, 0, 10, 10], [10, 10, 0, 0], [torch.nan, 0, 9, 9]]])
    found = keypoint_targets(points[None, None], boxes, torch.zeros(1, 3, dtype=torch.int64), 4)
    assert found.usable[0].tolist() == [[False] * 4 + [True], [False] * 5, [False] * 5]
    assert found.cells[0, 0].tolist() == [0, 0, 0, 0, 10]


@pytest.mark.parametrize("count", [0, 1, 9])
def test_the_mean_over_usable_keypoints_is_torchvisions_loss(count):
    keypoints, boxes, matched = scene(2, count, seed=count)
    logits = torch.randn(2 * boxes.shape[1], 5, 7, 7, generator=torch.Generator().manual_seed(count))
    own = logits.clone().requires_grad_()
    cells, usable = keypoint_targets(keypoints, boxes, matched, 7)
    loss = keypoint_loss(own, cells.flatten(0, 1), usable.flatten(0, 1)).sum() / usable.sum().clamp(min=1)
    logits.requires_grad_()
    expected = keypointrcnn_loss(logits, list(boxes), list(keypoints), list(matched))
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(own.grad, logits.grad, rtol=1e-6, atol=1e-7)


def test_each_heatmap_is_a_softmax_of_its_own():
    logits = torch.randn(2, 3, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    cells, usable = torch.tensor([[0, 3, 1], [2, 2, 0]]), torch.tensor([[True, True, False], [True, False, True]])
    costs = keypoint_loss(logits, cells, usable)
    for row in range(2):
        for point in range(3):
            values = logits[row, point].flatten().tolist()
            slow = math.log(sum(map(math.exp, values))) - values[cells[row, point]] if usable[row, point] else 0.0
            assert costs[row, point].item() == pytest.approx(slow, abs=1e-12)
    assert torch.autograd.gradcheck(lambda rows: keypoint_loss(rows, cells, usable), logits.requires_grad_())


def test_an_unusable_heatmap_costs_nothing_whatever_it_holds():
    logits = torch.zeros(1, 3, 2, 2)
    logits[0, 1], logits[0, 2] = torch.nan, torch.inf
    logits.requires_grad_()
    costs = keypoint_loss(logits, torch.tensor([[1, 9, -4]]), torch.tensor([[True, False, False]]))
    costs.sum().backward()
    torch.testing.assert_close(costs, torch.tensor([[math.log(4), 0, 0]]))
    assert torch.isfinite(logits.grad).all()
    assert not logits.grad[0, 1:].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_promoted(dtype):
    logits = torch.tensor([6e4, -6e4, 0.0, 9.0]).reshape(1, 1, 2, 2).to(dtype).requires_grad_()
    costs = keypoint_loss(logits, torch.tensor([[1]]), torch.tensor([[True]]))
    costs.sum().backward()
    assert costs.dtype == torch.float32
    assert torch.isfinite(costs).all()
    assert torch.isfinite(logits.grad).all()


def test_shapes_that_disagree_are_refused():
    logits, cells, usable = torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, dtype=torch.int64), torch.ones(2, 3).bool()
    for arguments in ((logits, cells[:, :2], usable), (logits, cells, usable[:1]), (logits[:, :, 0], cells, usable)):
        shapes = "logits {}, cells {}, usable {}".format(*(tuple(argument.shape) for argument in arguments))
        assert_refused(f"keypoint_loss: {shapes} (M, P, S, S) (M, P) (M, P)", keypoint_loss, *arguments)
    keypoints, boxes, matched = torch.zeros(2, 1, 5, 3), torch.zeros(2, 3, 4), torch.zeros(2, 3, dtype=torch.int64)
    for arguments in (
        (keypoints[..., :2], boxes, matched),
        (keypoints[0], boxes, matched),
        (keypoints, boxes[0], matched[0]),
        (keypoints, boxes, matched[:1]),
    ):
        shapes = "keypoints {}, boxes {}, matched {}".format(*(tuple(argument.shape) for argument in arguments))
        assert_refused(f"keypoint_targets: {shapes} (B, T, P, 3) (B, K, 4) (B, K)", keypoint_targets, *arguments, 4)
    assert_refused("keypoint_targets: resolution=0 1", keypoint_targets, keypoints, boxes, matched, 0)
    assert keypoint_targets(keypoints, boxes, matched, 1).cells.shape == (2, 3, 5)
