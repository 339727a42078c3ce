"""Training tricks for any model: a learning rate schedule, a moving average of the weights, a look at bad steps.

Each trick is one part that the training loop calls; none of them depends on a detector.
"""

from detkit.tricks.ema import ExponentialMovingAverage
from detkit.tricks.finite import nonfinite
from detkit.tricks.schedule import warmup_cosine

__all__ = ["ExponentialMovingAverage", "nonfinite", "warmup_cosine"]
