"""SSD and SSDlite of torchvision find and cost the same in this library, and their weights go both ways."""

from functools import partial

import pytest
import torch
from peers import assert_round_trip, differences
from torch import nn
from torchvision.models import mobilenet_v2, mobilenet_v3_small, resnet18
from torchvision.models.detection import ssd300_vgg16, ssdlite320_mobilenet_v3_large
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.ssd import SSD, SSDFeatureExtractorVGG, SSDHead
from torchvision.models.detection.ssdlite import SSDLiteFeatureExtractorMobileNet, SSDLiteHead

from detkit import detectors
from detkit.backbones import SequentialBackbone, mobilenet_backbone, vgg_features
from detkit.detectors import Detector, Preprocess, fpn_ssd, ssd300, tiny_ssd
from detkit.necks import SSDExtra
from detkit.structures import Images
from detkit.weights import from_torchvision, to_torchvision

CLASSES = 5
published = partial(dict, weights=None, weights_backbone=None, num_classes=CLASSES)
group_norm = partial(nn.GroupNorm, 4)


def ssdlite() -> SSD:
    """As published, with the best hundred detections: further down, equal scores in single precision swap places."""
    model = ssdlite320_mobilenet_v3_large(**published())
    model.detections_per_img = 100
    return model


def on_a_pyramid(*, lite: bool = True) -> SSD:
    """SSD on a ResNet-18 with a pyramid of 64 channels, with clipped default boxes of its own steps."""
    levels = {f"layer{i}": str(i) for i in (2, 3, 4)}
    backbone = BackboneWithFPN(resnet18(weights=None), levels, [128, 256, 512], 64)
    generator = DefaultBoxGenerator([[2], [2, 3], [2], [3]], min_ratio=0.2, max_ratio=1.5, steps=[8, 16, 32, 64])
    widths, shapes = [64] * 4, generator.num_anchors_per_location()
    head = SSDLiteHead(widths, shapes, CLASSES, group_norm) if lite else SSDHead(widths, shapes, CLASSES)
    return SSD(backbone, generator, (128, 128), CLASSES, head=head, topk_candidates=50, detections_per_img=50)


def on_a_small_mobilenet() -> SSD:
    """SSDlite's trunk of half the width, with plain predictors."""
    features = mobilenet_v3_small(weights=None).features
    backbone = SSDLiteFeatureExtractorMobileNet(features, 9, group_norm, width_mult=0.5)
    generator = DefaultBoxGenerator([[2, 3]] * 6)
    head = SSDHead([288, 576, 256, 128, 128, 64], generator.num_anchors_per_location(), CLASSES)
    return SSD(backbone, generator, (160, 160), CLASSES, head=head)


MODELS = {
    "ssdlite320": ssdlite,
    "lite on a pyramid": on_a_pyramid,
    "plain on a pyramid": partial(on_a_pyramid, lite=False),
    "plain on a small mobilenet": on_a_small_mobilenet,
}


@pytest.mark.slow(2)
@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
def test_an_ssd_costs_and_finds_the_same_in_single_and_double_precision(build):
    single = differences(build, torch.float32, shift=1)
    assert single.losses < 1e-5
    assert single.scores < 1e-5
    assert single.boxes < 1e-4
    double = differences(build, torch.float64, shift=1)
    assert double.losses < 1e-7  # torchvision lays default boxes and resizes targets in single precision
    assert double.scores < 1e-13
    assert double.boxes < 1e-4


@pytest.mark.slow(10)
def test_ssd300_costs_and_finds_the_same():
    build = partial(ssd300_vgg16, **published())
    single = differences(build, torch.float32, shift=1)
    assert single.losses < 1e-5
    assert single.scores < 1e-5
    assert single.boxes < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
def test_weights_go_there_and_back(build):
    peer = build()
    with torch.no_grad():
        for values in (*peer.parameters(), *(rows for rows in peer.buffers() if rows.is_floating_point())):
            values.uniform_(0.5, 1)
    detector = from_torchvision(peer)
    assert_round_trip(peer, detector, to_torchvision(detector), build())


@pytest.mark.slow(5)
def test_weights_of_vgg_go_there_and_back():
    peer = ssd300_vgg16(**published())
    detector = from_torchvision(peer)
    assert_round_trip(peer, detector, to_torchvision(detector), ssd300_vgg16(**published()))


