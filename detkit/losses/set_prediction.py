"""The loss of set prediction: every object has one query, every other query says no object, in every layer alike."""

from collections.abc import Callable
from typing import TypeVar

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from detkit._inputs import promote
from detkit.anchors import gather_assigned
from detkit.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from detkit.dist import all_reduce_mean
from detkit.losses.regression import generalized_box_iou_loss
from detkit.structures import IGNORED, NEGATIVE, Assignment, Predictions, Targets

_Rows = TypeVar("_Rows", Targets, Assignment)


class SetPredictionLoss(nn.Module):
    """Cross-entropy over all queries; L1 and GIoU on the boxes of the matched ones; each layer matched anew.

    ``matcher(None, targets, predictions)`` gives the objects of the queries. A query without object weighs
    ``background_weight`` in the mean of the cross-entropy; IGNORED queries take no part. The box losses are sums over
    the matched queries, divided by the number of objects in the batch, which like the weights is averaged over
    processes, at least 1. The weight of an object scales what its query costs. Source: Carion et al. 2020, section 3.1
    and appendix A.2. Raises ValueError for weights that are negative or not finite.

    >>> from detkit.anchors import HungarianMatcher
    >>> from detkit.structures import pad_targets
    >>> targets = pad_targets([{"boxes": torch.tensor([[0.0, 0, 50, 100]]), "labels": torch.tensor([1])}])
    >>> boxes = torch.tensor([[[[0.8, 0.5, 0.4, 1.0], [0.3, 0.5, 0.5, 1.0]]]])
    >>> logits, sizes = torch.zeros(1, 1, 2, 3), torch.tensor([[100, 100]])
    >>> losses = SetPredictionLoss(HungarianMatcher())(logits, boxes, targets, sizes)
    >>> {name: round(float(loss), 4) for name, loss in losses.items()}
    {'classification': 1.0986, 'l1': 0.25, 'giou': 0.3636}
    """

    def __init__(
        self,
        matcher: Callable[..., Assignment],
        *,
        background_weight: float = 0.1,
        class_weight: float = 1.0,
        l1_weight: float = 5.0,
        giou_weight: float = 2.0,
    ) -> None:
        super().__init__()
        self.matcher, self.background_weight = matcher, background_weight
        self.class_weight, self.l1_weight, self.giou_weight = class_weight, l1_weight, giou_weight
        for name in _WEIGHTS:
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"SetPredictionLoss: {name}={getattr(self, name)} must be at least 0 and finite")

    def forward(
        self,
        logits: Float[Tensor, "L B Q classes"],
        boxes: Float[Tensor, "L B Q 4"],
        targets: Targets,
        sizes: Shaped[Tensor, "B 2"],
        *,
        assignment: Assignment | None = None,
    ) -> dict[str, Float[Tensor, ""]]:
        """Losses "classification", "l1" and "giou" of the last of L layers, weighted; "layer0.l1" of the first.

        logits (L, B, Q, C + 1), no object last; boxes (L, B, Q, 4): cx, cy, w, h as fractions of the image. Target
        boxes are xyxy pixels of images of ``sizes`` (height, width). Half precision is promoted. An ``assignment`` (B,
        Q) known beforehand stands in every layer for what the matcher would say, and box losses are divided by the
        number of its matched queries. Raises ValueError where shapes disagree; the matcher, for labels and boxes that
        cannot be learned.
        """
        if logits.ndim != 4 or boxes.shape != (*logits.shape[:3], 4) or sizes.shape != (logits.shape[1], 2):
            raise ValueError(
                f"SetPredictionLoss: logits {tuple(logits.shape)}, boxes {tuple(boxes.shape)}, sizes "
                f"{tuple(sizes.shape)}; allowed is (L, B, Q, C + 1), (L, B, Q, 4), (B, 2)"
            )
        if assignment is not None and assignment.matched.shape != logits.shape[1:3]:
            raise ValueError(
                f"SetPredictionLoss: assignment has shape {tuple(assignment.matched.shape)} and logits "
                f"{tuple(logits.shape)}; allowed is one (B, Q) for all layers"
            )
        layers = logits.shape[0]
        truth = promote(targets.boxes)
        truth = truth / sizes.to(truth).flip(-1).repeat(1, 2)[:, None]
        targets = targets._replace(boxes=truth, masks=None, keypoints=None)
        matched = targets.objects if assignment is None else assignment.matched >= 0
        count = all_reduce_mean(matched.sum().to(truth.dtype)).clamp(min=1)
        rows, targets = (promote(logits).flatten(0, 1), promote(boxes).flatten(0, 1)), _repeated(targets, layers)
        if assignment is None:
            corners = cxcywh_to_xyxy(rows[1].detach())
            assignment = self.matcher(None, targets, Predictions(corners, logits=rows[0].detach()))
        else:
            assignment = _usable(_repeated(assignment, layers), *rows)
        costs = self._costs(*rows, targets, assignment)
        entropy, share, l1, giou = (cost.unflatten(0, (layers, -1)).sum((1, 2)) for cost in costs)
        share = all_reduce_mean(share)
        classification = self.class_weight * entropy / torch.where(share > 0, share, 1)
        return _by_layer(
            {
                "classification": classification,
                "l1": self.l1_weight * l1 / count,
                "giou": self.giou_weight * giou / count,
            }
        )

    def scores(self, logits: Float[Tensor, "*B classes"]) -> Float[Tensor, "*B C"]:
        """What the logits mean at inference: probabilities, without that of no object.

        >>> SetPredictionLoss(lambda *given: None).scores(torch.zeros(1, 4))
        tensor([[0.2500, 0.2500, 0.2500]])
        """
        return promote(logits).softmax(-1)[..., :-1]

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        return ", ".join(f"{name}={getattr(self, name)}" for name in _WEIGHTS)

    def _costs(
        self,
        logits: Float[Tensor, "B Q classes"],
        boxes: Float[Tensor, "B Q 4"],
        targets: Targets,
        assignment: Assignment,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(B, Q) each: cross-entropy, its weight in the mean, L1, 1 - GIoU; 0 where a query takes no part."""
        labels, truth, weights, _ = gather_assigned(assignment, targets)
        judged, positive = labels != IGNORED, labels >= 0
        share = positive.to(logits) + self.background_weight * (labels == NEGATIVE).to(logits)
        column = torch.where(positive, labels, logits.shape[-1] - 1)
        logits = torch.where(judged[..., None], logits, 0)
        entropy = F.cross_entropy(logits.flatten(0, 1), column.flatten(), reduction="none").view_as(share)
        boxes = torch.where(positive[..., None], boxes, xyxy_to_cxcywh(truth))
        l1 = (boxes - xyxy_to_cxcywh(truth)).abs().sum(-1)
        giou = generalized_box_iou_loss(cxcywh_to_xyxy(boxes), truth)
        weights = weights.to(share)
        l1, giou = (torch.where(positive, cost * weights, 0) for cost in (l1, giou))
        return entropy * share * weights, share, l1, giou


_WEIGHTS = ("background_weight", "class_weight", "l1_weight", "giou_weight")


@torch.no_grad()
def cardinality_error(logits: Float[Tensor, "B Q classes"], targets: Targets) -> Float[Tensor, ""]:
    """How far the number of queries whose likeliest class is an object is from that of objects: for the log, no loss.

    The mean over images of the absolute difference. Source: Carion et al. 2020, the release's ``loss_cardinality``.

    >>> from detkit.structures import pad_targets
    >>> targets = pad_targets([{"boxes": torch.zeros(3, 4), "labels": torch.zeros(3, dtype=torch.int64)}])
    >>> cardinality_error(torch.tensor([[[0.0, 1.0], [1.0, 0.0]]]), targets)
    tensor(2.)
    """
    found = (logits.argmax(-1) != logits.shape[-1] - 1).sum(1)
    objects = (targets.objects).sum(1)
    return (found - objects).abs().to(torch.float32).mean()


def _usable(assignment: Assignment, logits: Float[Tensor, "B Q classes"], boxes: Float[Tensor, "B Q 4"]) -> Assignment:
    """Queries with a NaN or +inf are IGNORED, as a matcher ignores them."""
    bad = (logits.isnan() | (logits == torch.inf)).any(-1) | ~torch.isfinite(boxes).all(-1)
    return assignment._replace(matched=torch.where(bad, IGNORED, assignment.matched))


def _repeated(rows: _Rows, times: int) -> _Rows:
    """The same targets, or assignment, for every layer, layer after layer."""
    return type(rows)._make(None if row is None else row.repeat(times, *(1 for _ in row.shape[1:])) for row in rows)


def _by_layer(losses: dict[str, Float[Tensor, "L"]]) -> dict[str, Tensor]:
    """One entry for each loss and layer, the last layer without prefix and first."""
    last = len(next(iter(losses.values()))) - 1
    own = {name: values[last] for name, values in losses.items()}
    return own | {f"layer{i}.{name}": values[i] for i in range(last) for name, values in losses.items()}
