"""SegmentationStage: what pixels learn, what does not count, and what stays of the stages before."""

import pytest
import torch
from strategies import assert_refused
from torch import nn
from torch.nn import functional as F

from detkit.detectors import ClassificationStage, Detector, Preprocess, SegmentationStage
from detkit.detectors.segmentation import SegmentationOutputs
from detkit.heads import ImageHead, SegmentationHead
from detkit.structures import VOID, Detections, Images, pad_targets

SIZES = torch.tensor([[8, 12], [5, 7]])
IMAGES = Images(torch.zeros(2, 3, 8, 12), SIZES)
NONE = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def classes(*shape, seed=0, count=3):
    return torch.randint(0, count, shape, generator=torch.Generator().manual_seed(seed))


def stage(**settings):
    return SegmentationStage(SegmentationHead([4], 3), **settings)


def loss(logits, targets, images=IMAGES, **settings):
    return stage(**settings).loss(SegmentationOutputs(logits, images, None), targets)["segmentation"]


def truth(*maps):
    return pad_targets([{**NONE, "segmentation": one} for one in maps])


def in_a_loop(logits, maps):
    """The mean cross-entropy of the pixels of each image that are not VOID."""
    costs = []
    for image, own in zip(logits.double().log_softmax(1), maps, strict=True):
        for y, row in enumerate(own.tolist()):
            costs += [-image[c, y, x] for x, c in enumerate(row) if c != VOID]
    return (sum(costs) / len(costs)).float()


MAPS = classes(8, 12), classes(5, 7, seed=1)


def test_the_loss_is_the_mean_cross_entropy_of_the_pixels_that_have_a_class():
    logits, holed = random(2, 3, 8, 12), MAPS[0].clone()
    torch.testing.assert_close(loss(logits, truth(*MAPS)), in_a_loop(logits, MAPS))
    holed[2:5, 3:9] = VOID
    torch.testing.assert_close(loss(logits, truth(holed, MAPS[1])), in_a_loop(logits, (holed, MAPS[1])))
    torch.testing.assert_close(loss(logits, truth(*MAPS), weight=0.5), in_a_loop(logits, MAPS) / 2)


def test_coarse_logits_are_enlarged():
    logits = random(2, 3, 4, 6)
    full = F.interpolate(logits, (8, 12), mode="bilinear")
    torch.testing.assert_close(loss(logits, truth(*MAPS)), in_a_loop(full, MAPS))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e30])
