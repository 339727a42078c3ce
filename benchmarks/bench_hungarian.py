"""The Hungarian matcher against facebookresearch/detr's form: all queries against all targets of the batch."""

from collections.abc import Callable, Iterator

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import generalized_box_iou

from benchmarks.harness import Case
from detkit.anchors.hungarian import HungarianMatcher
from detkit.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from detkit.structures import Assignment, Predictions, pad_targets

_Pairs = list[tuple[Tensor, Tensor]]
_IMAGES, _OBJECTS, _CLASSES = 16, 30, 91


def cases() -> Iterator[Case]:
    """16 images with 30 objects each, 91 classes: DETR's 100 queries, and the 300 and 900 of its successors."""
    for queries, target in ((100, 20.0), (300, 20.0), (900, 25.0)):
        ours, theirs = _functions(queries)
        size = f"{_IMAGES} images x {queries} queries x {_OBJECTS} objects"
        floor = "scipy's solver, one call per image"
        yield Case("Hungarian matcher", size, "facebookresearch/detr", ours, theirs, _agree, target, floor)


def _functions(queries: int) -> tuple[Callable[[], Assignment], Callable[[], _Pairs]]:
    generator = torch.Generator().manual_seed(queries)
    logits = torch.randn(_IMAGES, queries, _CLASSES + 1, generator=generator)
    boxes = torch.rand(_IMAGES, queries, 4, generator=generator) * 0.5 + 0.05
    truth = torch.rand(_IMAGES, _OBJECTS, 4, generator=generator) * 0.5 + 0.05
    labels = torch.randint(0, _CLASSES, (_IMAGES, _OBJECTS), generator=generator)
    corners = cxcywh_to_xyxy(truth)
    targets = pad_targets([{"boxes": b, "labels": c} for b, c in zip(corners, labels, strict=True)])
    rows = [{"boxes": xyxy_to_cxcywh(b), "labels": c} for b, c in zip(corners, labels, strict=True)]
    matcher = HungarianMatcher()

    def ours() -> Assignment:
        return matcher(None, targets, Predictions(cxcywh_to_xyxy(boxes), logits=logits))

    return ours, lambda: published_matches(logits, boxes, rows)


@torch.no_grad()
def published_matches(logits: Tensor, boxes: Tensor, targets: list[dict[str, Tensor]]) -> _Pairs:
    """(queries, objects) of each image: one cost matrix (B * Q, sum of T), cut into the blocks of the images."""
    images, queries = logits.shape[:2]
    probabilities, boxes = logits.flatten(0, 1).softmax(-1), boxes.flatten(0, 1)
    labels, truth = (torch.cat([target[key] for target in targets]) for key in ("labels", "boxes"))
    overlaps = generalized_box_iou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(truth))
    costs = 5 * torch.cdist(boxes, truth, p=1) - probabilities[:, labels] - 2 * overlaps
    blocks = costs.view(images, queries, -1).cpu().split([len(target["boxes"]) for target in targets], -1)
    pairs = [linear_sum_assignment(block[image]) for image, block in enumerate(blocks)]
    return [(torch.as_tensor(rows), torch.as_tensor(columns)) for rows, columns in pairs]


def _agree(ours: Assignment, theirs: _Pairs) -> None:
    for matched, (queries, objects) in zip(ours.matched, theirs, strict=True):
        assert matched[queries].tolist() == objects.tolist()
        assert int((matched >= 0).sum()) == len(queries)
