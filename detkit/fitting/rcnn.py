"""Fitting R-CNN on a trained network: linear SVMs with mined negatives and ridge regressions on features in memory."""

import warnings
from collections.abc import Iterable, Iterator
from itertools import zip_longest
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from detkit._door import door
from detkit._inputs import as_boxes, check_box_values
from detkit._ranges import Fraction, Positive, check_fields
from detkit.anchors.assigned import in_crowd
from detkit.boxes import box_area, box_iou
from detkit.detectors.detector import Detector
from detkit.detectors.region import RegionStage
from detkit.fitting.ridge import fit_box_ridge
from detkit.fitting.svm import MinedSVM, SVMSettings
from detkit.proposals import Proposals
from detkit.structures import Target

Samples = Iterable[tuple[Any, Target]] | Dataset[tuple[Any, Target]]
_NEVER = -1e4  # the decision value of a class that was never seen: its score is exactly 0


class RCNNFit(NamedTuple):
    """The data each class was fitted on: positives, hard negatives added, fits of its SVM, regressed proposals."""

    positives: list[int]
    negatives: list[int]
    fittings: list[int]
    regressed: list[int]


class _Regions(NamedTuple):
    """One image: its proposals with their features and overlaps, and the features of its ground-truth objects."""

    boxes: Float[Tensor, "N 4"]
    features: Float[np.ndarray, "N F"]
    overlaps: Float[Tensor, "N T"]
    objects: Float[Tensor, "T 4"]
    object_features: Float[np.ndarray, "T F"]
    labels: Int[Tensor, " T"]
    crowd: Bool[Tensor, " N"]


@door
def fit_rcnn(
    detector: Detector,
    data: Samples,
    proposals: Iterable[Tensor | Proposals],
    *,
    negative_iou: Fraction = 0.3,
    regression_iou: Fraction = 0.6,
    feature_norm: Positive = 20.0,
    penalty: Positive = 1000.0,
    whiten: bool = True,
    svm: SVMSettings = SVMSettings(),  # noqa: B008 - a tuple of numbers
    progress: bool = True,
) -> RCNNFit:
    """Fit the SVMs and box regressions of an R-CNN whose last stage is a RegionStage; its backbone does not change.

    data: pairs of image (3, H, W) and target, as the detector takes them. proposals: for each image its boxes (N, 4),
    or a dict as :func:`~detkit.proposals.load_proposals` returns it, in the image's own pixels. One pass computes the
    features of all proposals and objects and holds them in memory, 4 bytes per number. They are rescaled to a mean norm
    of ``feature_norm``; the factor is stored in the stage. For each class:

    - positives are only the ground-truth boxes; negatives are the proposals whose IoU with every object of that class
      is below ``negative_iou``; other proposals are left out, as are those with more than half in a crowd region;
    - the SVM passes over the images once and mines its hard negatives: see :class:`SVMSettings`;
    - the regression learns from proposals whose best object is of the class, with IoU above ``regression_iou``.

    Images without objects give negatives for every class, images without proposals only positives. A class without a
    positive triggers a warning and is never detected afterwards; a class without proposals to regress leaves boxes
    unchanged. Raises ValueError for a detector of another kind, data and proposals of different length, no images,
    labels out of range, proposals that are not finite or inverted, features that are not finite, and a class without
    any negative.
    Source: Girshick et al. 2014, sections 2.3 and appendices B and C.

    >>> from detkit.detectors import rcnn
    >>> detector = rcnn(1, torch.nn.Flatten(), feature_size=3 * 8 * 8, size=8, context=1)
    >>> image = torch.zeros(3, 32, 32)
    >>> image[:, 4:16, 4:16] = 1
    >>> target = {"boxes": torch.tensor([[4.0, 4, 16, 16]]), "labels": torch.tensor([0])}
    >>> boxes = torch.tensor([[4.0, 4, 16, 17], [16, 16, 30, 30], [0, 18, 12, 32]])
    >>> fit_rcnn(detector, [(image, target)], [boxes], progress=False)
    RCNNFit(positives=[1], negatives=[2], fittings=[1], regressed=[1])
    """
    check_fields(svm, "fit_rcnn: svm")
    stage = _stage_of(detector)
    images = _described(detector, stage, data, proposals, progress)
    factor = _rescale(images, feature_norm)
    machines = [
        _fit_class(images, label, stage, negative_iou, svm)
        for label in tqdm(range(stage.num_classes), "SVMs", disable=not progress, leave=False)
    ]
    ridges = [_fit_boxes(images, label, stage, regression_iou, penalty, whiten) for label in range(stage.num_classes)]
    _store(stage, factor, machines, [ridge[:2] for ridge in ridges])
    return RCNNFit(
        [0 if machine is None else len(machine.positives) for machine in machines],
        [0 if machine is None else machine.added for machine in machines],
        [0 if machine is None else machine.retrained for machine in machines],
        [ridge[2] for ridge in ridges],
    )


