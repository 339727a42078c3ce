"""Fitting: models solved on features held in memory, without gradient steps; so far R-CNN's SVMs and regressions."""

from detkit.fitting.rcnn import RCNNFit, fit_rcnn
from detkit.fitting.svm import SVMSettings

__all__ = ["RCNNFit", "SVMSettings", "fit_rcnn"]
