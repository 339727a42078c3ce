"""Converts Darknet's files of YOLO v2, v3 and the like to Detectors, and writes the weights of Detectors back."""

import os
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from detkit._disk import write_atomically
from detkit._door import door
from detkit.anchors import GridAnchors, ShapeMatcher
from detkit.backbones import SequentialBackbone
from detkit.detectors import DenseStage, Detector, Preprocess, yolo_stage
from detkit.heads import GridHead
from detkit.losses import YOLOLoss
from detkit.necks import PassthroughNeck, YOLONeck
from detkit.weights.darknet_cfg import LARGEST, OWNER, Section, read_cfg
from detkit.weights.darknet_file import Header, read_numbers, stored, write_numbers
from detkit.weights.darknet_trunk import DarknetTrunk, Predictor, trunk_of

_PRIOR_IMAGES = 12_800
_NUMBERS = 5  # of an anchor, before its classes
_EPS = 1e-5  # of batch norm
_SHOWN = 4
_SMALLEST = 1e-6  # side of an anchor
Pairs = list[tuple[float, float]]


class _Anchored(NamedTuple):
    """What all sections that detect must agree on: shapes in the cfg's own unit, classes, thresholds."""

    shapes: Pairs
    classes: int
    ignore: float


@door
def from_darknet(cfg: str | os.PathLike[str], weights: str | os.PathLike[str]) -> Detector:
    """A Detector with the weights and the behavior of a network of Darknet: YOLO v2, v3, their tiny forms and the like.

    ``cfg`` may have any number of [convolutional], [maxpool], [route], [shortcut], [upsample], [reorg] sections and,
    behind linear 1 x 1 convolutions, any number of [yolo] or one [region]. They become a trunk whose layers keep
    Darknet's numbers, a :class:`~detkit.heads.GridHead`, and the matcher, losses and anchors that the last sections
    describe. Images are letterboxed to the size of [net]. ``weights`` has a header of version 0.1 or 0.2 and as many
    numbers as ``cfg`` needs; the images that it has ``seen`` go into the criterion, which counts on for [region]. The
    cfg does not name classes: labels are their numbers. The detector is in training mode.

    Batch norm divides by sqrt(variance + 1e-5), as Darknet does on GPUs; on CPUs it divides by sqrt(variance) + 1e-6.
    Warns, once, of keys that are not known and of those that train otherwise in Darknet. Raises ValueError naming file,
    line and value for a section, activation or number that is not understood, and for weights that are truncated, have
    numbers left over, or are not finite. Sources: Redmon and Farhadi 2017 and 2018, and the authors' released code.

    >>> import tempfile
    >>> from pathlib import Path
    >>> path = Path(tempfile.mkdtemp()) / "tiny.cfg"
    >>> _ = path.write_text("[net]\\nwidth=32\\nheight=32\\n[softmax]")
    >>> from_darknet(path, "tiny.weights")
    Traceback (most recent call last):
    ValueError: from_darknet: ...tiny.cfg, line 4: the section [softmax] is not known; allowed are [net] ...
    """
    content, (net, *layers) = read_cfg(cfg)
    net.check_only()
    trunk, predictors = trunk_of(net, layers)
    trunk.cfg, trunk.filters = content, tuple(predictor.convolution.whole("filters", 1) for predictor in predictors)
    size = net.whole("height"), net.whole("width")
    regions = [predictor for predictor in predictors if predictor.detection.kind == "region"]
    stage, trunk.shapes = _region_stage(predictors, size) if regions else _yolo_stage(predictors)
    if unread := [said for section in (net, *layers) for said in section.unread()]:  # a misspelled key misfits weights
        more = "; ..." if len(unread) > _SHOWN else ""
        keys = "1 key is" if len(unread) == 1 else f"{len(unread)} keys are"
        said = f"{keys} not followed: {'; '.join(unread[:_SHOWN])}{more}"
        warnings.warn(f"{OWNER}: {os.fspath(cfg)}: {said}", stacklevel=3)
    _read_into(trunk, stage, layers, weights)
    return Detector(trunk, preprocess=_letterbox(size), dense=stage)


