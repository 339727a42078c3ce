"""Training tricks for any model: augmentation of batches, schedules, averages, processes, and inference over views.

Each trick is one part that the training loop calls; none of them depends on a detector.
"""

from detkit.structures.smoothing import detection_smoothing, smooth_labels
from detkit.tricks.accumulation import accumulate_gradients
from detkit.tricks.augmented import TestTimeAugmentation
from detkit.tricks.clipping import clip_gradients
from detkit.tricks.color import ColorDistortion
from detkit.tricks.copy_paste import CopyPaste
from detkit.tricks.depth import layers_of
from detkit.tricks.early_stopping import EarlyStopping
from detkit.tricks.ema import ExponentialMovingAverage
from detkit.tricks.finite import nonfinite
from detkit.tricks.freezing import freeze
from detkit.tricks.fused import Fused, Fusion
from detkit.tricks.fusion import KeepAll, NMSFusion, SoftNMSFusion, WeightedBoxesFusion, fuse_detections
from detkit.tricks.mixup import DetectionMixup, Mixup
from detkit.tricks.mosaic import Mosaic
from detkit.tricks.object_scale import RandomObjectScale
from detkit.tricks.parameter_groups import parameter_groups
from detkit.tricks.random_shapes import RandomBatchShapes
from detkit.tricks.samples import BatchAugmentation
from detkit.tricks.schedule import warmup_cosine, warmup_steps_down
from detkit.tricks.sync_batch_norm import SyncBatchNorm
from detkit.tricks.tiles import Tile, TiledInference, image_tiles

__all__ = [
    "BatchAugmentation",
    "ColorDistortion",
    "CopyPaste",
    "DetectionMixup",
    "EarlyStopping",
    "ExponentialMovingAverage",
    "Fused",
    "Fusion",
    "KeepAll",
    "Mixup",
    "Mosaic",
    "NMSFusion",
    "RandomBatchShapes",
    "RandomObjectScale",
    "SoftNMSFusion",
    "SyncBatchNorm",
    "TestTimeAugmentation",
    "Tile",
    "TiledInference",
    "WeightedBoxesFusion",
    "accumulate_gradients",
    "clip_gradients",
    "detection_smoothing",
    "freeze",
    "fuse_detections",
    "image_tiles",
    "layers_of",
    "nonfinite",
    "parameter_groups",
    "smooth_labels",
    "warmup_cosine",
    "warmup_steps_down",
]
