"""How a box and its class are written as five tokens, so that a language model can say them."""

from typing import Annotated, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from detkit._door import door
from detkit._inputs import as_boxes, first_bad, full_checks
from detkit._ranges import Count, Range
from detkit.structures import NEGATIVE

Vocabulary = Literal["code", "paper"]
TOKENS_PER_BOX = 5
"""A box is ymin, xmin, ymax, xmax, class."""
_CODE_SIZE, _CODE_COORDINATES, _CODE_CLASSES = 3000, 1000, 101
_CODE_END, _CODE_START, _CODE_NOISE = 0, 10, 30


class DecodedTokens(NamedTuple):
    """Boxes that tokens describe. Rows that are no well-formed box are not ``valid`` and hold zeros."""

    boxes: Float[Tensor, "*B T 4"]
    labels: Int[Tensor, "*B T"]
    valid: Bool[Tensor, "*B T"]


class TokenCoder(nn.Module):
    """Boxes as tokens ymin, xmin, ymax, xmax, class, each side of the image divided into ``bins`` values.

    A coordinate x of an image of width w is bin ``round(x / w * (bins - 1))``, halves to even, held to 0..bins - 1;
    its round trip is off by at most half a bin. ``vocabulary`` says which token stands for what:

    - ``"code"`` (the authors' release): 0 ends, 10 starts, 30 is noise, classes from 101, coordinates from 1000, 3000
      tokens in all; so at most 899 classes and 2000 bins;
    - ``"paper"``: 0 ends, coordinates from 1, classes from bins + 1, behind them noise and start.

    ``end``, ``start``, ``noise`` are tokens, ``first_coordinate`` and ``first_class`` the first of their ranges,
    ``size`` is the number of tokens. Raises ValueError for fewer than 2 bins, no class, more than the vocabulary holds.
    Source: Chen et al. 2022, "Pix2seq", section 2.1.

    >>> coder = TokenCoder(80)
    >>> boxes, labels = torch.tensor([[[20.0, 10, 60, 50]]]), torch.tensor([[0]])
    >>> coder.encode(boxes, labels, torch.tensor([[100, 100]]))
    tensor([[[1100, 1200, 1500, 1599,  101]]])
    """

    @door
    def __init__(
        self, num_classes: Count, *, bins: Annotated[int, Range(2)] = 1000, vocabulary: Vocabulary = "code"
    ) -> None:
        super().__init__()
        if vocabulary not in ("code", "paper"):
            raise ValueError(f"TokenCoder: vocabulary={vocabulary!r}; allowed is 'code' or 'paper'")
        self.num_classes, self.bins, self.vocabulary = num_classes, bins, vocabulary
        if vocabulary == "code":
            self._use_code()
        else:
            self.first_coordinate, self.first_class, self.end = 1, bins + 1, 0
            self.noise, self.start = bins + 1 + num_classes, bins + 2 + num_classes
            self.size = bins + 3 + num_classes

    @door
    @torch.no_grad()
    def encode(
        self,
        boxes: Shaped[Tensor, "*B T 4"],
        labels: Int[Tensor, "*B T"],
        sizes: Shaped[Tensor, "*B 2"],
        *,
        valid: Bool[Tensor, "*B T"] | None = None,
    ) -> Int[Tensor, "*B T 5"]:
        """Tokens of boxes xyxy in pixels of images of ``sizes`` (height, width).

        ``labels`` are 0..C-1, or NEGATIVE for the noise token. Coordinates outside the image, and infinite ones,
        become the nearest bin, NaN bin 0. Rows that are not ``valid`` are all ``end``. Raises ValueError for other
        shapes, and for another label in a valid row (on accelerators with ``DETKIT_CHECKS=full``).

        >>> coder, boxes = TokenCoder(3, vocabulary="paper"), torch.tensor([[0.0, 0, 8, 6]])
        >>> coder.encode(boxes, torch.tensor([2]), torch.tensor([6, 8]))
        tensor([[   1,    1, 1000, 1000, 1003]])
        """
        boxes = as_boxes(boxes, function="TokenCoder.encode")
        _check_shapes("TokenCoder.encode", boxes, sizes, labels=labels, valid=valid)
        valid = torch.ones_like(labels, dtype=torch.bool) if valid is None else valid
        self._check_labels(labels, valid)
        fractions = (_flipped(boxes) / _yxyx(sizes, boxes)).nan_to_num(0, posinf=1, neginf=0).clamp(0, 1)
        coordinates = (fractions * (self.bins - 1)).round().long() + self.first_coordinate
        classes = torch.where(labels == NEGATIVE, self.noise, labels + self.first_class)
        tokens = torch.cat((coordinates, classes[..., None]), dim=-1)
        return torch.where(valid[..., None], tokens, self.end)

    @door
    def decode(self, tokens: Int[Tensor, "*B T 5"], sizes: Shaped[Tensor, "*B 2"]) -> DecodedTokens:
        """Boxes xyxy in pixels, their labels, and which of them are well-formed.

        That are those of four coordinates and a class, with xmax >= xmin and ymax >= ymin. Boxes are float64 where
        ``sizes`` are, else float32, also for sizes in whole pixels. Raises ValueError for other shapes.

        >>> coder = TokenCoder(3, bins=5, vocabulary="paper")
        >>> found = coder.decode(torch.tensor([[1, 2, 5, 4, 8], [1, 1, 1, 1, 0]]), torch.tensor([8, 16]))
        >>> found.boxes, found.labels, found.valid
        (tensor([[ 4.,  0., 12.,  8.],
                 [ 0.,  0.,  0.,  0.]]), tensor([2, 0]), tensor([ True, False]))
        """
        if tokens.ndim == 0 or tokens.shape[-1] != TOKENS_PER_BOX:
            raise ValueError(f"TokenCoder.decode: tokens has shape {tuple(tokens.shape)}; allowed is (..., 5)")
        _check_shapes("TokenCoder.decode", tokens, sizes)
        coordinates, classes = tokens[..., :4] - self.first_coordinate, tokens[..., 4] - self.first_class
        written = ((coordinates >= 0) & (coordinates < self.bins)).all(-1) & (classes >= 0)
        upright = (coordinates[..., 2:] >= coordinates[..., :2]).all(-1)
        valid = written & upright & (classes < self.num_classes)
        dtype = torch.float64 if sizes.dtype == torch.float64 else torch.float32
        scale = _yxyx(sizes, torch.zeros((), dtype=dtype, device=tokens.device))
        boxes = _flipped(coordinates.to(scale) / (self.bins - 1) * scale)
        return DecodedTokens(torch.where(valid[..., None], boxes, 0), torch.where(valid, classes, 0), valid)

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        return f"{self.num_classes}, bins={self.bins}, vocabulary={self.vocabulary!r}"

    def _use_code(self) -> None:
        most = _CODE_COORDINATES - _CODE_CLASSES, _CODE_SIZE - _CODE_COORDINATES
        if self.num_classes > most[0] or self.bins > most[1]:
            raise ValueError(
                f"TokenCoder: num_classes={self.num_classes}, bins={self.bins}; vocabulary 'code' holds at most "
                f"{most[0]} classes and {most[1]} bins, 'paper' any number"
            )
        self.first_coordinate, self.first_class, self.size = _CODE_COORDINATES, _CODE_CLASSES, _CODE_SIZE
        self.end, self.start, self.noise = _CODE_END, _CODE_START, _CODE_NOISE

    def _check_labels(self, labels: Tensor, valid: Tensor) -> None:
        if torch.compiler.is_compiling() or not (labels.device.type == "cpu" or full_checks()):
            return
        bad = valid & ((labels < NEGATIVE) | (labels >= self.num_classes))
        if bad.any():
            index, count = first_bad(bad)
            raise ValueError(
                f"TokenCoder.encode: labels[{', '.join(map(str, index))}]={labels[index].item()} must lie in "
                f"0..{self.num_classes - 1}, or be NEGATIVE (-1) for noise; {count} of {labels.numel()} do not"
            )


def _check_shapes(function: str, rows: Tensor, sizes: Tensor, **entries: Tensor | None) -> None:
    """Raises unless ``rows`` (..., T, numbers) have a size for each image and one of each of ``entries`` a row."""
    allowed = {"sizes": (*rows.shape[:-2], 2), **dict.fromkeys(entries, tuple(rows.shape[:-1]))}
    for name, values in {"sizes": sizes, **entries}.items():
        if values is not None and values.shape != allowed[name]:
            raise ValueError(f"{function}: {name} has shape {tuple(values.shape)}; allowed is {allowed[name]}")


def _flipped(boxes: Tensor) -> Tensor:
    """x, y, x, y as y, x, y, x, and the other way."""
    return boxes.unflatten(-1, (2, 2)).flip(-1).flatten(-2)


def _yxyx(sizes: Tensor, like: Tensor) -> Tensor:
    """Height, width, height, width (..., 1, 4) of images, in the type of ``like``."""
    return torch.cat((sizes, sizes), dim=-1).to(like)[..., None, :]
