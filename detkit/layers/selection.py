"""Where the queries of a decoder come from: they are learned, or chosen from the cells whose class is most certain."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from detkit._door import door
from detkit._inputs import promote
from detkit._ranges import Count, Probability
from detkit._ranking import stable_topk
from detkit.layers.map_encoder import LevelMemory
from detkit.structures import take_rows

_BORDER = 0.01
"""A cell whose anchor's center or side is within this of 0 or 1 proposes nothing."""


class Proposed(NamedTuple):
    """Queries for the decoder: embeddings, references, and positions where these do not follow from references.

    Of queries chosen from cells also what these predict: logits and ``proposals``; then all else has no gradient.
    """

    embeddings: Float[Tensor, "B Q D"]
    boxes: Float[Tensor, "B Q _"]
    logits: Float[Tensor, "B Q C"] | None = None
    proposals: Float[Tensor, "B Q 4"] | None = None
    positions: Float[Tensor, "B Q D"] | None = None


class PointQueries(nn.Module):
    """``count`` queries with learned embeddings and positions; from these follows the point that each looks around.

    Source: Zhu et al. 2021, "Deformable DETR", section 4.1.

    >>> from detkit.layers.map_encoder import LevelMemory
    >>> memory = LevelMemory(torch.zeros(2, 1, 8), torch.ones(2, 1, dtype=torch.bool), [(1, 1)], torch.ones(2, 1, 2))
    >>> queries = PointQueries(5, 8)(memory)
    >>> queries.embeddings.shape, queries.boxes.shape
    (torch.Size([2, 5, 8]), torch.Size([2, 5, 2]))
    """

    @door
    def __init__(self, count: Count, channels: Count) -> None:
        super().__init__()
        self.queries, self.points = nn.Embedding(count, 2 * channels), nn.Linear(channels, 2)
        nn.init.xavier_uniform_(self.points.weight)
        nn.init.zeros_(self.points.bias)

    @door
    def forward(self, memory: LevelMemory) -> Proposed:
        """The queries, equal for each image of ``memory``."""
        queries = self.queries.weight.expand(len(memory.cells), -1, -1)
        positions, embeddings = queries.chunk(2, -1)
        return Proposed(embeddings, promote(self.points(positions)).sigmoid(), positions=positions)


class QuerySelection(nn.Module):
    """The ``count`` cells with the highest logit of any class become queries, each with its embedding and its box.

    ``embed`` maps cells to embeddings; ``head`` these and anchors to logits and boxes, as
    :class:`~detkit.heads.RefinementHead` without background, whose ``logits`` are computed for all cells. The anchor of
    a cell is a square around it, ``side`` of the image on the finest level and twice as much on each coarser one. Where
    it comes within 1 % of the image's border, or is larger than that, the cell reads as zeros and its box is one around
    the far corner. Cells outside an image are chosen last.

    With ``boxes``, which maps boxes to 2 D numbers, queries have positions and embeddings from these, not from cells.
    ``first_logit`` chooses by the first logit alone, cells outside an image like others. Sources: Zhu et al. 2021,
    "Deformable DETR", appendix A.4, whose release has both; Zhao et al. 2024, "RT-DETR", section 4.3, and its release
    for anchors.

    >>> from detkit.heads import RefinementHead
    >>> from detkit.layers.map_encoder import LevelMemory
    >>> selection = QuerySelection(nn.Linear(8, 8), RefinementHead(8, num_classes=3, background=False), count=5)
    >>> inside, shares = torch.ones(2, 20, dtype=torch.bool), torch.ones(2, 2, 2)
    >>> proposed = selection(LevelMemory(torch.rand(2, 20, 8), inside, [(4, 4), (2, 2)], shares))
    >>> proposed.embeddings.shape, proposed.proposals.shape
    (torch.Size([2, 5, 8]), torch.Size([2, 5, 4]))
    """

    @door
    def __init__(
        self,
        embed: nn.Module,
        head: nn.Module,
        count: Count,
        *,
        side: Probability = 0.05,
        boxes: nn.Module | None = None,
        first_logit: bool = False,
    ) -> None:
        super().__init__()
        self.embed, self.head, self.count, self.side = embed, head, count, side
        self.boxes, self.first_logit = boxes, first_logit

    @door
    def forward(self, memory: LevelMemory) -> Proposed:
        """The queries from the cells of ``memory``. Boxes are fractions of the image."""
        anchors = self._anchors(memory)
        good = ((anchors > _BORDER) & (anchors < 1 - _BORDER)).all(-1) & memory.inside
        embeddings = self.embed(torch.where(good[..., None], memory.cells, 0))
        rows = self._chosen(self.head.logits(embeddings).detach(), memory.inside)  # pyright: ignore[reportCallIssue]
        embeddings, anchors = take_rows(embeddings, rows), take_rows(anchors, rows)
        logits, boxes = self.head(embeddings, anchors)
        boxes = torch.where(good.gather(1, rows)[..., None], boxes, 1)
        starts = boxes.detach()
        if self.boxes is None:
            return Proposed(embeddings.detach(), starts, logits, boxes)
        positions, embeddings = self.boxes(starts).chunk(2, -1)
        return Proposed(embeddings, starts, logits, boxes, positions)

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        return f"count={self.count}, side={self.side}, first_logit={self.first_logit}"

    def _chosen(self, logits: Float[Tensor, "B K C"], inside: Bool[Tensor, "B K"]) -> Int[Tensor, "B Q"]:
        scores = logits[..., 0] if self.first_logit else torch.where(inside, logits.amax(-1), -torch.inf)
        scores = scores.nan_to_num(nan=-torch.inf, neginf=-torch.inf)
        if scores.dtype != torch.float64:
            return stable_topk(scores, self.count)
        return scores.sort(descending=True, stable=True).indices[:, : self.count]  # cells of a new net differ by 1e-10

    def _anchors(self, memory: LevelMemory) -> Float[Tensor, "B K 4"]:
        """cx, cy, w, h of every cell, as fractions of each image, at least in float32."""
        centers = memory.fractions()
        cells = [rows * columns for rows, columns in memory.shapes]
        sides = [torch.full_like(part, self.side * 2**i) for i, part in enumerate(centers.split(cells, 1))]
        return torch.cat((centers, torch.cat(sides, 1)), -1)
