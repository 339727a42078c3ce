"""The loss of set prediction: each object is matched to one query, all others predict no object, in every layer."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from detkit._door import door
from detkit._inputs import promote
from detkit._ranges import Fraction, NotNegative
from detkit.anchors import Assigned, gather_assigned
from detkit.boxes import cxcywh_to_xyxy, paired_box_iou, xyxy_to_cxcywh
from detkit.dist import all_reduce_mean
from detkit.losses.classification import label_smoothed_cross_entropy, sigmoid_focal_loss, varifocal_loss
from detkit.losses.dense import or_one
from detkit.losses.regression import generalized_box_iou_loss
from detkit.structures import IGNORED, NEGATIVE, Assignment, Targets


class SetCriterion(nn.Module, ABC):
    """L1 and GIoU on the boxes of matched queries, and what a subclass says of their classes, for every decoder layer.

    IGNORED queries and queries that predict NaN or infinity do not count. The box losses are weighted sums over the
    matched queries, divided by the weight of all objects in the batch, averaged over processes, at least 1.
    Source: Carion et al. 2020, section 3.1 and appendix A.2.

    >>> [issubclass(kind, SetCriterion) for kind in (SetPredictionLoss, FocalSetLoss, VarifocalSetLoss)]
    [True, True, True]
    """

    @door
    def __init__(self, *, class_weight: NotNegative, l1_weight: NotNegative, giou_weight: NotNegative) -> None:
        super().__init__()
        self.class_weight, self.l1_weight, self.giou_weight = class_weight, l1_weight, giou_weight

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

        Arguments are those of :meth:`costs`.
        """
        costs = self.costs(logits, boxes, targets, assignment, count=count)
        return by_layer(costs, [f"layer{i}" for i in range(len(logits) - 1)])

    @door
    def costs(
        self,
        logits: Float[Tensor, "L B Q classes"],
        boxes: Float[Tensor, "L B Q 4"],
        targets: Targets,
        assignment: Assignment,
        *,
        count: Shaped[Tensor, ""] | None = None,
        boxes_from: Assignment | None = None,
    ) -> dict[str, Float[Tensor, "L"]]:
        """The weighted losses "classification", "l1" and "giou" of each of L layers.

        Logits are (L, B, Q, classes); boxes (L, B, Q, 4): cx, cy, w, h as fractions of the image. Target boxes are xyxy
        as fractions of their images. ``assignment`` is the object that each query is matched to: (L * B, Q), layer by
        layer, or (B, Q) for all layers. ``boxes_from`` says whose box it learns, where that is another, in either
        shape: then box losses are divided by the weight of its matches in a layer. ``count`` replaces the weight of all
        objects. Half precision is promoted. Raises ValueError if shapes disagree.
        """
        logits, boxes = promote(logits), promote(boxes)
        learned = self._learned(logits, boxes, targets, assignment)
        count = _mean_count(total_weight(targets) if count is None else count, boxes)
        classes = self._class_costs(logits, learned, _overlaps(boxes, learned), count)
        if boxes_from is not None:
            learned = self._learned(logits, boxes, targets, boxes_from)
            count = _mean_count(torch.where(learned.labels >= 0, learned.weights, 0).sum() / len(logits), boxes)
        l1, giou = _box_costs(boxes, learned)
        return {
            "classification": self.class_weight * classes,
            "l1": self.l1_weight * l1 / count,
            "giou": self.giou_weight * giou / count,
        }

    @door
    def scores(self, logits: Float[Tensor, "*B classes"]) -> Float[Tensor, "*B C"]:
        """An independent probability of each of the C classes, without that of no object.

        >>> FocalSetLoss().scores(torch.zeros(1, 2))
        tensor([[0.5000, 0.5000]])
        """
        return promote(logits).sigmoid()

    @door
    def num_classes(self, logits: Float[Tensor, "*B classes"]) -> int:
        """The number of classes, without no object: that of the logits."""
        return logits.shape[-1]

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        return ", ".join(f"{name}={value}" for name, value in vars(self).items() if type(value) in (int, float))

    @abstractmethod
    def _class_costs(self, logits: Tensor, learned: Assigned, overlaps: Tensor, count: Tensor) -> Float[Tensor, "L"]:
        """The unweighted loss of each layer; queries that are IGNORED may predict anything."""

    def _learned(self, logits: Tensor, boxes: Tensor, targets: Targets, assignment: Assignment) -> Assigned:
        """What each query of each layer learns, (L, B, Q); nothing where it predicts what is not finite."""
        _check_shapes(type(self).__name__, logits, boxes, targets, assignment)
        usable = torch.isfinite(logits.amax(-1)) & torch.isfinite(boxes).all(-1)  # -inf is a logit
        assigned = assigned_layers(assignment, targets)
        labels = torch.where(usable, assigned.labels, IGNORED)
        return Assigned(labels, assigned.boxes, assigned.weights.to(logits), assigned.quality)


