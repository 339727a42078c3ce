"""D-FINE's coding of a box: how far each edge moves from that of a reference, as a distribution over uneven steps."""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from detkit._constants import Constants
from detkit._door import door
from detkit._inputs import as_boxes, check_broadcast, promote
from detkit._ranges import Count, Positive

_THINNEST = 1e-12


class EdgeCoder(Constants):
    """Distributions over ``bins`` + 1 steps for each of a box's edges, whose mean moves the edge of a reference box.

    Steps are fractions of the reference's side: 0 in the middle, growing geometrically to ``reach`` on both sides, and
    twice that in the first and the last bin. ``scale`` says how: the larger, the finer they are near 0. ``decode``
    reads 4 * (bins + 1) logits: first those of the left edge, then top, right and bottom; positive steps move an edge
    outwards. ``encode`` gives for each edge the bin between 0 and ``bins`` that it moves by: a fraction between two
    bins, which the distributions learn by :func:`~detkit.losses.distribution_focal_loss`.
    Raises ValueError for an odd number of bins, or fewer than 4. Source: Peng et al. 2024, "D-FINE", section 4.1,
    equations 2 to 5; ``reach`` is its a, ``scale`` is 1 / c.

    >>> coder, reference = EdgeCoder(bins=4), torch.tensor([[10.0, 10.0, 18.0, 14.0]])
    >>> coder.steps
    tensor([-1.0000, -0.5000,  0.0000,  0.5000,  1.0000], dtype=torch.float64)
    >>> coder.encode(torch.tensor([[6.0, 10.0, 18.0, 12.0]]), reference)
    tensor([[3., 2., 2., 1.]])
    """

    steps: Tensor

    @door
    def __init__(self, *, bins: Count = 32, reach: Positive = 0.5, scale: Positive = 4.0) -> None:
        super().__init__()
        if bins < 4 or bins % 2:
            raise ValueError(f"EdgeCoder: bins={bins} must be even, and at least 4: as many on each side of the middle")
        self.bins, self.reach, self.scale = bins, reach, scale
        growth = (reach * scale + 1) ** (2 / (bins - 2))
        steps = [(growth**i - 1) / scale for i in range(1, bins // 2)] + [2 * reach]
        self.register_constant("steps", [*(-step for step in reversed(steps)), 0, *steps], dtype=torch.float64)

    @property
    def numbers(self) -> int:
        """How many numbers of a box ``decode`` reads."""
        return 4 * (self.bins + 1)

    @door
    def encode(self, boxes: Shaped[Tensor, "*#B 4"], references: Shaped[Tensor, "*#B 4"]) -> Float[Tensor, "*B 4"]:
        """The bins (..., 4), in [0, bins], that move the edges of ``references`` to those of ``boxes``, both xyxy.

        Edges out of reach are those of the outermost bin. Finite for finite input.
        """
        boxes = as_boxes(boxes, function="EdgeCoder.encode")
        references = as_boxes(references, function="EdgeCoder.encode", name="references")
        check_broadcast(
            "EdgeCoder.encode", "a reference for each, or one for all", boxes=boxes.shape, references=references.shape
        )
        sides = (references[..., 2:] - references[..., :2]).clamp(min=_THINNEST)
        moved = torch.cat(
            ((references[..., :2] - boxes[..., :2]) / sides, (boxes[..., 2:] - references[..., 2:]) / sides), -1
        )
        steps = self.steps.to(moved)
        moved = moved.clamp(steps[0], steps[-1])
        left = (torch.searchsorted(steps, moved.detach().contiguous(), right=True) - 1).clamp(0, self.bins - 1)
        low, high = steps[left], steps[left + 1]
        return left + (moved - low) / (high - low)

    @door
    def decode(self, logits: Float[Tensor, "*#B D"], references: Shaped[Tensor, "*#B 4"]) -> Float[Tensor, "*B 4"]:
        """Boxes xyxy (..., 4) of logits (..., 4 * (bins + 1)). Raises ValueError for any other width.

        >>> coder = EdgeCoder(bins=4)
        >>> coder.decode(torch.zeros(1, 20), torch.tensor([[10.0, 10.0, 18.0, 14.0]]))
        tensor([[10., 10., 18., 14.]])
        """
        if logits.ndim == 0 or logits.shape[-1] != self.numbers:
            raise ValueError(
                f"EdgeCoder.decode: logits have shape {tuple(logits.shape)}; allowed is (..., {self.numbers}), "
                f"{self.bins + 1} for each of four edges"
            )
        shares = promote(logits).unflatten(-1, (4, self.bins + 1)).softmax(-1)
        moved = (shares * self.steps.to(shares)).sum(-1)  # a product of matrices is rounded under autocast
        references = as_boxes(references, function="EdgeCoder.decode", name="references").to(shares)
        sides = references[..., 2:] - references[..., :2]
        low, high = references[..., :2] - moved[..., :2] * sides, references[..., 2:] + moved[..., 2:] * sides
        return torch.cat((low, high), -1)

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        return f"bins={self.bins}, reach={self.reach}, scale={self.scale}"
