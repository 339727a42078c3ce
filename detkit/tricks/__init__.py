"""Training tricks for any model: a schedule, random batch shapes, a moving average of weights, a look at bad steps.

Each trick is one part that the training loop calls; none of them depends on a detector.
"""

from detkit.tricks.ema import ExponentialMovingAverage
from detkit.tricks.finite import nonfinite
from detkit.tricks.random_shapes import RandomBatchShapes
from detkit.tricks.schedule import warmup_cosine, warmup_steps_down
from detkit.tricks.sync_batch_norm import SyncBatchNorm

__all__ = [
    "ExponentialMovingAverage",
    "RandomBatchShapes",
    "SyncBatchNorm",
    "nonfinite",
    "warmup_cosine",
    "warmup_steps_down",
]
