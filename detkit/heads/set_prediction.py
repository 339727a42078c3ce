"""The heads of set prediction: they predict a class or no object, and a box, for every query."""

import math
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from detkit._door import door
from detkit._inputs import promote
from detkit._ranges import Count, Probability
from detkit.layers.box_decoder import EDGE, inverse_sigmoid


class SetPredictionHead(nn.Module):
    """A linear layer predicts the class, and an MLP of ``depth`` layers the box.

    Logits have a column for each of ``num_classes`` and a last one for no object. Boxes are cx, cy, w, h as fractions
    of the image, after a sigmoid, at least in float32. Raises ValueError for a depth below 1. Source: Carion et al.
    2020, section 3.2.

    >>> import torch
    >>> logits, boxes = SetPredictionHead(8, num_classes=3)(torch.zeros(2, 5, 8))
    >>> logits.shape, boxes.shape
    (torch.Size([2, 5, 4]), torch.Size([2, 5, 4]))
    """

    @door
    def __init__(self, channels: Count, *, num_classes: Count, depth: Count = 3) -> None:
        super().__init__()
        self.logits, self.boxes = nn.Linear(channels, num_classes + 1), small_net(channels, channels, 4, depth)

    @door
    def forward(self, embeddings: Float[Tensor, "*B D"]) -> tuple[Float[Tensor, "*B Q"], Float[Tensor, "*B 4"]]:
        """Logits (..., num_classes + 1) and boxes (..., 4) of ``embeddings`` (..., channels)."""
        return self.logits(embeddings), promote(self.boxes(embeddings)).sigmoid()


class RefinementHead(nn.Module):
    """The same two parts, but the MLP refines a given box for each query; at initialization it leaves it unchanged.

    The output of the MLP is added to the logits of the box's cx, cy, w, h, of which both fraction and rest count as at
    least ``edge``; a point in place of a box has no w and h. Without ``background`` there is no column for no object:
    the logits are for a sigmoid. Errors are those of :class:`SetPredictionHead`. Source: Zhu et al. 2021, "Deformable
    DETR", section 4.2 and appendix A.4.

    >>> import torch
    >>> logits, boxes = RefinementHead(8, num_classes=3)(torch.rand(1, 1, 8), torch.tensor([[[0.5, 0.5, 0.25, 1.0]]]))
    >>> logits.shape, boxes
    (torch.Size([1, 1, 4]), tensor([[[0.5000, 0.5000, 0.2500, 0.9990]]], grad_fn=<SigmoidBackward0>))
    """

    @door
    def __init__(
        self,
        channels: Count,
        *,
        num_classes: Count,
        depth: Count = 3,
        background: bool = True,
        edge: Probability = EDGE,
    ) -> None:
        super().__init__()
        self.logits = nn.Linear(channels, num_classes + background)
        if not background:
            prior_bias(self.logits)
        self.boxes = small_net(channels, channels, 4, depth)
        self.edge = edge
        for parameter in self.boxes[-1].parameters():
            nn.init.zeros_(parameter)

    @door
    def forward(
        self, embeddings: Float[Tensor, "*B D"], references: Float[Tensor, "*#B _"]
    ) -> tuple[Float[Tensor, "*B Q"], Float[Tensor, "*B 4"]]:
        """Logits (..., classes) and boxes (..., 4) of ``embeddings`` (..., channels) and their ``references``.

        References are boxes (..., 4), cx, cy, w, h as fractions of the image, or points (..., 2).
        """
        before = inverse_sigmoid(references, edge=self.edge)
        before = F.pad(before, (0, 4 - before.shape[-1]))
        return self.logits(embeddings), (promote(self.boxes(embeddings)) + before).sigmoid()

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        return f"edge={self.edge}"


def small_net(channels: int, hidden: int, outputs: int, depth: int) -> nn.Sequential:
    """``depth`` linear layers, of ``hidden`` channels between ``channels`` and ``outputs``, with a ReLU between them.

    >>> small_net(8, 16, 4, 2)
    Sequential(
      (0): Linear(in_features=8, out_features=16, bias=True)
      (1): ReLU()
      (2): Linear(in_features=16, out_features=4, bias=True)
    )
    """
    layers: list[nn.Module] = []
    for before, after in pairwise([channels] + [hidden] * (depth - 1) + [outputs]):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def prior_bias(layer: nn.Linear, *, prior: float = 0.01) -> nn.Linear:
    """``layer`` with a bias whose sigmoid is ``prior``: scores start there (Lin et al. 2017, "RetinaNet", section 3.3).

    >>> round(prior_bias(nn.Linear(8, 1)).bias.sigmoid().item(), 6)
    0.01
    """
    nn.init.constant_(layer.bias, -math.log((1 - prior) / prior))
    return layer
