"""A DETR stage whose queries are boxes, refined by each layer; in training, noised objects are queries as well."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from detkit._door import door
from detkit.boxes import cxcywh_to_xyxy, fractions_to_pixels, pixels_to_fractions
from detkit.detectors.denoising import DenoisingQueries, denoising_losses
from detkit.detectors.detector import Stage
from detkit.detectors.selected_queries import weight_of
from detkit.detectors.set_prediction import (
    SetPredictionOutputs,
    check_set_matcher,
    match_layers,
    matched_queries,
    with_embeddings,
)
from detkit.layers import BoxDecoder, BoxQueries
from detkit.losses.set_prediction import SetCriterion
from detkit.structures import Assignment, Detections, Images, Targets


class BoxQueryOutputs(NamedTuple):
    """Predictions of all decoder layers; in training also for the noised queries, with the objects they belong to."""

    found: SetPredictionOutputs
    noised: SetPredictionOutputs | None = None
    assignment: Assignment | None = None


class BoxQueryStage(Stage):
    """Wires encoder, box queries, decoder, denoising, loss and postprocess into DN-DETR with deformable attention.

    ``encoder``, ``matcher``, ``criterion`` and ``postprocess`` are those of
    :class:`~detkit.detectors.SetPredictionStage`; ``decoder`` refines the boxes of ``queries`` layer by layer. With
    targets, the noised objects of ``denoising`` (None: none) come before the queries, which do not attend to them. No
    query attends to the padding of a batch. Embeddings are handed on as there. Sources: Liu et al. 2022, "DAB-DETR"; Li
    et al. 2022, "DN-DETR"; Zhu et al. 2021, "Deformable DETR".

    >>> from detkit.detectors import small_detr
    >>> type(small_detr(num_classes=2).objects).__name__
    'BoxQueryStage'
    """

    def __init__(
        self,
        *,
        encoder: nn.Module,
        queries: BoxQueries,
        decoder: BoxDecoder,
        denoising: DenoisingQueries | None,
        matcher: nn.Module,
        criterion: SetCriterion,
        postprocess: nn.Module,
        branch: str | None = None,
    ) -> None:
        super().__init__(branch=branch)
        check_set_matcher(type(self).__name__, matcher)
        self.encoder, self.queries, self.decoder, self.denoising = encoder, queries, decoder, denoising
        self.matcher, self.criterion, self.postprocess = matcher, criterion, postprocess

    @door
    def forward(
        self, features: list[Tensor], images: Images, detections: Detections | None, targets: Targets | None = None
    ) -> BoxQueryOutputs:
        """Logits and boxes of every decoder layer; with targets, those of the noised queries too."""
        memory = self.encoder(features, images)
        rows, columns = features[-1].shape[-2:]
        embeddings, boxes = self.queries(memory.cells.shape[0])
        noised = mask = None
        if targets is not None and self.denoising is not None:
            noised = self.denoising(targets, images.sizes)
            mask = self.denoising.mask(noised, boxes.shape[1])
            embeddings = torch.cat((noised.embeddings, embeddings), 1)
            boxes = torch.cat((noised.boxes.to(boxes), boxes), 1)
        logits, boxes, embeddings = self.decoder(
            embeddings,
            boxes,
            memory.cells,
            [(rows, columns)],
            mask=mask,
            inside=memory.mask[:, 0],
            shares=_shares(images, boxes),
        )
        if noised is None:
            return BoxQueryOutputs(SetPredictionOutputs(logits, boxes, images.sizes, embeddings))
        first = noised.boxes.shape[1]
        return BoxQueryOutputs(
            SetPredictionOutputs(logits[:, :, first:], boxes[:, :, first:], images.sizes, embeddings[:, first:]),
            SetPredictionOutputs(logits[:, :, :first], boxes[:, :, :first], images.sizes),
            noised.assignment,
        )

    @door
    def loss(self, outputs: BoxQueryOutputs, targets: Targets) -> dict[str, Tensor]:
        """The criterion's losses of all layers; those of noised queries are "denoising.l1" etc., summed over layers."""
        logits, boxes, sizes, _ = outputs.found
        targets = targets._replace(boxes=pixels_to_fractions(targets.boxes, sizes))
        losses = self.criterion(logits, boxes, targets, match_layers(self.matcher, logits, boxes, targets))
        if outputs.noised is not None and outputs.assignment is not None:
            logits, boxes, *_ = outputs.noised
            count = weight_of(outputs.assignment, targets)
            losses |= denoising_losses(self.criterion(logits, boxes, targets, outputs.assignment, count=count))
        return losses

    @door
    def detections(self, outputs: BoxQueryOutputs, images: Images) -> Detections:
        """The detections that the queries of the last layer predict."""
        logits, boxes, _, embeddings = outputs.found
        boxes = fractions_to_pixels(cxcywh_to_xyxy(boxes[-1]), images.sizes)
        return with_embeddings(self.postprocess(self.criterion.scores(logits[-1]), boxes, images.sizes), embeddings)

    @door
    def handover(self, outputs: BoxQueryOutputs, images: Images, targets: Targets) -> Detections:
        """As :class:`~detkit.detectors.SetPredictionStage` does; noised queries are left out."""
        return matched_queries(outputs.found, targets, self.matcher, self.criterion)


def _shares(images: Images, like: Tensor) -> Float[Tensor, "B 1 2"]:
    """The fraction of the batch's width and height that each image takes, in the dtype of ``like``."""
    (height, width), sizes = images.tensors.shape[-2:], images.sizes.to(like)
    return torch.stack((sizes[:, 1] / width, sizes[:, 0] / height), 1)[:, None]
