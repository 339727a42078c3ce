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
from detkit.structures import IGNORED, Assignment, Targets, take_rows


class NoisedQueries(NamedTuple):
    """N = groups * T queries, group after group: their embeddings, their boxes, and the object each belongs to."""

    embeddings: Float[Tensor, "B N D"]
    boxes: Float[Tensor, "B N 4"]
    assignment: Assignment
    groups: int


class DenoisingQueries(nn.Module):
    """Makes every object a query in each of ``groups``, with a noised box and sometimes another class.

    The center of a box moves by up to ``box_noise`` / 2 of its sides, and its sides change by up to ``box_noise`` of
    their length; the box is clipped to the image. With probability ``label_noise`` the class is redrawn from all. Each
    query is matched to its own object in advance, in ``assignment``. Rows are IGNORED if they are padding, crowd, or
    cannot be learned: a label that is no class, a box that is not finite (the matcher names these). :meth:`mask` says
    which query may attend to which.

    An image has at most ``max_queries`` of them, as attention costs their square: with many objects there are fewer
    groups, at least 1, as in DINO; and of more objects than that, ``max_queries`` are drawn anew in every step.

    Raises ValueError for noise outside [0, 1] and counts below 1. Sources: Li et al. 2022, "DN-DETR", section 4.2 to
    4.4; for the bound on groups the code of Zhang et al. 2022, "DINO".

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
    ) -> None:
        super().__init__()
        self.labels = nn.Embedding(num_classes, channels)
        self.groups, self.label_noise, self.box_noise, self.max_queries = groups, label_noise, box_noise, max_queries

    @door
    def forward(
        self, targets: Targets, sizes: Shaped[Tensor, "B 2"], *, generator: torch.Generator | None = None
    ) -> NoisedQueries:
        """Queries for padded ``targets``, whose boxes are in pixels of images of ``sizes`` (height, width).

        Boxes are returned as cx, cy, w, h in fractions of the image. One ``generator`` state gives one result; under
        fullgraph compilation it must be None. T is that of the targets, or ``max_queries`` if that is fewer: padding
        has queries too, but none is seen.
        """
        boxes, labels = promote(targets.boxes), targets.labels
        objects = targets.objects & torch.isfinite(boxes).all(-1)
        objects &= (targets.labels >= 0) & (targets.labels < self.labels.num_embeddings)
        places = torch.arange(objects.shape[1], device=labels.device).expand_as(labels)
        if objects.shape[1] > self.max_queries:
            places = self._drawn(objects, generator)
            boxes, labels, objects = take_rows(boxes, places), labels.gather(1, places), objects.gather(1, places)
        # Masked attention still multiplies by what it leaves out: a NaN there would be everyone's.
        boxes = torch.where(objects[..., None], boxes, 0)
        boxes = xyxy_to_cxcywh(pixels_to_fractions(boxes, sizes))
        groups = min(self.groups, max(1, self.max_queries // max(1, objects.shape[1])))
        boxes, labels = boxes.repeat(1, groups, 1), labels.repeat(1, groups)
        noise = uniform_like(boxes.new_empty(*labels.shape, 6), generator)
        other = (noise[..., 5] * self.labels.num_embeddings).long().clamp(max=self.labels.num_embeddings - 1)
        labels = torch.where(noise[..., 4] < self.label_noise, other, labels)
        matched = torch.where(objects, places, IGNORED).repeat(1, groups)
        embeddings = self.labels(torch.where(matched >= 0, labels, 0))
        quality = torch.zeros(matched.shape, dtype=torch.float32, device=matched.device)
        noised = self._disturbed(boxes, noise[..., :4])
        return NoisedQueries(embeddings, noised, Assignment(matched, quality), groups)

    @door
    def mask(self, noised: NoisedQueries, queries: int) -> Bool[Tensor, "B Q Q"]:
        """The attention mask of N noised queries followed by ``queries`` plain ones: True where a query may attend.

        Noised queries attend to the objects of their own group and to all plain queries; plain queries attend only to
        plain ones, since the others would reveal the ground truth. Every query attends to itself.
        """
        real = noised.assignment.matched >= 0
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
        return f"groups={self.groups}, {noise}, max_queries={self.max_queries}"

    def _drawn(self, objects: Bool[Tensor, "B T"], generator: torch.Generator | None) -> Int[Tensor, "B K"]:
        """The rows of ``max_queries`` objects, drawn evenly; padding only where an image has fewer."""
        keys = uniform_like(torch.zeros(objects.shape, device=objects.device), generator)
        return torch.where(objects, keys, -1).topk(self.max_queries, dim=1).indices

    def _disturbed(self, boxes: Float[Tensor, "B N 4"], noise: Float[Tensor, "B N 4"]) -> Float[Tensor, "B N 4"]:
        """cx, cy, w, h shifted by ``noise`` in [0, 1) and clipped to the image."""
        shift = (2 * noise - 1) * self.box_noise
        center, sides = boxes[..., :2] + shift[..., :2] * boxes[..., 2:] / 2, boxes[..., 2:] * (1 + shift[..., 2:])
        low, high = (center - sides / 2).clamp(0, 1), (center + sides / 2).clamp(0, 1)
        return torch.cat(((low + high) / 2, high - low), -1)
