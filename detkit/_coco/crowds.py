"""A file, or a class, of which nothing can be learned or found."""

import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_MASKS = "tools that export masks as crowds must write iscrowd=0 for single objects"


def warn_of_crowds(
    labels: NDArray[np.int64], crowd: NDArray[np.bool_], names: Sequence[str], *, source: str, remedy: str = _MASKS
) -> None:
    """One warning for a file without objects, or for the classes all of whose objects (A,) are crowds.

    Some tools write every mask, or those with holes, as a crowd: no detector learns it, and no metric counts it.

    >>> warn_of_crowds(np.array([0, 0]), np.array([True, False]), ["cat"], source="a.json")
    """
    total, crowds = (np.bincount(rows, minlength=len(names)) for rows in (labels, labels[crowd]))
    only = np.flatnonzero((total > 0) & (total == crowds)).tolist()
    if not len(labels):
        warnings.warn(f"{source}: holds no object", stacklevel=4)
    elif only:
        listed = ", ".join(f"{names[label]!r} ({total[label]})" for label in only)
        warnings.warn(
            f"{source}: all objects of {len(only)} {'class' if len(only) == 1 else 'classes'} are crowds (iscrowd=1), "
            f"which count neither in training nor in evaluation: {listed}; {remedy}",
            stacklevel=4,
        )
