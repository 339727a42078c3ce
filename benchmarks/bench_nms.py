"""Suppression against torchvision's: one set, many groups, whole batches, and the post-processing of two detectors."""

from collections.abc import Callable, Iterator

import torch
import torchvision
from torch import Tensor

from benchmarks.harness import Case
from benchmarks.inputs import detector_boxes, labels_of, scores_of, uniform_boxes
from detkit.boxes import DeltaCoder, batched_nms, multiclass_nms_padded, nms, nms_padded
from detkit.detectors import Postprocess
from detkit.losses import MultiBoxLoss
from detkit.structures import DensePredictions, Detections

NMS, BATCHED = "torchvision.ops.nms", "torchvision batched_nms, a loop over images"


def cases() -> Iterator[Case]:
    """Every row of suppression and post-processing."""
    yield from _single()
    yield from _hostile()
    yield from _many_images()
    yield from _post_processing()


def device_cases(device: str) -> Iterator[Case]:
    """Suppression on a GPU: a whole batch, with classes given or with scores of each, and one long set."""
    boxes, scores, groups = (torch.stack(rows).to(device) for rows in zip(*_batch(16, 8732, 80), strict=True))
    yield Case(
        "nms_padded",
        "16 x 8,732 x 80",
        BATCHED,
        lambda: nms_padded(boxes, scores, 0.5, groups=groups, max_detections=200),
        lambda: [torchvision.ops.batched_nms(*image, 0.5)[:200] for image in zip(boxes, scores, groups, strict=True)],
        _same_best,
        10.0,
    )
    each = torch.rand(16, 8732, 80, generator=torch.Generator().manual_seed(0)).pow(20).to(device)
    yield Case(
        "multiclass_nms_padded",
        "16 x 8,732 x 80 above .5",
        "torchvision batched_nms for each image",
        lambda: multiclass_nms_padded(boxes, each, 0.5, score_threshold=0.5, max_detections=200),
        lambda: [_best_pairs(*image) for image in zip(boxes, each, strict=True)],
        _same_pairs,
        10.0,
    )
    long, ranked = detector_boxes(30_000).to(device), scores_of(30_000).to(device)
    yield _nms_case("30,000 detector-like, IoU .5", long, 0.5, 0.95, scores=ranked)


def _same_best(ours: tuple[Tensor, Tensor], theirs: list[Tensor]) -> None:
    for indices, valid, expected in zip(*ours, theirs, strict=True):
        assert torch.equal(indices[valid], expected)


def _best_pairs(boxes: Tensor, scores: Tensor) -> Tensor:
    row, label = (scores > 0.5).nonzero(as_tuple=True)
    keep = torchvision.ops.batched_nms(boxes[row], scores[row, label], label, 0.5)[:200]
    return row[keep] * scores.shape[1] + label[keep]


def _same_pairs(ours: tuple[Tensor, Tensor, Tensor], theirs: list[Tensor]) -> None:
    for row, label, valid, expected in zip(*ours, theirs, strict=True):
        found = (row * 80 + label)[valid]
        assert len(found) == len(expected)
        # torchvision leaves the order of equal scores open, and with it who is the last
        assert torch.isin(found, expected).float().mean() > 0.97


def _single() -> Iterator[Case]:
    for name, boxes, threshold, target in (
        ("30,000 uniform, IoU .7", uniform_boxes(30_000), 0.7, 45.0),
        ("30,000 detector-like, IoU .5", detector_boxes(30_000), 0.5, 8.0),
        ("30,000 detector-like, IoU .7", detector_boxes(30_000), 0.7, 14.0),
        ("5,000 detector-like, IoU .5", detector_boxes(5_000), 0.5, 2.5),
        ("1,000 uniform, IoU .5", uniform_boxes(1_000), 0.5, 0.95),
        ("1,000 detector-like, IoU .5", detector_boxes(1_000), 0.5, 0.95),
    ):
        yield _nms_case(name, boxes, threshold, target)


def _hostile() -> Iterator[Case]:
    spread = scores_of(30_000 * 4).view(-1, 4)
    for name, boxes in (
        ("30,000 identical", torch.tensor([[10.0, 10, 50, 50]]).repeat(30_000, 1)),
        ("30,000 in 10 clusters", uniform_boxes(10)[labels_of(30_000, 10)] + spread),
        ("30,000 in 300 clusters", uniform_boxes(300)[labels_of(30_000, 300)] + spread),
        ("15,000 uniform before one cluster", torch.cat((uniform_boxes(15_000), 2000 + spread[:15_000] * 4 + _UNIT))),
        ("100 uniform", uniform_boxes(100)),
    ):
        yield _nms_case(name, boxes, 0.5, 0.95, falling="before" in name)


_UNIT = torch.tensor([0.0, 0.0, 50.0, 50.0])


def _nms_case(
    name: str, boxes: Tensor, threshold: float, target: float, *, falling: bool = False, scores: Tensor | None = None
) -> Case:
    if scores is None:
        scores = torch.linspace(1, 0, len(boxes)) if falling else scores_of(len(boxes))
    return Case(
        "nms",
        name,
        NMS,
        lambda: nms(boxes, scores, threshold),
        lambda: torchvision.ops.nms(boxes, scores, threshold),
        _same_sets,
        target,
    )