def _stage_of(detector: Detector) -> RegionStage:
    stage = list(detector.stages.values())[-1]
    if not isinstance(stage, RegionStage):
        raise ValueError(f"fit_rcnn: the detector's last stage is a {type(stage).__name__}; allowed is a RegionStage")
    return stage


@torch.no_grad()
def _described(
    detector: Detector,
    stage: RegionStage,
    data: Samples,
    proposals: Iterable[Tensor | Proposals],
    progress: bool,
) -> list[_Regions]:
    """The regions of every image, computed in eval mode, with features not yet rescaled."""
    modes = [(module, module.training) for module in detector.modules()]
    detector.eval()
    scale = stage.describe.scale.clone()
    stage.describe.scale.fill_(1)
    pairs = enumerate(zip_longest(_one_by_one(data), proposals))
    total = len(data) if hasattr(data, "__len__") else None  # pyright: ignore[reportArgumentType]
    try:
        images = [
            _regions(detector, stage, i, sample, boxes)
            for i, (sample, boxes) in tqdm(pairs, "features", total=total, disable=not progress, leave=False)
        ]
    finally:
        stage.describe.scale.copy_(scale)
        for module, mode in modes:
            module.training = mode
    if not images:
        raise ValueError("fit_rcnn: data holds no images")
    return images


def _one_by_one(data: Samples) -> Iterator[tuple[Any, Target]]:
    if isinstance(data, Iterable):
        return iter(data)
    return (data[i] for i in range(len(data)))  # pyright: ignore[reportArgumentType] - a map-style Dataset has a length


def _regions(
    detector: Detector,
    stage: RegionStage,
    index: int,
    sample: tuple[Any, Target] | None,
    boxes: Tensor | Proposals | None,
) -> _Regions:
    if sample is None or boxes is None:
        kind = "proposals" if boxes is None else "data"
        raise ValueError(f"fit_rcnn: {kind} end after {index} images; allowed is one set of proposals for each image")
    image, target = sample
    name = f"proposals[{index}]"
    boxes = as_boxes(boxes if isinstance(boxes, Tensor) else boxes["boxes"], function="fit_rcnn", name=name)
    if boxes.ndim != 2:
        raise ValueError(f"fit_rcnn: {name} has shape {tuple(boxes.shape)}; allowed is (N, 4)")
    check_box_values(boxes, function="fit_rcnn", name=name)  # they would be learned as background
    batch, targets = detector.preprocess([image], [target])
    assert targets is not None
    given = Proposals(boxes=boxes, scores=boxes.new_ones(len(boxes)))
    own = detector.preprocess.proposals([given], batch).boxes[0, : len(boxes)].to(batch.tensors)
    real = targets.objects[0] & (box_area(targets.boxes[0]) > 0)
    objects = targets.boxes[0][real].to(own)
    labels = targets.labels[0][real]
    _check_labels(labels, stage.num_classes, index)
    level = detector.trunk(batch.tensors)[0]
    vectors = stage.describe(level, torch.cat((own, objects))[None], batch.sizes)[0].float().cpu().numpy()
    if not np.isfinite(vectors).all():
        raise ValueError(f"fit_rcnn: the features of image {index} are not all finite")
    crowd = in_crowd(own, targets.boxes.to(own), targets.crowds)[0]
    return _Regions(
        boxes=own.cpu(),
        features=vectors[: len(own)],
        overlaps=box_iou(own, objects).cpu(),
        objects=objects.cpu(),
        object_features=vectors[len(own) :],
        labels=labels.cpu(),
        crowd=crowd.cpu(),
    )


