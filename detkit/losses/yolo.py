"""The loss of YOLO v2 and v3: objectness of every anchor, the class and box of those that hold an object."""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from detkit._door import door
from detkit._inputs import promote
from detkit._ranges import Fraction, NotNegative, Whole
from detkit.anchors import Assigned
from detkit.anchors.shape import last_claims
from detkit.dist import all_reduce_mean, all_reduce_sum
from detkit.losses.box_costs import BoxCoder, grid_cost, grid_distance
from detkit.losses.classification import label_smoothed_cross_entropy
from detkit.losses.dense import (
    BOX_COST,
    BoxCost,
    DenseCriterion,
    box_costs,
    check_cost,
    check_predictions,
    described,
    judged_entropy,
)
from detkit.structures import IGNORED, Anchors, DensePredictions, take_rows
from detkit.structures.smoothing import smoothed_levels

Classes = Literal["logistic", "softmax"]
_PRIOR_WEIGHT = 0.01


class YOLOLoss(DenseCriterion):
    """Cross-entropies of objectness and classes and a box cost, summed over the anchors and averaged over the images.

    The head's quality is the logit of objectness: 1 is learned where an object is assigned, or with ``rescore`` the
    quality of its assignment (with :class:`~detkit.anchors.ShapeMatcher` the IoU of the predicted box), times
    ``object_weight``; 0 elsewhere, times ``background_weight``; nothing where anchors are IGNORED. Classes are
    independent (``"logistic"``, v3: an anchor that several objects claim learns the classes of all) or exclusive
    (``"softmax"``, v2: that of the object that is matched); there is no background class. In training, until
    ``prior_images`` images were seen, every anchor without an object also learns, with weight .01, to predict itself in
    the middle of its cell (v2: 12,800). How many were seen, by all processes, is kept in the state_dict.

    The gradient by the raw outputs of a head is what the authors' code passes back, divided by the number of images,
    which is averaged over processes. The defaults are v3's; v2 sets ``classes="softmax", rescore=True,
    object_weight=5.0, prior_images=12800``. Sources: Redmon and Farhadi 2017 and 2018, and the authors' released code.
    Raises ValueError for negative weights and other classes.

    >>> from detkit.boxes import GridCoder
    >>> anchors = Anchors(torch.tensor([[0.0, 0, 8, 8], [8, 0, 16, 8]]), torch.full((2, 2), 8.0), (2,))
    >>> predictions = DensePredictions(torch.zeros(1, 2, 3), torch.zeros(1, 2, 4), torch.zeros(1, 2))
    >>> boxes, ones = anchors.boxes[None], torch.ones(1, 2)
    >>> losses = YOLOLoss()(predictions, Assigned(torch.tensor([[1, -1]]), boxes, ones, ones), anchors, GridCoder())
    >>> {name: round(float(loss), 4) for name, loss in losses.items()}
    {'objectness': 1.3863, 'classification': 2.0794, 'box': 2.0794}
    """

    reads_quality = True
    seen: Tensor

    @door
    def __init__(
        self,
        box_cost: BoxCost = grid_cost,
        *,
        classes: Classes = "logistic",
        rescore: bool = False,
        object_weight: NotNegative = 1.0,
        background_weight: NotNegative = 1.0,
        class_weight: NotNegative = 1.0,
        box_weight: NotNegative = 1.0,
        prior_images: Whole = 0,
    ) -> None:
        super().__init__()
        if classes not in ("logistic", "softmax"):
            raise ValueError(f"YOLOLoss: classes={classes!r}; allowed is 'logistic' or 'softmax'")
        check_cost("YOLOLoss", box_cost, BOX_COST)
        self.box_cost, self.classes, self.rescore, self.prior_images = box_cost, classes, rescore, prior_images
        self.object_weight, self.background_weight = object_weight, background_weight
        self.class_weight, self.box_weight = class_weight, box_weight
        self.label_smoothing = 0.0
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    @door
    def smooth_labels(self, smoothing: Fraction) -> "YOLOLoss":
        """Smooth the class targets from now on, in place: by ``smoothing``, as detkit.tricks.smooth_labels does.

        Logistic classes learn 1 - s where an object is and s elsewhere; exclusive ones share s among the others. No
        argument of the constructor, which has enough.

        >>> YOLOLoss().smooth_labels(1 / 40).label_smoothing
        0.025
        """
        self.label_smoothing = smoothing
        return self

    @door
    def forward(
        self, predictions: DensePredictions, assigned: Assigned, anchors: Anchors | Tensor, coder: BoxCoder
    ) -> dict[str, Float[Tensor, ""]]:
        """Losses "objectness", "classification", "box" and, with ``prior_images``, "prior", weighted.

        Logits are (B, N, C); labels 0..C-1, NEGATIVE or IGNORED. Half precision is promoted. Raises ValueError if
        shapes disagree or a label is out of range (on accelerators with ``DETKIT_CHECKS=full``).
        """
        check_predictions(self, predictions, assigned)
        labels = assigned.labels
        box = box_costs(self.box_cost, predictions.deltas, assigned, anchors, coder)
        costs = {
            "objectness": self._objectness(predictions, assigned) * assigned.weights,
            "classification": self.class_weight * self._classes(promote(predictions.logits), assigned),
            "box": self.box_weight * box * assigned.weights,
        }
        images = all_reduce_mean(box.new_full((), len(labels)))
        if self.prior_images:
            costs["prior"] = self._prior(promote(predictions.deltas), labels < 0)
            if self.training:
                self.seen += all_reduce_sum(self.seen.new_full((), len(labels)))
        return {name: cost.sum() / images for name, cost in costs.items()}

    @door
    def scores(self, predictions: DensePredictions) -> Float[Tensor, "B N C"]:
        """Objectness times class probability.

        >>> YOLOLoss().scores(DensePredictions(torch.zeros(1, 1, 2), torch.zeros(1, 1, 4), torch.zeros(1, 1)))
        tensor([[[0.2500, 0.2500]]])
        """
        assert predictions.quality is not None
        logits = promote(predictions.logits)
        classes = logits.sigmoid() if self.classes == "logistic" else logits.softmax(-1)
        return classes * promote(predictions.quality).sigmoid()[..., None]

    @door
    def num_classes(self, predictions: DensePredictions) -> int:
        """The number of logits."""
        return predictions.logits.shape[-1]

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        names = (
            "rescore",
            "object_weight",
            "background_weight",
            "class_weight",
            "box_weight",
            "prior_images",
            "label_smoothing",
        )
        settings = ", ".join(f"{name}={getattr(self, name)}" for name in names)
        return f"{described(self.box_cost)}, classes={self.classes!r}, {settings}"

    def _objectness(self, predictions: DensePredictions, assigned: Assigned) -> Float[Tensor, "B N"]:
        assert predictions.quality is not None
        positive = assigned.labels >= 0
        hit = assigned.quality.clamp(0, 1) if self.rescore else 1.0
        weights = torch.where(positive, self.object_weight, self.background_weight)
        targets = torch.where(positive, hit, 0.0)
        return weights * judged_entropy(promote(predictions.quality), targets, assigned.labels != IGNORED)

    def _classes(self, logits: Float[Tensor, "B N C"], assigned: Assigned) -> Float[Tensor, "B K"]:
        """The costs of the rows that :func:`class_rows` chooses, weighted."""
        rows, hot = class_rows(assigned, logits.shape[-1])
        labels, weights = assigned.labels, assigned.weights
        if rows is not None:
            logits, labels, weights = take_rows(logits, rows), labels.gather(1, rows), weights.gather(1, rows)
        learns = hot.any(-1)
        if self.classes == "logistic":
            on, off = smoothed_levels(self.label_smoothing, logits.shape[-1], "each")
            return weights * judged_entropy(logits, torch.where(hot, on, off), learns[..., None]).sum(-1)
        labels = torch.where(learns, labels, IGNORED)
        return weights * label_smoothed_cross_entropy(logits, labels, smoothing=self.label_smoothing)

    def _prior(self, deltas: Float[Tensor, "B N 4"], free: Bool[Tensor, "B N"]) -> Float[Tensor, "B N"]:
        """The cost of predicting anything but the anchors themselves, for the first images."""
        learns = free & (self.seen < self.prior_images)
        deltas = torch.where(learns[..., None], deltas, 0)
        costs = grid_distance(deltas, torch.zeros_like(deltas))
        return torch.where(learns, _PRIOR_WEIGHT * costs, 0)


