"""The SSD recipes: what they consist of, and SSD300 against torchvision's with the same weights."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import ssd300_vgg16
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.ssd import SSD

from detkit.anchors import BipartiteMatcher, DefaultBoxes
from detkit.backbones import SmallBackbone, ssd_trunk_from_torchvision, vgg_features
from detkit.detectors import Detector, Postprocess, Preprocess, fpn_ssd, ssd, ssd300, ssd512, tiny_ssd
from detkit.structures import Images, Target

CLASSES = 5


class PeerAnchors(nn.Module):
    """torchvision's default boxes, whose sizes differ a little from those of the authors' release."""

    def __init__(self, generator: nn.Module) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, features: list[Tensor], images: Images) -> Tensor:
        sizes = [tuple(size) for size in images.sizes.tolist()]
        return self.generator(ImageList(images.tensors, sizes), features)[0]


class Pair(NamedTuple):
    ours: Detector
    peer: SSD
    images: list[Tensor]
    targets: list[Target]


def background_last(values: Tensor) -> Tensor:
    """Channels box * (C + 1) + class of torchvision's class head, with class 0 moved behind the others."""
    rows = values.unflatten(0, (-1, CLASSES + 1))
    return torch.cat((rows[:, 1:], rows[:, :1]), dim=1).flatten(0, 1)


def copy_weights(peer: SSD, ours: Detector) -> None:
    ours.trunk.load_state_dict(ssd_trunk_from_torchvision(peer.backbone.state_dict()))
    for theirs, head, change in (
        (peer.head.classification_head, ours.dense.class_head, background_last),
        (peer.head.regression_head, ours.dense.box_head, lambda values: values),
    ):
        for source, level in zip(theirs.module_list, head.levels, strict=True):
            level.load_state_dict({name: change(values) for name, values in source.state_dict().items()})


@pytest.fixture(scope="module")
def pair() -> Pair:
    torch.manual_seed(3)
    peer = ssd300_vgg16(weights=None, weights_backbone=None, num_classes=CLASSES + 1).eval()
    with torch.no_grad():
        for module in peer.head.modules():
            if isinstance(module, nn.Conv2d):
                module.weight *= 0.2  # untrained features are large: keep softmax and exp away from their limits
                module.bias.normal_(std=0.1)
    ours = ssd300(CLASSES).eval()
    copy_weights(peer, ours)
    ours.dense.anchors = PeerAnchors(peer.anchor_generator)
    ours.dense.matcher = BipartiteMatcher(positive=0.5, greedy=False, force_match_zero=True)
    images = [torch.rand(3, 240, 320), torch.rand(3, 400, 300)]
    targets = [
        Target(
            boxes=torch.tensor([[10.0, 20, 100, 120], [15, 22, 110, 121], [150, 30, 310, 230], [3, 3, 14, 20]]),
            labels=torch.tensor([0, 4, 2, 1]),
        ),
        Target(boxes=torch.tensor([[50.0, 60, 200, 380]]), labels=torch.tensor([3])),
    ]
    return Pair(ours, peer, images, targets)