def _check_labels(labels: Tensor, num_classes: int, index: int) -> None:
    bad = labels[(labels < 0) | (labels >= num_classes)]
    if len(bad):
        raise ValueError(
            f"fit_rcnn: targets of image {index} have label {bad[0].item()}; allowed is 0..{num_classes - 1}"
        )


def _rescale(images: list[_Regions], feature_norm: float) -> float:
    """Rescale the features to the wanted mean norm, in place to save the memory of a copy. Returns the factor."""
    vectors = [rows for image in images for rows in (image.features, image.object_features)]
    norms = np.concatenate([np.linalg.norm(rows, axis=1) for rows in vectors])
    mean = float(norms.mean()) if len(norms) else 0.0
    if not mean > 0:
        raise ValueError("fit_rcnn: all features are 0, or there are neither proposals nor objects")
    factor = np.float32(feature_norm / mean)
    for rows in vectors:
        np.multiply(rows, factor, out=rows)
    return float(factor)


def _fit_class(
    images: list[_Regions], label: int, stage: RegionStage, negative_iou: float, settings: SVMSettings
) -> MinedSVM | None:
    positives = [image.object_features[(image.labels == label).numpy()] for image in images]
    positives = np.concatenate(positives).astype(np.float64)
    if len(positives) == 0:
        warnings.warn(f"fit_rcnn: class {label} has no object in the data, and will never be detected", stacklevel=3)
        return None
    machine = MinedSVM(positives, settings)
    for image in images:
        near = (image.overlaps[:, image.labels == label] >= negative_iou).any(1)
        machine.add(image.features[(~near & ~image.crowd).numpy()].astype(np.float64))
    if machine.added == 0:
        raise ValueError(
            f"fit_rcnn: class {label} has no negative: no proposal has IoU below {negative_iou} with all its objects; "
            "give proposals that cover background too"
        )
    machine.finish()
    return machine


def _fit_boxes(
    images: list[_Regions], label: int, stage: RegionStage, regression_iou: float, penalty: float, whiten: bool
) -> tuple[np.ndarray, np.ndarray, int]:
    features, deltas = [np.zeros((0, stage.describe.feature_size))], [np.zeros((0, 4))]
    for image in images:
        if len(image.labels) == 0:
            continue
        quality, best = image.overlaps.max(1)
        rows = (quality > regression_iou) & (image.labels[best] == label)
        features.append(image.features[rows.numpy()].astype(np.float64))
        coded = stage.coder.encode(image.objects[best[rows]].double(), image.boxes[rows].double())
        deltas.append(coded.numpy())
    together = np.concatenate(features), np.concatenate(deltas)
    return *fit_box_ridge(*together, penalty=penalty, whiten=whiten), len(together[0])


@torch.no_grad()
def _store(
    stage: RegionStage, factor: float, machines: list[MinedSVM | None], ridges: list[tuple[np.ndarray, np.ndarray]]
) -> None:
    size = stage.describe.feature_size
    weights = np.stack([np.zeros(size) if machine is None else machine.weight for machine in machines])
    biases = np.array([_NEVER if machine is None else machine.bias for machine in machines])
    stage.describe.scale.fill_(factor)
    for machine, weight, bias in (
        (stage.svm, weights, biases),
        (stage.regression, np.concatenate([w for w, _ in ridges]), np.concatenate([b for _, b in ridges])),
    ):
        machine.weight.copy_(torch.from_numpy(weight))
        machine.bias.copy_(torch.from_numpy(bias))
