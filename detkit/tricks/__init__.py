"""Training tricks for any model: a schedule, random batch shapes, batches in parts, an average of weights, bad steps.

Each trick is one part that the training loop calls; none of them depends on a detector.
"""

from detkit.tricks.accumulation import accumulate_gradients
from detkit.tricks.ema import ExponentialMovingAverage
from detkit.tricks.finite import nonfinite
from detkit.tricks.random_shapes import RandomBatchShapes
from detkit.tricks.schedule import warmup_cosine

__all__ = ["ExponentialMovingAverage", "RandomBatchShapes", "accumulate_gradients", "nonfinite", "warmup_cosine"]
