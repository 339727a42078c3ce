"""Training and inference tricks: a schedule, random batch shapes, a moving average of weights, a look at bad steps;
test-time augmentation, detection in tiles, and the fusion of what several views and detectors find.

Each trick is one part that the user's loop calls; none of them depends on a detector of this library.
"""

from detkit.tricks.augmented import TestTimeAugmentation
from detkit.tricks.ema import ExponentialMovingAverage
from detkit.tricks.finite import nonfinite
from detkit.tricks.fusion import (
    Fused,
    Fusion,
    KeepAll,
    NMSFusion,
    SoftNMSFusion,
    WeightedBoxesFusion,
    fuse_detections,
)
from detkit.tricks.random_shapes import RandomBatchShapes
from detkit.tricks.schedule import warmup_cosine
from detkit.tricks.tiles import Tile, TiledInference, image_tiles

__all__ = [
    "ExponentialMovingAverage",
    "Fused",
    "Fusion",
    "KeepAll",
    "NMSFusion",
    "RandomBatchShapes",
    "SoftNMSFusion",
    "TestTimeAugmentation",
    "Tile",
    "TiledInference",
    "WeightedBoxesFusion",
    "fuse_detections",
    "image_tiles",
    "nonfinite",
    "warmup_cosine",
]