@pytest.mark.slow(2)
def test_the_level_more_of_high_resolution_is_taken_over():
    backbone = SSDFeatureExtractorVGG(vgg_features(), highres=True)
    generator = DefaultBoxGenerator([[2]] * 7)
    head = SSDHead([512, 1024, 512, *[256] * 4], generator.num_anchors_per_location(), CLASSES)
    peer = SSD(backbone, generator, (512, 512), CLASSES, head=head)
    detector = from_torchvision(peer)
    found = [torch.rand(1, 512, 8, 8), torch.rand(1, 1024, 32, 32)]
    expected = found[1]
    for level, block in zip(detector.trunk[1](found)[2:], peer.backbone.extra[1:], strict=True):
        expected = block(expected)
        assert torch.equal(level, expected)
    assert to_torchvision(detector).keys() == peer.state_dict().keys()


@pytest.mark.slow
def test_the_recipe_gives_torchvision_its_weights_and_predicts_what_it_predicts():
    torch.manual_seed(0)
    ours, peer = (
        detectors.ssdlite320_mobilenet_v3_large(CLASSES - 1).eval(),
        ssdlite320_mobilenet_v3_large(**published()),
    )
    peer.load_state_dict(to_torchvision(ours), strict=True)
    theirs = from_torchvision(peer.eval())
    for name in ("mean", "std"):
        assert torch.equal(getattr(ours.preprocess, name), getattr(theirs.preprocess, name))
    assert repr(ours.dense.postprocess) == repr(theirs.dense.postprocess)
    batch = Images(torch.rand(1, 3, 320, 320), torch.tensor([[320, 320]]))
    found, expected = (one.dense(one.trunk(batch.tensors), batch, None) for one in (ours, theirs))
    torch.testing.assert_close(found.anchors.boxes, expected.anchors.boxes, rtol=0, atol=1e-4)
    assert torch.equal(found.predictions.logits, expected.predictions.logits)
    assert torch.equal(found.predictions.deltas, expected.predictions.deltas)


@pytest.mark.slow(2)
def test_ssd300_gives_torchvision_its_weights():
    ssd300_vgg16(**published()).load_state_dict(to_torchvision(ssd300(CLASSES - 1)), strict=True)


def test_background_moves_from_the_first_row_of_each_default_box_to_the_last():
    peer = on_a_pyramid()
    projection = peer.head.classification_head.module_list[0][1]
    with torch.no_grad():
        projection.bias.copy_(torch.arange(CLASSES * 4))
    ours = from_torchvision(peer).dense.head.class_head.levels[0][1]
    assert ours.bias.tolist() == [1, 2, 3, 4, 0, 6, 7, 8, 9, 5, 11, 12, 13, 14, 10, 16, 17, 18, 19, 15]


def other_backbone() -> SSD:
    backbone = nn.Conv2d(3, 32, 3, stride=32)
    backbone.out_channels = [32]
    return SSD(backbone, DefaultBoxGenerator([[2]]), (64, 64), CLASSES)


def other_head() -> SSD:
    model = on_a_pyramid()
    model.head = nn.Identity()
    return model


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (other_backbone, "the backbone is a Conv2d; allowed is torchvision's BackboneWithFPN"),
        (other_head, "SSD has a head Identity and anchors DefaultBoxGenerator; allowed are SSDHead or SSDLiteHead"),
    ],
)
def test_models_of_other_parts_are_refused_by_name(build, message):
    with pytest.raises(ValueError, match=message):
        from_torchvision(build())


def on_a_mobilenet(neck: SSDExtra, backbone: SequentialBackbone) -> Detector:
    """A detector of a trunk of one's own."""
    trunk, detector = nn.Sequential(backbone, neck), tiny_ssd(2)
    return Detector(trunk, preprocess=Preprocess((64, 64)), dense=detector.dense)


@pytest.mark.slow
def test_detectors_without_a_counterpart_are_refused_by_name():
    with pytest.raises(ValueError, match=r"the trunk is Sequential\(SmallBackbone, FPN\)"):
        to_torchvision(fpn_ssd(2, channels=8))
    with pytest.raises(ValueError, match="the trunk is SequentialBackbone"):
        to_torchvision(tiny_ssd(2))
    backbone = mobilenet_backbone(mobilenet_v2(weights=None).features)
    plain = SSDExtra(backbone.out_channels, backbone.strides, norm=nn.BatchNorm2d)
    with pytest.raises(ValueError, match=r"trunk is SequentialBackbone with an SSDExtra; allowed .* SeparableConv"):
        to_torchvision(on_a_mobilenet(plain, backbone))
