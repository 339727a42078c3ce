"""Published tensors into a Detector: their names translated, and background moved behind the classes."""

import re
from collections.abc import Mapping

from torch import Tensor

from detkit.detectors import Detector


def loaded(detector: Detector, state: Mapping[str, Tensor], names: Mapping[str, str], *, judges: str) -> Detector:
    """The detector with the file's tensors, ready to detect.

    ``names`` says what replaces what in the file's keys, one pattern after the other. ``judges`` is a pattern of our
    keys: of the layers that give (background, face) for each anchor, where detkit reads (face, background).
    """
    ours = {}
    for key, value in state.items():
        for theirs, name in names.items():
            key = re.sub(theirs, name, key)
        ours[key] = value.unflatten(0, (-1, 2)).flip(1).flatten(0, 1) if re.search(judges, key) else value
    detector.load_state_dict(ours)  # strict: every tensor of the file has its place, and every place its tensor
    return detector.eval()
