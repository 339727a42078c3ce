"""Losses: elementary ones are unreduced functions, those of a detector family are modules that weigh and sum.

A family's loss also says how its logits read as scores, so that training and inference cannot disagree.
"""

from detkit.losses.multibox import MultiBoxLoss
from detkit.losses.regression import smooth_l1_loss

__all__ = ["MultiBoxLoss", "smooth_l1_loss"]
