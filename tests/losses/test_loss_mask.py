"""The mask loss and its targets: torchvision's, for a whole padded batch at once."""

import pytest
import torch
from strategies import assert_refused
from torch import Tensor
from torchvision.models.detection.roi_heads import maskrcnn_loss, project_masks_on_boxes

from detkit.losses import mask
from detkit.losses.mask import mask_loss, mask_targets, own_class_masks

HOSTILE = torch.tensor(
    [
        [-9.0, -7, 12, 15],  # reaches out at the top left
        [20.0, 10, 47, 39],  # and at the bottom right
        [5.2, 5.3, 5.6, 5.4],  # less than a pixel
        [8.0, 8, 8, 8],  # no size
        [0.0, 0, 32, 24],  # the whole image
        [-50.0, -50, -40, -40],  # outside
        [15.0, 12, 10, 6],  # inverted
    ]
)


def random_masks(*shape: int, seed: int = 0, dtype: torch.dtype = torch.uint8) -> Tensor:
    return torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def random_boxes(images: int, count: int, *, height: float, width: float, seed: int = 0) -> Tensor:
    corners = torch.rand(2, images, count, 2, generator=torch.Generator().manual_seed(seed))
    corners = corners * torch.tensor([width, height])
    return torch.cat((corners.amin(0), corners.amax(0)), dim=-1)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.float32, torch.int64])
def test_targets_are_torchvisions_for_every_image(dtype):
    masks = random_masks(3, 4, 24, 32, dtype=dtype)
    boxes = torch.cat((random_boxes(3, 9, height=24, width=32), HOSTILE.expand(3, -1, -1)), dim=1)
    matched = torch.randint(0, 4, boxes.shape[:2], generator=torch.Generator().manual_seed(2))
    found = mask_targets(masks, boxes, matched, 7)
    for i in range(3):
        expected = project_masks_on_boxes(masks[i], boxes[i], matched[i], 7)
        torch.testing.assert_close(found[i], expected, rtol=1e-6, atol=1e-6)
    assert ((found > 0) & (found < 1)).float().mean() > 0


def test_padding_a_mask_to_a_batch_changes_nothing_inside_its_image():
    sizes = torch.tensor([[24, 32], [17, 20], [24, 19], [11, 32]])
    masks = torch.zeros(4, 2, 24, 32, dtype=torch.uint8)
    for i, (height, width) in enumerate(sizes.tolist()):
        masks[i, :, :height, :width] = random_masks(2, height, width, seed=i)
    limits = sizes.flip(1).repeat(1, 2)[:, None].float()
    corners = random_boxes(4, 21, height=1, width=1) * limits
    boxes = torch.cat((corners[..., :2], torch.maximum(corners[..., 2:], corners[..., :2] + 1)), dim=2)
    boxes = boxes - (boxes[..., 2:] - limits[..., 2:]).clamp(min=0).repeat(1, 1, 2)
    boxes[:, 9:, 2:] = limits[..., 2:]  # many end where their image does
    boxes[:, 20, :2] = 0
    matched = torch.arange(21).expand(4, -1) % 2
    found = mask_targets(masks, boxes, matched, 5, sizes=sizes)
    naive = mask_targets(masks, boxes, matched, 5)
    for i, (height, width) in enumerate(sizes.tolist()):
        expected = project_masks_on_boxes(masks[i, :, :height, :width], boxes[i], matched[i], 5)
        torch.testing.assert_close(found[i], expected, rtol=1e-6, atol=1e-6)
    assert not torch.allclose(naive[1:], found[1:], atol=1e-2)  # what the sizes are for


def test_an_image_of_one_pixel_is_that_pixel_up_to_its_border():
    masks = torch.zeros(1, 1, 3, 3)
    masks[..., 0, 0] = 1
    boxes, matched = torch.tensor([[[0.0, 0, 1, 1]]]), torch.zeros(1, 1, dtype=torch.int64)
    assert torch.equal(mask_targets(masks, boxes, matched, 4, sizes=torch.tensor([[1, 1]])), torch.ones(1, 1, 4, 4))


