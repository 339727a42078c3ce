"""Whether the objects to train on fit the anchors: said before the first step, since no loss says it."""

import warnings
from typing import Any

from detkit.detectors import Detector
from detkit.inspect.anchors import AnchorFit
from detkit.inspect.report import read_truth

_LOOKED_AT, _MANY = 200, 0.1


def warn_of_misfits(data: Any, detector: Detector) -> None:
    """Warn if of the objects of 200 images more than a tenth are without an anchor at the detector's input size.

    Data sets that know their targets only with the pictures, and detectors without anchors, are not looked at.
    """
    try:
        anchors, truth = AnchorFit(detector), read_truth(data, _LOOKED_AT)
    except (TypeError, ValueError):
        return
    fits = [anchors.fit(target, size).fits for target, size in zip(truth.targets, truth.sizes, strict=True)]
    count, lost = sum(map(len, fits)), sum(int((~fit).sum()) for fit in fits)
    if lost > _MANY * count:
        warnings.warn(
            f"{lost / count:.0%} of the objects ({lost} of {count} looked at) are without an anchor that fits them at "
            f"this input size, {detector.preprocess.size}: python -m detkit.inspect says more; a larger --size, or "
            "another --recipe, may help",
            stacklevel=2,
        )
