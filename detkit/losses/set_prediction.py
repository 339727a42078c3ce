"""The loss of set prediction: each object is matched to one query, all others predict no object, in every layer."""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from detkit._door import door
from detkit._inputs import promote
from detkit._ranges import Fraction, NotNegative
from detkit.anchors import Assigned, gather_assigned
from detkit.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from detkit.dist import all_reduce_mean
from detkit.losses.classification import label_smoothed_cross_entropy
from detkit.losses.dense import or_one
from detkit.losses.regression import generalized_box_iou_loss
from detkit.structures import IGNORED, NEGATIVE, Assignment, Targets


class SetPredictionLoss(nn.Module):
    """Cross-entropy over all queries, and L1 and GIoU on the boxes of matched queries, for every decoder layer.

    A query has the weight of its object in the mean of the cross-entropy, one without an object ``background_weight``.
    IGNORED queries and queries that predict NaN or infinity do not count. The box losses are weighted sums over the
    matched queries, divided by the weight of all objects in the batch (at least 1); this number and the weights of the
    mean are averaged over processes. ``label_smoothing`` is the mass moved from the true class to the others, no object
    included. Source: Carion et al. 2020, section 3.1 and appendix A.2.
    Raises ValueError for weights that are negative or not finite.

    >>> from detkit.anchors import HungarianMatcher
    >>> from detkit.structures import Predictions, pad_targets
    >>> targets = pad_targets([{"boxes": torch.tensor([[0.0, 0, 0.5, 1]]), "labels": torch.tensor([1])}])
    >>> boxes, logits = torch.tensor([[[0.8, 0.5, 0.4, 1.0], [0.3, 0.5, 0.5, 1.0]]]), torch.zeros(1, 2, 3)
    >>> assignment = HungarianMatcher()(None, targets, Predictions(cxcywh_to_xyxy(boxes), logits=logits))
    >>> losses = SetPredictionLoss()(logits[None], boxes[None], targets, assignment)
    >>> {name: round(float(loss), 4) for name, loss in losses.items()}
    {'classification': 1.0986, 'l1': 0.25, 'giou': 0.3636}
    """

    @door
    def __init__(
        self,
        *,
        background_weight: NotNegative = 0.1,
        class_weight: NotNegative = 1.0,
        l1_weight: NotNegative = 5.0,
        giou_weight: NotNegative = 2.0,
        label_smoothing: Fraction = 0.0,
    ) -> None:
        super().__init__()
        self.background_weight = background_weight
        self.class_weight, self.l1_weight, self.giou_weight = class_weight, l1_weight, giou_weight
        self.label_smoothing = label_smoothing

    @door
    def forward(
        self,
        logits: Float[Tensor, "L B Q classes"],
        boxes: Float[Tensor, "L B Q 4"],
        targets: Targets,
        assignment: Assignment,
        *,
        count: Shaped[Tensor, ""] | None = None,
    ) -> dict[str, Float[Tensor, ""]]:
        """Weighted losses "classification", "l1" and "giou" of the last of L layers; "layer0.l1" for the first.

        logits (L, B, Q, C + 1), no object last; boxes (L, B, Q, 4): cx, cy, w, h as fractions of the image. Target
        boxes are xyxy as fractions of their images. ``assignment`` is the object that each query is matched to: (L * B,
        Q), layer by layer, or (B, Q) for all layers. ``count`` replaces the weight of all objects. Half precision is
        promoted. Raises ValueError if shapes disagree.
        """
        _check_shapes(logits, boxes, targets, assignment)
        count = _total_weight(targets) if count is None else count
        costs = self._costs(promote(logits), promote(boxes), targets, assignment)
        entropy, share, l1, giou = (cost.sum((1, 2)) for cost in costs)
        count, share = all_reduce_mean(count.to(l1)).clamp(min=1), all_reduce_mean(share)
        return _by_layer(
            {
                "classification": self.class_weight * entropy / or_one(share),
                "l1": self.l1_weight * l1 / count,
                "giou": self.giou_weight * giou / count,
            }
        )

    @door
    def scores(self, logits: Float[Tensor, "*B classes"]) -> Float[Tensor, "*B C"]:
        """Probabilities of the C classes, without that of no object.

        >>> SetPredictionLoss().scores(torch.zeros(1, 4))
        tensor([[0.2500, 0.2500, 0.2500]])
        """
        return promote(logits).softmax(-1)[..., :-1]

    @door
    def num_classes(self, logits: Float[Tensor, "*B classes"]) -> int:
        """The number of logits minus one: the last is no object."""
        return logits.shape[-1] - 1

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        return ", ".join(f"{name}={getattr(self, name)}" for name in _WEIGHTS)

    def _costs(
        self,
        logits: Float[Tensor, "L B Q classes"],
        boxes: Float[Tensor, "L B Q 4"],
        targets: Targets,
        assignment: Assignment,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(L, B, Q) each: cross-entropy, its weight in the mean, L1, 1 - GIoU; 0 where a query takes no part."""
        labels, truth, weights = _assigned(assignment, targets)[:3]
        usable = torch.isfinite(logits.amax(-1)) & torch.isfinite(boxes).all(-1)  # -inf is a logit
        labels = torch.where(usable, labels, IGNORED)
        judged, positive = labels != IGNORED, labels >= 0
        weights = weights.to(logits)
        share = weights * positive + self.background_weight * (labels == NEGATIVE).to(logits)
        column = torch.where(positive, labels, self.num_classes(logits))
        logits = torch.where(judged[..., None], logits, 0)
        entropy = label_smoothed_cross_entropy(logits, column, smoothing=self.label_smoothing)
        wanted = xyxy_to_cxcywh(truth)
        boxes = torch.where(positive[..., None], boxes, wanted)
        l1 = (boxes - wanted).abs().sum(-1)
        giou = generalized_box_iou_loss(cxcywh_to_xyxy(boxes), truth)
        l1, giou = (torch.where(positive, cost * weights, 0) for cost in (l1, giou))
        return entropy * share, share, l1, giou


_WEIGHTS = ("background_weight", "class_weight", "l1_weight", "giou_weight", "label_smoothing")


@torch.no_grad()
def cardinality_error(logits: Float[Tensor, "B Q classes"], targets: Targets) -> Float[Tensor, ""]:
    """The error in the number of queries whose most likely class is an object; for logging, not a loss.

    The absolute difference to the number of ground-truth objects, averaged over images. Source: Carion et al. 2020, the
    release's ``loss_cardinality``.

    >>> from detkit.structures import pad_targets
    >>> targets = pad_targets([{"boxes": torch.zeros(3, 4), "labels": torch.zeros(3, dtype=torch.int64)}])
    >>> cardinality_error(torch.tensor([[[0.0, 1.0], [1.0, 0.0]]]), targets)
    tensor(2.)
    """
    found = (logits.argmax(-1) != logits.shape[-1] - 1).sum(1)
    objects = (targets.objects).sum(1)
    return (found - objects).abs().to(torch.float32).mean()


def _assigned(assignment: Assignment, targets: Targets) -> Assigned:
    """What each query of each layer learns: (L, B, Q), or (1, B, Q) where all layers learn the same."""
    images, queries = len(targets.valid), assignment.matched.shape[1]
    side_by_side = (rows.unflatten(0, (-1, images)).transpose(0, 1).flatten(1) for rows in assignment)
    assigned = gather_assigned(Assignment(*side_by_side), targets)
    return Assigned(*(rows.unflatten(1, (-1, queries)).transpose(0, 1) for rows in assigned[:4]))


def _total_weight(targets: Targets) -> Shaped[Tensor, ""]:
    objects = targets.objects
    return objects.sum() if targets.weights is None else torch.where(objects, targets.weights, 0).sum()


def _check_shapes(logits: Tensor, boxes: Tensor, targets: Targets, assignment: Assignment) -> None:
    images, matched = targets.valid.shape[0], assignment.matched.shape
    fits = logits.ndim == 4 and boxes.shape == (*logits.shape[:3], 4) and logits.shape[1] == images
    if not fits or matched not in ((logits.shape[0] * images, logits.shape[2]), logits.shape[1:3]):
        raise ValueError(
            f"SetPredictionLoss: logits {tuple(logits.shape)}, boxes {tuple(boxes.shape)}, assignment {tuple(matched)} "
            f"and targets of {images} images; allowed is (L, B, Q, C + 1), (L, B, Q, 4), (L * B, Q) or one (B, Q) for "
            "all layers, and B images"
        )


def _by_layer(losses: dict[str, Float[Tensor, "L"]]) -> dict[str, Tensor]:
    """One entry for each loss and layer, the last layer without prefix and first."""
    last = len(next(iter(losses.values()))) - 1
    own = {name: values[last] for name, values in losses.items()}
    return own | {f"layer{i}.{name}": values[i] for i in range(last) for name, values in losses.items()}