def test_pixels_that_are_void_or_padding_change_nothing(value):
    """Neither the loss nor a gradient, whatever the network says there."""
    logits, holed = random(2, 3, 8, 12), MAPS[0].clone()
    holed[2:5, 3:9] = VOID
    wild = logits.clone()
    wild[0, :, 2:5, 3:9], wild[1, :, 5:], wild[1, :, :, 7:] = value, value, value
    results = []
    for one in (logits.requires_grad_(), wild.requires_grad_()):
        found = loss(one, truth(holed, MAPS[1]))
        found.backward()
        results.append((found, one.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert not results[0][1][0, :, 2:5, 3:9].any()


def test_more_padding_changes_nothing():
    logits, targets = random(2, 3, 8, 12), truth(*MAPS)
    wider = F.pad(logits, (0, 5, 0, 3), value=9.0)
    images = Images(torch.zeros(2, 3, 11, 17), SIZES)
    torch.testing.assert_close(loss(wider, targets, images), loss(logits, targets))
    shouting = targets._replace(segmentation=F.pad(targets.segmentation, (0, 5, 0, 3), value=1))
    torch.testing.assert_close(loss(wider, shouting, images), loss(logits, targets))


def test_of_a_letterbox_only_the_image_counts():
    logits = random(1, 3, 8, 12)
    images = Images(torch.zeros(1, 3, 8, 12), torch.tensor([[6, 11]]), offsets=torch.tensor([[2, 1]]))
    cut = torch.full((8, 12), VOID)
    cut[2:6, 1:11] = MAPS[0][2:6, 1:11]
    torch.testing.assert_close(loss(logits, truth(MAPS[0]), images), in_a_loop(logits, [cut]))


def test_nothing_to_learn_costs_0_with_a_gradient_of_zeros():
    logits = random(2, 3, 8, 12).requires_grad_()
    found = loss(logits, truth(torch.full((8, 12), VOID), torch.full((5, 7), VOID)))
    found.backward()
    assert found == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_without_a_segmentation_masks_are_drawn_and_weigh():
    boxes, labels = torch.tensor([[0.0, 0, 4, 4], [2, 2, 6, 6], [8, 0, 12, 8]]), torch.tensor([1, 0, 0])
    masks = torch.zeros(3, 8, 12)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
        mask[y1:y2, x1:x2] = 1
    target = {"boxes": boxes, "labels": labels, "masks": masks, "iscrowd": torch.tensor([0, 0, 1])}
    drawn = torch.zeros(8, 12, dtype=torch.int64)
    drawn[2:6, 2:6], drawn[:, 8:] = 1, VOID
    drawn[:4, :4] = 2
    logits, images = random(1, 3, 8, 12), Images(torch.zeros(1, 3, 8, 12), SIZES[:1])
    torch.testing.assert_close(loss(logits, pad_targets([target]), images), in_a_loop(logits, [drawn]))
    weights = torch.tensor([0.5, 0.0, 1.0])
    drawn[drawn == 1] = 0
    costs = F.cross_entropy(logits, torch.where(drawn == VOID, -100, drawn)[None], reduction="none")[0]
    counts = torch.where(drawn == VOID, 0.0, torch.where(drawn == 2, 0.5, 1.0))
    found = loss(logits, pad_targets([{**target, "weights": weights}]), images)
    torch.testing.assert_close(found, (costs * counts).sum() / counts.sum())


def test_an_image_without_objects_and_masks_is_background():
    logits = random(2, 3, 8, 12)
    zeros = [torch.zeros(*size, dtype=torch.int64) for size in ((8, 12), (5, 7))]
    torch.testing.assert_close(loss(logits, pad_targets([NONE, NONE])), in_a_loop(logits, zeros))


def test_what_cannot_be_learned_is_refused():
    logits = random(2, 3, 8, 12)
    said = "SegmentationStage: segmentation[1, 0, 0]=3 must lie in 0..2"
    assert_refused(said, loss, logits, truth(MAPS[0], torch.full((5, 7), 3)))
    boxed = pad_targets([{"boxes": torch.ones(1, 4), "labels": torch.zeros(1)}] * 2)
    assert_refused("SegmentationStage: targets have no segmentation and no masks", loss, logits, boxed)
    larger = truth(classes(9, 12), MAPS[1])
    assert_refused(
        "SegmentationStage: segmentation or masks of (9, 12) pixels (height, width); allowed", loss, logits, larger
    )
    flat = SegmentationStage(nn.Sequential(nn.Flatten()))
    assert_refused(
        "SegmentationStage: the head returns (2, 4); allowed is (B, C, h, w)", flat, torch.ones(2, 4), IMAGES, None
    )
    many = SegmentationStage(nn.Conv2d(1, 256, 1))
    assert_refused(
        "SegmentationStage: the head returns (2, 256, 4, 4); at most 255", many, torch.ones(2, 1, 4, 4), IMAGES, None
    )


def test_it_keeps_what_stages_before_found():
    rows = torch.ones(2, 3)
    found = Detections(torch.ones(2, 3, 4), rows, rows.long(), rows.bool(), embeddings=torch.ones(2, 3, 5))
    outputs = SegmentationOutputs(random(2, 3, 4, 6), IMAGES, found)
    after = stage().detections(outputs, IMAGES)
    assert after._replace(segmentation=None) is not found
    assert all(a is b for a, b in zip(after._replace(segmentation=None), found, strict=True))
    full = F.interpolate(outputs.logits, (8, 12), mode="bilinear")
    assert torch.equal(after.segmentation, full.argmax(1))
    assert torch.equal(stage(scores=True).detections(outputs, IMAGES).segmentation, outputs.logits.softmax(1))
    assert stage().handover(outputs, IMAGES, truth(*MAPS)) is found


class Two(nn.Module):
    """A trunk of two branches."""

    def __init__(self):
        super().__init__()
        self.one, self.other = nn.Conv2d(3, 4, 2, 2), nn.Conv2d(3, 4, 2, 2)

    def forward(self, images):
        return {"pixels": [self.one(images)], "image": [self.other(images)]}


@pytest.mark.parametrize("order", [("pixels", "image"), ("image", "pixels")])
@pytest.mark.parametrize("scores", [True, False])
def test_each_image_gets_its_own_pixels_and_every_other_result(order, scores):
    stages = {
        "pixels": stage(branch="pixels", scores=scores),
        "image": ClassificationStage(ImageHead(4, 5), max_detections=2, branch="image"),
    }
    detector = Detector(Two(), preprocess=Preprocess((16, 16)), **{name: stages[name] for name in order}).eval()
    images = [torch.rand(3, 20, 30), torch.rand(3, 9, 7)]
    for image, found in zip(images, detector(images), strict=True):
        assert found["segmentation"].shape == (*(3,) * scores, *image.shape[-2:])
        assert found["image_scores"].shape == (5,)
        assert found["boxes"].shape == (2, 4)
    targets = [
        {**NONE, "segmentation": classes(*image.shape[-2:]), "image_labels": torch.tensor(3)} for image in images
    ]
    assert set(detector(images, targets)) == {"pixels.segmentation", "image.classification"}
