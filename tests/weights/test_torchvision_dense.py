"""RetinaNet and FCOS of torchvision find and cost the same in this library, and their weights go both ways."""

from functools import partial

import pytest
import torch
from peers import assert_round_trip, calibrated, differences
from torch import nn
from torchvision.models import resnet18
from torchvision.models.detection import (
    FCOS,
    RetinaNet,
    fcos_resnet50_fpn,
    retinanet_resnet50_fpn,
    retinanet_resnet50_fpn_v2,
)
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN, mobilenet_backbone, resnet_fpn_backbone
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from detkit.backbones import ResNetBackbone
from detkit.detectors import small_retinanet as small_retinanet_of_ours
from detkit.detectors.recipes.fcos import fcos
from detkit.detectors.recipes.retinanet import retinanet_v2
from detkit.losses import giou_cost
from detkit.weights import from_torchvision, to_torchvision

SMALL = {"min_size": 128, "max_size": 256}
CLASSES = 5
published = partial(dict, weights=None, weights_backbone=None, num_classes=CLASSES)


def small_backbone(top_from: int) -> BackboneWithFPN:
    """A ResNet-18 with a pyramid of 64 channels; the top comes from the last map of 512 or of 64 channels."""
    levels = {f"layer{i}": str(i) for i in (2, 3, 4)}
    top = LastLevelP6P7(top_from, 64)
    return BackboneWithFPN(resnet18(weights=None), levels, [128, 256, 512], 64, extra_blocks=top)


def anchors() -> AnchorGenerator:
    return AnchorGenerator(tuple((size, size * 1.5) for size in (24, 48, 96, 192, 384)), ((0.5, 1.0, 2.0),) * 5)


def small_retinanet(loss: str = "l1", **settings) -> RetinaNet:
    norm = partial(nn.GroupNorm, 8) if loss == "giou" else None
    head = RetinaNetHead(64, 6, CLASSES, norm_layer=norm)
    head.regression_head._loss_type = loss
    backbone = small_backbone(512)
    return RetinaNet(backbone, CLASSES, anchor_generator=anchors(), head=head, **SMALL, **settings)


def mobile_retinanet() -> RetinaNet:
    backbone = mobilenet_backbone(
        backbone_name="mobilenet_v3_small", weights=None, fpn=True, norm_layer=nn.BatchNorm2d, returned_layers=[2, 3]
    )
    generator = AnchorGenerator(((32,), (64,), (128,)), ((0.5, 1.0, 2.0),) * 3)
    return RetinaNet(backbone, CLASSES, anchor_generator=generator, **SMALL)


def small_fcos(**settings) -> FCOS:
    backbone = small_backbone(64)
    return FCOS(backbone, CLASSES, **SMALL, **settings)


MODELS = {
    "retinanet with l1": small_retinanet,
    "retinanet with giou": partial(small_retinanet, "giou"),
    "retinanet with smooth l1 and other settings": partial(
        small_retinanet, "smooth_l1", score_thresh=0.2, nms_thresh=0.3, topk_candidates=60, detections_per_img=50
    ),
    "retinanet on a mobilenet": mobile_retinanet,
    "fcos": small_fcos,
    "fcos with other settings": partial(
        small_fcos,
        score_thresh=0.1,
        nms_thresh=0.3,
        topk_candidates=60,
        detections_per_img=50,
        center_sampling_radius=0.9,
    ),
}


@pytest.mark.slow(2)
@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
def test_a_small_model_costs_and_finds_the_same_in_single_and_double_precision(build):
    single = differences(build, torch.float32)
    assert single.losses < 1e-5
    assert single.scores < 1e-5
    assert single.boxes < 1e-3
    double = differences(build, torch.float64)
    assert double.losses < 2e-9  # torchvision's GIoU adds 1e-7 to areas
    assert double.scores < 1e-13
    assert double.boxes < 1e-10


BIG = {
    "retinanet_resnet50_fpn": partial(retinanet_resnet50_fpn, **published(), **SMALL),
    "retinanet_resnet50_fpn_v2": partial(retinanet_resnet50_fpn_v2, **published(), **SMALL),
    "fcos_resnet50_fpn": partial(fcos_resnet50_fpn, **published(), **SMALL),
}


@pytest.mark.slow(2)
@pytest.mark.parametrize("build", BIG.values(), ids=BIG)
def test_a_published_model_costs_and_finds_the_same(build):
    found = differences(build, torch.float32)
    assert found.losses < 1e-4
    assert found.scores < 1e-4
    assert found.boxes < 1e-2


