"""MaskStage: learns on positives and draws for detections as torchvision does; and what every stage promises."""

import pytest
import torch
from region_stages import IMAGES, SIZES, features, learned, positives
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import maskrcnn_inference, maskrcnn_loss

from detkit.boxes import PyramidRoIAlign
from detkit.detectors.mask import MaskOutputs, MaskStage
from detkit.heads.mask import MaskHead
from detkit.structures import Detections, Images, Targets, pad_targets

CLASSES = 3


def stage(*, norm=None, **settings) -> MaskStage:
    torch.manual_seed(0)
    head = MaskHead(6, CLASSES, channels=(8,), norm=norm)
    return MaskStage(PyramidRoIAlign(7, strides=(4, 8)), head, **settings)


def truth(**more: Tensor) -> Targets:
    """Two objects in the first image, one in the second."""
    generator = torch.Generator().manual_seed(2)
    targets = []
    for i, (boxes, labels) in enumerate((([[4, 5, 40, 60], [30, 8, 96, 50]], [2, 0]), ([[5, 5, 70, 50]], [1]))):
        masks = torch.randint(0, 2, (len(boxes), *SIZES[i].tolist()), generator=generator, dtype=torch.uint8)
        own = {name: values[i] for name, values in more.items()}
        targets.append({"boxes": torch.tensor(boxes).float(), "labels": torch.tensor(labels), "masks": masks, **own})
    return pad_targets(targets)


def detected(rows: int = 4) -> Detections:
    found = positives(rows=rows)
    return found._replace(
        labels=torch.where(found.valid, (found.labels + 1) % CLASSES, 0),
        matched=None,
        class_scores=torch.rand(2, rows, 3),
    )


def test_its_loss_is_torchvisions_over_the_positives():
    mask, found, targets = stage(), positives(), truth()
    loss, gradients = learned(mask, found, targets)
    kept = [found.boxes[i][found.valid[i]] for i in range(2)]
    matched = [found.matched[i][found.valid[i]] for i in range(2)]
    rows = found.valid.flatten().nonzero().squeeze(1)
    mask.zero_grad()
    logits = mask.head(mask.pool(features(), found.boxes, rows))
    own = [targets.masks[i, :, : SIZES[i, 0], : SIZES[i, 1]] for i in range(2)]  # torchvision pads no masks
    expected = maskrcnn_loss(logits, kept, own, list(targets.labels), matched)
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    for gradient, parameter in zip(gradients, mask.parameters(), strict=False):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-4, atol=1e-6)


def test_it_adds_torchvisions_masks_of_the_classes_detected_and_keeps_the_rest():
    mask, found = stage(), detected()
    drawn = mask.detections(mask(features(), IMAGES, found), IMAGES)
    rows = found.valid.flatten().nonzero().squeeze(1)
    logits = mask.head(mask.pool(features(), found.boxes, rows))
    labels = [found.labels[i][found.valid[i]] for i in range(2)]
    for i, expected in enumerate(maskrcnn_inference(logits, labels)):
        torch.testing.assert_close(drawn.masks[i][found.valid[i]], expected[:, 0], rtol=1e-6, atol=1e-6)
    assert drawn.masks.shape == (2, 4, 14, 14)
    assert not drawn.masks[~found.valid].any()
    assert drawn._replace(masks=None) == found


def test_the_class_learned_is_that_of_the_object_whatever_the_labels_of_the_boxes_say():
    found, targets = positives(), truth()
    expected, _ = learned(stage(), found, targets)
    loss, _ = learned(stage(), found._replace(labels=found.labels * 0), targets)
    assert torch.equal(loss, expected)


@pytest.mark.parametrize("norm", [None, nn.BatchNorm2d])
def test_without_positives_the_loss_is_0_and_everything_has_a_gradient_of_zeros(norm):
    for targets in (truth(), truth()._replace(valid=torch.zeros(2, 2, dtype=torch.bool), masks=None)):
        mask = stage(norm=norm).train()
        loss, gradients = learned(mask, positives(valid=(0, 0)), targets)
        assert loss == 0
        for gradient in gradients:
            assert gradient is not None
            assert not gradient.any()
        assert all(torch.isfinite(values).all() for values in mask.buffers())


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
    mask, found, targets = stage(), positives(), truth()
    outputs = mask(features(), IMAGES, found, targets)
    logits = torch.where(found.valid[..., None, None], outputs.logits, torch.nan).detach().requires_grad_()
    loss = mask.loss(MaskOutputs(logits, found, IMAGES), targets)["mask"]
    loss.backward()
    torch.testing.assert_close(loss, mask.loss(outputs, targets)["mask"])
    assert torch.isfinite(logits.grad).all()