@pytest.mark.parametrize("sizes", [None, torch.tensor([[20, 30], [17, 11]])], ids=["full", "padded"])
def test_masks_become_floats_a_few_at_a_time_with_the_same_result(monkeypatch, sizes):
    """All at once they took five times their memory."""
    generator = torch.Generator().manual_seed(0)
    masks = (torch.rand(2, 40, 20, 30, generator=generator) > 0.5).to(torch.uint8)
    boxes = torch.rand(2, 25, 4, generator=generator) * 20
    boxes[..., 2:] += boxes[..., :2]
    matched = torch.randint(-1, 40, (2, 25), generator=generator)
    seen, cut = [], mask._cut
    monkeypatch.setattr(mask, "_cut", lambda rows, *rest: seen.append(len(rows)) or cut(rows, *rest))
    found = mask_targets(masks, boxes, matched, 7, sizes=sizes)
    assert 2 < len(seen) <= 20
    assert max(seen) <= 4
    monkeypatch.setattr(mask, "on_host", lambda rows: False)
    assert torch.equal(mask_targets(masks, boxes, matched, 7, sizes=sizes), found)
    assert seen[-1] == 80


def test_binarised_targets_are_cut_at_one_half():
    masks = torch.zeros(1, 1, 8, 8)
    masks[..., :4] = 1
    boxes, matched = torch.tensor([[[0.5, 0.5, 8, 8], [2.5, 0.5, 5.5, 3.5]]]), torch.zeros(1, 2, dtype=torch.int64)
    soft = mask_targets(masks, boxes, matched, 3)
    hard = mask_targets(masks, boxes, matched, 3, binarise=True)
    assert torch.equal(hard, (soft >= 0.5).float())
    assert ((soft > 0) & (soft < 1)).any()


def test_integer_masks_are_nonzero_inside_and_a_negative_match_has_some_target():
    masks = random_masks(1, 2, 8, 8)
    boxes = torch.tensor([[[0.0, 0, 8, 8], [1, 1, 5, 5]]])
    matched = torch.tensor([[1, -1]])
    expected = mask_targets(masks, boxes, matched, 4)
    assert torch.equal(mask_targets(masks * 255, boxes, matched, 4), expected)
    assert torch.isfinite(expected).all()


def test_absurd_boxes_are_cut_and_take_no_time():
    masks = torch.ones(1, 1, 16, 16, dtype=torch.uint8)
    boxes = torch.tensor([[[-1e30, -1e30, 1e30, 1e30], [torch.nan, 0, 9, 9], [0, 0, torch.inf, 9], [2, 2, 14, 14]]])
    found = mask_targets(masks, boxes, torch.zeros(1, 4, dtype=torch.int64), 4)
    assert ((found >= 0) & (found <= 1)).all()
    torch.testing.assert_close(found[0, 3], torch.ones(4, 4))


@pytest.mark.parametrize("count", [0, 1, 9])
def test_the_mean_over_positives_is_torchvisions_loss(count):
    generator = torch.Generator().manual_seed(count)
    masks = random_masks(2, 3, 24, 32)
    labels = torch.randint(0, 5, (2, 3), generator=generator)
    boxes = torch.cat((random_boxes(2, count, height=24, width=32), HOSTILE[: min(count, 6)].expand(2, -1, -1)), dim=1)
    matched = torch.randint(0, 3, boxes.shape[:2], generator=generator)
    logits = torch.randn(2 * boxes.shape[1], 5, 6, 6, generator=generator)
    own = logits.clone().requires_grad_()
    costs = mask_loss(own, mask_targets(masks, boxes, matched, 6).flatten(0, 1), labels.gather(1, matched).flatten())
    loss = costs.sum() / max(len(costs), 1)
    logits.requires_grad_()
    expected = maskrcnn_loss(logits, list(boxes), list(masks), list(labels), list(matched))
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(own.grad, logits.grad, rtol=1e-6, atol=1e-7)


def test_classes_do_not_compete_and_rows_are_apart():
    logits = torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    targets, labels = torch.tensor([0.0, 0.25, 1]).double()[:, None, None].expand(3, 2, 2), torch.tensor([3, 0, 1])
    costs = mask_loss(logits, targets, labels)
    for row, label in enumerate(labels.tolist()):
        scores, wanted = logits[row, label].sigmoid(), targets[row]
        slow = -(wanted * scores.log() + (1 - wanted) * (1 - scores).log()).mean()
        torch.testing.assert_close(costs[row], slow)
    others = logits + 7 * (torch.arange(4) != labels[:, None])[..., None, None]
    assert torch.equal(mask_loss(others, targets, labels), costs)
    assert torch.equal(mask_loss(own_class_masks(logits, labels), targets), costs)


