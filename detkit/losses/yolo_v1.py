"""The loss of YOLO v1: squared errors of confidences, classes and boxes, all predicted as they are."""

import torch
from jaxtyping import Float
from torch import Tensor

from detkit._door import door
from detkit._inputs import promote
from detkit._ranges import NotNegative
from detkit.anchors import Assigned
from detkit.dist import all_reduce_mean
from detkit.losses.box_costs import BoxCoder, l2_cost
from detkit.losses.dense import (
    BOX_COST,
    BoxCost,
    DenseCriterion,
    box_costs,
    check_cost,
    check_predictions,
    described,
)
from detkit.structures import NEGATIVE, Anchors, DensePredictions


class YOLOv1Loss(DenseCriterion):
    """Sums of squared errors over the anchors, averaged over the images.

    The head's quality is the confidence itself and its logits are the class probabilities themselves, without a sigmoid
    or softmax. Where an object is assigned, confidence learns the quality of the assignment (with
    :class:`~detkit.anchors.ResponsibleMatcher` the IoU of the predicted box), or without ``rescore`` 1, times
    ``object_weight``, and the class probabilities learn 1 for its class and 0 for the others; elsewhere confidence
    learns 0, times ``background_weight``. The box costs, by default squared differences for
    ``GridCoder(form="root")``, count ``box_weight`` times. The number of images is averaged over processes.

    The loss is the paper's; its gradient is twice what the authors' code passes back. Source: Redmon et al. 2016,
    equation 3. Raises ValueError for negative weights.

    >>> from detkit.boxes import GridCoder
    >>> anchors = Anchors(torch.tensor([[0.0, 0, 1, 1]] * 2), torch.ones(2, 2), (2,))
    >>> predictions = DensePredictions(torch.zeros(1, 2, 2), torch.zeros(1, 2, 4), torch.zeros(1, 2))
    >>> boxes = torch.tensor([[[0.175, 0.42, 0.425, 0.78]]]).expand(1, 2, 4)  # .25 x .36 around (.3, .6)
    >>> assigned = Assigned(torch.tensor([[1, -1]]), boxes, torch.ones(1, 2), torch.zeros(1, 2))
    >>> losses = YOLOv1Loss()(predictions, assigned, anchors, GridCoder(form="root"))
    >>> {name: round(float(loss), 4) for name, loss in losses.items()}
    {'objectness': 0.0, 'classification': 1.0, 'box': 5.3}
    """

    reads_quality = True

    @door
    def __init__(
        self,
        box_cost: BoxCost = l2_cost,
        *,
        rescore: bool = True,
        object_weight: NotNegative = 1.0,
        background_weight: NotNegative = 0.5,
        class_weight: NotNegative = 1.0,
        box_weight: NotNegative = 5.0,
    ) -> None:
        super().__init__()
        check_cost("YOLOv1Loss", box_cost, BOX_COST)
        self.box_cost, self.rescore = box_cost, rescore
        self.object_weight, self.background_weight = object_weight, background_weight
        self.class_weight, self.box_weight = class_weight, box_weight

    @door
    def forward(
        self, predictions: DensePredictions, assigned: Assigned, anchors: Anchors | Tensor, coder: BoxCoder
    ) -> dict[str, Float[Tensor, ""]]:
        """Losses "objectness", "classification" and "box", weighted.

        Logits are (B, N, C); labels 0..C-1, NEGATIVE or IGNORED. Half precision is promoted. Raises ValueError if
        shapes disagree or a label is out of range (on accelerators with ``DETKIT_CHECKS=full``).
        """
        check_predictions(self, predictions, assigned)
        labels = assigned.labels
        assert predictions.quality is not None
        positive, negative = labels >= 0, labels == NEGATIVE
        confidence = torch.where(positive | negative, promote(predictions.quality), 0)
        wanted = torch.where(positive, assigned.quality if self.rescore else 1.0, 0.0)
        shares = torch.where(positive, self.object_weight, self.background_weight)
        hot = labels[..., None] == torch.arange(self.num_classes(predictions), device=labels.device)
        classes = torch.where(positive[..., None], promote(predictions.logits) - hot.to(confidence), 0)
        costs = {
            "objectness": shares * (confidence - wanted).square(),
            "classification": self.class_weight * classes.square().sum(-1),
            "box": self.box_weight * box_costs(self.box_cost, predictions.deltas, assigned, anchors, coder),
        }
        images = all_reduce_mean(confidence.new_full((), len(labels)))
        return {name: (cost * assigned.weights).sum() / images for name, cost in costs.items()}

    @door
    def scores(self, predictions: DensePredictions) -> Float[Tensor, "B N C"]:
        """Confidence times class probability, each held to [0, 1], which squared errors do not do.

        >>> predictions = DensePredictions(torch.tensor([[[0.5, 1.5]]]), torch.zeros(1, 1, 4), torch.tensor([[0.5]]))
        >>> YOLOv1Loss().scores(predictions)
        tensor([[[0.2500, 0.5000]]])
        """
        assert predictions.quality is not None
        return promote(predictions.logits).clamp(0, 1) * promote(predictions.quality).clamp(0, 1)[..., None]

    @door
    def num_classes(self, predictions: DensePredictions) -> int:
        """The number of logits."""
        return predictions.logits.shape[-1]

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        names = "rescore", "object_weight", "background_weight", "class_weight", "box_weight"
        return ", ".join([described(self.box_cost), *(f"{name}={getattr(self, name)}" for name in names)])
