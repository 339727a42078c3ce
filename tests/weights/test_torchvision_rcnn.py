"""from_torchvision on the R-CNN family: the same losses and detections as torchvision's own models, and back."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from thorough import mostly
from torch import Tensor, nn
from torchvision.models import detection, resnet18
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import MultiScaleRoIAlign

from detkit.detectors import Detector, faster_rcnn
from detkit.weights import from_torchvision, to_torchvision

CLASSES, CHANNELS = 4, 64
SETTINGS: dict[str, Any] = {
    "num_classes": CLASSES + 1,
    "min_size": 128,
    "max_size": 200,
    "rpn_pre_nms_top_n_train": 60,
    "rpn_post_nms_top_n_train": 50,
    "rpn_post_nms_top_n_test": 50,
    "box_detections_per_img": 10,
}
RANDOM: dict[str, Any] = {"weights": None, "weights_backbone": None, **SETTINGS}
RANDOM |= {"rpn_post_nms_top_n_train": 15, "rpn_post_nms_top_n_test": 15}  # their heads are wide


class Everything:
    """torchvision's sampler, but every positive and every negative is taken: nothing is left to chance."""

    batch_size_per_image, positive_fraction = 100_000, 1.0

    def __call__(self, labels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        return [(own >= 1).to(torch.uint8) for own in labels], [(own == 0).to(torch.uint8) for own in labels]


def backbone(norm_layer: Callable[[int], nn.Module] | None = None) -> nn.Module:
    """A ResNet-18 below a narrow pyramid."""
    levels = {f"layer{i + 1}": str(i) for i in range(4)}
    return BackboneWithFPN(resnet18(weights=None), levels, [64, 128, 256, 512], CHANNELS, norm_layer=norm_layer)


def small(kind: type[nn.Module], **more: Any) -> nn.Module:
    """A model of torchvision's on a small backbone, few proposals."""
    return kind(backbone(), **SETTINGS, **more)


def keypoint() -> nn.Module:
    """Its eight layers are narrow too."""
    head, predictor = KeypointRCNNHeads(CHANNELS, (32,) * 8), KeypointRCNNPredictor(32, 5)
    return small(detection.KeypointRCNN, keypoint_head=head, keypoint_predictor=predictor)


def convolutional(norm_layer: Callable[[int], nn.Module]) -> nn.Module:
    """The parts of torchvision's second version: norms in pyramid and box head, and a deeper RPN."""
    settings = {key: value for key, value in SETTINGS.items() if key != "num_classes"}
    head, predictor = FastRCNNConvFCHead((CHANNELS, 7, 7), [8], [16], norm_layer), FastRCNNPredictor(16, CLASSES + 1)
    rpn = RPNHead(CHANNELS, 3, conv_depth=2)
    return detection.FasterRCNN(backbone(norm_layer), **settings, rpn_head=rpn, box_head=head, box_predictor=predictor)


SMALL: dict[str, Callable[[], nn.Module]] = {
    "faster": lambda: small(detection.FasterRCNN),
    "mask": lambda: small(detection.MaskRCNN),
    "keypoint": keypoint,
    "score": lambda: small(detection.FasterRCNN, rpn_score_thresh=0.5),
    "batch norm": lambda: convolutional(partial(nn.BatchNorm2d, eps=0.5)),
    "group norm": lambda: convolutional(partial(nn.GroupNorm, 4)),
}
FULL: dict[str, Callable[[], nn.Module]] = {
    "fasterrcnn_resnet50_fpn": lambda: detection.fasterrcnn_resnet50_fpn(**RANDOM),
    "fasterrcnn_resnet50_fpn_v2": lambda: detection.fasterrcnn_resnet50_fpn_v2(**RANDOM),
    "maskrcnn_resnet50_fpn": lambda: detection.maskrcnn_resnet50_fpn(**RANDOM),
    "keypointrcnn_resnet50_fpn": lambda: detection.keypointrcnn_resnet50_fpn(**RANDOM),
}


def theirs_and_ours(build: Callable[[], nn.Module], dtype: torch.dtype) -> tuple[Any, Detector]:
    """A random model whose classes and boxes differ from place to place, and its Detector; both take every sample."""
    torch.manual_seed(3)
    model: Any = build().to(dtype)
    with torch.no_grad():
        model.rpn.head.cls_logits.weight.mul_(10)
        model.rpn.head.bbox_pred.weight.mul_(5)
        model.roi_heads.box_predictor.cls_score.weight.mul_(4)
        model.roi_heads.box_predictor.bbox_pred.weight.mul_(2)
    model.rpn.fg_bg_sampler = model.roi_heads.fg_bg_sampler = Everything()
    return model, from_torchvision(model)


def pictures(dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(3, *size, generator=generator, dtype=dtype) for size in ((110, 150), (160, 120))]


def truth(dtype: torch.dtype, *, points: int = 17) -> list[dict[str, Tensor]]:
    """Two objects with masks and keypoints in the first image, none in the second; labels as torchvision counts."""
    boxes = torch.tensor([[10.0, 20, 60, 90], [50, 30, 120, 100]], dtype=dtype)
    masks = torch.zeros(2, 110, 150, dtype=torch.uint8)
    masks[0, 25:80, 15:50], masks[1, 30:100, 60:110] = 1, 1
    places = torch.rand(2, points, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float32) * 60 + 30
    keypoints = torch.cat((places, torch.ones(2, points, 1)), dim=2)
    none = {
        "boxes": boxes[:0],
        "labels": torch.zeros(0, dtype=torch.int64),
        "masks": torch.zeros(0, 160, 120, dtype=torch.uint8),
        "keypoints": keypoints[:0],
    }
    return [{"boxes": boxes, "labels": torch.tensor([1, 3]), "masks": masks, "keypoints": keypoints}, none]


def ours_of(targets: list[dict[str, Tensor]]) -> list[Any]:
    return [{**target, "labels": target["labels"] - 1} for target in targets]


LOSS_NAMES = {
    "loss_objectness": "rpn.objectness",
    "loss_rpn_box_reg": "rpn.box",
    "loss_classifier": "box.classification",
    "loss_box_reg": "box.box",
    "loss_mask": "mask.mask",
    "loss_keypoint": "keypoint.keypoint",
}


def loss_differences(model: Any, detector: Detector, dtype: torch.dtype) -> dict[str, float]:
    """The relative difference of every loss, by torchvision's names; both in training mode."""
    points = getattr(getattr(model.roi_heads, "keypoint_predictor", None), "out_channels", 17)
    images, targets = pictures(dtype), truth(dtype, points=points)
    theirs = model.train()(images, targets)
    ours = detector.train()(images, ours_of(targets))
    assert {LOSS_NAMES[name] for name in theirs} == ours.keys()
    assert all(loss.item() > 0 for loss in theirs.values())
    return {name: abs(ours[LOSS_NAMES[name]].item() / loss.item() - 1) for name, loss in theirs.items()}


def detection_difference(model: Any, detector: Detector, dtype: torch.dtype) -> float:
    """The largest relative difference of boxes, scores, masks and keypoints; labels are equal."""
    images = pictures(dtype)
    with torch.no_grad():
        theirs, ours = model.eval()(images), detector.eval()(images)
    assert all(len(found["boxes"]) > 5 for found in theirs)
    largest = 0.0
    for one, other in zip(theirs, ours, strict=True):
        assert torch.equal(one["labels"] - 1, other["labels"])
        if "masks" in one:
            one["masks"] = one["masks"][:, 0]
        assert one.keys() == other.keys()
        errors = [(one[key] - other[key]).abs() / one[key].abs().clamp(min=1) for key in one if key != "labels"]
        largest = max(largest, *(error.max().item() for error in errors))
    return largest


@pytest.mark.slow(3)
@pytest.mark.parametrize("name", SMALL)
def test_losses_and_detections_of_small_models_are_torchvisions_in_double_precision(name: str):
    model, detector = theirs_and_ours(SMALL[name], torch.float64)
    assert max(loss_differences(model, detector, torch.float64).values()) < 1e-6  # torchvision resizes boxes in single
    assert detection_difference(model, detector, torch.float64) < 1e-6


@pytest.mark.slow(5)
@pytest.mark.parametrize(
    "name",
    mostly(
        FULL,
        ("fasterrcnn_resnet50_fpn_v2", "keypointrcnn_resnet50_fpn"),
        "two of the published sizes were NOT compared: their small forms were",
    ),
)
def test_losses_and_detections_are_torchvisions(name: str):
    model, detector = theirs_and_ours(FULL[name], torch.float32)
    assert max(loss_differences(model, detector, torch.float32).values()) < 1e-4
    assert detection_difference(model, detector, torch.float32) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SMALL, "fasterrcnn_resnet50_fpn_v2"])
