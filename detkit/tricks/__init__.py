"""Training tricks for any model: augmentation of batches, schedules, averages, processes, and inference over views.

Each trick is one part that the training loop calls; none of them depends on a detector.
"""

from detkit.tricks.accumulation import accumulate_gradients
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
    "accumulate_gradients",
    "nonfinite",
    "warmup_cosine",
]
