"""The heads of set prediction: they predict a class or no object, and a box, for every query."""

from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn

from detkit._door import door
from detkit._inputs import promote
from detkit._ranges import Count
from detkit.layers.box_decoder import EDGE


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
        self.logits, self.boxes = nn.Linear(channels, num_classes + 1), _box_net(channels, depth)

    @door
    def forward(self, embeddings: Float[Tensor, "*B D"]) -> tuple[Float[Tensor, "*B Q"], Float[Tensor, "*B 4"]]:
        """Logits (..., num_classes + 1) and boxes (..., 4) of ``embeddings`` (..., channels)."""
        return self.logits(embeddings), promote(self.boxes(embeddings)).sigmoid()


class RefinementHead(nn.Module):
    """The same two parts, but the MLP refines a given box for each query; at initialization it leaves it unchanged.

    The output of the MLP is added to the logits of the box's cx, cy, w, h. Class logits and errors are those of
    :class:`SetPredictionHead`. Source: Zhu et al. 2021, "Deformable DETR", appendix A.4, iterative refinement.

    >>> import torch
    >>> logits, boxes = RefinementHead(8, num_classes=3)(torch.rand(1, 1, 8), torch.tensor([[[0.5, 0.5, 0.25, 1.0]]]))
    >>> logits.shape, boxes
    (torch.Size([1, 1, 4]), tensor([[[0.5000, 0.5000, 0.2500, 0.9990]]], grad_fn=<SigmoidBackward0>))
    """

    @door
    def __init__(self, channels: Count, *, num_classes: Count, depth: Count = 3) -> None:
        super().__init__()
        self.logits, self.boxes = nn.Linear(channels, num_classes + 1), _box_net(channels, depth)
        for parameter in self.boxes[-1].parameters():
            nn.init.zeros_(parameter)

    @door
    def forward(
        self, embeddings: Float[Tensor, "*B D"], boxes: Float[Tensor, "*#B 4"]
    ) -> tuple[Float[Tensor, "*B Q"], Float[Tensor, "*B 4"]]:
        """Logits (..., num_classes + 1) and boxes (..., 4) of ``embeddings`` (..., channels) and their ``boxes``.

        Boxes are cx, cy, w, h as fractions of the image; input boxes are clamped to [0.001, 0.999].
        """
        return self.logits(embeddings), (promote(self.boxes(embeddings)) + promote(boxes).logit(eps=EDGE)).sigmoid()


def _box_net(channels: int, depth: int) -> nn.Sequential:
    """``depth`` linear layers, from ``channels`` to the 4 numbers of a box."""
    layers: list[nn.Module] = []
    for before, after in pairwise([channels] * depth + [4]):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
