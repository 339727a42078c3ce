"""Training tricks that fit around any model: the learning rate's course and the averaged model.

Each trick is one part that the training loop calls; none of them knows a detector.
"""

from detkit.tricks.ema import ExponentialMovingAverage
from detkit.tricks.schedule import warmup_cosine

__all__ = ["ExponentialMovingAverage", "warmup_cosine"]