@door
def to_darknet(detector: Detector, path: str | os.PathLike[str], *, cfg: str | os.PathLike[str] | None = None) -> None:
    """Write the weights of ``detector`` to a file that Darknet reads with its cfg, atomically.

    ``cfg`` names a file to write the cfg to, as :func:`from_darknet` read it. Works for every detector from there,
    whose files come out bit for bit unless it was trained on, and for the recipes ``yolo_v2``, ``yolo_v2_tiny``,
    ``yolo_v3``, ``yolo_v3_tiny``, whose layers are those of the authors' cfg files. Numbers are float32; the version is
    that of the file that was read, else 0.2. Raises ValueError for another detector, for layers that Darknet has no
    place for, for numbers that are not finite and more images seen than its version can hold, and for a ``cfg`` of a
    detector that was not read from one, or has another head or other anchors since, or that is the file of the weights.

    >>> from detkit.detectors import tiny_ssd
    >>> to_darknet(tiny_ssd(num_classes=2), "ssd.weights")
    Traceback (most recent call last):
    ValueError: to_darknet: the head is a DenseHead; allowed is a GridHead, as from_darknet, yolo_v2 and yolo_v3 have it
    """
    stages = list(detector.stages.values())
    stage = stages[0]
    if len(stages) > 1 or not isinstance(stage, DenseStage):
        kinds = ", ".join(type(stage).__name__ for stage in stages)
        raise ValueError(f"to_darknet: stages are {kinds}; allowed is one DenseStage")
    if not isinstance(stage.head, GridHead):
        raise ValueError(
            f"to_darknet: the head is a {type(stage.head).__name__}; allowed is a GridHead, as from_darknet, yolo_v2 "
            "and yolo_v3 have it"
        )
    parts = _in_cfg_order(detector.trunk, stage.head)
    runs = [run for i, pair in enumerate(_convolutions(parts)) for run in stored(f"convolution {i}", *pair)]
    seen = int(getattr(stage.criterion, "seen", 0))
    content = None if cfg is None else _cfg_of(detector.trunk, stage)
    if cfg is not None and Path(cfg).resolve() == Path(path).resolve():
        raise ValueError(f"to_darknet: path and cfg are one file, {Path(path)}; allowed are two")
    write_numbers(path, Header(getattr(detector.trunk, "version", Header().version), seen), runs, owner="to_darknet")
    if cfg is not None and content is not None:
        write_atomically(cfg, lambda file: file.write(content), owner="to_darknet")


def _cfg_of(trunk: nn.Module, stage: DenseStage) -> bytes:
    """The cfg that trunk and stage were built from. Raises ValueError where there is none, or another stage now."""
    if not isinstance(trunk, DarknetTrunk) or trunk.cfg is None:
        raise ValueError(
            f"to_darknet: the {type(trunk).__name__} was not read from a cfg, which could be written; leave cfg out, "
            "and take the authors' with the number of classes adapted"
        )
    filters = tuple(level.out_channels for level in stage.get_submodule("head.levels").children())
    if filters != trunk.filters:
        raise ValueError(
            f"to_darknet: the head predicts {filters} numbers in a cell and the cfg's {trunk.filters}; leave cfg out, "
            "and adapt classes and filters in your own"
        )
    shapes = [level.tolist() for level in stage.get_submodule("anchors").buffers()]
    if [*map(len, shapes)] != [*map(len, trunk.shapes)] or not all(map(_alike, shapes, trunk.shapes)):
        raise ValueError(
            f"to_darknet: the anchors are {shapes} pixels and the cfg's {trunk.shapes}; leave cfg out, and adapt "
            "anchors in your own"
        )
    return trunk.cfg


def _alike(one: Sequence[Sequence[float]], other: Pairs) -> bool:
    return torch.allclose(torch.tensor(one), torch.tensor(other), rtol=0.01)  # half precision rounds


def _letterbox(size: tuple[int, int]) -> Preprocess:
    return Preprocess(size, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), letterbox=True)