def class_rows(assigned: Assigned, num_classes: int) -> tuple[Int[Tensor, "B T"] | None, Bool[Tensor, "B K C"]]:
    """The anchors (None: all) that may learn classes, and which; a row without any learns nothing.

    Where objects claim anchors, there are few: one row for each object. Of objects that share one, the row of the
    matched one learns the classes of all.

    >>> boxes, ones = torch.zeros(1, 2, 4), torch.ones(1, 2)
    >>> claims = torch.tensor([[[0, 2], [0, 1]]])  # (anchor, class) of two objects
    >>> class_rows(Assigned(torch.tensor([[1, -1]]), boxes, ones, ones, claims), 3)
    (tensor([[0, 0]]), tensor([[[False, False, False],
             [False,  True,  True]]]))
    """
    labels = assigned.labels
    if assigned.claims is None or labels.shape[1] == 0:
        return None, labels[..., None] == torch.arange(num_classes, device=labels.device)
    claims, classes = assigned.claims.unbind(-1)
    rows = claims.clamp(min=0)
    owners = last_claims(claims, labels.shape[1]).gather(1, rows)
    real = (claims >= 0) & (labels.gather(1, rows) >= 0) & (classes >= 0) & (classes < num_classes)
    places = torch.where(real, owners * num_classes + classes, 0)
    hot = real.new_zeros((*real.shape, num_classes), dtype=torch.uint8).flatten(1)
    return rows, hot.scatter_reduce(1, places, real.to(hot), "amax").bool().unflatten(1, (-1, num_classes))
