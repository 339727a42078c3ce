"""Training tricks for any model: augmentations of whole batches, a schedule, a moving average, a look at bad steps.

Each trick is one part that the training loop calls; none of them depends on a detector.
"""

from detkit.tricks.color import ColorDistortion
from detkit.tricks.copy_paste import CopyPaste
from detkit.tricks.ema import ExponentialMovingAverage
from detkit.tricks.finite import nonfinite
from detkit.tricks.mixup import DetectionMixup, Mixup
from detkit.tricks.mosaic import Mosaic
from detkit.tricks.random_shapes import RandomBatchShapes
from detkit.tricks.samples import BatchAugmentation
from detkit.tricks.schedule import warmup_cosine

__all__ = [
    "BatchAugmentation",
    "ColorDistortion",
    "CopyPaste",
    "DetectionMixup",
    "ExponentialMovingAverage",
    "Mixup",
    "Mosaic",
    "RandomBatchShapes",
    "nonfinite",
    "warmup_cosine",
]
