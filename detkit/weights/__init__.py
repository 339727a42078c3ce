"""Weights and training states on disk, checked before anything is loaded; and other libraries' detectors, both ways.

``save_weights`` and ``load_weights`` keep a module's state, ``save_detector`` and ``load_detector`` a recipe's
detector with the names of its classes, ``save_pretrained``, ``push_to_hub`` and ``from_pretrained`` the same in a
folder or on the Hugging Face Hub, ``save_checkpoint`` and ``load_checkpoint`` a whole training state.
``from_torchvision`` converts a torchvision model to a Detector, ``to_torchvision`` back to a state_dict;
``from_transformers`` and ``to_transformers`` do the same for DETR, ``detr_from_facebook`` and ``to_facebook_detr`` for
its original checkpoints; ``from_darknet`` and ``to_darknet`` for the files of YOLO v2 and v3.
"""

from detkit.weights.darknet import from_darknet, to_darknet
from detkit.weights.detectors import load_detector, save_detector
from detkit.weights.facebook import detr_from_facebook, to_facebook_detr
from detkit.weights.files import load_checkpoint, load_metadata, load_weights, save_checkpoint, save_weights
from detkit.weights.hub import from_pretrained, push_to_hub, save_pretrained
from detkit.weights.torchvision import from_torchvision, to_torchvision
from detkit.weights.transformers import from_transformers, to_transformers

__all__ = [
    "detr_from_facebook",
    "from_darknet",
    "from_pretrained",
    "from_torchvision",
    "from_transformers",
    "load_checkpoint",
    "load_detector",
    "load_metadata",
    "load_weights",
    "push_to_hub",
    "save_checkpoint",
    "save_detector",
    "save_pretrained",
    "save_weights",
    "to_darknet",
    "to_facebook_detr",
    "to_torchvision",
    "to_transformers",
]
