"""The head of set prediction: a class or no object, and a box, for every query."""

from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn

from detkit.boxes.arguments import promote


class SetPredictionHead(nn.Module):
    """One linear layer for the class, and a net of ``depth`` layers for the box.

    Logits have a column for each of ``num_classes`` and a last one for no object. Boxes are cx, cy, w, h as fractions
    of the image, by sigmoid, at least in float32. Raises ValueError for a depth below 1. Source: Carion et al. 2020,
    section 3.2.

    >>> import torch
    >>> logits, boxes = SetPredictionHead(8, num_classes=3)(torch.zeros(2, 5, 8))
    >>> logits.shape, boxes.shape
    (torch.Size([2, 5, 4]), torch.Size([2, 5, 4]))
    """

    def __init__(self, channels: int, *, num_classes: int, depth: int = 3) -> None:
        super().__init__()
        if depth < 1 or num_classes < 1:
            raise ValueError(f"SetPredictionHead: depth={depth} and num_classes={num_classes} must be at least 1")
        self.logits = nn.Linear(channels, num_classes + 1)
        layers: list[nn.Module] = []
        for before, after in pairwise([channels] * depth + [4]):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.boxes = nn.Sequential(*layers[:-1])

    def forward(self, embeddings: Float[Tensor, "*B D"]) -> tuple[Float[Tensor, "*B Q"], Float[Tensor, "*B 4"]]:
        """Logits (..., num_classes + 1) and boxes (..., 4) of ``embeddings`` (..., channels)."""
        return self.logits(embeddings), promote(self.boxes(embeddings)).sigmoid()
