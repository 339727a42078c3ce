"""Two published face detectors, put together from detkit's parts around their trunks.

Sizes, normalization and weights are those of github.com/Linzaer/Ultra-Light-Fast-Generic-Face-Detector-1MB (RFB-320)
and github.com/biubug6/Face-Detector-1MB-with-landmark (mobilenet0.25), both under the MIT licence.
"""

from collections.abc import Callable, Mapping
from functools import partial

from faces.points import PointsStage
from faces.published import loaded
from faces.retinaface import RetinaFace
from faces.ultra_light import UltraLight, predictor
from torch import Tensor, nn

from detkit.anchors import BipartiteMatcher, GridAnchors
from detkit.boxes import DeltaCoder
from detkit.detectors import DenseStage, Detector, Postprocess, Preprocess
from detkit.heads import DenseHead, MultiBoxHead
from detkit.losses import MultiBoxLoss

ULTRA_LIGHT_NAMES = {
    r"^(base_net|extras)\.": r"trunk.\1.",
    r"\.conv\.": ".0.",
    r"\.bn\.": ".1.",
    r"^classification_headers\.": "dense.head.class_head.levels.",
    r"^regression_headers\.": "dense.head.box_head.levels.",
}
RETINAFACE_NAMES = {
    r"^(body|fpn|ssh)": r"trunk.\1",
    r"^ClassHead\.(\d)\.conv1x1": r"faces.dense.head.class_head.levels.\1",
    r"^BboxHead\.(\d)\.conv1x1": r"faces.dense.head.box_head.levels.\1",
    r"^LandmarkHead\.(\d)\.conv1x1": r"faces.points.levels.\1",
}


def face_stage(head: Callable[..., MultiBoxHead], anchors: GridAnchors) -> DenseStage:
    """What both share: one class, SSD's coder, softmax scores."""
    return DenseStage(
        head=DenseHead(head(outputs=2), head(outputs=4)),
        anchors=anchors,
        matcher=BipartiteMatcher(positive_iou=0.35),
        coder=DeltaCoder((10.0, 10.0, 5.0, 5.0)),
        criterion=MultiBoxLoss(),
        postprocess=Postprocess(score_threshold=0.6, iou_threshold=0.3),
    )


def ultra_light(state: Mapping[str, Tensor]) -> Detector:
    """Sees every picture at 320 x 240."""
    sides = ((10, 16, 24), (32, 48), (64, 96), (128, 192, 256))
    anchors = GridAnchors(shapes=[[(side, min(side, 240)) for side in level] for level in sides])
    trunk = UltraLight()
    head = partial(MultiBoxHead, trunk.out_channels, anchors.per_cell, convolution=predictor)
    preprocess = Preprocess((240, 320), mean=(127 / 255,) * 3, std=(128 / 255,) * 3)
    detector = Detector(trunk, preprocess=preprocess, dense=face_stage(head, anchors))
    return loaded(detector, state, ULTRA_LIGHT_NAMES, judges=r"class_head\.levels\.(\d\.2|3)\.")


def retinaface(state: Mapping[str, Tensor]) -> Detector:
    """Sees pictures at their own size, and five points of each face: eyes, nose, corners of the mouth."""
    trunk = RetinaFace()
    anchors = GridAnchors(((10, 20), (32, 64), (128, 256)), aspect_ratios=(1,), strides=trunk.strides)
    convolution = partial(nn.Conv2d, kernel_size=1)
    head = partial(MultiBoxHead, trunk.out_channels, anchors.per_cell, convolution=convolution)
    preprocess = Preprocess(None, mean=(123 / 255, 117 / 255, 104 / 255), std=(1 / 255,) * 3, multiple_of=32)
    faces = PointsStage(face_stage(head, anchors), head(outputs=10))
    detector = Detector(trunk, preprocess=preprocess, faces=faces)
    first = "body.stage1.0.0.weight"  # of a network that was trained on blue, green, red
    state = {**state, first: state[first].flip(1)}
    return loaded(detector, state, RETINAFACE_NAMES, judges="class_head")
