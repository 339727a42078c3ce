"""How a box is written relative to an anchor, so that a network can predict it."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from detkit.boxes.arguments import as_boxes, promote
from detkit.boxes.convert import cxcywh_to_xyxy, xyxy_to_cxcywh

_SMALLEST_SIDE, _LARGEST_SIDE = 2.0**-40, 2.0**40


class DeltaCoder(nn.Module):
    """Boxes as shift and log-scale from an anchor, the coding of R-CNN, SSD and RetinaNet.

    ``encode`` gives (wx (cx - cxa) / wa, wy (cy - cya) / ha, ww log(w / wa), wh log(h / ha)); ``decode`` inverts it.
    ``weights`` (wx, wy, ww, wh) are the inverse of SSD's variances: (10, 10, 5, 5) for .1, .1, .2, .2. ``clamp`` bounds
    the log-scale of a decoded box, so that no logit overflows: log(1000 / 16) by default. ``eps`` is added inside the
    logarithm (1e-6 reproduces Dive into Deep Learning). Raises ValueError for weights that are not four positive
    numbers. Source: Girshick et al. 2014, appendix C.

    >>> coder = DeltaCoder((10.0, 10.0, 5.0, 5.0))
    >>> anchors, boxes = torch.tensor([[0.1, 0.2, 0.2, 0.4]]), torch.tensor([[0.12, 0.2, 0.18, 0.4]])
    >>> torch.allclose(coder.decode(coder.encode(boxes, anchors), anchors), boxes)
    True
    """

    weights: Tensor

    def __init__(
        self, weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0), *, clamp: float = math.log(1000 / 16), eps: float = 0.0
    ) -> None:
        super().__init__()
        if len(weights) != 4 or not all(0 < weight < math.inf for weight in weights):
            raise ValueError(f"DeltaCoder: weights={tuple(weights)} must be four positive numbers (x, y, w, h)")
        self.clamp, self.eps = clamp, eps
        self.register_buffer("weights", torch.tensor(weights, dtype=torch.float64), persistent=False)

    def encode(self, boxes: Shaped[Tensor, "*#B 4"], anchors: Shaped[Tensor, "*#B 4"]) -> Float[Tensor, "*B 4"]:
        """Deltas that lead from ``anchors`` to ``boxes``, both xyxy (..., 4) that broadcast; finite for finite input.

        A box or anchor without area has no log-scale: its deltas are 0, as are those of sides outside 1e-12 to 1e12,
        whose ratios could overflow. With ``DETKIT_CHECKS=full`` inverted boxes raise ValueError.

        >>> DeltaCoder().encode(torch.tensor([[2.0, 0, 6, 4]]), torch.tensor([[0.0, 0, 4, 4]]))
        tensor([[0.5000, 0.0000, 0.0000, 0.0000]])
        """
        target = xyxy_to_cxcywh(as_boxes(boxes, function="DeltaCoder.encode"))
        source = xyxy_to_cxcywh(as_boxes(anchors, function="DeltaCoder.encode", name="anchors"))
        solid = _solid(target[..., 2:]) & _solid(source[..., 2:])
        target, source = torch.where(solid, target, 1), torch.where(solid, source, 1)
        shift = (target[..., :2] - source[..., :2]) / source[..., 2:]
        scale = torch.log(target[..., 2:] / source[..., 2:] + self.eps)
        deltas = torch.cat((shift, scale), dim=-1) * self.weights.to(shift)
        return torch.where(solid, deltas, 0)

    def decode(self, deltas: Float[Tensor, "*#B 4"], anchors: Shaped[Tensor, "*#B 4"]) -> Float[Tensor, "*B 4"]:
        """Boxes xyxy that ``deltas`` (..., 4) describe relative to ``anchors`` (..., 4); the inverse of ``encode``.

        >>> DeltaCoder().decode(torch.tensor([[0.5, 0, 0, 0]]), torch.tensor([[0.0, 0, 4, 4]]))
        tensor([[2., 0., 6., 4.]])
        """
        source = xyxy_to_cxcywh(as_boxes(anchors, function="DeltaCoder.decode", name="anchors"))
        deltas = promote(deltas) / self.weights.to(source)
        centre = source[..., :2] + deltas[..., :2] * source[..., 2:]
        size = source[..., 2:] * deltas[..., 2:].clamp(max=self.clamp).exp()
        return cxcywh_to_xyxy(torch.cat((centre, size), dim=-1))

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        return f"weights={tuple(self.weights.tolist())}, clamp={self.clamp:.4g}" + (
            f", eps={self.eps}" if self.eps else ""
        )


def _solid(sizes: Float[Tensor, "... 2"]) -> Bool[Tensor, "... 1"]:
    return ((sizes >= _SMALLEST_SIDE) & (sizes <= _LARGEST_SIDE)).all(-1, keepdim=True)