def test_ssd300_predicts_what_torchvision_predicts(pair):
    batch, _ = pair.ours.preprocess(pair.images)
    theirs, _ = pair.peer.transform([image.clone() for image in pair.images])
    torch.testing.assert_close(batch.tensors, theirs.tensors, rtol=1e-5, atol=1e-4)
    with torch.no_grad():
        expected = pair.peer.head(list(pair.peer.backbone(theirs.tensors).values()))
        outputs = pair.ours.dense(pair.ours.trunk(batch.tensors), batch, None)
    logits = torch.cat((expected["cls_logits"][..., 1:], expected["cls_logits"][..., :1]), dim=-1)
    assert outputs.logits.shape == (2, 8732, CLASSES + 1)
    assert logits.std() > 0.1
    torch.testing.assert_close(outputs.logits, logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(outputs.deltas, expected["bbox_regression"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("objects", ["on every image", "on the second image only"])
def test_ssd300_costs_what_torchvision_costs(pair, objects):
    targets = list(pair.targets)
    if objects == "on the second image only":
        targets[0] = Target(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64))
    with torch.no_grad():
        losses = pair.ours(pair.images, targets)
        theirs = [{"boxes": one["boxes"].clone(), "labels": one["labels"] + 1} for one in targets]
        expected = pair.peer.train()([image.clone() for image in pair.images], theirs)
        pair.peer.eval()
    torch.testing.assert_close(losses["dense.classification"], expected["classification"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(losses["dense.box"], expected["bbox_regression"], rtol=1e-4, atol=1e-4)


def test_ssd300_finds_what_torchvision_finds(pair):
    with torch.no_grad():
        found = pair.ours(pair.images)
        expected = pair.peer([image.clone() for image in pair.images])
    for one, other in zip(found, expected, strict=True):
        assert len(one["scores"]) == 200
        torch.testing.assert_close(one["scores"], other["scores"], rtol=1e-4, atol=1e-4)
        assert one["labels"].tolist() == (other["labels"] - 1).tolist()
        torch.testing.assert_close(one["boxes"], other["boxes"], rtol=1e-4, atol=1e-3)


def levels_and_anchors(detector: Detector, size: tuple[int, int]) -> tuple[list[tuple[int, int]], Tensor]:
    batch = Images(torch.zeros(2, 3, *size), torch.tensor([size, size]))
    with torch.no_grad():
        features = detector.trunk(batch.tensors)
    return [tuple(level.shape[-2:]) for level in features], detector.dense.anchors(features, batch)


@pytest.mark.parametrize(
    ("recipe", "size", "cells", "count"),
    [
        (lambda: ssd300(2), 300, (38, 19, 10, 5, 3, 1), 8732),
        (lambda: ssd512(2), 512, (64, 32, 16, 8, 4, 2, 1), 24564),
        (lambda: tiny_ssd(2), 256, (32, 16, 8, 4, 1), 5444),
        (lambda: fpn_ssd(2, size=(64, 64), channels=8), 64, (8, 4, 2), 4 * (64 + 16 + 4)),
    ],
    ids=["ssd300", "ssd512", "tiny_ssd", "fpn_ssd"],
)
def test_levels_and_default_boxes_are_those_of_the_source(recipe, size, cells, count):
    levels, anchors = levels_and_anchors(recipe(), (size, size))
    assert levels == [(cell, cell) for cell in cells]
    assert anchors.shape == (count, 4)
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    assert centres.min() > 0
    assert centres.max() < 1.02 * size  # Caffe: the last of ten cells of stride 32 lies at 304 of 300


def test_ssd300_has_the_sizes_of_the_authors_release():
    _, anchors = levels_and_anchors(ssd300(2), (300, 300))
    widths = (anchors[:, 2] - anchors[:, 0]).tolist()
    first, last = anchors[0], anchors[-4:]
    assert first.tolist() == [-11, -11, 19, 19]  # 30 wide, around the first centre at 4
    assert widths[1] == pytest.approx((30 * 60) ** 0.5)
    assert last[0].tolist() == [18, 18, 282, 282]  # 264 wide, around the centre of the image
    assert widths[-2] == pytest.approx(264 * 2**0.5)


@pytest.mark.parametrize("recipe", [ssd300, ssd512], ids=lambda recipe: recipe.__name__)
def test_pretrained_features_are_adopted(recipe):
    features = vgg_features((1, 1, 1, 1, 1))
    detector = recipe(2, features=features)
    assert any(parameter is features[0].weight for parameter in detector.parameters())


def test_a_detector_of_ones_own_parts_takes_their_settings():
    trunk = SmallBackbone((8, 16), levels=(0, 1))
    anchors = DefaultBoxes([(16, 24), (32, 48)], aspect_ratios=[(2,), (2,)], strides=trunk.strides)
    postprocess = Postprocess(max_detections=3)
    preprocess = Preprocess((64, 64))
    detector = ssd(trunk, trunk.out_channels, anchors, 3, preprocess=preprocess, postprocess=postprocess)
    assert detector.dense.postprocess is postprocess
    assert detector.dense.anchors is anchors
    assert detector.preprocess is preprocess
    (found,) = detector.eval()([torch.rand(3, 30, 30)])
    assert len(found["boxes"]) <= 3


def test_two_detectors_share_no_parts():
    first, second = fpn_ssd(2, channels=8), fpn_ssd(2, channels=8)
    assert not {id(module) for module in first.modules()} & {id(module) for module in second.modules()}
    assert first.dense.postprocess is not second.dense.postprocess


def test_a_small_ssd_learns_one_image_by_heart():
    torch.manual_seed(0)
    detector = fpn_ssd(2, size=(64, 64), channels=16)
    image = torch.zeros(3, 64, 64)
    image[0, 8:32, 8:32] = 1.0
    image[1, 30:60, 24:60] = 1.0
    boxes = torch.tensor([[8.0, 8, 32, 32], [24, 30, 60, 60]])
    target = Target(boxes=boxes, labels=torch.tensor([0, 1]))
    optimizer = torch.optim.Adam(detector.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        sum(detector([image, image], [target, target]).values()).backward()
        optimizer.step()
    (found,) = detector.eval()([image])
    assert found["scores"][:2].min() > 0.5
    order = found["labels"][:2].argsort()
    assert found["labels"][:2][order].tolist() == [0, 1]
    torch.testing.assert_close(found["boxes"][:2][order], boxes, rtol=0, atol=3)