@pytest.mark.slow(3)
@pytest.mark.parametrize(
    "build",
    [small_retinanet, mobile_retinanet, small_fcos],
    ids=("retinanet", "mobile", "fcos"),
)
def test_weights_go_there_and_back(build):
    peer = build()
    detector = from_torchvision(peer)
    assert_round_trip(peer, detector, to_torchvision(detector), build())


@pytest.mark.slow
def test_changed_weights_reach_torchvision():
    detector = from_torchvision(small_fcos())
    with torch.no_grad():
        for weights in detector.parameters():
            weights.normal_(std=0.02)
    peer = small_fcos()
    peer.load_state_dict(to_torchvision(detector))
    images = [torch.rand(3, 128, 128)]
    batch, _ = detector.preprocess(images)
    with torch.no_grad():
        outputs = detector.eval().dense(detector.trunk(batch.tensors), batch, None)
        expected = peer.eval().head(list(peer.backbone(batch.tensors).values()))
    torch.testing.assert_close(outputs.predictions.logits, expected["cls_logits"])
    torch.testing.assert_close(outputs.predictions.quality, expected["bbox_ctrness"][..., 0])


@pytest.mark.slow
def test_settings_are_taken_over_and_the_model_is_left_alone():
    model = small_retinanet(score_thresh=0.3, image_mean=[0.1, 0.2, 0.3], bg_iou_thresh=0.2).double()
    model.backbone.body.conv1.weight.requires_grad_(False)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    detector = from_torchvision(model)
    assert detector.training
    assert not from_torchvision(model.eval()).training
    assert detector.preprocess.mean.flatten().tolist() == [0.1, 0.2, 0.3]
    assert detector.dense.postprocess.score_threshold == 0.3
    assert detector.dense.matcher.negative_iou == 0.2
    frozen = [name for name, weights in detector.named_parameters() if not weights.requires_grad]
    assert frozen == ["trunk.0.conv1.weight"]
    with torch.no_grad():
        for weights in detector.parameters():
            weights.zero_()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.slow(2)
@pytest.mark.parametrize(
    ("build", "kind"),
    [(lambda: retinanet_v2(CLASSES), "retinanet"), (lambda: fcos(CLASSES), "fcos")],
    ids=["retinanet_v2", "fcos"],
)
def test_recipes_of_this_library_give_torchvision_their_weights(build, kind):
    peer = {
        "retinanet": lambda: retinanet_resnet50_fpn_v2(**published()),
        "fcos": lambda: FCOS(
            resnet_fpn_backbone(
                backbone_name="resnet50",
                weights=None,
                norm_layer=nn.BatchNorm2d,
                returned_layers=[2, 3, 4],
                extra_blocks=LastLevelP6P7(2048, 256),
            ),
            CLASSES,
        ),
    }[kind]()
    peer.load_state_dict(to_torchvision(build()), strict=True)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: small_retinanet("ciou"), "RetinaNet's box loss is 'ciou'; allowed are l1, smooth_l1, giou"),
        (lambda: no_pyramid(), "the backbone is a Sequential; allowed is torchvision's BackboneWithFPN"),
        (lambda: other_head(), "this FCOS is built unlike torchvision's own|there is no rule for the key"),
    ],
)
def test_models_of_other_parts_are_refused_by_name(build, message):
    with pytest.raises(ValueError, match=message):
        from_torchvision(build())


def no_pyramid() -> FCOS:
    backbone = nn.Sequential(nn.Conv2d(3, 32, 3, stride=32))
    backbone.out_channels = 32
    return FCOS(backbone, CLASSES, anchor_generator=AnchorGenerator(((32,),), ((1.0,),)))


def other_head() -> FCOS:
    model = small_fcos()
    model.head.regression_head.bbox_reg = nn.Conv2d(64, 4, 1)
    return model


def test_a_detector_of_other_parts_is_refused_by_name():
    with pytest.raises(ValueError, match=r"the trunk is Sequential\(SmallBackbone, FPN\)"):
        to_torchvision(small_retinanet_of_ours(2, channels=8))


def test_the_box_loss_is_taken_over():
    detector = from_torchvision(small_retinanet("giou"))
    assert detector.dense.criterion.box_cost is giou_cost
    assert isinstance(detector.trunk[0], ResNetBackbone)


@pytest.mark.slow
def test_the_models_under_test_find_objects_of_several_classes_and_levels():
    torch.manual_seed(0)
    model = calibrated(small_retinanet().eval())
    (found,) = from_torchvision(model)([torch.rand(3, 128, 160)])
    assert len(found["labels"].unique()) > 2
    assert 0.05 < found["scores"].min() < found["scores"].max() < 1
    assert found["boxes"].diff(dim=0).abs().max() > 50
