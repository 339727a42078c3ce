"""The SSD recipes and what they consist of; tests/weights compares SSD300 with torchvision's."""

import pytest
import torch
from torch import Tensor

from detkit.anchors import DefaultBoxes
from detkit.backbones import SmallBackbone, vgg_features
from detkit.detectors import Detector, Postprocess, Preprocess, fpn_ssd, ssd, ssd300, ssd512, tiny_ssd
from detkit.structures import Images, Target


def levels_and_anchors(detector: Detector, size: tuple[int, int]) -> tuple[list[tuple[int, int]], Tensor]:
    batch = Images(torch.zeros(2, 3, *size), torch.tensor([size, size]))
    with torch.no_grad():
        features = detector.trunk(batch.tensors)
    return [tuple(level.shape[-2:]) for level in features], detector.dense.anchors(features, batch).boxes


@pytest.mark.slow(3)
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
    centers = (anchors[:, :2] + anchors[:, 2:]) / 2
    assert centers.min() > 0
    assert centers.max() < 1.02 * size  # Caffe: the last of ten cells of stride 32 lies at 304 of 300


@pytest.mark.slow
def test_ssd300_has_the_sizes_of_the_authors_release():
    _, anchors = levels_and_anchors(ssd300(2), (300, 300))
    widths = (anchors[:, 2] - anchors[:, 0]).tolist()
    first, last = anchors[0], anchors[-4:]
    assert first.tolist() == [-11, -11, 19, 19]  # 30 wide, around the first center at 4
    assert widths[1] == pytest.approx((30 * 60) ** 0.5)
    assert last[0].tolist() == [18, 18, 282, 282]  # 264 wide, around the center of the image
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
    detector = ssd(3, trunk, trunk.out_channels, anchors, preprocess=preprocess, postprocess=postprocess)
    assert detector.dense.postprocess is postprocess
    assert detector.dense.anchors is anchors
    assert detector.preprocess is preprocess
    (found,) = detector.eval()([torch.rand(3, 30, 30)])
    assert len(found["boxes"]) <= 3


def test_two_detectors_share_no_parts():
    first, second = fpn_ssd(2, channels=8), fpn_ssd(2, channels=8)
    assert not {id(module) for module in first.modules()} & {id(module) for module in second.modules()}
    assert first.dense.postprocess is not second.dense.postprocess


@pytest.mark.slow
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
