"""The stage of RT-DETR and D-FINE: queries are chosen from the cells of several levels, and refined layer by layer."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from detkit._door import door
from detkit.anchors import gather_assigned
from detkit.boxes import cxcywh_to_xyxy, fractions_to_pixels, pixels_to_fractions
from detkit.detectors.denoising import DenoisingQueries, denoising_losses
from detkit.detectors.detector import Stage
from detkit.detectors.set_prediction import (
    SetPredictionOutputs,
    check_set_matcher,
    match_layers,
    matched_queries,
    with_embeddings,
)
from detkit.layers import EdgePredictions, LevelMemory, PointQueries, Proposed, QuerySelection
from detkit.losses.edges import EdgeLoss
from detkit.losses.set_prediction import SetCriterion, by_layer
from detkit.structures import Assignment, Detections, Images, Targets

Predictions = Any
"""What a decoder predicts: logits (L, B, Q, C), boxes (L, B, Q, 4), and more with as many queries."""


class SelectedQueryOutputs(NamedTuple):
    """What the decoder and the cells predict; in training also of noised queries, with the objects they belong to."""

    found: Predictions
    proposed: Proposed
    sizes: Shaped[Tensor, "B 2"]
    noised: Predictions | None = None
    assignment: Assignment | None = None


class SelectedQueryStage(Stage):
    """Wires projections, query selection, decoder, denoising, losses and postprocess into RT-DETR, or D-FINE.

    ``encoder(features, images)`` returns a :class:`~detkit.layers.LevelMemory`, from which ``selection`` makes the
    queries, a :class:`~detkit.layers.QuerySelection` or :class:`~detkit.layers.PointQueries`; ``decoder`` is a
    :class:`~detkit.layers.BoxDecoder` or :class:`~detkit.layers.EdgeDecoder`, and ``losses`` the :class:`QueryLosses`
    or :class:`EdgeQueryLosses` that fit. With targets, the noised objects of ``denoising`` (None: none) come before the
    queries, which do not attend to them. No query attends to the padding of a batch. Embeddings are handed on as by
    :class:`~detkit.detectors.SetPredictionStage`. Sources: Zhao et al. 2024,
    "RT-DETR"; Peng et al. 2024, "D-FINE".

    >>> from detkit.detectors import small_rt_detr
    >>> type(small_rt_detr(num_classes=2).objects).__name__
    'SelectedQueryStage'
    """

    def __init__(
        self,
        *,
        encoder: nn.Module,
        selection: QuerySelection | PointQueries,
        decoder: nn.Module,
        denoising: DenoisingQueries | None,
        losses: "QueryLosses | EdgeQueryLosses",
        postprocess: nn.Module,
        branch: str | None = None,
    ) -> None:
        super().__init__(branch=branch)
        self.encoder, self.selection, self.decoder, self.denoising = encoder, selection, decoder, denoising
        self.losses, self.postprocess = losses, postprocess

    @door
    def forward(
        self, features: list[Tensor], images: Images, detections: Detections | None, targets: Targets | None = None
    ) -> SelectedQueryOutputs:
        """What every decoder layer predicts; with targets, of the noised queries too."""
        memory = self.encoder(features, images)
        proposed = self.selection(memory)
        if targets is None or self.denoising is None:
            found = self._decoded(proposed.embeddings, proposed.boxes, memory, positions=proposed.positions)
            return SelectedQueryOutputs(found, proposed, images.sizes)
        noised = self.denoising(targets, images.sizes)
        embeddings, boxes = (torch.cat((a.to(b), b), 1) for a, b in zip(noised[:2], proposed[:2], strict=True))
        mask = self.denoising.mask(noised, proposed.boxes.shape[1])
        first, predictions = noised.boxes.shape[1], self._decoded(embeddings, boxes, memory, mask=mask)
        known, found = (_queries(predictions, part) for part in (slice(None, first), slice(first, None)))
        return SelectedQueryOutputs(found, proposed, images.sizes, known, noised.assignment)

    @door
    def loss(self, outputs: SelectedQueryOutputs, targets: Targets) -> dict[str, Tensor]:
        """The losses of all layers and of the cells; those of noised queries, "denoising.l1" etc., over all layers."""
        targets = targets._replace(boxes=pixels_to_fractions(targets.boxes, outputs.sizes))
        losses = self.losses(outputs.found, targets, proposed=outputs.proposed)
        if outputs.noised is not None and outputs.assignment is not None:
            losses |= denoising_losses(self.losses(outputs.noised, targets, known=outputs.assignment))
        return losses

    @door
    def detections(self, outputs: SelectedQueryOutputs, images: Images) -> Detections:
        """The detections that the queries of the last layer predict."""
        logits, boxes = outputs.found[:2]
        boxes = fractions_to_pixels(cxcywh_to_xyxy(boxes[-1]), images.sizes)
        found = self.postprocess(self.losses.criterion.scores(logits[-1]), boxes, images.sizes)
        return with_embeddings(found, getattr(outputs.found, "embeddings", None))

    @door
    def handover(self, outputs: SelectedQueryOutputs, images: Images, targets: Targets) -> Detections:
        """As :class:`~detkit.detectors.SetPredictionStage` does; noised queries are left out."""
        logits, boxes = outputs.found[:2]
        found = SetPredictionOutputs(logits, boxes, outputs.sizes, getattr(outputs.found, "embeddings", None))
        return matched_queries(found, targets, self.losses.matcher, self.losses.criterion)

    def _decoded(
        self,
        embeddings: Tensor,
        boxes: Tensor,
        memory: LevelMemory,
        *,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Predictions:
        given = {} if positions is None else {"positions": positions}  # most decoders make their own
        cells, inside, shapes, shares = memory
        return self.decoder(embeddings, boxes, cells, shapes, mask=mask, inside=inside, shares=shares, **given)


class QueryLosses(nn.Module):
    """Matches the queries of every layer, and of the cells, with the objects, and judges them by ``criterion``.

    Only the last layer has losses unless ``auxiliary``, and cells only with ``proposals``.

    >>> from detkit.anchors import HungarianMatcher
    >>> from detkit.losses import VarifocalSetLoss
    >>> from detkit.structures import pad_targets
    >>> targets = pad_targets([{"boxes": torch.tensor([[0.2, 0.2, 0.6, 0.6]]), "labels": torch.tensor([0])}])
    >>> boxes = torch.tensor([[[0.4, 0.4, 0.4, 0.4]]])
    >>> losses = QueryLosses(HungarianMatcher(class_cost="focal"), VarifocalSetLoss())
    >>> sorted(losses((torch.zeros(2, 1, 1, 3), boxes.expand(2, 1, 1, 4)), targets))
    ['classification', 'giou', 'l1', 'layer0.classification', 'layer0.giou', 'layer0.l1']
    """

    def __init__(
        self, matcher: nn.Module, criterion: SetCriterion, *, auxiliary: bool = True, proposals: bool = True
    ) -> None:
        super().__init__()
        check_set_matcher(type(self).__name__, matcher)
        self.matcher, self.criterion = matcher, criterion
        self.auxiliary, self.proposals = auxiliary, proposals

    @door
    def forward(
        self,
        predictions: Predictions,
        targets: Targets,
        *,
        proposed: Proposed | None = None,
        known: Assignment | None = None,
    ) -> dict[str, Tensor]:
        """Losses of L layers: those of the last as they are, of the first "layer0.l1", of cells "proposals.l1".

        Target boxes are xyxy as fractions of their images. ``known`` is the object of each query (B, Q), where there is
        nothing to match. Raises the ValueError of the matcher for objects that cannot be learned.
        """
        predictions = predictions if self.auxiliary else tuple(rows[-1:] for rows in predictions[:2])
        names, logits, boxes = layers_of(predictions, proposed if self.proposals else None)
        assignment = match_layers(self.matcher, logits, boxes, targets) if known is None else known
        count = None if known is None else weight_of(known, targets)
        return by_layer(self.criterion.costs(logits, boxes, targets, assignment, count=count), names)

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        return f"auxiliary={self.auxiliary}, proposals={self.proposals}"


class EdgeQueryLosses(nn.Module):
    """As :class:`QueryLosses`, and ``edges`` judges the distributions of all layers; the last teaches the others.

    Boxes and distributions learn the objects that a query is matched with in any layer or by the cells, of several the
    most frequent; classes those of their own layer. Source: Peng et al. 2024, "D-FINE", section 4.2 ("global optimal
    localization self-distillation").

    >>> from detkit.boxes import EdgeCoder
    >>> from detkit.anchors import HungarianMatcher
    >>> from detkit.losses import VarifocalSetLoss
    >>> EdgeQueryLosses(HungarianMatcher(class_cost="focal"), VarifocalSetLoss(), EdgeLoss(EdgeCoder(bins=4))).edges
    EdgeLoss(
      fgl_weight=0.15, ddf_weight=1.5, temperature=5.0
      (coder): EdgeCoder(bins=4, reach=0.5, scale=4.0)
    )
    """

    def __init__(self, matcher: nn.Module, criterion: SetCriterion, edges: EdgeLoss) -> None:
        super().__init__()
        check_set_matcher(type(self).__name__, matcher)
        self.matcher, self.criterion, self.edges = matcher, criterion, edges

    @door
    def forward(
        self,
        predictions: EdgePredictions,
        targets: Targets,
        *,
        proposed: Proposed | None = None,
        known: Assignment | None = None,
    ) -> dict[str, Tensor]:
        """Losses as :class:`QueryLosses` has them; what the first layer predicts before distributions is "first.l1"."""
        names, logits, boxes = layers_of(predictions, proposed)
        assignment = match_layers(self.matcher, logits, boxes, targets) if known is None else known
        united = united_layers(assignment, len(targets.valid)) if known is None else known
        count = None if known is None else weight_of(known, targets)
        costs = self.criterion.costs(logits, boxes, targets, assignment, count=count, boxes_from=united)
        teacher = predictions.logits[-1], predictions.distributions[-1]
        edges = self.edges(
            *(predictions.distributions, predictions.boxes, predictions.first_boxes, teacher),
            *(targets, united),
            count=weight_of(united, targets),
        )
        learners = [f"layer{i}" for i in range(len(predictions.logits) - 1)]
        losses = by_layer(costs, names) | by_layer(edges, learners)
        del losses["ddf"]  # the teacher learns nothing from itself
        return losses


def layers_of(
    predictions: Predictions, proposed: Proposed | None
) -> tuple[list[str], Float[Tensor, "S B Q C"], Float[Tensor, "S B Q 4"]]:
    """Everything that predicts classes and boxes, one after another, and the names of all but the last.

    >>> found = torch.zeros(2, 1, 5, 3), torch.zeros(2, 1, 5, 4)
    >>> layers_of(found, Proposed(found[0][0], found[1][0], found[0][0], found[1][0]))[0]
    ['proposals', 'layer0']
    """
    names, (logits, boxes) = [f"layer{i}" for i in range(len(predictions[0]) - 1)], predictions[:2]
    if isinstance(predictions, EdgePredictions):
        names = ["first", *names]
        logits = torch.cat((predictions.first_logits[None], logits))
        boxes = torch.cat((predictions.first_boxes[None], boxes))
    if proposed is not None and proposed.logits is not None and proposed.proposals is not None:
        names = ["proposals", *names]
        logits = torch.cat((proposed.logits[None].to(logits), logits))
        boxes = torch.cat((proposed.proposals[None].to(boxes), boxes))
    return names, logits, boxes


def united_layers(assignment: Assignment, images: int) -> Assignment:
    """Of all objects that a query is matched with in any layer, (L * B, Q), the most frequent; the first of several.

    A query that no layer matches is IGNORED if one says so, else NEGATIVE. ``quality`` is the largest.

    >>> matched = torch.tensor([[0, -1, -1], [1, -1, -2], [1, 2, -1]])
    >>> united_layers(Assignment(matched, torch.zeros(3, 3)), 1).matched
    tensor([[ 1,  2, -2]])
    """
    matched, quality = (rows.unflatten(0, (-1, images)) for rows in assignment)
    votes = (matched[:, None] == matched).sum(0)
    most = torch.where(matched >= 0, votes, -1)
    winner = torch.where(most == most.amax(0), matched, matched.amax(0))
    taken = torch.where(matched.amax(0) >= 0, winner.amin(0), matched.amin(0))
    return Assignment(taken, quality.amax(0))


def weight_of(assignment: Assignment, targets: Targets) -> Float[Tensor, ""]:
    """The weight of the objects of all matched queries.

    >>> from detkit.structures import pad_targets
    >>> targets = pad_targets([{"boxes": torch.zeros(1, 4), "labels": torch.tensor([7])}])
    >>> weight_of(Assignment(torch.tensor([[0, 0, -1]]), torch.ones(1, 3)), targets)
    tensor(2.)
    """
    return torch.where(assignment.matched >= 0, gather_assigned(assignment, targets).weights, 0).sum()


def _queries(predictions: Predictions, part: slice) -> Predictions:
    """The predictions of some of the queries."""
    make = getattr(type(predictions), "_make", tuple)
    return make(None if rows is None else rows[..., part, :] for rows in predictions)