def test_the_state_goes_back_to_torchvision_but_for_rows_it_never_reads(name: str):
    model, detector = theirs_and_ours({**SMALL, **FULL}[name], torch.float32)
    state, expected = to_torchvision(detector), model.state_dict()
    model.load_state_dict(state, strict=True)
    unread = {"box_predictor.bbox_pred": 4, "mask_predictor.mask_fcn_logits": 1}
    for key, values in expected.items():
        start = next((rows for part, rows in unread.items() if part in key), 0)
        assert torch.equal(state[key][start:] if start else state[key], values[start:] if start else values), key


@pytest.mark.slow
def test_a_detector_of_the_recipe_becomes_a_torchvision_model():
    detector = faster_rcnn(CLASSES)
    detection.fasterrcnn_resnet50_fpn(**RANDOM).load_state_dict(to_torchvision(detector), strict=True)


def test_masks_of_torchvisions_models_stay_probabilities():
    assert from_torchvision(SMALL["mask"]()).preprocess.mask_threshold is None


@pytest.mark.slow
def test_settings_are_taken_over():
    more = {
        "rpn_nms_thresh": 0.6,
        "box_score_thresh": 0.3,
        "box_nms_thresh": 0.4,
        "bbox_reg_weights": (1.0, 2.0, 3.0, 4.0),
    }
    more |= {"rpn_fg_iou_thresh": 0.8, "rpn_bg_iou_thresh": 0.2, "rpn_batch_size_per_image": 32}
    more |= {"rpn_positive_fraction": 0.3, "box_batch_size_per_image": 64, "box_positive_fraction": 0.1}
    text = repr(from_torchvision(small(detection.FasterRCNN, **more)))
    for part in (
        "ProposalPostprocess(candidates_per_level=60, max_proposals=50, iou_threshold=0.6, min_size=0.001)",
        "ProposalPostprocess(candidates_per_level=1000, max_proposals=50, iou_threshold=0.6, min_size=0.001)",
        "Postprocess(score_threshold=0.3, iou_threshold=0.4, max_detections=10, candidates_per_class=None, min_",
        "ThresholdMatcher(positive_iou=0.8, negative_iou=0.2, low_quality=True)",
        "BalancedSampler(32, positive_fraction=0.3)",
        "BalancedSampler(64, positive_fraction=0.1)",
        "Preprocess(size=128, max_size=200, multiple_of=32)",
    ):
        assert part in text
    assert tuple(from_torchvision(small(detection.FasterRCNN, **more)).box.coder.scale) == (1, 2, 3, 4)