def test_batch_norm_learns_from_valid_rows_only():
    mask = stage(norm=nn.BatchNorm2d).train()
    learned(mask, positives(), truth())
    other = stage(norm=nn.BatchNorm2d).train()
    found = positives()
    other.head(other.pool(features(), found.boxes, found.valid.flatten().nonzero().squeeze(1)))
    for one, two in zip(mask.buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(one, two)


def test_an_image_alone_learns_and_draws_what_it_does_in_a_batch():
    mask, found, targets = stage(), positives(), truth()
    together, alone = mask(features(), IMAGES, found, targets), []
    for i in range(2):
        one, own = ([None if rows is None else rows[i : i + 1] for rows in many] for many in (found, targets))
        maps, images = [level[i : i + 1] for level in features()], Images(IMAGES.tensors[i : i + 1], SIZES[i : i + 1])
        outputs = mask(maps, images, Detections(*one), Targets(*own))
        torch.testing.assert_close(outputs.logits, together.logits[i : i + 1], rtol=1e-5, atol=1e-6)
        alone.append(mask.loss(outputs, Targets(*own))["mask"] * found.valid[i].sum())
    torch.testing.assert_close(mask.loss(together, targets)["mask"], sum(alone) / found.valid.sum())


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


def test_binarised_targets_and_a_criterion_of_ones_own():
    def seen(binarise: bool) -> Tensor:
        kept = []

        def criterion(logits: Tensor, targets: Tensor) -> Tensor:
            kept.append(targets)
            return logits.sum((1, 2)) * 0 + 2

        mask = stage(criterion=criterion, binarise=binarise)
        assert learned(mask, positives(), truth())[0] == 2
        return kept[0][positives().valid.flatten()]

    assert ((seen(False) > 0) & (seen(False) < 1)).any()
    assert torch.equal(seen(True), (seen(False) >= 0.5).float())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_heads_are_promoted(dtype):
    mask, found, targets = stage(), positives(), truth()
    expected = mask.loss(mask(features(), IMAGES, found, targets), targets)["mask"]
    with torch.autocast("cpu", dtype=dtype):
        outputs = mask(features(), IMAGES, found, targets)
        loss = mask.loss(outputs, targets)["mask"]
        drawn = mask.detections(mask(features(), IMAGES, detected()), IMAGES)
    loss.backward()
    assert outputs.logits.dtype == loss.dtype == drawn.masks.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=2e-2, atol=2e-2)
    assert all(torch.isfinite(parameter.grad).all() for parameter in mask.parameters())


def test_no_rows_are_as_good_as_any():
    mask = stage()
    none = Detections(*(rows[:, :0] for rows in detected()[:4]))
    assert mask.detections(mask(features(), IMAGES, none), IMAGES).masks.shape == (2, 0, 14, 14)
    loss, gradients = learned(mask, none._replace(matched=torch.zeros(2, 0, dtype=torch.int64)), truth())
    assert loss == 0
    assert all(gradient is not None for gradient in gradients)


def test_what_is_missing_is_named():
    mask, found, targets = stage(), positives(), truth()
    with pytest.raises(ValueError, match="MaskStage: got no boxes; put a stage that finds them before it"):
        mask(features(), IMAGES, None)
    with pytest.raises(ValueError, match="MaskStage: the boxes to learn on have no matched"):
        mask(features(), IMAGES, detected(), targets)
    outputs = mask(features(), IMAGES, found, targets)
    with pytest.raises(ValueError, match="MaskStage: targets have no masks; give every target with objects its own"):
        mask.loss(outputs, targets._replace(masks=None))
    with pytest.raises(ValueError, match=r"labels\[0\]=3.*0..2"):
        mask(features(), IMAGES, found._replace(matched=None, labels=found.labels + 1))


def test_it_prints_its_parts():
    text = repr(stage(weight=2.0))
    assert all(part in text for part in ("MaskStage", "weight=2.0", "PyramidRoIAlign", "MaskHead"))


def test_hooks_and_forwards_of_ones_own_see_the_head_as_it_is_documented():
    """One argument in, masks of every class out."""
    own, seen = stage(), []
    expected = own(features(), IMAGES, detected()).logits
    watch = own.head.register_forward_hook(lambda _, given, result: seen.append((len(given), result.ndim)))
    torch.testing.assert_close(own(features(), IMAGES, detected()).logits, expected)
    watch.remove()
    own.head.forward = lambda pooled, run=own.head.forward: run(pooled)
    torch.testing.assert_close(own(features(), IMAGES, detected()).logits, expected)
    assert seen == [(1, 4)]