def _many_images() -> Iterator[Case]:
    for images, count, classes, target in ((4, 30_000, 1203, 5.0), (16, 1000, 80, 2.0), (4, 32_000, 80, 1.5)):
        batch = _batch(images, count, classes)
        boxes, scores, groups = (torch.cat(rows) for rows in zip(*batch, strict=True))
        owner = torch.arange(images).repeat_interleave(count)
        yield Case(
            "batched_nms",
            f"{images} x {count:,}, {classes:,} classes",
            BATCHED,
            lambda b=boxes, s=scores, g=owner * classes + groups: batched_nms(b, s, g, 0.5),
            _loop(batch, 0.5),
            _same_rows(count),
            target,
        )


def _batch(images: int, count: int, classes: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    return [
        (detector_boxes(count, seed=i), scores_of(count, seed=i), labels_of(count, classes, seed=i))
        for i in range(images)
    ]


def _loop(batch: list[tuple[Tensor, Tensor, Tensor]], threshold: float) -> Callable[[], list[Tensor]]:
    return lambda: [torchvision.ops.batched_nms(*image, threshold) for image in batch]


def _same_rows(count: int) -> Callable[[Tensor, list[Tensor]], None]:
    def agree(ours: Tensor, theirs: list[Tensor]) -> None:
        _same_sets(ours, torch.cat([rows + i * count for i, rows in enumerate(theirs)]))

    return agree


def _same_sets(ours: Tensor, theirs: Tensor) -> None:
    assert torch.equal(ours.sort().values, theirs.sort().values)


def _post_processing() -> Iterator[Case]:
    yield _ssd()
    for cells, threshold, frame in ((25_200, 0.001, 640), (10_647, 0.005, 416), (8_400, 0.01, 640)):
        yield _yolo(cells, threshold, frame)


def _ssd() -> Case:
    """Logits and deltas of SSD300 to detections: softmax, decoding, thresholds, suppression, the best 200."""
    generator = torch.Generator().manual_seed(0)
    anchors = uniform_boxes(8732, frame=300)
    logits, deltas = torch.randn(16, 8732, 91, generator=generator), torch.randn(16, 8732, 4, generator=generator)
    logits[..., 0] += 1.5  # torchvision counts background first
    peer = torchvision.models.detection.ssd300_vgg16(weights=None, weights_backbone=None, num_classes=91)
    coder, criterion, postprocess = DeltaCoder((10.0, 10.0, 5.0, 5.0)), MultiBoxLoss(), Postprocess()
    ours_logits, sizes = torch.cat((logits[..., 1:], logits[..., :1]), dim=-1), torch.full((16, 2), 300)
    heads, predictions = {"cls_logits": logits, "bbox_regression": deltas}, DensePredictions(ours_logits, deltas)
    return Case(
        "SSD post-processing",
        "16 x 8,732 x 91",
        "torchvision SSD.postprocess_detections",
        lambda: postprocess(criterion.scores(predictions), coder.decode(deltas, anchors), sizes),
        lambda: peer.postprocess_detections(heads, [anchors] * 16, [(300, 300)] * 16),
        _same_detections,
        8.0,
    )


def _yolo(cells: int, threshold: float, frame: int) -> Case:
    """Scores and boxes of YOLO v5's, v3's or YOLOX's cells, everything above the threshold a candidate, the best 300
    kept."""
    boxes = torch.stack([detector_boxes(cells, seed=i, objects=60, frame=frame) for i in range(16)])
    generator = torch.Generator().manual_seed(0)
    objectness = torch.sigmoid(torch.randn(16, cells, 1, generator=generator) * 2 - 11)
    scores = objectness * torch.sigmoid(torch.randn(16, cells, 80, generator=generator) * 2 - 1)
    sizes = torch.full((16, 2), frame)
    postprocess = Postprocess(
        score_threshold=threshold, iou_threshold=0.65, max_detections=300, candidates_per_class=None
    )
    clipped = boxes.clamp(0, frame)

    def peer() -> list[dict[str, Tensor]]:
        results = []
        for image_boxes, image_scores in zip(clipped, scores, strict=True):
            cell, label = (image_scores > threshold).nonzero(as_tuple=True)
            found = image_boxes[cell], image_scores[cell, label], label
            keep = torchvision.ops.batched_nms(*found, 0.65)[:300]
            results.append(dict(zip(("boxes", "scores", "labels"), (rows[keep] for rows in found), strict=True)))
        return results

    return Case(
        "YOLO post-processing",
        f"16 x {cells:,} x 80 at {threshold}",
        "torchvision batched_nms for each image",
        lambda: postprocess(scores, boxes, sizes),
        peer,
        _same_detections,
        8.0,
    )


def _same_detections(ours: Detections, theirs: list[dict[str, Tensor]]) -> None:
    for i, image in enumerate(theirs):
        count = int(ours.valid[i].sum())
        assert count == len(image["scores"])
        torch.testing.assert_close(ours.scores[i, :count], image["scores"], rtol=1e-5, atol=1e-6)
        apart = torch.cdist(ours.boxes[i, :count], image["boxes"], p=1)  # scores equal but for rounding may swap places
        assert apart.amin(0).amax() < 1e-2
        assert apart.amin(1).amax() < 1e-2
