"""The stage that gives every object an embedding, by which it is found again among others."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from detkit._door import door
from detkit._inputs import promote
from detkit._ranges import NotNegative
from detkit.detectors.classification import image_boxes
from detkit.detectors.detector import Stage
from detkit.detectors.matched_boxes import matched_objects, refuse_objects_without
from detkit.detectors.roi import learns_from_rows, on_valid_rows
from detkit.structures import Detections, Images, Targets, take_rows

Learned = Literal["labels", "identities", "label_sets"]


class EmbeddingOutputs(NamedTuple):
    """The embedding of each box, and the boxes; ``whole``: each box is an image of its own."""

    embeddings: Float[Tensor, "B K D"]
    detections: Detections
    whole: bool = False


class EmbeddingStage(Stage):
    """Describes each detection by an embedding, and learns that equal objects have near ones.

    ``head`` maps regions (M, D, S, S) to embeddings (M, E), as :class:`~detkit.heads.EmbeddingHead` does. The regions
    are those of the detections of the stage before, whatever it is: ``pool(features, boxes, rows)`` pools them as
    :class:`~detkit.boxes.PyramidRoIAlign` does. Without ``pool`` the head reads the embeddings (M, D) that the stage
    before found: those of DETR's queries or of a dense head's anchors, or the neural codes of
    :class:`~detkit.detectors.LabelSetStage`. As the first stage of a detector it describes whole images.

    ``criterion(embeddings, labels)`` is a loss of :mod:`detkit.retrieval`, or any other of that signature, as
    pytorch-metric-learning's are; None: the stage does not learn, but passes on what others learn (neural codes). A
    criterion with ``takes_padding = True`` gets all rows, those of padding with labels of -1, which compiles; others
    get the objects only. ``learns`` names the entry of the targets by which objects are equal; identities of -1 teach
    nothing. The stage learns on the boxes that are handed over with ``matched``; where the stage before hands over
    none, on the true boxes. Whole images learn their ``image_labels``. The loss is ``weight`` times the criterion's;
    weights of objects do not enter it, since it is one of pairs. Raises ValueError where boxes, embeddings, or what it
    learns are missing, and where the pool's ``strides`` are clearly not those of the features.

    >>> from detkit.boxes import PyramidRoIAlign
    >>> from detkit.heads import EmbeddingHead
    >>> stage = EmbeddingStage(EmbeddingHead(8 * 3 * 3, 16), pool=PyramidRoIAlign(3, strides=(4,)))
    >>> images, boxes = Images(torch.zeros(1, 3, 64, 64), torch.tensor([[64, 64]])), torch.tensor([[[8.0, 8, 40, 50]]])
    >>> found = Detections(boxes, torch.ones(1, 1), torch.zeros(1, 1, dtype=torch.int64), torch.tensor([[True]]))
    >>> stage.detections(stage([torch.zeros(1, 8, 16, 16)], images, found), images).embeddings.shape
    torch.Size([1, 1, 16])
    """

    @door
    def __init__(
        self,
        head: nn.Module,
        *,
        pool: nn.Module | None = None,
        criterion: Callable[[Tensor, Tensor], Tensor] | None = None,
        learns: Learned = "labels",
        weight: NotNegative = 1.0,
        branch: str | None = None,
    ) -> None:
        super().__init__(branch=branch)
        if learns not in ("labels", "identities", "label_sets"):
            raise ValueError(f"EmbeddingStage: {learns=}; allowed are 'labels', 'identities', 'label_sets'")
        self.head, self.pool, self.criterion, self.learns, self.weight = head, pool, criterion, learns, weight

    @door
    def forward(
        self, features: list[Tensor], images: Images, detections: Detections | None, targets: Targets | None = None
    ) -> EmbeddingOutputs:
        """The embedding of every box; half precision is promoted."""
        whole = detections is None
        found = _whole_images(images) if detections is None else detections
        if targets is not None and found.matched is None:
            found = _true_boxes(targets)

        def run(rows: Tensor | None) -> Tensor:
            return promote(self.head(self._regions(features, found, rows)))

        _check_strides(self.pool, features, images)
        embeddings = on_valid_rows(run, found.valid, always=learns_from_rows(self.head))
        return EmbeddingOutputs(torch.where(found.valid[..., None], embeddings, 0), found, whole)

    @door
    def loss(self, outputs: EmbeddingOutputs, targets: Targets) -> dict[str, Tensor]:
        """ "embedding": the criterion of all objects of the batch together; without a criterion there is no loss.

        Where nothing can be learned it is 0, with a gradient of zeros.
        """
        if self.criterion is None:
            return {}
        embeddings, labels = outputs.embeddings.flatten(0, 1), self._labels(outputs, targets).flatten(0, 1)
        nothing = (embeddings * 0).sum()
        if not getattr(self.criterion, "takes_padding", False):
            rows = (labels if labels.ndim == 1 else labels.amin(1)) >= 0
            embeddings, labels = embeddings[rows], labels[rows]
            if not len(labels):
                return {"embedding": nothing}
        return {"embedding": self.weight * self.criterion(embeddings, labels) + nothing}

    @door
    def detections(self, outputs: EmbeddingOutputs, images: Images) -> Detections:
        """The same detections with ``embeddings`` (B, K, E), zeros in padding."""
        return outputs.detections._replace(embeddings=outputs.embeddings)

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        return f"learns={self.learns!r}, weight={self.weight}"

    def _regions(self, features: list[Tensor], found: Detections, rows: Tensor | None) -> Tensor:
        if self.pool is not None:
            return self.pool(features, found.boxes, rows)
        if found.embeddings is None:
            raise ValueError(
                "EmbeddingStage: the stage before found no embeddings (DETR's does if its postprocess has rows=True, a "
                "DenseStage's with a DenseHead(..., embedding_head=...), too); give a pool, as PyramidRoIAlign(7, "
                "strides=...), which reads regions"
            )
        vectors = found.embeddings.flatten(0, 1)
        return vectors if rows is None else vectors.index_select(0, rows)

    def _labels(self, outputs: EmbeddingOutputs, targets: Targets) -> Shaped[Tensor, "B K *C"]:
        """What each box learns; -1 where it learns nothing."""
        if outputs.whole:
            if targets.image_labels is None:
                raise ValueError("EmbeddingStage: whole images learn image_labels; the targets have none")
            return targets.image_labels[:, None]
        values = getattr(targets, self.learns)
        if values is None:
            refuse_objects_without(self.learns, "EmbeddingStage", targets)
            values = torch.full_like(targets.labels, -1)
        matched = matched_objects(outputs.detections).matched
        learned = matched >= 0
        own = take_rows(values, matched.clamp(min=0)).to(torch.int64)
        return torch.where(learned.reshape(*learned.shape, *(1 for _ in own.shape[2:])), own, -1)


def _check_strides(pool: nn.Module | None, features: list[Tensor], images: Images) -> None:
    """Refuse strides that are off by a factor: regions would be read from the wrong place, without a sign."""
    if torch.compiler.is_compiling():
        return
    longest = max(images.tensors.shape[-2:])
    for stride, level in zip(getattr(pool, "strides", ()), features, strict=False):
        cells, expected = max(level.shape[-2:]), longest / stride
        if abs(cells - expected) > 1.5 + expected / 4:  # borders and rounding cost a cell or two
            raise ValueError(
                f"EmbeddingStage: the pool has a level of stride {stride}, but images of {longest} pixels have "
                f"features of {cells} cells, a stride of about {longest / cells:.3g}; give it the strides of the trunk"
            )


def _whole_images(images: Images) -> Detections:
    """Each image as its only detection, matched to itself."""
    boxes = image_boxes(images)[:, None]
    ones = torch.ones_like(boxes[..., 0])
    nothing = torch.zeros_like(ones, dtype=torch.int64)
    return Detections(boxes, ones, nothing, ones > 0, matched=nothing)


def _true_boxes(targets: Targets) -> Detections:
    """The objects themselves as detections, each matched to itself."""
    rows = torch.arange(targets.labels.shape[1], device=targets.labels.device).expand_as(targets.labels)
    found = Detections.padded(targets.boxes, targets.objects.to(targets.boxes), targets.labels, targets.objects)
    return found._replace(matched=rows)
