"""The DETR stage: queries attend to the whole image and to each other, and each predicts one object or none."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from detkit._door import door
from detkit._ranges import Count, Fraction
from detkit._ranking import stable_topk
from detkit.boxes import clip_boxes_to_image, cxcywh_to_xyxy, fractions_to_pixels, pixels_to_fractions
from detkit.detectors.detector import Stage
from detkit.detectors.postprocess import gradients_on_request
from detkit.layers import ConditionalDecoder, TransformerDecoder
from detkit.losses.set_prediction import SetCriterion
from detkit.structures import Assignment, Detections, Images, Predictions, Targets, take_rows


class SetPredictionOutputs(NamedTuple):
    """Predictions of L decoder layers, the last at inference; boxes are cx, cy, w, h as fractions of the image.

    ``embeddings`` are the outputs of the last layer, from which the head predicts.
    """

    logits: Float[Tensor, "L B Q classes"]
    boxes: Float[Tensor, "L B Q 4"]
    sizes: Shaped[Tensor, "B 2"]
    embeddings: Float[Tensor, "B Q D"] | None = None


class SetPostprocess(nn.Module):
    """Takes the best class of each query and keeps the ``max_detections`` best queries; there is no suppression.

    With ``every_class`` all classes of a query are detections of their own, of which the best are kept, as detectors
    have it whose classes are independent (Zhu et al. 2021, "Deformable DETR", the release). One counts if it scores
    strictly above ``score_threshold``; equal scores keep the order of the queries. A query with a NaN among its scores,
    or with a box that is not finite, predicts nothing. ``gradients`` is as in :class:`~detkit.detectors.Postprocess`;
    with ``rows`` detections say which query each was. Source: Carion et al. 2020, section 3.2. Raises ValueError for a
    threshold outside [0, 1] and a count below 1.

    >>> scores = torch.tensor([[[0.1, 0.2], [0.75, 0.25]]])
    >>> boxes = torch.tensor([[[0.0, 0, 200, 100], [75, 25, 125, 75]]])
    >>> found = SetPostprocess(max_detections=1)(scores, boxes, torch.tensor([[100, 200]]))
    >>> found.boxes, found.scores, found.labels
    (tensor([[[ 75.,  25., 125.,  75.]]]), tensor([[0.7500]]), tensor([[0]]))
    """

    @door
    def __init__(
        self,
        *,
        score_threshold: Fraction = 0.0,
        max_detections: Count = 100,
        gradients: bool = False,
        rows: bool = False,
        every_class: bool = False,
    ) -> None:
        super().__init__()
        self.gradients, self.rows, self.every_class = gradients, rows, every_class
        self.score_threshold, self.max_detections = score_threshold, max_detections

    @door
    @gradients_on_request
    def forward(
        self,
        scores: Float[Tensor, "B Q C"],
        boxes: Float[Tensor, "B Q 4"],
        sizes: Shaped[Tensor, "B 2"],
        counts: Sequence[Any] | None = None,
    ) -> Detections:
        """Detections of B images from scores (B, Q, C) in [0, 1] and boxes (B, Q, 4), clipped to ``sizes`` (B, 2).

        ``counts`` are not used. K is min(max_detections, Q), or of Q * C; rows that are not ``valid`` hold zeros.
        """
        classes, sound = scores.shape[-1], torch.isfinite(boxes).all(-1)
        if self.every_class:
            sound = (sound & ~torch.isnan(scores.amax(-1))).repeat_interleave(classes, 1)
            best, labels = scores.flatten(1), torch.arange(classes, device=scores.device).repeat(scores.shape[1])
            labels = labels.expand_as(best)
        else:
            best, labels = scores.max(-1)
        usable = sound & (best > self.score_threshold)  # no NaN is above anything
        places = stable_topk(torch.where(usable, best, -1), self.max_detections)
        rows = places // classes if self.every_class else places
        found = Detections.padded(
            take_rows(boxes, rows), best.gather(1, places), labels.gather(1, places), usable.gather(1, places)
        )
        return found._replace(
            boxes=clip_boxes_to_image(found.boxes, sizes), rows=torch.where(found.valid, rows, 0) if self.rows else None
        )

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        return (
            f"score_threshold={self.score_threshold}, max_detections={self.max_detections}, "
            f"every_class={self.every_class}"
        )


class SetPredictionStage(Stage):
    """Wires encoder, decoder, queries, head, matcher, loss and postprocess into DETR.

    ``encoder(features, images)`` returns a :class:`~detkit.layers.Memory`, as :class:`~detkit.layers.MapEncoder` does;
    ``queries`` holds one embedding per query; ``head`` maps the outputs of the decoder layers, and the points of a
    :class:`~detkit.layers.ConditionalDecoder`, to logits and boxes;
    ``postprocess(scores, boxes, sizes)`` returns Detections. No query attends to the padding of a batch. If the
    detections have ``rows``, they carry the ``embeddings`` of their queries: the next stage may learn from them, on the
    queries of the last layer that an object is matched to.
    Source: Carion et al. 2020, figures 2 and 10.

    >>> from detkit.detectors import detr_stage
    >>> type(detr_stage(2, 8, channels=32, depth=1)).__name__
    'SetPredictionStage'
    """

    def __init__(
        self,
        *,
        encoder: nn.Module,
        decoder: TransformerDecoder | ConditionalDecoder,
        queries: nn.Embedding,
        head: nn.Module,
        matcher: nn.Module,
        criterion: SetCriterion,
        postprocess: nn.Module,
        branch: str | None = None,
    ) -> None:
        super().__init__(branch=branch)
        check_set_matcher(type(self).__name__, matcher)
        self.encoder, self.decoder, self.queries, self.head = encoder, decoder, queries, head
        self.matcher, self.criterion, self.postprocess = matcher, criterion, postprocess

    @door
    def forward(
        self, features: list[Tensor], images: Images, detections: Detections | None, targets: Targets | None = None
    ) -> SetPredictionOutputs:
        """Logits and boxes of every decoder layer if there are targets, otherwise of the last layer only."""
        memory = self.encoder(features, images)
        queries = self.queries.weight.expand(memory.cells.shape[0], -1, -1)
        layers = self.decoder(
            torch.zeros_like(queries),
            memory.cells,
            positions=queries,
            memory_positions=memory.positions,
            memory_mask=memory.mask,
        )
        given = (self.decoder.references(queries[:1]),) if isinstance(self.decoder, ConditionalDecoder) else ()
        logits, boxes = self.head(torch.stack(layers if targets is not None else layers[-1:]), *given)
        return SetPredictionOutputs(logits, boxes, images.sizes, layers[-1])

    @door
    def loss(self, outputs: SetPredictionOutputs, targets: Targets) -> dict[str, Tensor]:
        """The criterion's losses of all layers.

        Raises the ValueError of the matcher for objects that cannot be learned.
        """
        targets = targets._replace(boxes=pixels_to_fractions(targets.boxes, outputs.sizes))
        return self.criterion(
            outputs.logits, outputs.boxes, targets, match_layers(self.matcher, outputs.logits, outputs.boxes, targets)
        )

    @door
    def detections(self, outputs: SetPredictionOutputs, images: Images) -> Detections:
        """The detections that the queries of the last layer predict."""
        scores, boxes = self.criterion.scores(outputs.logits[-1]), cxcywh_to_xyxy(outputs.boxes[-1])
        found = self.postprocess(scores, fractions_to_pixels(boxes, images.sizes), images.sizes)
        return with_embeddings(found, outputs.embeddings)

    @door
    def handover(self, outputs: SetPredictionOutputs, images: Images, targets: Targets) -> Detections:
        """All queries of the last layer with their embeddings; those that an object is matched to are ``valid``."""
        return matched_queries(outputs, targets, self.matcher, self.criterion)


def with_embeddings(found: Detections, embeddings: Float[Tensor, "B Q D"] | None) -> Detections:
    """Detections that say which query each was, with the embeddings of these; others as they are.

    >>> ones = torch.ones(1, 1)
    >>> found = Detections.padded(torch.zeros(1, 1, 4), ones, ones.long(), ones > 0)
    >>> with_embeddings(found._replace(rows=torch.tensor([[1]])), torch.tensor([[[0.0], [7.0]]])).embeddings
    tensor([[[7.]]])
    """
    if found.rows is None or embeddings is None:
        return found
    return found._replace(embeddings=take_rows(embeddings, found.rows))


def matched_queries(
    outputs: SetPredictionOutputs, targets: Targets, matcher: nn.Module, criterion: SetCriterion
) -> Detections:
    """All queries of the last layer with their embeddings; those that an object is matched to are ``valid``.

    What a stage of queries hands over, with the objects that ``matcher`` gives them.

    >>> from detkit.anchors import HungarianMatcher
    >>> from detkit.losses import SetPredictionLoss
    >>> from detkit.structures import pad_targets
    >>> targets = pad_targets([{"boxes": torch.tensor([[0.0, 0, 4, 8]]), "labels": torch.tensor([0])}])
    >>> boxes = torch.tensor([[[[0.8, 0.5, 0.4, 1.0], [0.3, 0.5, 0.5, 1.0]]]])
    >>> outputs = SetPredictionOutputs(torch.zeros(1, 1, 2, 3), boxes, torch.tensor([[8, 8]]), torch.zeros(1, 2, 5))
    >>> matched_queries(outputs, targets, HungarianMatcher(), SetPredictionLoss()).valid
    tensor([[False,  True]])
    """
    logits, boxes = outputs.logits[-1:], outputs.boxes[-1:]
    within = targets._replace(boxes=pixels_to_fractions(targets.boxes, outputs.sizes))
    matched = match_layers(matcher, logits, boxes, within).matched
    pixels = fractions_to_pixels(cxcywh_to_xyxy(boxes[0]), outputs.sizes).detach()
    best, labels = criterion.scores(logits[0]).detach().max(-1)
    found = Detections.padded(pixels, best, labels, matched >= 0)
    return found._replace(matched=matched.clamp(min=0), embeddings=outputs.embeddings)


@torch.no_grad()
def match_layers(
    matcher: Callable[..., Assignment],
    logits: Float[Tensor, "L B Q classes"],
    boxes: Float[Tensor, "L B Q 4"],
    targets: Targets,
) -> Assignment:
    """The object that each query of each layer learns, (L * B, Q), from one call of ``matcher`` for all layers.

    Target boxes are xyxy as fractions of their images; boxes (L, B, Q, 4) are cx, cy, w, h. The matcher gets the
    boxes, labels, valid and ignore of the targets, repeated for each layer; objects of weight 0 are not valid.

    >>> from detkit.anchors import HungarianMatcher
    >>> from detkit.structures import pad_targets
    >>> targets = pad_targets([{"boxes": torch.tensor([[0.0, 0, 0.5, 1]]), "labels": torch.tensor([1])}])
    >>> boxes = torch.tensor([[[[0.8, 0.5, 0.4, 1.0], [0.3, 0.5, 0.5, 1.0]]]]).expand(2, -1, -1, -1)
    >>> match_layers(HungarianMatcher(), torch.zeros(2, 1, 2, 3), boxes, targets).matched
    tensor([[-1,  0],
            [-1,  0]])
    """
    rows = (targets.boxes, targets.labels, targets.present, targets.ignore)
    repeated = Targets(*(row.repeat(len(logits), *(1 for _ in row.shape[1:])) for row in rows))
    return matcher(None, repeated, Predictions(cxcywh_to_xyxy(boxes.flatten(0, 1)), logits=logits.flatten(0, 1)))


def check_set_matcher(stage: str, matcher: nn.Module) -> None:
    """Raise ValueError for a matcher that needs anchors, since queries have none.

    >>> from detkit.anchors import ThresholdMatcher
    >>> check_set_matcher("SetPredictionStage", ThresholdMatcher(positive_iou=0.5, negative_iou=0.4))
    Traceback (most recent call last):
    ValueError: SetPredictionStage: matcher is a ThresholdMatcher, ...
    """
    if not getattr(matcher, "reads_fractions", False):
        raise ValueError(
            f"{stage}: matcher is a {type(matcher).__name__}, which does not say that it matches queries without "
            "anchors; give a HungarianMatcher, or set reads_fractions = True in your own"
        )
