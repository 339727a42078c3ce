"""Published detectors as functions: each puts parts together and returns a Detector; nothing here holds logic."""

from detkit.detectors.recipes.ssd import fpn_ssd, ssd, ssd300, ssd512, tiny_ssd

__all__ = ["fpn_ssd", "ssd", "ssd300", "ssd512", "tiny_ssd"]
