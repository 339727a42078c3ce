"""D-FINE's losses of edge distributions: they learn where an edge is, and from the last layer how sure to be of it."""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from detkit._door import door
from detkit._inputs import promote
from detkit._ranges import NotNegative, Positive
from detkit.boxes import EdgeCoder, cxcywh_to_xyxy, paired_box_iou
from detkit.dist import all_reduce_mean
from detkit.losses.classification import distribution_focal_loss
from detkit.losses.dense import or_one
from detkit.losses.set_prediction import assigned_layers
from detkit.structures import IGNORED, Assignment, Targets


class EdgeLoss(nn.Module):
    """Fine-grained localization ("fgl") and decoupled distillation focal loss ("ddf") of every layer.

    The first is the cross-entropy of the two bins of ``coder`` around each edge of a query's object, weighted by the
    IoU of box and object: a sum over matched queries, divided by the weight of all objects. The second is the
    Kullback-Leibler divergence from the teacher's distributions, both at ``temperature``, whose square it is multiplied
    by, weighted by the IoU of matched queries and by the teacher's best score of the others; the means over both kinds
    are weighted by the square roots of their numbers. Queries that are IGNORED or predict what is not finite do not
    count. Raises ValueError for weights that are negative or not finite. Source: Peng et al. 2024, "D-FINE",
    equations 6, 8 and 9, and for the square roots appendix A.3.

    >>> from detkit.structures import pad_targets
    >>> targets = pad_targets([{"boxes": torch.tensor([[0.2, 0.2, 0.6, 0.6]]), "labels": torch.tensor([0])}])
    >>> boxes, assignment = torch.tensor([[[0.4, 0.4, 0.4, 0.4]]]), Assignment(torch.tensor([[0]]), torch.ones(1, 1))
    >>> even = torch.zeros(1, 1, 20)
    >>> loss = EdgeLoss(EdgeCoder(bins=4), fgl_weight=1.0)
    >>> costs = loss(even[None], boxes[None], boxes, (torch.zeros(1, 1, 2), even), targets, assignment)
    >>> {name: round(values.item(), 4) for name, values in costs.items()}  # 4 edges of log 5
    {'fgl': 6.4378, 'ddf': 0.0}
    """

    @door
    def __init__(
        self,
        coder: EdgeCoder,
        *,
        fgl_weight: NotNegative = 0.15,
        ddf_weight: NotNegative = 1.5,
        temperature: Positive = 5.0,
    ) -> None:
        super().__init__()
        self.coder, self.fgl_weight, self.ddf_weight, self.temperature = coder, fgl_weight, ddf_weight, temperature

    @door
    def forward(
        self,
        distributions: Float[Tensor, "L B Q D"],
        boxes: Float[Tensor, "L B Q 4"],
        references: Float[Tensor, "B Q 4"],
        teacher: tuple[Float[Tensor, "B Q C"], Float[Tensor, "B Q D"]],
        targets: Targets,
        assignment: Assignment,
        *,
        count: Shaped[Tensor, ""] | None = None,
    ) -> dict[str, Float[Tensor, "L"]]:
        """Weighted losses of L layers; ``teacher`` are logits and distributions of the last layer.

        ``boxes`` are those that ``distributions`` mean relative to ``references``, all cx, cy, w, h as fractions of the
        image; the boxes of ``targets`` are xyxy. ``assignment`` is (B, Q), or (L * B, Q) layer by layer. ``count`` is
        what sums are divided by: by default the weight of all matched queries, averaged over processes, at least 1.
        """
        distributions, boxes = promote(distributions), promote(boxes)
        labels, truth, weights = assigned_layers(assignment, targets)[:3]
        usable = torch.isfinite(distributions).all(-1) & torch.isfinite(boxes).all(-1)
        labels = torch.where(usable, labels, IGNORED)
        positive, weights = labels >= 0, weights.to(boxes)
        boxes = torch.where(positive[..., None], cxcywh_to_xyxy(boxes.detach()), truth)
        overlap = torch.where(positive, paired_box_iou(boxes, truth), 0)
        logits = torch.where(usable[..., None], distributions, 0).unflatten(-1, (4, -1))
        count = (weights * positive).sum() / len(distributions) if count is None else count
        fgl = self._fine(logits, references, truth) * (overlap * weights * positive)
        return {
            "fgl": self.fgl_weight * fgl.sum((1, 2)) / all_reduce_mean(count.to(fgl)).clamp(min=1),
            "ddf": self.ddf_weight * self._distilled(logits, teacher, labels, overlap, weights),
        }

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        return f"fgl_weight={self.fgl_weight}, ddf_weight={self.ddf_weight}, temperature={self.temperature}"

    def _fine(self, logits: Float[Tensor, "L B Q 4 bins"], references: Tensor, truth: Tensor) -> Float[Tensor, "L B Q"]:
        """The cross-entropy of the bins around the edges, summed over the four."""
        bins = self.coder.encode(truth, cxcywh_to_xyxy(references.detach()).to(truth)).detach()
        return distribution_focal_loss(logits, bins.expand(logits.shape[:-1]).to(logits)).sum(-1)

    def _distilled(
        self, logits: Tensor, teacher: tuple[Tensor, Tensor], labels: Tensor, overlap: Tensor, weights: Tensor
    ) -> Float[Tensor, "L"]:
        scores, taught = promote(teacher[0].detach()).sigmoid().amax(-1), promote(teacher[1].detach())
        known = torch.isfinite(scores) & torch.isfinite(taught).all(-1)
        taught = torch.where(known[..., None], taught, 0).unflatten(-1, (4, -1)).div(self.temperature).log_softmax(-1)
        own = logits.div(self.temperature).log_softmax(-1)
        apart = F.kl_div(own, taught.expand_as(own), reduction="none", log_target=True).sum(-1).mean(-1)
        apart = apart * self.temperature**2
        judged, matched = (labels != IGNORED) & known, labels >= 0
        total = norm = 0
        for kind, trust, share in ((matched, overlap, weights), (~matched, scores, torch.ones_like(weights))):
            share = torch.where(judged & kind, share, 0)
            number = all_reduce_mean(share.sum((1, 2)))
            mean = torch.where(judged & kind, apart * trust * share, 0).sum((1, 2)) / or_one(number)
            total, norm = total + mean * number.sqrt(), norm + number.sqrt()
        return total / or_one(norm)