class SetPredictionLoss(SetCriterion):
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
        super().__init__(class_weight=class_weight, l1_weight=l1_weight, giou_weight=giou_weight)
        self.background_weight, self.label_smoothing = background_weight, label_smoothing

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

    def _class_costs(self, logits: Tensor, learned: Assigned, overlaps: Tensor, count: Tensor) -> Float[Tensor, "L"]:
        judged, positive = learned.labels != IGNORED, learned.labels >= 0
        background = (learned.labels == NEGATIVE).to(logits)
        share = learned.weights * positive + self.background_weight * background
        column = torch.where(positive, learned.labels, self.num_classes(logits))
        logits = torch.where(judged[..., None], logits, 0)
        entropy = label_smoothed_cross_entropy(logits, column, smoothing=self.label_smoothing) * share
        return entropy.sum((1, 2)) / or_one(all_reduce_mean(share.sum((1, 2))))


class FocalSetLoss(SetCriterion):
    """Focal loss over all queries, and L1 and GIoU on the boxes of matched queries, for every decoder layer.

    The score of each class is independent; there is no column for no object. Sums over all queries and classes are
    divided by the weight of all objects in the batch, averaged over processes, at least 1. A matched query has the
    weight of its object. Sources: Zhu et al. 2021, "Deformable DETR", section 4.1 and appendix A.4; Lin et al. 2017,
    equation 5. Raises ValueError for weights that are negative or not finite.

    >>> from detkit.structures import pad_targets
    >>> targets = pad_targets([{"boxes": torch.tensor([[0.0, 0, 0.5, 1]]), "labels": torch.tensor([1])}])
    >>> boxes, logits = torch.tensor([[[[0.8, 0.5, 0.4, 1.0], [0.3, 0.5, 0.5, 1.0]]]]), torch.zeros(1, 1, 2, 2)
    >>> losses = FocalSetLoss()(logits, boxes, targets, Assignment(torch.tensor([[-1, 0]]), torch.ones(1, 2)))
    >>> {name: round(float(loss), 4) for name, loss in losses.items()}
    {'classification': 0.8664, 'l1': 0.25, 'giou': 0.3636}
    """

    @door
    def __init__(
        self,
        *,
        alpha: Fraction = 0.25,
        gamma: NotNegative = 2.0,
        class_weight: NotNegative = 2.0,
        l1_weight: NotNegative = 5.0,
        giou_weight: NotNegative = 2.0,
    ) -> None:
        super().__init__(class_weight=class_weight, l1_weight=l1_weight, giou_weight=giou_weight)
        self.alpha, self.gamma = alpha, gamma

    def _class_costs(self, logits: Tensor, learned: Assigned, overlaps: Tensor, count: Tensor) -> Float[Tensor, "L"]:
        weights = torch.where(learned.labels >= 0, learned.weights, 1)[..., None]
        lowest = torch.finfo(logits.dtype).min
        logits, labels = logits.clamp(min=lowest), learned.labels.expand(logits.shape[:-1])
        losses = sigmoid_focal_loss(logits, labels, alpha=self.alpha, gamma=self.gamma, weights=weights)
        return losses.sum((1, 2, 3)) / count


class VarifocalSetLoss(SetCriterion):
    """Varifocal loss over all queries, and L1 and GIoU on the boxes of matched queries, for every decoder layer.

    A matched query learns the IoU of its box and its object as the score of the object's class, with that as weight;
    all other scores are 0, weighted by ``alpha`` times the score to the power ``gamma``. Sums over all queries and
    classes are divided by the weight of all objects in the batch, averaged over processes, at least 1. A matched query
    has the weight of its object. Logits have no column for no object. Sources: Zhao et al. 2024, "RT-DETR", section
    4.3; Zhang et al. 2021, "VarifocalNet", equation 2. Raises ValueError for weights that are negative or not finite.

    >>> from detkit.structures import pad_targets
    >>> targets = pad_targets([{"boxes": torch.tensor([[0.0, 0, 0.5, 1]]), "labels": torch.tensor([1])}])
    >>> boxes, logits = torch.tensor([[[[0.8, 0.5, 0.4, 1.0], [0.3, 0.5, 0.5, 1.0]]]]), torch.zeros(1, 1, 2, 2)
    >>> losses = VarifocalSetLoss()(logits, boxes, targets, Assignment(torch.tensor([[-1, 0]]), torch.ones(1, 2)))
    >>> {name: round(float(loss), 4) for name, loss in losses.items()}
    {'classification': 0.957, 'l1': 0.25, 'giou': 0.3636}
    """

    @door
    def __init__(
        self,
        *,
        alpha: Fraction = 0.75,
        gamma: NotNegative = 2.0,
        class_weight: NotNegative = 1.0,
        l1_weight: NotNegative = 5.0,
        giou_weight: NotNegative = 2.0,
    ) -> None:
        super().__init__(class_weight=class_weight, l1_weight=l1_weight, giou_weight=giou_weight)
        self.alpha, self.gamma = alpha, gamma

    def _class_costs(self, logits: Tensor, learned: Assigned, overlaps: Tensor, count: Tensor) -> Float[Tensor, "L"]:
        judged, positive = learned.labels != IGNORED, learned.labels >= 0
        hit = learned.labels[..., None] == torch.arange(logits.shape[-1], device=logits.device)
        wanted = torch.where(hit, overlaps[..., None], 0)
        # A matched query that does not touch its object says nothing of its class, rather than that it is not there.
        weights = torch.where(positive, learned.weights, judged.to(logits))[..., None] * ~(hit & (wanted == 0))
        logits = torch.where(judged[..., None], logits.clamp(min=torch.finfo(logits.dtype).min), 0)
        losses = varifocal_loss(logits, wanted, alpha=self.alpha, gamma=self.gamma, weights=weights)
        return losses.sum((1, 2, 3)) / count


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


