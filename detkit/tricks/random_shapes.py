"""Random batch shapes: a detector that trains at several input sizes works at all of them."""

import random
from collections.abc import Sequence

from torch import nn

from detkit._door import door
from detkit._ranges import Count, Size, Whole


class RandomBatchShapes(nn.Module):
    """The input size of each training batch: one of ``sizes`` (height, width), drawn anew every ``every`` batches.

    The size is a pure function of ``seed`` and the number of the batch, so all processes draw the same, and a resumed
    run goes on as it would have. Hand it to what resizes images and boxes
    (``detector.preprocess.size = shapes(batch)``), and put the size to judge at back afterwards. The sizes are bounded,
    so a compiled model is compiled once for each. Raises ValueError for an empty ``sizes``. Source: Redmon and Farhadi
    2017, section 2 ("Multi-Scale Training"): the multiples of 32 from 320 to 608, every ten batches; a
    classifier is often given 224 + 32 k.

    >>> shapes = RandomBatchShapes([(side, side) for side in range(320, 609, 32)])
    >>> [shapes(batch) for batch in (0, 9, 10, 20)]
    [(480, 480), (480, 480), (384, 384), (384, 384)]
    """

    @door
    def __init__(self, sizes: Sequence[Size], *, every: Count = 10, seed: Whole = 0) -> None:
        super().__init__()
        if not sizes:
            raise ValueError("RandomBatchShapes: sizes is empty; give at least one (height, width)")
        self.sizes = tuple((int(height), int(width)) for height, width in sizes)
        self.every, self.seed = every, seed

    @door
    def forward(self, batch: Whole) -> tuple[int, int]:
        """(height, width) of the batch with the number ``batch``, counted from 0 over all epochs."""
        return random.Random(f"{self.seed} {batch // self.every}").choice(self.sizes)

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        return f"sizes={self.sizes}, every={self.every}, seed={self.seed}"
