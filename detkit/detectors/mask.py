"""The stage that predicts a mask for every box: it turns Faster R-CNN into Mask R-CNN."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from detkit._door import door
from detkit._ranges import NotNegative
from detkit.anchors import gather_assigned
from detkit.detectors.detector import Stage
from detkit.detectors.matched_boxes import (
    checked_boxes,
    matched_objects,
    refuse_objects_without,
    weighted_mean,
)
from detkit.detectors.roi import learns_from_rows, on_valid_rows
from detkit.heads.mask import MaskHead
from detkit.layers.recomputation import is_hooked
from detkit.losses.mask import mask_loss, mask_targets, own_class_masks
from detkit.structures import Detections, Images, Targets


class MaskOutputs(NamedTuple):
    """The mask logits of each box for its own class, the boxes, and the images with their sizes."""

    logits: Float[Tensor, "B K S S"]
    detections: Detections
    images: Images


class MaskStage(Stage):
    """Pools each box, predicts the mask of its class, and adds the mask to the detections.

    ``pool(features, boxes, rows)`` pools regions (M, D, R, R) as :class:`~detkit.boxes.PyramidRoIAlign` does; ``head``
    maps them to logits (M, C, S, S), and only the box's own class is used. The stage trains on the boxes that the
    previous stage hands over, with ``matched``; positives are ``valid``. ``criterion(logits, targets)`` gives a cost
    (M,) for logits and targets (M, S, S). The loss is ``weight`` times the mean cost over the positives of all
    processes, weighted by their objects' weights, whose sum counts as 1 at least. ``binarise`` thresholds the targets
    at 0.5. Source: He et al. 2017 (Mask R-CNN), section 3.

    >>> from detkit.boxes import PyramidRoIAlign
    >>> from detkit.heads.mask import MaskHead
    >>> stage = MaskStage(PyramidRoIAlign(14, strides=(4,)), MaskHead(8, 3, channels=(4,)))
    >>> images, boxes = Images(torch.zeros(1, 3, 64, 64), torch.tensor([[64, 64]])), torch.tensor([[[8.0, 8, 40, 50]]])
    >>> found = Detections(boxes, torch.ones(1, 1), torch.ones(1, 1, dtype=torch.int64), torch.tensor([[True]]))
    >>> stage.detections(stage([torch.zeros(1, 8, 16, 16)], images, found), images).masks.shape
    torch.Size([1, 1, 28, 28])
    """

    @door
    def __init__(
        self,
        pool: nn.Module,
        head: nn.Module,
        *,
        criterion: Callable[[Tensor, Tensor], Tensor] = mask_loss,
        weight: NotNegative = 1.0,
        binarise: bool = False,
        branch: str | None = None,
    ) -> None:
        super().__init__(branch=branch)
        self.pool, self.head, self.criterion = pool, head, criterion
        self.weight, self.binarise = weight, binarise

    @door
    def forward(
        self, features: list[Tensor], images: Images, detections: Detections | None, targets: Targets | None = None
    ) -> MaskOutputs:
        """Mask logits for every box, of the matched object's class with targets, otherwise of the detected class."""
        detections = checked_boxes("MaskStage", detections, targets)
        labels = torch.where(detections.valid, detections.labels, 0).flatten()
        if targets is not None:
            labels = gather_assigned(matched_objects(detections), targets).labels.flatten()  # below 0 in padding

        def run(rows: Tensor | None) -> Tensor:
            pooled, own = self.pool(features, detections.boxes, rows), labels if rows is None else labels[rows]
            if getattr(self.head.forward, "__func__", None) is MaskHead.forward and not is_hooked(self.head):
                return self.head(pooled, lambda logits, some: own_class_masks(logits, own[some]))
            return own_class_masks(self.head(pooled), own)

        logits = on_valid_rows(run, detections.valid, always=learns_from_rows(self.head))
        return MaskOutputs(logits, detections, images)

    @door
    def loss(self, outputs: MaskOutputs, targets: Targets) -> dict[str, Tensor]:
        """ "mask": the criterion's mean over the positives; without positives 0, with a gradient of zeros.

        Raises ValueError if targets have objects but no masks.
        """
        logits, found, masks = outputs.logits, outputs.detections, targets.masks
        assignment = matched_objects(found)
        if masks is None:
            refuse_objects_without("masks", "MaskStage", targets)
            masks = logits.new_zeros((*targets.valid.shape, 1, 1))
        wanted = mask_targets(
            masks,
            torch.where(found.valid[..., None], found.boxes, 0),
            assignment.matched,
            logits.shape[-1],
            sizes=outputs.images.sizes,
            binarise=self.binarise,
        )
        logits = torch.where(found.valid[..., None, None], logits, 0)  # rows of padding may hold anything
        costs = self.criterion(logits.flatten(0, 1), wanted.to(logits).flatten(0, 1)).unflatten(0, found.valid.shape)
        weights = gather_assigned(assignment, targets).weights
        return {"mask": self.weight * weighted_mean(costs, weights, found.valid)}

    @door
    def detections(self, outputs: MaskOutputs, images: Images) -> Detections:
        """The same detections with ``masks`` (B, K, S, S) added: probabilities inside each box, 0 in padding."""
        found = outputs.detections
        return found._replace(masks=torch.where(found.valid[..., None, None], outputs.logits.sigmoid(), 0))

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        return f"weight={self.weight}, binarise={self.binarise}"