def assigned_layers(assignment: Assignment, targets: Targets) -> Assigned:
    """What each query of each layer learns: (L, B, Q), or (1, B, Q) where all layers learn the same.

    >>> from detkit.structures import pad_targets
    >>> targets = pad_targets([{"boxes": torch.zeros(1, 4), "labels": torch.tensor([7])}])
    >>> assigned_layers(Assignment(torch.tensor([[0, -1], [-1, 0]]), torch.ones(2, 2)), targets).labels
    tensor([[[ 7, -1]],
    <BLANKLINE>
            [[-1,  7]]])
    """
    images, queries = len(targets.valid), assignment.matched.shape[1]
    side_by_side = (rows.unflatten(0, (-1, images)).transpose(0, 1).flatten(1) for rows in assignment)
    assigned = gather_assigned(Assignment(*side_by_side), targets)
    return Assigned(*(rows.unflatten(1, (-1, queries)).transpose(0, 1) for rows in assigned[:4]))


def by_layer(costs: dict[str, Float[Tensor, "L"]], names: Sequence[str]) -> dict[str, Tensor]:
    """One entry for each loss and layer: the last layer's first and without prefix, the others' with that of ``names``.

    >>> by_layer({"l1": torch.tensor([1.0, 2.0])}, ["layer0"])
    {'l1': tensor(2.), 'layer0.l1': tensor(1.)}
    """
    last = {name: values[-1] for name, values in costs.items()}
    return last | {f"{layer}.{name}": values[i] for i, layer in enumerate(names) for name, values in costs.items()}


def _overlaps(boxes: Float[Tensor, "L B Q 4"], learned: Assigned) -> Float[Tensor, "L B Q"]:
    """The IoU of each matched query with its object, without gradient, 0 without one."""
    positive = learned.labels >= 0
    own = torch.where(positive[..., None], cxcywh_to_xyxy(boxes.detach()), learned.boxes)
    return torch.where(positive, paired_box_iou(own, learned.boxes), 0)


def _box_costs(boxes: Float[Tensor, "L B Q 4"], learned: Assigned) -> tuple[Float[Tensor, "L"], Float[Tensor, "L"]]:
    """The weighted sums of L1 and of 1 - GIoU over the matched queries of each layer."""
    positive, wanted = learned.labels >= 0, xyxy_to_cxcywh(learned.boxes)
    boxes = torch.where(positive[..., None], boxes, wanted)
    l1 = (boxes - wanted).abs().sum(-1)
    giou = generalized_box_iou_loss(cxcywh_to_xyxy(boxes), learned.boxes)
    l1, giou = (torch.where(positive, cost * learned.weights, 0).sum((1, 2)) for cost in (l1, giou))
    return l1, giou


def total_weight(targets: Targets) -> Shaped[Tensor, ""]:
    """The weight of all objects of a batch.

    >>> from detkit.structures import pad_targets
    >>> total_weight(pad_targets([{"boxes": torch.zeros(3, 4), "labels": torch.tensor([7, 7, 7])}]))
    tensor(3)
    """
    objects = targets.objects
    return objects.sum() if targets.weights is None else torch.where(objects, targets.weights, 0).sum()


def _mean_count(count: Shaped[Tensor, ""], like: Tensor) -> Float[Tensor, ""]:
    return all_reduce_mean(count.to(like)).clamp(min=1)


def _check_shapes(criterion: str, logits: Tensor, boxes: Tensor, targets: Targets, assignment: Assignment) -> None:
    images, matched = targets.valid.shape[0], assignment.matched.shape
    fits = logits.ndim == 4 and boxes.shape == (*logits.shape[:3], 4) and logits.shape[1] == images
    if not fits or matched not in ((logits.shape[0] * images, logits.shape[2]), logits.shape[1:3]):
        raise ValueError(
            f"{criterion}: logits {tuple(logits.shape)}, boxes {tuple(boxes.shape)}, assignment {tuple(matched)} "
            f"and targets of {images} images; allowed is (L, B, Q, classes), (L, B, Q, 4), (L * B, Q) or one (B, Q) "
            "for all layers, and B images"
        )
