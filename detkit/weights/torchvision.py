"""torchvision's detection models as Detectors of this library, and their state_dicts back."""

from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.ssd import SSD

from detkit._door import door
from detkit.detectors import Detector
from detkit.detectors.rpn import RPNStage
from detkit.weights.torchvision_dense import dense_renames, fcos_from, retinanet_from
from detkit.weights.torchvision_rcnn import rcnn_from, rcnn_renames
from detkit.weights.torchvision_ssd import ssd_from
from detkit.weights.torchvision_trunk import state_to_theirs


@door
def from_torchvision(model: nn.Module) -> Detector:
    """A Detector with the weights and behavior of a torchvision detection model, which is not modified.

    ``model`` is a FasterRCNN, MaskRCNN, KeypointRCNN, RetinaNet or FCOS on a backbone with a feature pyramid, or an SSD
    on one, on VGG-16 or on a MobileNet (``ssd300_vgg16``, ``ssdlite320_mobilenet_v3_large``), with whatever weights it
    holds. Resizing, normalization, anchors, thresholds, precision, device,
    frozen parameters and train/eval mode are kept; of several training sizes, the one used for inference. Losses and
    detections are the same up to rounding, with three differences. Labels of SSD and the R-CNNs are one less than
    torchvision's, where background is 0 (labels of RetinaNet and FCOS are unchanged, as these models use class 0). NMS
    separates classes exactly, while torchvision offsets their coordinates. Crowds (``iscrowd``) are ignored in
    training, while torchvision treats them as objects.
    Raises ValueError for another model, naming what does not fit.

    >>> from torchvision.models.detection import fcos_resnet50_fpn
    >>> detector = from_torchvision(fcos_resnet50_fpn(weights=None, weights_backbone=None, num_classes=3))
    >>> detector.preprocess
    Preprocess(size=800, max_size=1333, multiple_of=32)
    """
    match model:
        case RetinaNet():
            return retinanet_from(model)
        case FCOS():
            return fcos_from(model)
        case SSD():
            return ssd_from(model)
        case FasterRCNN():
            return rcnn_from(model)
    raise ValueError(
        f"from_torchvision: model is a {type(model).__name__}; allowed are torchvision's FasterRCNN, MaskRCNN, "
        "KeypointRCNN, RetinaNet, FCOS and SSD"
    )


@door
def to_torchvision(detector: Detector) -> dict[str, Tensor]:
    """The state_dict of ``detector`` under torchvision's keys; the original model loads it strictly.

    Works for every detector that :func:`from_torchvision` returns and for detectors of the same parts, such as the
    recipes'. Rows of a background class that torchvision never reads are zeros. Values that need no change are shared.
    Raises ValueError for a detector without a torchvision counterpart.

    >>> from detkit.detectors import ssd300
    >>> list(to_torchvision(ssd300(2)))[-1]
    'head.regression_head.module_list.5.bias'
    """
    stages = list(detector.stages.values())
    if any(isinstance(stage, RPNStage) for stage in stages):
        renames = rcnn_renames(detector)
    elif len(stages) == 1:
        renames = dense_renames(detector)
    else:
        raise ValueError(
            f"to_torchvision: stages are {', '.join(type(stage).__name__ for stage in stages)}; allowed are one "
            "DenseStage, or an RPNStage with those behind it"
        )
    return state_to_theirs(detector.state_dict(), renames)
