"""Fitting: what is solved on features held in memory, not trained by gradient steps; so far R-CNN's linear machines."""

from detkit.fitting.rcnn import RCNNFit, fit_rcnn
from detkit.fitting.svm import SVMSettings

__all__ = ["RCNNFit", "SVMSettings", "fit_rcnn"]