def _read_into(
    trunk: DarknetTrunk, stage: DenseStage, layers: Sequence[Section], weights: str | os.PathLike[str]
) -> None:
    """Give trunk and head, which are on the meta device, memory and the numbers of the file."""
    head, criterion = stage.get_submodule("head"), stage.get_submodule("criterion")
    named = [
        (f"layer {number}, {layers[number]} of the cfg", *pair)
        for number, layer in _numbered(trunk, head).items()
        for pair in _convolutions([layer])
    ]
    header, numbers = read_numbers(weights, [run for own in named for run in stored(*own)], owner=OWNER)
    for part in (trunk, head):
        part.to_empty(device=torch.get_default_device())
    with torch.no_grad():
        for run, values in zip([run for own in named for run in stored(*own)], numbers, strict=True):
            run.tensor.copy_(values)
        for _, _, norm in named:
            if norm is not None:
                norm.get_buffer("num_batches_tracked").zero_()
        criterion.get_buffer("seen").fill_(header.seen)
    trunk.version = header.version


def _numbered(trunk: DarknetTrunk, head: nn.Module) -> dict[int, nn.Module]:
    """All layers by Darknet's numbers, ascending."""
    layers = {int(name): layer for name, layer in trunk.layers.items()}
    layers.update(zip(trunk.predictors, head.get_submodule("levels").children(), strict=True))
    return dict(sorted(layers.items()))


def _in_cfg_order(trunk: nn.Module, head: GridHead) -> list[nn.Module]:
    """The parts of a detector in the order of its cfg."""
    if isinstance(trunk, DarknetTrunk):
        return list(_numbered(trunk, head).values())
    backbone, neck = trunk if isinstance(trunk, nn.Sequential) and len(trunk) == 2 else (None, None)
    if not isinstance(backbone, SequentialBackbone) or not isinstance(neck, PassthroughNeck | YOLONeck):
        raise ValueError(
            f"to_darknet: the trunk is a {type(trunk).__name__}; allowed are those of from_darknet, yolo_v2, "
            "yolo_v2_tiny, yolo_v3 and yolo_v3_tiny"
        )
    if isinstance(neck, PassthroughNeck):
        return [backbone, neck, *head.levels]
    levels = zip(neck.blocks, neck.outputs, head.levels, neck.laterals, strict=True)
    return [backbone, *(part for level in [*levels][::-1] for part in level)]


def _convolutions(parts: Iterable[nn.Module]) -> list[tuple[nn.Conv2d, nn.Module | None]]:
    """The convolutions in ``parts``, each with the batch norm that follows it."""
    found: list[tuple[nn.Conv2d, nn.Module | None]] = []
    for layer in (layer for part in parts for layer in part.modules()):
        if isinstance(layer, nn.Conv2d):
            found.append((layer, None))
        elif isinstance(layer, nn.BatchNorm2d | nn.SyncBatchNorm) and found and found[-1][1] is None:
            found[-1] = (found[-1][0], layer)
        elif [*layer.parameters(recurse=False), *layer.buffers(recurse=False)]:
            raise ValueError(
                f"to_darknet: the trunk has a {type(layer).__name__}; allowed are convolutions, each perhaps with a "
                "batch norm behind it"
            )
    if unfit := [pair for pair in found if not _has_place(*pair)]:
        convolution, norm = unfit[0]
        raise ValueError(
            f"to_darknet: the trunk has a {convolution} before {norm}; allowed are convolutions with a bias, or with a "
            f"batch norm of scales, running statistics and eps={_EPS:g} instead"
        )
    return found


def _has_place(convolution: nn.Conv2d, norm: nn.Module | None) -> bool:
    """Whether a file of weights holds all that the two compute with."""
    if norm is None or convolution.bias is not None:
        return norm is None and convolution.bias is not None
    whole = getattr(norm, "weight", None) is not None and getattr(norm, "running_mean", None) is not None
    return whole and getattr(norm, "eps", None) == _EPS


