"""Image classification and localization on a small residual net: one class, and one box, for each image.

Source: Howard, Williamson and Sarma, "Object Classification and Localization on ImageNet".
"""

from detkit._inputs import check_image_size
from detkit._ranges import Count, Size
from detkit.backbones import residual_backbone
from detkit.detectors.classification import ClassificationStage
from detkit.detectors.detector import Detector
from detkit.detectors.localization import LocalizationStage
from detkit.detectors.preprocess import Preprocess
from detkit.detectors.recipe import recipe
from detkit.heads import ImageHead
from detkit.layers import ConvNormActivation

UNIT_MEAN, UNIT_STD = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
"""Pixels in [0, 1], as they are."""


@recipe
def residual_classifier(num_classes: Count, *, size: Size = (224, 224), cells: Count = 1) -> Detector:
    """A classifier of images, resized to ``size``: a residual net and three fully connected layers.

    The layers are ``num_classes`` wide, with a dropout of 25 % behind the first two. They read the mean of each
    channel; ``cells=14`` at the default size keeps all 14 x 14 cells, as the source has it, with 2,510,125 instead of
    14,125 parameters for 25 classes. An image's detections are its five best classes, in the box of the whole image.
    Raises ValueError for a side of one pixel.
    Source: section 3.2; the deviation of :func:`~detkit.backbones.residual_backbone`.

    >>> sum(parameter.numel() for parameter in residual_classifier(25).parameters()) - 1_523_520
    14125
    """
    check_image_size(size, 2, function="residual_classifier")
    trunk = residual_backbone()
    head = ImageHead(trunk.out_channels[-1], num_classes, hidden=(num_classes,) * 2, cells=cells, std=None)
    preprocess = Preprocess(size, mean=UNIT_MEAN, std=UNIT_STD)
    return Detector(trunk, preprocess=preprocess, classify=ClassificationStage(head))


@recipe
def joint_localizer(num_classes: Count, *, size: Size = (224, 224), cells: Count = 7) -> Detector:
    """The class and the box of each image from one residual net: cross-entropy plus L2.

    Images are resized to ``size``. One linear layer predicts the class from the means of the channels. Another one
    predicts the box, the same for all classes: from 32 channels, which a 1 x 1 convolution makes of all, in their means
    over ``cells`` x ``cells`` parts of the image. Boxes are learned as center and size in fractions of the image. An
    image's detections are its five best classes, all in this box. Raises ValueError for a side of one pixel.
    Source: section 3.1.1, on the features of section 3.2 instead of a smaller VGG. The convolution is not in the
    source: a layer that reads all 512 channels of all cells takes steps so long with Adam that boxes do not settle.

    >>> joint_localizer(25).stage_names
    ('classify', 'localize')
    """
    check_image_size(size, 2, function="joint_localizer")
    trunk = residual_backbone()
    classify = ClassificationStage(ImageHead(trunk.out_channels[-1], num_classes))
    tower = ConvNormActivation(trunk.out_channels[-1], 32, kernel_size=1)
    localize = LocalizationStage(ImageHead(32, 4, cells=cells, tower=tower))
    preprocess = Preprocess(size, mean=UNIT_MEAN, std=UNIT_STD)
    return Detector(trunk, preprocess=preprocess, classify=classify, localize=localize)