def test_its_gradient_is_that_of_finite_differences():
    logits = torch.randn(2, 3, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    targets, labels = torch.rand(2, 2, 2, dtype=torch.float64), torch.tensor([2, 0])
    assert torch.autograd.gradcheck(lambda rows: mask_loss(rows, targets, labels), logits.requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_promoted_and_extreme_logits_stay_finite(dtype):
    logits = torch.tensor([6e4, -6e4, 0.0, 9.0]).reshape(1, 1, 2, 2).to(dtype).requires_grad_()
    costs = mask_loss(logits, torch.tensor([[[0.0, 1], [0.5, 1]]]), torch.tensor([0]))
    costs.sum().backward()
    assert costs.dtype == torch.float32
    assert torch.isfinite(costs).all()
    assert torch.isfinite(logits.grad).all()


def test_a_negative_label_reads_as_class_0_and_one_too_large_is_refused():
    logits = torch.arange(8.0).reshape(1, 2, 2, 2)
    for label in (-1, -2):
        assert torch.equal(own_class_masks(logits, torch.tensor([label])), logits[:, 0])
    with pytest.raises(ValueError, match=r"^own_class_masks: labels\[0\]=2.*0\.\.1"):
        own_class_masks(logits, torch.tensor([2]))


def test_shapes_that_disagree_are_refused():
    logits, targets = torch.zeros(2, 3, 4, 4), torch.zeros(2, 5, 5)
    allowed = "(M, C, S, S) labels (M, S, S) (M, S, S)"
    assert_refused(
        f"mask_loss: logits (2, 3, 4, 4) targets (2, 5, 5) {allowed}",
        mask_loss,
        logits,
        targets,
        torch.tensor([0, 1]),
    )
    assert_refused(f"mask_loss: logits (2, 3, 4, 4) targets (2, 3, 4, 4) {allowed}", mask_loss, logits, logits)
    for rows, labels in ((logits, torch.tensor([0, 1, 2])), (logits[0], torch.tensor([0, 1, 2]))):
        assert_refused(
            f"own_class_masks: logits {tuple(rows.shape)} labels (3,) (M, C, S, S) (M,)",
            own_class_masks,
            rows,
            labels,
        )
    masks, boxes, matched = torch.zeros(2, 1, 8, 8), torch.zeros(2, 3, 4), torch.zeros(2, 3, dtype=torch.int64)
    for arguments in (
        (masks[0], boxes, matched),
        (masks[:1], boxes, matched),
        (masks, boxes[0], matched[0]),
        (masks, boxes, matched[:1]),
    ):
        shapes = "masks {}, boxes {}, matched {}".format(*(tuple(argument.shape) for argument in arguments))
        assert_refused(f"mask_targets: {shapes} (B, T, H, W) (B, K, 4) (B, K)", mask_targets, *arguments, 4)
    assert_refused("mask_targets: resolution=0 1", mask_targets, masks, boxes, matched, 0)
    assert mask_targets(masks, boxes, matched, 1).shape == (2, 3, 1, 1)


@pytest.mark.parametrize("shape", [(1, 1, 0, 0), (1, 0, 8, 8), (1, 2, 8, 0)])
def test_masks_without_a_pixel_are_an_error_not_a_crash(shape):
    with pytest.raises(ValueError, match=r"^mask_targets: masks \(.*\) have no pixels to cut 1 boxes from"):
        mask_targets(torch.zeros(shape), torch.tensor([[[0.0, 0, 8, 8]]]), torch.zeros(1, 1, dtype=torch.int64), 4)


def test_an_object_that_is_not_there_reads_no_memory_but_the_masks():
    masks = torch.stack((torch.zeros(2, 8, 8), torch.ones(2, 8, 8)))
    boxes, beyond = torch.tensor([[[0.0, 0, 8, 8]]] * 2), torch.tensor([[2], [10**6]])
    found = mask_targets(masks, boxes, beyond, 4)
    assert found.flatten(1).unique(dim=1).tolist() == [[0.0], [1.0]]
