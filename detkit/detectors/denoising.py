"""Denoising queries: in training, ground-truth objects with noise added are extra queries of the decoder."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from detkit._door import door
from detkit._inputs import promote
from detkit._noise import uniform_like
from detkit._ranges import Count, Fraction
from detkit.boxes import pixels_to_fractions, xyxy_to_cxcywh
from detkit.layers.box_decoder import inverse_sigmoid
from detkit.structures import IGNORED, NEGATIVE, Assignment, Targets, take_rows

_EDGE = 1e-5


class NoisedQueries(NamedTuple):
    """N queries, group after group: their embeddings, their boxes, and the object each belongs to.

    A group has T, or where it is contrastive 2 T: those that belong to the objects, then those that belong to none.
    """

    embeddings: Float[Tensor, "B N D"]
    boxes: Float[Tensor, "B N 4"]
    assignment: Assignment
    groups: int


def denoising_losses(losses: dict[str, Tensor]) -> dict[str, Tensor]:
    """The losses of noised queries, summed over all layers.

    >>> denoising_losses({"l1": torch.tensor(1.0), "layer0.l1": torch.tensor(2.0)})
    {'denoising.l1': tensor(3.)}
    """
    total: dict[str, Tensor] = {}
    for name, loss in losses.items():
        name = f"denoising.{name.split('.')[-1]}"
        total[name] = total[name] + loss if name in total else loss
    return total


class DenoisingQueries(nn.Module):
    """Makes every object a query in each of ``groups``, with a noised box and sometimes another class.

    The center of a box moves by up to ``box_noise`` / 2 of its sides, and its sides change by up to ``box_noise`` of
    their length; the box is clipped to the image. With probability ``label_noise`` the class is redrawn from all. Each
    query is matched to its own object in advance, in ``assignment``. Rows are IGNORED if they are padding, crowd, or
    cannot be learned: a label that is no class, a box that is not finite (the matcher names these). :meth:`mask` says
    which query may attend to which.

    With ``contrastive`` every object is two queries: one whose corners move by up to ``box_noise`` / 2 of its sides,
    each on its own, which belongs to the object; and one whose corners move by as much again to twice as much, which is
    NEGATIVE and learns to be no object. Corners that passed each other leave a box of almost no size.

    An image has at most ``max_queries`` of them, as attention costs their square: with many objects there are fewer
    groups, at least 1, as in DINO; and of more objects than that, ``max_queries`` are drawn anew in every step.

    Raises ValueError for noise outside [0, 1], counts below 1, and contrastive queries of which not one pair fits.
    Sources: Li et al. 2022, "DN-DETR", section 4.2 to 4.4; contrastive and for the bound on groups: Zhang et al. 2022,
    "DINO", section 3.3 and its code.

    >>> from detkit.structures import pad_targets
    >>> targets = pad_targets([{"boxes": torch.tensor([[0.0, 0, 50, 100]]), "labels": torch.tensor([1])}])
    >>> noised = DenoisingQueries(3, 8, groups=2, box_noise=0.0)(targets, torch.tensor([[100, 100]]))
    >>> noised.boxes, noised.assignment.matched
    (tensor([[[0.2500, 0.5000, 0.5000, 1.0000],
             [0.2500, 0.5000, 0.5000, 1.0000]]]), tensor([[0, 0]]))
    """

    @door
    def __init__(
        self,
        num_classes: Count,
        channels: Count,
        *,
        groups: Count = 5,
        label_noise: Fraction = 0.2,
        box_noise: Fraction = 0.4,
        max_queries: Count = 640,
        contrastive: bool = False,
    ) -> None:
        super().__init__()
        if max_queries < 1 + contrastive:
            raise ValueError(f"DenoisingQueries: max_queries={max_queries} must be at least 2 for contrastive queries")
        self.labels = nn.Embedding(num_classes, channels)
        self.groups, self.label_noise, self.box_noise, self.max_queries = groups, label_noise, box_noise, max_queries
        self.contrastive = contrastive

    @door
    def forward(
        self, targets: Targets, sizes: Shaped[Tensor, "B 2"], *, generator: torch.Generator | None = None
    ) -> NoisedQueries:
        """Queries for padded ``targets``, whose boxes are in pixels of images of ``sizes`` (height, width).

        Boxes are returned as cx, cy, w, h in fractions of the image. One ``generator`` state gives one result; under
        fullgraph compilation it must be None. T is that of the targets, or as many as ``max_queries`` has room for:
        padding has queries too, but none is seen.
        """
        boxes, labels = promote(targets.boxes), targets.labels
        objects = targets.objects & torch.isfinite(boxes).all(-1)
        objects &= (targets.labels >= 0) & (targets.labels < self.labels.num_embeddings)
        places = torch.arange(objects.shape[1], device=labels.device).expand_as(labels)
        room = self.max_queries // self._ways
        if objects.shape[1] > room:
            places = self._drawn(objects, room, generator)
            boxes, labels, objects = take_rows(boxes, places), labels.gather(1, places), objects.gather(1, places)
        # Masked attention still multiplies by what it leaves out: a NaN there would be everyone's.
        boxes = torch.where(objects[..., None], boxes, 0)
        boxes = xyxy_to_cxcywh(pixels_to_fractions(boxes, sizes))
        each = max(1, objects.shape[1])
        groups = min(self.groups, max(1, room // each))
        copies = groups * self._ways
        boxes, labels = boxes.repeat(1, copies, 1), labels.repeat(1, copies)
        noise = uniform_like(boxes.new_empty(*labels.shape, 6), generator)
        other = (noise[..., 5] * self.labels.num_embeddings).long().clamp(max=self.labels.num_embeddings - 1)
        labels = torch.where(noise[..., 4] < self.label_noise, other, labels)
        matched = torch.where(objects, places, IGNORED).repeat(1, copies)
        negative = torch.arange(matched.shape[1], device=matched.device) // each % self._ways == 1
        embeddings = self.labels(torch.where(matched >= 0, labels, 0))
        quality = torch.zeros(matched.shape, dtype=torch.float32, device=matched.device)
        noised = self._disturbed(boxes, 2 * noise[..., :4] - 1, negative)
        matched = torch.where(negative & (matched >= 0), NEGATIVE, matched)
        return NoisedQueries(embeddings, noised, Assignment(matched, quality), groups)

    @door
    def mask(self, noised: NoisedQueries, queries: int) -> Bool[Tensor, "B Q Q"]:
        """The attention mask of N noised queries followed by ``queries`` plain ones: True where a query may attend.

        Noised queries attend to those of their own group, but not to padding, and to all plain queries; plain queries
        attend only to plain ones, since the others would reveal the ground truth. Every query attends to itself.
        """
        real = noised.assignment.matched != IGNORED
        count = real.shape[1]
        group = torch.arange(count, device=real.device) // max(1, count // noised.groups)
        plain = torch.full((queries,), -1, device=real.device)
        group = torch.cat((group, plain))
        seen = torch.cat((real, real.new_ones(real.shape[0], queries)), 1)
        allowed = ((group[:, None] == group) | (group == -1)) & seen[:, None]
        return allowed | torch.eye(len(group), dtype=torch.bool, device=real.device)

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        noise = f"label_noise={self.label_noise}, box_noise={self.box_noise}"
        return f"groups={self.groups}, {noise}, max_queries={self.max_queries}, contrastive={self.contrastive}"

    @property
    def _ways(self) -> int:
        """How many queries an object is in a group."""
        return 2 if self.contrastive else 1

    def _drawn(self, objects: Bool[Tensor, "B T"], count: int, generator: torch.Generator | None) -> Int[Tensor, "B K"]:
        """The rows of ``count`` objects, drawn evenly; padding only where an image has fewer."""
        keys = uniform_like(torch.zeros(objects.shape, device=objects.device), generator)
        return torch.where(objects, keys, -1).topk(count, dim=1).indices

    def _disturbed(
        self, boxes: Float[Tensor, "B N 4"], shift: Float[Tensor, "B N 4"], negative: Bool[Tensor, "N"]
    ) -> Float[Tensor, "B N 4"]:
        """cx, cy, w, h with noise of ``shift`` in [-1, 1), clipped to the image."""
        center, sides = boxes[..., :2], boxes[..., 2:]
        if not self.contrastive:
            shift = shift * self.box_noise
            center, sides = center + shift[..., :2] * sides / 2, sides * (1 + shift[..., 2:])
            low, high = (center - sides / 2).clamp(0, 1), (center + sides / 2).clamp(0, 1)
            return torch.cat(((low + high) / 2, high - low), -1)
        shift = torch.where(negative[:, None], torch.where(shift < 0, shift - 1, shift + 1), shift) * self.box_noise
        low, high = ((center + (side + shift[..., i : i + 2]) * sides / 2).clamp(0, 1) for side, i in ((-1, 0), (1, 2)))
        # A logit of 0 or 1 would be infinite: what lies there is moved inside a little, as layers do with references.
        return inverse_sigmoid(torch.cat(((low + high) / 2, high - low), -1), edge=_EDGE).sigmoid()