@pytest.mark.slow
def test_parts_that_torchvisions_builders_do_not_use_are_named():
    model = small(detection.FasterRCNN)
    model.roi_heads.box_head = nn.Flatten()
    with pytest.raises(ValueError, match="from_torchvision: the model holds a Flatten where a FastRCNNConvFCHead is"):
        from_torchvision(model)
    pool = MultiScaleRoIAlign(["1", "2"], 7, 2)
    with pytest.raises(ValueError, match=r"regions are read from \['1', '2'\]; allowed are the finest levels"):
        from_torchvision(small(detection.FasterRCNN, box_roi_pool=pool))
    with pytest.raises(ValueError, match=r"holds a InstanceNorm2d where a BatchNorm2d, FrozenBatchNorm2d or GroupNorm"):
        from_torchvision(convolutional(nn.InstanceNorm2d))


def test_stages_that_torchvision_does_not_have_are_named():
    detector = faster_rcnn(CLASSES)
    with pytest.raises(ValueError, match=r"stages.*rpn=RPNStage, first=BoxStage.*rpn=RPNStage.*box="):
        to_torchvision(Detector(detector.trunk, preprocess=detector.preprocess, rpn=detector.rpn, first=detector.box))


@pytest.mark.slow(2)
@pytest.mark.parametrize("name", ["fasterrcnn_mobilenet_v3_large_320_fpn", "fasterrcnn_mobilenet_v3_large_fpn"])
def test_detections_of_mobile_nets_are_torchvisions(name: str):
    def build() -> nn.Module:
        model = getattr(detection, name)(**{**RANDOM, "rpn_score_thresh": 0.05})
        for layer in model.backbone.fpn.layer_blocks:
            layer[0].weight.data *= 1e8  # an untrained one makes features so small that all scores tie
        return model

    model, detector = theirs_and_ours(build, torch.float64)
    assert detection_difference(model, detector, torch.float64) < 1e-6