def _yolo_stage(predictors: Sequence[Predictor]) -> tuple[DenseStage, list[Pairs]]:
    """The stage of [yolo] sections, and its shapes: they are pixels, and each section's ``mask`` chooses its own."""
    first = predictors[0].detection
    settings = _anchored(first, "ignore_thresh")
    count, masks = len(settings.shapes), list[list[int]]()
    for detection, convolution, _ in predictors:
        if _anchored(detection, "ignore_thresh") != settings:
            detection.fault(f"anchors, classes and ignore_thresh must be those of {first}")
        if detection.number_of("truth_thresh", 1.0) < 1:
            detection.note("truth_thresh", "is not followed in training: only the best anchor learns an object")
        mask = detection.wholes("mask") if "mask" in detection.entries else [*range(count)]
        if not all(0 <= index < count for index in mask):
            detection.fault(f"allowed are 0 to {count - 1}", "mask")
        _check_filters(detection, convolution, len(mask), settings.classes)
        masks.append(mask)
    if sorted(index for mask in masks for index in mask) != [*range(count)]:
        first.note("mask", "and the other masks hold an anchor twice or not at all, which Darknet learns otherwise")
    shapes = [[settings.shapes[index] for index in mask] for mask in masks]
    return _stage(predictors, shapes, settings, YOLOLoss())


def _region_stage(predictors: Sequence[Predictor], size: tuple[int, int]) -> tuple[DenseStage, list[Pairs]]:
    """The stage of one [region] section, and its shapes, which stand there in cells, in pixels."""
    (detection, convolution, reads), *others = predictors
    if others:
        detection.fault(f"allowed is one [region], and no other section that detects: {others[0].detection} does")
    own = _anchored(detection, "thresh")
    _check_filters(detection, convolution, len(own.shapes), own.classes)
    if not detection.whole("bias_match", 0):
        detection.note("bias_match", "is not followed in training: shapes of anchors are matched, as by bias_match=1")
    criterion = YOLOLoss(
        classes="softmax" if detection.whole("softmax", 0) else "logistic",
        rescore=bool(detection.whole("rescore", 0)),
        object_weight=detection.number_of("object_scale", 1.0),
        background_weight=detection.number_of("noobject_scale", 1.0),
        class_weight=detection.number_of("class_scale", 1.0),
        box_weight=detection.number_of("coord_scale", 1.0),
        prior_images=_PRIOR_IMAGES,
    )
    down, across = (size[d] / reads[2 + d] for d in (0, 1))
    return _stage(predictors, [[(width * across, height * down) for width, height in own.shapes]], own, criterion)


def _stage(
    predictors: Sequence[Predictor], shapes: list[Pairs], settings: _Anchored, criterion: YOLOLoss
) -> tuple[DenseStage, list[Pairs]]:
    """A stage whose head is on the meta device, and its shapes."""
    anchors, matcher = GridAnchors(shapes=shapes), ShapeMatcher(ignore_iou=settings.ignore)
    channels = [predictor.reads[1] for predictor in predictors]
    with torch.device("meta"):
        return yolo_stage(settings.classes, channels, anchors, matcher=matcher, criterion=criterion), shapes


def _anchored(section: Section, threshold: str) -> _Anchored:
    count, numbers = section.whole("num", 1, lowest=1), section.numbers("anchors")
    if len(numbers) != 2 * count or not all(_SMALLEST <= number <= LARGEST for number in numbers):
        said = f"allowed are num={count} pairs of width and height from {_SMALLEST:g} to {LARGEST}"
        section.fault(said, "anchors")
    shapes = [*zip(numbers[::2], numbers[1::2], strict=True)]
    return _Anchored(shapes, section.whole("classes", 20, lowest=1), section.number_of(threshold, 0.5, highest=1.0))


def _check_filters(detection: Section, convolution: Section, anchors: int, classes: int) -> None:
    expected = anchors * (_NUMBERS + classes)
    if convolution.whole("filters", 1, lowest=1) != expected:
        convolution.fault(
            f"{detection} needs {expected}: {anchors} anchors with {_NUMBERS} numbers and {classes} classes", "filters"
        )
