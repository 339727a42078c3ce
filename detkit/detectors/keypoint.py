"""The stage that predicts keypoints in every box: it turns Faster R-CNN into Keypoint R-CNN."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from detkit._door import door
from detkit._inputs import as_boxes, promote
from detkit._ranges import NotNegative
from detkit.anchors import gather_assigned
from detkit.detectors.detector import Stage
from detkit.detectors.matched_boxes import (
    checked_boxes,
    matched_objects,
    refuse_objects_without,
    weighted_mean,
)
from detkit.detectors.roi import learns_from_rows, on_valid_rows
from detkit.losses.keypoint import keypoint_loss, keypoint_targets
from detkit.structures import Detections, Images, Targets

LONGEST = 4096  # cells of an enlarged heatmap's side: a longer box is read more coarsely, to bound memory
_MOST_CELLS = 1 << 24  # of heatmaps enlarged at a time, or one heatmap


class KeypointOutputs(NamedTuple):
    """The heatmap logits of each box, and the boxes."""

    logits: Float[Tensor, "B K P S S"]
    detections: Detections


class KeypointStage(Stage):
    """Pools each box, predicts a heatmap for every keypoint, and adds the locations of the maxima to the detections.

    ``pool(features, boxes, rows)`` pools regions (M, D, R, R) as :class:`~detkit.boxes.PyramidRoIAlign` does; ``head``
    maps them to logits (M, P, S, S). The stage trains on the boxes that the previous stage hands over, with
    ``matched``; positives are ``valid``. ``criterion(logits, cells, usable)`` gives costs (M, P), 0 where a keypoint is
    not usable. The loss is ``weight`` times the mean cost over the usable keypoints of all processes, weighted by their
    objects' weights, whose sum counts as 1 at least. Source: He et al. 2017 (Mask R-CNN), section 5.

    >>> from detkit.boxes import PyramidRoIAlign
    >>> from detkit.heads.keypoint import KeypointHead
    >>> stage = KeypointStage(PyramidRoIAlign(14, strides=(4,)), KeypointHead(8, 17, channels=(4,)))
    >>> images, boxes = Images(torch.zeros(1, 3, 64, 64), torch.tensor([[64, 64]])), torch.tensor([[[8.0, 8, 40, 50]]])
    >>> found = Detections(boxes, torch.ones(1, 1), torch.zeros(1, 1, dtype=torch.int64), torch.tensor([[True]]))
    >>> stage.detections(stage([torch.zeros(1, 8, 16, 16)], images, found), images).keypoints.shape
    torch.Size([1, 1, 17, 3])
    """

    @door
    def __init__(
        self,
        pool: nn.Module,
        head: nn.Module,
        *,
        criterion: Callable[[Tensor, Tensor, Tensor], Tensor] = keypoint_loss,
        weight: NotNegative = 1.0,
        branch: str | None = None,
    ) -> None:
        super().__init__(branch=branch)
        self.pool, self.head, self.criterion, self.weight = pool, head, criterion, weight

    @door
    def forward(
        self, features: list[Tensor], images: Images, detections: Detections | None, targets: Targets | None = None
    ) -> KeypointOutputs:
        """Heatmap logits for every box; half precision is promoted."""
        detections = checked_boxes("KeypointStage", detections, targets)

        def run(rows: Tensor | None) -> Tensor:
            return promote(self.head(self.pool(features, detections.boxes, rows)))

        logits = on_valid_rows(run, detections.valid, always=learns_from_rows(self.head))
        return KeypointOutputs(logits, detections)

    @door
    def loss(self, outputs: KeypointOutputs, targets: Targets) -> dict[str, Tensor]:
        """ "keypoint": the criterion's mean over usable keypoints; without any 0, with a gradient of zeros.

        Raises ValueError if targets have objects but no keypoints, or a different number of keypoints than the head.
        """
        logits, found, keypoints = outputs.logits, outputs.detections, targets.keypoints
        assignment = matched_objects(found)
        if keypoints is None:
            refuse_objects_without("keypoints", "KeypointStage", targets)
            keypoints = logits.new_zeros((*targets.valid.shape, logits.shape[2], 3))
        if keypoints.shape[2] != logits.shape[2]:
            raise ValueError(
                f"KeypointStage: targets have {keypoints.shape[2]} keypoints; the head draws {logits.shape[2]}"
            )
        cells, usable = keypoint_targets(keypoints, found.boxes, assignment.matched, logits.shape[-1])
        usable = usable & found.valid[..., None]
        costs = self.criterion(logits.flatten(0, 1), cells.flatten(0, 1), usable.flatten(0, 1)).view_as(usable)
        weights = gather_assigned(assignment, targets).weights[..., None]
        return {"keypoint": self.weight * weighted_mean(costs, weights, usable)}

    @door
    def detections(self, outputs: KeypointOutputs, images: Images) -> Detections:
        """The same detections with ``keypoints`` (B, K, P, 3), as x, y, 1 in batch pixels, and their scores added.

        ``keypoint_scores`` (B, K, P) are logits; rows of padding hold zeros.
        """
        found = outputs.detections
        points, scores = decode_heatmaps(outputs.logits.flatten(0, 1), found.boxes.flatten(0, 1), found.valid.flatten())
        rows = found.valid.shape
        return found._replace(keypoints=points.unflatten(0, rows), keypoint_scores=scores.unflatten(0, rows))

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        return f"weight={self.weight}"


@door
def decode_heatmaps(
    logits: Float[Tensor, "M P S S"], boxes: Shaped[Tensor, "M 4"], valid: Bool[Tensor, "M"] | None = None
) -> tuple[Float[Tensor, "M P 3"], Float[Tensor, "M P"]]:
    """The location of each heatmap's maximum, as x, y, 1 in the pixels of its box, and the logit there.

    Every heatmap (M, P, S, S) is resized bicubically to its box in pixels (M, 4), with sides rounded up and at least 1;
    ties go to the first maximum in row order. The location is the center of that cell, scaled back to the box. Rows
    that are not ``valid`` or not finite give zeros. A side longer than 4,096 pixels gets only 4,096 cells, where
    torchvision uses the memory instead. Compiles and exports. Raises ValueError if shapes disagree.
    Source: He et al. 2017, section 5; the rule is torchvision's.

    >>> heatmaps = torch.zeros(1, 1, 4, 4)
    >>> heatmaps[0, 0, 1, 2] = 5.0
    >>> decode_heatmaps(heatmaps, torch.tensor([[10.0, 10, 14, 18]]))
    (tensor([[[12.5000, 12.5000,  1.0000]]]), tensor([[4.3945]]))
    """
    valid = torch.ones_like(boxes[:, 0], dtype=torch.bool) if valid is None else valid
    if logits.ndim != 4 or boxes.shape != (logits.shape[0], 4) or valid.shape != logits.shape[:1]:
        raise ValueError(
            f"decode_heatmaps: logits {tuple(logits.shape)}, boxes {tuple(boxes.shape)}, valid {tuple(valid.shape)}; "
            "allowed is (M, P, S, S), (M, 4), (M,)"
        )
    return torch.ops.detkit.decode_heatmaps(
        promote(logits.detach()), as_boxes(boxes.detach(), function="decode_heatmaps"), valid
    )


@torch.library.custom_op("detkit::decode_heatmaps", mutates_args=())
def _decode(logits: Tensor, boxes: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    rows, count, size = logits.shape[0], logits.shape[1], logits.shape[2] * logits.shape[3]
    points, scores = logits.new_zeros((rows, count, 3)), logits.new_zeros((rows, count))
    sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1)
    usable = valid & torch.isfinite(boxes).all(1) & torch.isfinite(sides).all(1)
    if not size * count:
        return points, scores
    cells = torch.where(usable[:, None], sides.ceil().clamp(max=LONGEST), 0)
    for row, (wide, high) in enumerate(cells.long().tolist()):  # one wait for a device, not one a row
        if wide:
            scores[row], best = _maxima(logits[row], high, wide)
            place = torch.stack((best % wide, best // wide), dim=1)
            points[row, :, :2] = (place + 0.5) * (sides[row] / cells[row]) + boxes[row, :2]
            points[row, :, 2] = 1
    return points, scores


def _maxima(heatmaps: Float[Tensor, "P S S"], height: int, width: int) -> tuple[Tensor, Tensor]:
    """The largest value of every heatmap resized to (height, width), and its first location in row order."""
    found = []
    for maps in heatmaps.split(max(_MOST_CELLS // (height * width), 1)):
        large = F.interpolate(maps[:, None], size=(height, width), mode="bicubic", align_corners=False)
        found.append(large.flatten(1).max(1))
    values, places = zip(*found, strict=True)
    return torch.cat(values), torch.cat(places)


@_decode.register_fake
def _(logits: Tensor, boxes: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    rows, count = logits.shape[:2]
    return logits.new_empty((rows, count, 3)), logits.new_empty((rows, count))
