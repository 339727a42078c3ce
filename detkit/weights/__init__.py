"""Weights and training states on disk, checked before anything is loaded; and torchvision's detectors, both ways.

``save_weights`` and ``load_weights`` keep a module's state, ``save_checkpoint`` and ``load_checkpoint`` a whole
training state. ``from_torchvision`` makes a Detector of a torchvision model, ``to_torchvision`` the state_dict again.
"""

from detkit.weights.files import load_checkpoint, load_metadata, load_weights, save_checkpoint, save_weights
from detkit.weights.torchvision import from_torchvision, to_torchvision

__all__ = [
    "from_torchvision",
    "load_checkpoint",
    "load_metadata",
    "load_weights",
    "save_checkpoint",
    "save_weights",
    "to_torchvision",
]
