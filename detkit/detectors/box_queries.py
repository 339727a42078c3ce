"""The stage of DETR whose queries are boxes: layers refine them; in training, noised objects are queries as well."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from detkit.detectors.denoising import DenoisingQueries
from detkit.detectors.detector import Stage
from detkit.detectors.set_prediction import SetPostprocess, SetPredictionOutputs, encoded
from detkit.layers.box_decoder import BoxDecoder, BoxQueries
from detkit.layers.transformer import TransformerEncoder
from detkit.losses.set_prediction import SetPredictionLoss
from detkit.structures import Assignment, Detections, Images, Targets


class BoxQueryOutputs(NamedTuple):
    """What all decoder layers say of the queries; in training also of the noised ones, and whose objects these are."""

    found: SetPredictionOutputs
    noised: SetPredictionOutputs | None = None
    assignment: Assignment | None = None


class BoxQueryStage(Stage):
    """Wires encoder, box queries, decoder, denoising, loss and postprocess into DN-DETR with deformable attention.

    ``projection``, ``positions`` and ``encoder`` read the last of the features as those of
    :class:`~detkit.detectors.set_prediction.SetPredictionStage`, and so do ``criterion`` and ``postprocess`` judge and
    find; ``decoder`` refines the boxes of ``queries`` layer by layer. With targets the noised objects of ``denoising``
    (None: none) come before the queries, which do not see them. What lies in the padding of a batch is not looked at.
    Sources: Liu et al. 2022, "DAB-DETR"; Li et al. 2022, "DN-DETR"; Zhu et al. 2021, "Deformable DETR".

    >>> from detkit.detectors import small_detr
    >>> type(small_detr(num_classes=2).objects).__name__
    'BoxQueryStage'
    """

    def __init__(
        self,
        *,
        projection: nn.Module,
        positions: nn.Module,
        encoder: TransformerEncoder,
        queries: BoxQueries,
        decoder: BoxDecoder,
        denoising: DenoisingQueries | None,
        criterion: SetPredictionLoss,
        postprocess: SetPostprocess,
    ) -> None:
        super().__init__()
        self.projection, self.positions, self.encoder = projection, positions, encoder
        self.queries, self.decoder, self.denoising = queries, decoder, denoising
        self.criterion, self.postprocess = criterion, postprocess

    def forward(
        self, features: list[Tensor], images: Images, detections: Detections | None, targets: Targets | None = None
    ) -> BoxQueryOutputs:
        """Logits and boxes of every decoder layer; the noised queries' too with targets."""
        memory, _, inside = encoded(features[-1], images, self.projection, self.positions, self.encoder)
        rows, columns = features[-1].shape[-2:]
        embeddings, boxes = self.queries(memory.shape[0])
        noised = mask = None
        if targets is not None and self.denoising is not None:
            noised = self.denoising(targets, images.sizes)
            mask = self.denoising.mask(noised, boxes.shape[1])
            embeddings = torch.cat((noised.embeddings, embeddings), 1)
            boxes = torch.cat((noised.boxes.to(boxes), boxes), 1)
        logits, boxes = self.decoder(
            embeddings,
            boxes,
            memory,
            (rows, columns),
            mask=mask,
            inside=inside[:, 0],
            shares=_shares(images, boxes),
        )
        if noised is None:
            return BoxQueryOutputs(SetPredictionOutputs(logits, boxes, images.sizes))
        first = noised.boxes.shape[1]
        return BoxQueryOutputs(
            SetPredictionOutputs(logits[:, :, first:], boxes[:, :, first:], images.sizes),
            SetPredictionOutputs(logits[:, :, :first], boxes[:, :, :first], images.sizes),
            noised.assignment,
        )

    def loss(self, outputs: BoxQueryOutputs, targets: Targets) -> dict[str, Tensor]:
        """The criterion's losses of all layers; those of the noised queries as "denoising.l1", summed over layers."""
        logits, boxes, sizes = outputs.found
        losses = self.criterion(logits, boxes, targets, sizes)
        if outputs.noised is not None:
            logits, boxes, sizes = outputs.noised
            for name, loss in self.criterion(logits, boxes, targets, sizes, assignment=outputs.assignment).items():
                name = f"denoising.{name.split('.')[-1]}"
                losses[name] = losses.get(name, 0) + loss
        return losses

    def detections(self, outputs: BoxQueryOutputs, images: Images) -> Detections:
        """What the queries of the last layer found."""
        logits, boxes, _ = outputs.found
        return self.postprocess(self.criterion.scores(logits[-1]), boxes[-1], images.sizes)


def _shares(images: Images, like: Tensor) -> Float[Tensor, "B 2"]:
    """Which part of the width and the height of the batch each image takes, in the type of ``like``."""
    (height, width), sizes = images.tensors.shape[-2:], images.sizes.to(like)
    return torch.stack((sizes[:, 1] / width, sizes[:, 0] / height), 1)
