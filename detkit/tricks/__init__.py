"""Training tricks for any model: a learning rate schedule and a moving average of the weights.

Each trick is one part that the training loop calls; none of them depends on a detector.
"""

from detkit.tricks.ema import ExponentialMovingAverage
from detkit.tricks.schedule import warmup_cosine

__all__ = ["ExponentialMovingAverage", "warmup_cosine"]
