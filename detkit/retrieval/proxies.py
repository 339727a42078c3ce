"""Losses that compare embeddings with a learned proxy of each class instead of with each other."""

import math
from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from detkit._door import door
from detkit._inputs import promote
from detkit._ranges import Count, NotNegative, Positive
from detkit.retrieval.labels import takes_part
from detkit.retrieval.losses import cosines_of, soft_extremes
from detkit.retrieval.pairs import MetricLoss, mean_over, without_padding
from detkit.structures.labels import check_labels

ARCFACE_MARGIN = math.radians(28.6)
"""The paper's half a radian, in degrees as it is commonly given."""


@door
def arcface(
    embeddings: Float[Tensor, "N D"],
    labels: Int[Tensor, "N"],
    proxies: Float[Tensor, "C D"],
    *,
    margin: NotNegative = ARCFACE_MARGIN,
    scale: Positive = 64.0,
) -> Float[Tensor, ""]:
    """The cross-entropy of classes by cosine times ``scale``, after the own class is turned away by ``margin`` radians.

    proxies: (C, D), one of each class; rows with a negative label take no part. Where the angle and the margin exceed
    half a turn, the cosine falls on linearly, by margin * sin(margin). Without margin it is the normalized softmax, of
    which Proxy-NCA on normalized embeddings is the case of scale 2. Raises ValueError for label sets, for labels from
    C on (on accelerators with ``DETKIT_CHECKS=full``), and for embeddings of another width than the proxies.
    Source: Deng et al. 2019, "ArcFace", equation 3.

    >>> round(arcface(torch.eye(2), torch.tensor([0, 1]), torch.eye(2), scale=4.0).item(), 4)
    0.0294
    """
    _check("arcface", embeddings, labels, proxies)
    own = takes_part(labels)
    cosines = cosines_of(without_padding(promote(embeddings), own), promote(proxies))
    return mean_over(_turned_away(cosines, _classes(labels), margin=margin, scale=scale), own)


def _turned_away(cosines: Tensor, labels: Tensor, *, margin: float, scale: float) -> Float[Tensor, "N"]:
    own = cosines.gather(1, labels[:, None])
    logits = cosines.scatter(1, labels[:, None], _turned(own, margin)) * scale
    return F.cross_entropy(logits, labels, reduction="none")


def _turned(cosines: Tensor, margin: float) -> Tensor:
    """cos(angle + margin); the root is kept from 0, where its slope is infinite."""
    sines = (1 - cosines.square()).clamp(min=1e-12).sqrt()
    turned = cosines * math.cos(margin) - sines * math.sin(margin)
    return torch.where(cosines > -math.cos(margin), turned, cosines - margin * math.sin(margin))


@door
def proxy_anchor_loss(
    embeddings: Float[Tensor, "N D"],
    labels: Shaped[Tensor, "N *C"],
    proxies: Float[Tensor, "classes D"],
    *,
    margin: NotNegative = 0.1,
    alpha: Positive = 32.0,
) -> Float[Tensor, ""]:
    """Every proxy draws its own embeddings to a cosine of ``margin`` and more, and pushes the others below -margin.

    Soft maxima over the batch, by ``alpha``; the mean over the proxies that have embeddings, plus that over all.
    Label sets (N, C) are taken: an embedding belongs to all its classes. Rows with negative labels take no part.
    Source: Kim et al. 2020, "Proxy Anchor Loss", equation 4.

    >>> round(proxy_anchor_loss(torch.eye(2), torch.tensor([0, 1]), torch.eye(2)).item(), 4)
    3.24
    """
    _check("proxy_anchor_loss", embeddings, labels, proxies)
    own = takes_part(labels)
    classes = torch.arange(len(proxies), device=labels.device)[:, None]
    members = (labels == classes if labels.ndim == 1 else (labels > 0).T.contiguous()) & own  # (C, N) in memory, too
    cosines = cosines_of(promote(proxies), without_padding(promote(embeddings), own))
    near = soft_extremes(cosines, members, steepness=-alpha, base=margin)
    far = soft_extremes(cosines, own & ~members, steepness=alpha, base=-margin)
    return alpha * (far.mean() - mean_over(near, members.sum(1) > 0))


class _ProxyLoss(MetricLoss):
    """A loss of ``function(embeddings, labels, proxies)`` with learned proxies."""

    def __init__(self, function: Callable[..., Tensor], num_classes: int, channels: int) -> None:
        super().__init__(function)
        self.proxies = nn.Parameter(F.normalize(torch.randn(num_classes, channels), dim=1))

    def _others(self, embeddings: Tensor | None, labels: Tensor | None) -> tuple[Tensor]:
        if embeddings is not None or labels is not None:
            raise ValueError(f"{type(self).__name__}: takes no references, since it compares with its proxies")
        return (self.proxies,)


class ArcFaceLoss(_ProxyLoss):
    """:func:`arcface` with learned ``proxies`` of ``num_classes`` classes, for embeddings of width ``channels``.

    Raises ValueError for references: it compares with its proxies only.

    >>> torch.isfinite(ArcFaceLoss(3, 8)(torch.rand(2, 8), torch.tensor([2, -1])))
    tensor(True)
    """

    @door
    def __init__(
        self,
        num_classes: Count,
        channels: Count,
        *,
        margin: NotNegative = ARCFACE_MARGIN,
        scale: Positive = 64.0,
    ) -> None:
        super().__init__(partial(arcface, margin=margin, scale=scale), num_classes, channels)


class ProxyAnchorLoss(_ProxyLoss):
    """:func:`proxy_anchor_loss` with learned ``proxies`` of ``num_classes`` classes, embeddings of width ``channels``.

    Raises ValueError for references: it compares with its proxies only.

    >>> ProxyAnchorLoss(3, 8)(torch.rand(2, 8), torch.tensor([[1, 0, 1], [0, 1, 0]])) > 0
    tensor(True)
    """

    @door
    def __init__(
        self, num_classes: Count, channels: Count, *, margin: NotNegative = 0.1, alpha: Positive = 32.0
    ) -> None:
        super().__init__(partial(proxy_anchor_loss, margin=margin, alpha=alpha), num_classes, channels)


def _classes(labels: Shaped[Tensor, "N"]) -> Int[Tensor, "N"]:
    """The class of each row, 0 in padding; other operations than comparisons want 64 bits."""
    return labels.clamp(min=0).to(torch.int64)


def _check(function: str, embeddings: Tensor, labels: Tensor, proxies: Tensor) -> None:
    if embeddings.ndim != 2 or proxies.ndim != 2 or embeddings.shape[1] != proxies.shape[1] or not len(proxies):
        raise ValueError(
            f"{function}: embeddings have shape {tuple(embeddings.shape)} and proxies {tuple(proxies.shape)}; allowed "
            "are (N, D) and (C, D), of one class at least"
        )
    if not labels.ndim or len(labels) != len(embeddings):
        raise ValueError(f"{function}: labels have shape {tuple(labels.shape)}; there are {len(embeddings)} embeddings")
    classes = len(proxies)
    if labels.ndim == 1:
        check_labels(labels.clamp(min=0), classes, lowest=0, function=function, name="labels")
    elif function == "arcface" or labels.ndim != 2 or labels.shape[1] != classes:
        sets = "" if function == "arcface" else f", or label sets (N, {classes})"
        raise ValueError(f"{function}: labels have shape {tuple(labels.shape)}; allowed are whole numbers (N,){sets}")
