"""Several tasks in one network: branches that exchange features, trunks for them, and weights of their losses.

A trunk of several branches returns a dict of feature maps by branch; stages of one :class:`~detkit.detectors.Detector`
each read theirs. :class:`StitchedTrunk` runs a backbone for each branch with a :class:`CrossStitch` between them after
every level, :class:`SharedTrunk` one backbone for all, :class:`TransferTrunk` adds what frozen backbones of other tasks
see. :class:`LossWeights` balance the losses of the tasks.
"""

from detkit.multitask.cross_stitch import CrossStitch
from detkit.multitask.transfer import TransferTrunk
from detkit.multitask.trunks import Encoder, SharedTrunk, StitchedTrunk, cross_stitches
from detkit.multitask.weights import DynamicWeightAverage, FixedWeights, LossWeights, UncertaintyWeights

__all__ = [
    "CrossStitch",
    "DynamicWeightAverage",
    "Encoder",
    "FixedWeights",
    "LossWeights",
    "SharedTrunk",
    "StitchedTrunk",
    "TransferTrunk",
    "UncertaintyWeights",
    "cross_stitches",
]
