"""How a box is written relative to an anchor, so that a network can predict it.

All coders answer ``encode(boxes, anchors)`` and ``decode(deltas, anchors)``; anchors are plain boxes, or Anchors, which
also know the cells that they stand in. ``numbers`` says how many numbers of each anchor a coder decodes.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from detkit._constants import Constants
from detkit._door import door
from detkit._inputs import as_boxes, check_broadcast, promote
from detkit._ranges import Count, NotNegative, Positive
from detkit.boxes.convert import cxcywh_to_xyxy, xyxy_to_cxcywh
from detkit.structures import Anchors

_EACH = "an anchor for each, or one for all"
_SMALLEST_SIDE, _LARGEST_SIDE = 2.0**-40, 2.0**40
_LOG_CLAMP, _GRID_CLAMP = math.log(1000 / 16), math.log(1000.0)  # enlarge at most by 62.5, and by 1000
_FARTHEST = 2.0**60  # no pixel lies beyond; sums and products of such coordinates stay finite in float32
_INSIDE = 1e-6  # how near the border of its cell a center may lie, as logits of 0 and 1 are infinite


class DeltaCoder(Constants):
    """Boxes as shift and log-scale from an anchor, the coding of R-CNN, SSD and RetinaNet.

    ``encode`` gives (wx (cx - cxa) / wa, wy (cy - cya) / ha, ww log(w / wa), wh log(h / ha)); ``decode`` inverts it.
    ``scale`` (wx, wy, ww, wh) are the inverse of SSD's variances: (10, 10, 5, 5) for .1, .1, .2, .2. ``clamp`` bounds
    the log-scale of a decoded box, so that no logit overflows: log(1000 / 16) by default. ``eps`` is added inside the
    logarithm (1e-6 reproduces Dive into Deep Learning). Raises ValueError for a scale that is not four positive
    numbers. Source: Girshick et al. 2014, appendix C.

    >>> coder = DeltaCoder((10.0, 10.0, 5.0, 5.0))
    >>> anchors, boxes = torch.tensor([[0.1, 0.2, 0.2, 0.4]]), torch.tensor([[0.12, 0.2, 0.18, 0.4]])
    >>> torch.allclose(coder.decode(coder.encode(boxes, anchors), anchors), boxes)
    True
    """

    numbers = 4
    scale: Tensor

    @door
    def __init__(
        self,
        scale: Sequence[Positive] = (1.0, 1.0, 1.0, 1.0),
        *,
        clamp: NotNegative = _LOG_CLAMP,
        eps: NotNegative = 0.0,
    ) -> None:
        super().__init__()
        if len(scale) != 4 or not all(_SMALLEST_SIDE <= factor <= _LARGEST_SIDE for factor in scale):
            raise ValueError(
                f"DeltaCoder: scale={tuple(scale)} must be four positive numbers (x, y, w, h), of 1e-12 to 1e12"
            )
        self.clamp, self.eps = clamp, eps
        self.register_constant("scale", scale, dtype=torch.float64)

    @door
    def encode(
        self, boxes: Shaped[Tensor, "*#B 4"], anchors: Anchors | Shaped[Tensor, "*#B 4"]
    ) -> Float[Tensor, "*B 4"]:
        """Deltas that lead from ``anchors`` to ``boxes``, both xyxy (..., 4) that broadcast; finite for finite input.

        A box or anchor without area has no log-scale: its deltas are 0, as are those of sides outside 1e-12 to 1e12,
        whose ratios could overflow. With ``DETKIT_CHECKS=full`` inverted boxes raise ValueError.

        >>> DeltaCoder().encode(torch.tensor([[2.0, 0, 6, 4]]), torch.tensor([[0.0, 0, 4, 4]]))
        tensor([[0.5000, 0.0000, 0.0000, 0.0000]])
        """
        target = xyxy_to_cxcywh(as_boxes(boxes, function="DeltaCoder.encode"))
        source = xyxy_to_cxcywh(as_boxes(_boxes(anchors), function="DeltaCoder.encode", name="anchors"))
        check_broadcast("DeltaCoder.encode", _EACH, boxes=target.shape, anchors=source.shape)
        solid = _solid(target[..., 2:]) & _solid(source[..., 2:])
        target, source = torch.where(solid, target, 1), torch.where(solid, source, 1)
        shift = (target[..., :2] - source[..., :2]) / source[..., 2:]
        scale = torch.log(target[..., 2:] / source[..., 2:] + self.eps)
        deltas = torch.cat((shift, scale), dim=-1) * self.scale.to(shift)
        return torch.where(solid, deltas, 0)

    @door
    def decode(
        self, deltas: Float[Tensor, "*#B 4"], anchors: Anchors | Shaped[Tensor, "*#B 4"]
    ) -> Float[Tensor, "*B 4"]:
        """Boxes xyxy that ``deltas`` (..., 4) describe relative to ``anchors`` (..., 4); the inverse of ``encode``.

        >>> DeltaCoder().decode(torch.tensor([[0.5, 0, 0, 0]]), torch.tensor([[0.0, 0, 4, 4]]))
        tensor([[2., 0., 6., 4.]])
        """
        source = _bounded_cxcywh(_boxes(anchors), function="DeltaCoder.decode")
        deltas = as_boxes(deltas, function="DeltaCoder.decode", name="deltas", form=None)
        check_broadcast("DeltaCoder.decode", _EACH, deltas=deltas.shape, anchors=source.shape)
        deltas = deltas / self.scale.to(source)
        center = source[..., :2] + deltas[..., :2] * source[..., 2:]
        size = source[..., 2:] * deltas[..., 2:].clamp(max=self.clamp).exp()
        return cxcywh_to_xyxy(torch.cat((center, size), dim=-1))

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        return f"scale={tuple(self.scale.tolist())}, clamp={self.clamp:.4g}" + (f", eps={self.eps}" if self.eps else "")


class DistanceCoder(nn.Module):
    """Boxes as distances of their four sides from a point: the coding of FCOS, ATSS and generalized focal loss.

    ``encode`` gives (cx - x1, cy - y1, x2 - cx, y2 - cy) with (cx, cy) the point, or the center of the anchor: positive
    where it lies inside the box. ``unit=None`` counts pixels; a number counts that fraction of the anchor's width and
    height: 1 for anchors as large as the stride (FCOS; torchvision's BoxLinearCoder), 1/8 for the eight times larger
    ones of ATSS. Raises ValueError for a unit that is not positive. Source: Tian et al. 2019, equation 1.

    >>> coder, anchors = DistanceCoder(unit=1.0), torch.tensor([[8.0, 8, 16, 16]])
    >>> coder.encode(torch.tensor([[4.0, 0, 20, 28]]), anchors)
    tensor([[1.0000, 1.5000, 1.0000, 2.0000]])
    """

    numbers = 4

    @door
    def __init__(self, *, unit: Positive | None = None) -> None:
        super().__init__()
        self.unit = unit

    @door
    def encode(
        self, boxes: Shaped[Tensor, "*#B 4"], anchors: Anchors | Shaped[Tensor, "*#B _"]
    ) -> Float[Tensor, "*B 4"]:
        """Distances (..., 4) to left, top, right and bottom; anchors xyxy (..., 4), or points (..., 2) with unit=None.

        Finite for finite input: coordinates beyond 1e18 count as 1e18; where a unit is not between
        1e-12 and 1e12 pixels, as of an anchor without area, distances are 0.
        """
        boxes = _bounded(as_boxes(boxes, function="DistanceCoder.encode"))
        points, units = self._read(anchors, "DistanceCoder.encode")
        solid = _solid(units)
        units = torch.where(solid, units, 1)
        distances = torch.cat((points - boxes[..., :2], boxes[..., 2:] - points), dim=-1)
        return torch.where(solid, distances / torch.cat((units, units), dim=-1), 0)

    @door
    def decode(
        self, distances: Float[Tensor, "*#B 4"], anchors: Anchors | Shaped[Tensor, "*#B _"]
    ) -> Float[Tensor, "*B 4"]:
        """Boxes xyxy (..., 4) whose sides lie at ``distances`` from ``anchors``; the inverse of ``encode``.

        >>> DistanceCoder().decode(torch.tensor([[1.0, 2, 3, 4]]), torch.tensor([[10.0, 20]]))
        tensor([[ 9., 18., 13., 24.]])
        """
        points, units = self._read(anchors, "DistanceCoder.decode")
        distances = as_boxes(distances, function="DistanceCoder.decode", name="distances", form=None)
        return torch.cat((points - distances[..., :2] * units, points + distances[..., 2:] * units), dim=-1)

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        return f"unit={self.unit}"

    def _read(self, anchors: Anchors | Tensor, function: str) -> tuple[Tensor, Tensor]:
        """Points (..., 2), and what one unit is there in x and in y."""
        anchors = _boxes(anchors)
        if self.unit is None and anchors.ndim and anchors.shape[-1] == 2:
            points = _bounded(promote(anchors))
            return points, torch.ones_like(points)
        points, sides = _bounded_cxcywh(anchors, function=function).split(2, dim=-1)
        return points, torch.ones_like(points) if self.unit is None else sides * self.unit


class GridCoder(nn.Module):
    """Boxes as a position in a grid cell and a scale of an anchor: YOLO's coding.

    The center is (column + sigmoid(tx), row + sigmoid(ty)) cells, width and height are exp(tw) and exp(th) times those
    of the anchor, as in YOLO v2 and v3. ``form="root"`` is v1's linear coding: the center is (column + tx, row + ty)
    cells, width and height are tw^2 and th^2 times the anchor's, which in v1 is the whole image. ``clamp`` bounds the
    log-scale of a decoded box: log(1000) by default. Raises ValueError for any other form and for a clamp that is not a
    positive number. Source: Redmon and Farhadi 2017, section 2 ("Direct location prediction"); Redmon et al. 2016,
    section 2.

    Anchors are xyxy boxes centered in their cells. The sizes of cells come from ``strides``, so anchors must be
    :class:`~detkit.structures.Anchors`, as generators make them, but not clipped to the image, which moves centers.
    Plain boxes raise ValueError.

    >>> box, stride = torch.tensor([[8.0, 4, 40, 44]]), torch.tensor([[16.0, 16]])  # in the cell from 16 to 32
    >>> coder, anchors = GridCoder(), Anchors(box, stride, (1,))
    >>> boxes = torch.tensor([[10.0, 8, 30, 48]])
    >>> coder.encode(boxes, anchors)
    tensor([[-1.0986,  1.0986, -0.4700,  0.0000]])
    >>> torch.allclose(coder.decode(coder.encode(boxes, anchors), anchors), boxes)
    True
    """

    numbers = 4
    reads_cells = True

    @door
    def __init__(self, *, form: Literal["log", "root"] = "log", clamp: Positive = _GRID_CLAMP) -> None:
        super().__init__()
        if form not in ("log", "root"):
            raise ValueError(f"GridCoder: form={form!r}; allowed is 'log' or 'root'")
        self.form, self.clamp = form, clamp

    @door
    def encode(self, boxes: Shaped[Tensor, "*#B 4"], anchors: Anchors) -> Float[Tensor, "*B 4"]:
        """Deltas (tx, ty, tw, th) that lead from ``anchors`` to ``boxes``, both xyxy (..., 4); finite for finite input.

        In the log form a center outside its cell, or within 1e-6 of its border, is moved inside. Deltas are 0 where a
        box, anchor or cell has no area, or a side outside 1e-12 to 1e12.
        """
        target = xyxy_to_cxcywh(as_boxes(boxes, function="GridCoder.encode"))
        cells = _cells(anchors, "GridCoder.encode")
        source = xyxy_to_cxcywh(as_boxes(anchors.boxes, function="GridCoder.encode", name="anchors"))
        cells = cells.to(source)
        solid = _solid(target[..., 2:]) & _solid(source[..., 2:]) & _solid(cells)
        target, source, cells = (torch.where(solid, rows, 1) for rows in (target, source, cells))
        offset = (target[..., :2] - source[..., :2]) / cells + 0.5
        scale = target[..., 2:] / source[..., 2:]
        if self.form == "log":
            offset, scale = offset.clamp(_INSIDE, 1 - _INSIDE).logit(), scale.log()
        else:
            scale = scale.sqrt()
        return torch.where(solid, torch.cat((offset, scale), dim=-1), 0)

    @door
    def decode(self, deltas: Float[Tensor, "*#B 4"], anchors: Anchors) -> Float[Tensor, "*B 4"]:
        """Boxes xyxy (..., 4) that ``deltas`` describe; the inverse of ``encode``.

        >>> anchors = Anchors(torch.tensor([[8.0, 4, 40, 44]]), torch.tensor([[16.0, 16]]), (1,))
        >>> GridCoder().decode(torch.zeros(1, 4), anchors)
        tensor([[ 8.,  4., 40., 44.]])
        """
        cells = _cells(anchors, "GridCoder.decode")
        source = _bounded_cxcywh(anchors.boxes, function="GridCoder.decode")
        cells, deltas = cells.to(source), as_boxes(deltas, function="GridCoder.decode", name="deltas", form=None)
        offset, scale = deltas[..., :2], deltas[..., 2:]
        if self.form == "log":
            offset, scale = offset.sigmoid(), scale.clamp(max=self.clamp).exp()
        else:
            most = math.exp(self.clamp / 2)
            scale = scale.clamp(-most, most).square()
        center = source[..., :2] + (offset - 0.5) * cells
        return cxcywh_to_xyxy(torch.cat((center, source[..., 2:] * scale), dim=-1))

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        return f"form={self.form!r}, clamp={self.clamp:.4g}"


class DistributionCoder(nn.Module):
    """Numbers of another coder as distributions: each is the mean of the integers 0 to ``bins``, weighted by a softmax.

    ``decode`` reads 4 * (bins + 1) logits of each anchor: first the ``bins`` + 1 of the first number, for the values 0
    to ``bins``, then those of the second, and so on. ``encode`` gives the 4 numbers of ``coder`` (usually a
    :class:`DistanceCoder`), which the distributions learn by :func:`~detkit.losses.distribution_focal_loss`; they
    should lie between 0 and ``bins``. Raises ValueError for fewer than 1 bin. Source: Li et al. 2020 (Generalized Focal
    Loss), section 3.2.

    >>> coder = DistributionCoder(DistanceCoder(), bins=2)
    >>> logits = torch.tensor([[0.0, 0, 0], [9, -9, -9], [-9, -9, 9], [0, 0, 0]]).flatten()[None]
    >>> coder.decode(logits, torch.tensor([[10.0, 10]])).round(decimals=3)
    tensor([[ 9., 10., 12., 11.]])
    """

    @door
    def __init__(self, coder: nn.Module, *, bins: Count = 16) -> None:
        super().__init__()
        self.coder, self.bins = coder, bins

    @property
    def numbers(self) -> int:
        """How many numbers of an anchor ``decode`` reads."""
        return 4 * (self.bins + 1)

    @door
    def encode(
        self, boxes: Shaped[Tensor, "*#B 4"], anchors: Anchors | Shaped[Tensor, "*#B _"]
    ) -> Float[Tensor, "*B 4"]:
        """The numbers (..., 4) that the distributions learn."""
        return self.coder.encode(boxes, anchors)  # pyright: ignore[reportCallIssue]

    @door
    def decode(
        self, logits: Float[Tensor, "*#B D"], anchors: Anchors | Shaped[Tensor, "*#B _"]
    ) -> Float[Tensor, "*B 4"]:
        """Boxes xyxy (..., 4) of logits (..., 4 * (bins + 1)). Raises ValueError for any other width."""
        if logits.ndim == 0 or logits.shape[-1] != self.numbers:
            raise ValueError(
                f"DistributionCoder.decode: logits have shape {tuple(logits.shape)}; allowed is (..., {self.numbers}), "
                f"{self.bins + 1} for each of four numbers"
            )
        shares = promote(logits).unflatten(-1, (4, self.bins + 1)).softmax(-1)
        values = torch.arange(self.bins + 1, device=logits.device, dtype=shares.dtype)
        return self.coder.decode((shares * values).sum(-1), anchors)  # pyright: ignore[reportCallIssue]

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        return f"bins={self.bins}"


def _boxes(anchors: Anchors | Tensor) -> Tensor:
    return anchors.boxes if isinstance(anchors, Anchors) else anchors


def _cells(anchors: Anchors | Tensor, function: str) -> Float[Tensor, "... 2"]:
    """Width and height of cells (..., 2); their values are not looked at."""
    if not isinstance(anchors, Anchors):
        raise ValueError(
            f"{function}: anchors are plain boxes, which do not say how large their cells are; "
            "give Anchors(boxes, strides, counts)"
        )
    strides = anchors.strides
    if strides.ndim == 0 or strides.shape[-1] != 2:
        raise ValueError(f"{function}: strides have shape {tuple(strides.shape)}; allowed is (..., 2)")
    return _bounded(promote(strides))


def _bounded(coordinates: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    return coordinates.clamp(-_FARTHEST, _FARTHEST)


def _bounded_cxcywh(anchors: Tensor, *, function: str) -> Float[Tensor, "... 4"]:
    return xyxy_to_cxcywh(_bounded(as_boxes(anchors, function=function, name="anchors")))


def _solid(sizes: Float[Tensor, "... 2"]) -> Bool[Tensor, "... 1"]:
    return ((sizes >= _SMALLEST_SIDE) & (sizes <= _LARGEST_SIDE)).all(-1, keepdim=True)
