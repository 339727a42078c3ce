"""D-FINE's decoder: each layer adds to distributions of where the edges of a box are, relative to the first box."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from detkit._door import door
from detkit._inputs import promote
from detkit._ranges import Count, Probability
from detkit.boxes import EdgeCoder, cxcywh_to_xyxy, xyxy_to_cxcywh
from detkit.layers.box_decoder import DeformableDecoderLayer, inverse_sigmoid
from detkit.layers.deformable import Shapes


class EdgePredictions(NamedTuple):
    """What L layers predict of Q queries, and what the first predicted before any distribution: classes and boxes.

    Boxes are cx, cy, w, h as fractions of the image; ``embeddings`` are those of the last layer; ``distributions`` are
    logits of an :class:`~detkit.boxes.EdgeCoder` relative to ``first_boxes``.
    """

    logits: Float[Tensor, "L B Q C"]
    boxes: Float[Tensor, "L B Q 4"]
    distributions: Float[Tensor, "L B Q D"]
    first_logits: Float[Tensor, "B Q C"]
    first_boxes: Float[Tensor, "B Q 4"]
    embeddings: Float[Tensor, "B Q D"] | None = None


class GatedResidual(nn.Module):
    """What a step made of embeddings, and these, each times a gate that both decide, then normalized.

    At the start both count half. Source: Peng et al. 2024, "D-FINE", section 4.3 ("target gating layer").

    >>> GatedResidual(8)(torch.ones(1, 5, 8), torch.zeros_like).shape
    torch.Size([1, 5, 8])
    """

    @door
    def __init__(self, channels: Count) -> None:
        super().__init__()
        self.gates, self.norm = nn.Linear(2 * channels, 2 * channels), nn.LayerNorm(channels)
        for parameter in self.gates.parameters():
            nn.init.zeros_(parameter)

    def forward(self, embeddings: Float[Tensor, "B N D"], step: Callable[[Tensor], Tensor]) -> Float[Tensor, "B N D"]:
        """The joined ``embeddings``."""
        found = step(embeddings)
        kept, taken = self.gates(torch.cat((embeddings, found), -1)).sigmoid().chunk(2, -1)
        return self.norm(kept * embeddings + taken * found)


class EdgeDecoder(nn.Module):
    """Decoder layers, each with a head that adds to the distributions of all layers before it.

    The first layer refines the boxes of the queries by ``initial``, which maps embeddings to the 4 numbers that are
    added to the logits of cx, cy, w, h. From then on each head maps (embeddings, those of the layer before, the
    distributions so far) to (plain logits, logits, distributions), as :class:`~detkit.heads.EdgeHead`, and ``coder``
    reads these as boxes, relative to the first ones; the next layer attends around them. A box gets no gradient from
    the layers that attend around it; distributions do from all that add to them. ``positions`` embeds boxes.
    ``edge`` is as in :class:`~detkit.heads.RefinementHead`. Raises ValueError unless there is one head per layer.
    Source: Peng et al. 2024, "D-FINE", section 4.1 ("fine-grained distribution refinement").

    >>> from detkit.heads import EdgeHead
    >>> from detkit.layers import BoxPositions, DeformableAttention
    >>> layer = DeformableDecoderLayer(8, 2, hidden=16, memory_attention=DeformableAttention(8, 2, levels=1))
    >>> coder = EdgeCoder(bins=4)
    >>> head = EdgeHead(8, num_classes=3, bins=4)
    >>> decoder = EdgeDecoder([layer], [head], positions=BoxPositions(8), initial=nn.Linear(8, 4), coder=coder)
    >>> found = decoder(torch.rand(1, 5, 8), torch.rand(1, 5, 4), torch.rand(1, 12, 8), [(3, 4)])
    >>> found.boxes.shape, found.distributions.shape
    (torch.Size([1, 1, 5, 4]), torch.Size([1, 1, 5, 20]))
    """

    @door
    def __init__(
        self,
        layers: Sequence[DeformableDecoderLayer],
        heads: Sequence[nn.Module],
        *,
        positions: nn.Module,
        initial: nn.Module,
        coder: EdgeCoder,
        edge: Probability = 1e-5,
    ) -> None:
        super().__init__()
        if not layers or len(layers) != len(heads):
            raise ValueError(
                f"EdgeDecoder: {len(layers)} layers and {len(heads)} heads; allowed is one head for each layer"
            )
        self.layers, self.heads = nn.ModuleList(layers), nn.ModuleList(heads)
        self.positions, self.initial, self.coder, self.edge = positions, initial, coder, edge

    @door
    def forward(
        self,
        embeddings: Float[Tensor, "B Q D"],
        references: Float[Tensor, "B Q 4"],
        memory: Float[Tensor, "B K D"],
        shapes: Shapes,
        *,
        mask: Bool[Tensor, "#B #Q Q"] | None = None,
        inside: Bool[Tensor, "B K"] | None = None,
        shares: Float[Tensor, "B #levels 2"] | None = None,
    ) -> EdgePredictions:
        """Predictions after every layer; arguments are as in :class:`~detkit.layers.BoxDecoder`."""
        scale = 1 if shares is None else shares.repeat(1, 1, 2)[:, None]
        boxes, before, total, found = references, torch.zeros_like(embeddings), None, []
        first_logits, first_boxes, corners = embeddings, references, references  # until the first layer says so
        for layer, head in zip(self.layers, self.heads, strict=True):
            around, positions = boxes[:, :, None] * scale, self.positions(boxes)
            embeddings = layer(embeddings, around, memory, shapes, positions=positions, mask=mask, inside=inside)
            plain, logits, total = head(embeddings, before, total)
            if not found:
                refined = promote(self.initial(embeddings)) + inverse_sigmoid(boxes, edge=self.edge)
                first_logits, first_boxes = plain, refined.sigmoid()
                corners = cxcywh_to_xyxy(first_boxes.detach())
            refined = xyxy_to_cxcywh(self.coder.decode(total, corners))
            found.append((logits, refined, total))
            boxes, before = refined.detach(), embeddings.detach()
        logits, boxes, distributions = (torch.stack(rows) for rows in zip(*found, strict=True))
        return EdgePredictions(logits, boxes, distributions, first_logits, first_boxes, embeddings)

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        return f"edge={self.edge}"
