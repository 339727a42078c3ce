"""The stage of DETR: queries that look at the whole image and at each other, each for one object or none."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from detkit._inputs import check_fraction
from detkit._ranking import stable_topk
from detkit.boxes import clip_boxes_to_image, cxcywh_to_xyxy
from detkit.detectors.detector import Stage
from detkit.layers.position import cells_inside
from detkit.layers.transformer import TransformerDecoder, TransformerEncoder
from detkit.losses.set_prediction import SetPredictionLoss
from detkit.structures import Detections, Images, Targets


class SetPredictionOutputs(NamedTuple):
    """Predictions of L decoder layers, the last at inference; boxes are cx, cy, w, h as fractions of the image."""

    logits: Float[Tensor, "L B Q classes"]
    boxes: Float[Tensor, "L B Q 4"]
    sizes: Shaped[Tensor, "B 2"]


class SetPostprocess(nn.Module):
    """The best class of each query, and of these the ``max_detections`` best: nothing is suppressed.

    Queries count that score strictly above ``score_threshold``; equal scores keep the order of the queries. A query
    with a NaN among its scores, or with a box that is not finite, finds nothing. Source: Carion et al. 2020, section
    3.2. Raises ValueError for a threshold outside [0, 1] and a count below 1.

    >>> scores = torch.tensor([[[0.1, 0.2], [0.75, 0.25]]])
    >>> boxes = torch.tensor([[[0.5, 0.5, 1.0, 1.0], [0.5, 0.5, 0.25, 0.5]]])
    >>> found = SetPostprocess(max_detections=1)(scores, boxes, torch.tensor([[100, 200]]))
    >>> found.boxes, found.scores, found.labels
    (tensor([[[ 75.,  25., 125.,  75.]]]), tensor([[0.7500]]), tensor([[0]]))
    """

    def __init__(self, *, score_threshold: float = 0.0, max_detections: int = 100) -> None:
        super().__init__()
        check_fraction(score_threshold, name="score_threshold", function="SetPostprocess")
        if max_detections < 1:
            raise ValueError(f"SetPostprocess: max_detections={max_detections} must be at least 1")
        self.score_threshold, self.max_detections = score_threshold, max_detections

    @torch.no_grad()
    def forward(
        self, scores: Float[Tensor, "B Q C"], boxes: Float[Tensor, "B Q 4"], sizes: Shaped[Tensor, "B 2"]
    ) -> Detections:
        """Detections of B images, clipped to ``sizes`` (B, 2), from scores (B, Q, C) in [0, 1] and boxes (B, Q, 4).

        Boxes are cx, cy, w, h as fractions of the image. K is min(max_detections, Q): rows not ``valid`` hold zeros.
        """
        best, labels = scores.max(-1)
        usable = torch.isfinite(boxes).all(-1) & (best > self.score_threshold)  # no NaN is above anything
        rows = stable_topk(torch.where(usable, best, -1), self.max_detections)
        valid = usable.gather(1, rows)
        corners = cxcywh_to_xyxy(boxes.gather(1, rows[..., None].expand(-1, -1, 4)))
        corners = torch.where(valid[..., None], corners * sizes.to(corners).flip(-1).repeat(1, 2)[:, None], 0)
        return Detections(
            boxes=clip_boxes_to_image(corners, sizes),
            scores=torch.where(valid, best.gather(1, rows), 0),
            labels=torch.where(valid, labels.gather(1, rows), 0),
            valid=valid,
        )

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        return f"score_threshold={self.score_threshold}, max_detections={self.max_detections}"


class SetPredictionStage(Stage):
    """Wires projection, positions, encoder, decoder, queries, head, loss and postprocess into DETR.

    ``projection`` maps the last of the features to the D channels of encoder and decoder; ``positions(inside, dtype=)``
    gives embeddings (B, D, H, W) of its cells; ``queries`` holds one for every query; ``head`` maps what the decoder's
    layers give to logits and boxes; ``postprocess(scores, boxes, sizes)`` makes Detections. What lies in the padding of
    a batch is not looked at. Source: Carion et al. 2020, figures 2 and 10.

    >>> from detkit.detectors import detr_stage
    >>> type(detr_stage(2, 8, channels=32, depth=1)).__name__
    'SetPredictionStage'
    """

    def __init__(
        self,
        *,
        projection: nn.Module,
        positions: nn.Module,
        encoder: TransformerEncoder,
        decoder: TransformerDecoder,
        queries: nn.Embedding,
        head: nn.Module,
        criterion: SetPredictionLoss,
        postprocess: SetPostprocess,
    ) -> None:
        super().__init__()
        self.projection, self.positions, self.encoder, self.decoder = projection, positions, encoder, decoder
        self.queries, self.head, self.criterion, self.postprocess = queries, head, criterion, postprocess

    def forward(
        self, features: list[Tensor], images: Images, detections: Detections | None, targets: Targets | None = None
    ) -> SetPredictionOutputs:
        """Logits and boxes of every decoder layer with targets, of the last without."""
        memory, where, mask = encoded(features[-1], images, self.projection, self.positions, self.encoder)
        queries = self.queries.weight.expand(memory.shape[0], -1, -1)
        layers = self.decoder(
            torch.zeros_like(queries), memory, positions=queries, memory_positions=where, memory_mask=mask
        )
        logits, boxes = self.head(torch.stack(layers if targets is not None else layers[-1:]))
        return SetPredictionOutputs(logits, boxes, images.sizes)

    def loss(self, outputs: SetPredictionOutputs, targets: Targets) -> dict[str, Tensor]:
        """The criterion's losses of all layers."""
        return self.criterion(outputs.logits, outputs.boxes, targets, outputs.sizes)

    def detections(self, outputs: SetPredictionOutputs, images: Images) -> Detections:
        """What the queries of the last layer found."""
        return self.postprocess(self.criterion.scores(outputs.logits[-1]), outputs.boxes[-1], images.sizes)


def encoded(
    features: Float[Tensor, "B E H W"],
    images: Images,
    projection: nn.Module,
    positions: nn.Module,
    encoder: TransformerEncoder,
) -> tuple[Float[Tensor, "B N D"], Float[Tensor, "B N D"], Bool[Tensor, "B 1 N"]]:
    """The cells of a map, encoded, where each of them lies, and which hold image: others are not looked at.

    The parts are those of :class:`SetPredictionStage`.

    >>> from detkit.layers.position import SinePositions
    >>> images = Images(torch.zeros(1, 3, 32, 64), torch.tensor([[32, 40]]))
    >>> parts = nn.Conv2d(3, 8, 1), SinePositions(8), TransformerEncoder([])
    >>> cells, where, mask = encoded(torch.zeros(1, 3, 1, 3), images, *parts)
    >>> cells.shape, where.shape, mask
    (torch.Size([1, 3, 8]), torch.Size([1, 3, 8]), tensor([[[ True,  True, False]]]))
    """
    cells = projection(features)
    frame, shape = images.tensors.shape[-2:], cells.shape[-2:]
    inside = cells_inside(images.sizes, (frame[0], frame[1]), (shape[0], shape[1]))
    where, mask = _as_rows(positions(inside, dtype=cells.dtype)), inside.flatten(1)[:, None]
    return encoder(_as_rows(cells), positions=where, mask=mask), where, mask


def _as_rows(cells: Float[Tensor, "B D H W"]) -> Float[Tensor, "B N D"]:
    """Cells one after another, row by row."""
    return cells.flatten(2).transpose(1, 2)
