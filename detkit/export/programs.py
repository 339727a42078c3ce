"""A detector as one exported program that takes and gives plain tensors, in operators that other runtimes know."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from detkit._door import door
from detkit._ranges import Count
from detkit.detectors import Detector
from detkit.export.keypoints import plain_decode_heatmaps
from detkit.export.pooling import plain_roi_align
from detkit.export.suppression import plain_multiclass_nms_padded, plain_nms_padded
from detkit.structures import Detections, Images

_ROWS = 2  # images of the example where their number is free: one would be taken for a constant


@door
def program(
    detector: Detector,
    size: tuple[Count, Count],
    *,
    batch: Count | None = None,
    multiple_of: Count | None = 1,
    proposals: Count | None = None,
    candidates: Count = 4096,
    loops: bool = True,
) -> ExportedProgram:
    """The detector in eval mode as a program of plain operators.

    Inputs: ``images`` (B, D, H, W) and ``sizes`` (B, 2), height and width of each, as ``detector.preprocess`` makes
    them. Outputs: a dict of the padded :class:`~detkit.structures.Detections`: boxes (B, K, 4) in pixels of the batch,
    scores, labels, valid, and what else the detector finds; of stages side by side "name.boxes" and so on.
    B is free, or ``batch``. ``size`` is the (height, width) to trace with; other multiples of ``multiple_of`` are
    allowed then, for None no other size. ``proposals``: a detector of external proposals takes boxes (B, P, 4) and
    which of them are valid (B, P) as inputs ``proposals`` and ``proposals_valid``, P this number. Where height and
    width are free, K is ``max_detections`` also if there are fewer anchors: the rest is not valid.
    ``candidates`` and ``loops`` are those of :func:`plain`. Raises ValueError for a detector in training mode, for
    ``proposals`` of one that makes its own, and for an operator of this library that has no plain form.

    >>> from detkit.detectors import tiny_ssd
    >>> program(tiny_ssd(2), (256, 256))
    Traceback (most recent call last):
    ValueError: program: detector is in training mode; allowed is detector.eval()
    """
    if detector.training:
        raise ValueError("program: detector is in training mode; allowed is detector.eval()")
    rows = _ROWS if batch is None else batch
    height, width = size
    example: list[Tensor] = [
        torch.zeros(rows, len(detector.preprocess.mean), height, width),
        torch.tensor([[height, width]] * rows),
    ]
    free = {} if batch is not None else {0: Dim.DYNAMIC}
    shapes: list[dict[int, Any]] = [free | _free_sides(multiple_of), free]
    if proposals is not None:
        example += [torch.zeros(rows, proposals, 4), torch.ones(rows, proposals, dtype=torch.bool)]
        shapes += [free, free]
    model = _OfTensors(detector) if proposals is None else _OfProposals(detector)
    with torch.no_grad():
        exported = torch.export.export(model.eval(), tuple(example), dynamic_shapes=tuple(shapes))
    if proposals is not None and not any(node.users for node in exported.graph.nodes if node.name == "proposals"):
        raise ValueError(f"program: proposals={proposals}, but no stage of this detector looks at them; leave it out")
    _take_all(exported)
    return plain(exported, candidates=candidates, loops=loops)


@door
def plain(exported: ExportedProgram, *, candidates: Count = 4096, loops: bool = True) -> ExportedProgram:
    """Any exported program with the operators of this library replaced by what they do, in plain ones.

    Suppression finds what the operator finds, in a loop over the detections; with several classes it looks at the best
    ``candidates`` (box, class) pairs of an image. ``loops=False`` unrolls it, for runtimes that have no loop: about
    thirty nodes for each of ``max_detections``. Raises ValueError for an operator that has no plain form: those of
    training, soft suppression, regions with ``sampling_ratio=0``, and without loops keypoints.

    >>> from detkit.boxes import nms_padded
    >>> class Best(nn.Module):
    ...     def forward(self, boxes, scores): return nms_padded(boxes, scores, 0.5, max_detections=2)
    >>> exported = plain(torch.export.export(Best(), (torch.rand(1, 5, 4), torch.rand(1, 5))))
    >>> [node.name for node in exported.graph.nodes if "nms" in node.name]
    []
    """
    result = exported.run_decompositions(_plain_forms(candidates, loops))
    left = sorted({str(node.target) for node in result.graph.nodes if str(node.target).startswith("detkit.")})
    if left:
        raise ValueError(f"plain: the program has {', '.join(left)}; allowed are operators that have a plain form")
    return result


def _plain_forms(candidates: int, loops: bool) -> dict[Any, Callable[..., Any]]:
    operators = torch.ops.detkit
    return {
        operators.nms_padded.default: partial(plain_nms_padded, loops=loops),
        operators.multiclass_nms_padded.default: partial(
            plain_multiclass_nms_padded, candidates=candidates, loops=loops
        ),
        operators.roi_align.default: plain_roi_align,
        operators.decode_heatmaps.default: partial(plain_decode_heatmaps, loops=loops),
    }


def _take_all(exported: ExportedProgram) -> None:
    """Where operators gave as many rows as wanted, or fewer if there are fewer, plain forms always give as many."""
    for node in exported.graph.find_nodes(op="call_function", target=torch.sym_min):
        wanted = [length for length in node.args if isinstance(length, int)]
        if wanted:
            node.replace_all_uses_with(wanted[0])  # pyright: ignore[reportArgumentType]
            exported.graph.erase_node(node)
    exported.graph.eliminate_dead_code()


def _free_sides(multiple_of: int | None) -> dict[int, Any]:
    if multiple_of is None:
        return {}
    if multiple_of == 1:
        return {2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    return {2: multiple_of * Dim("rows"), 3: multiple_of * Dim("columns")}


class _OfTensors(nn.Module):
    """The detector from tensors to a dict of tensors."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Float[Tensor, "B D H W"], sizes: Shaped[Tensor, "B 2"]) -> dict[str, Tensor]:
        return _columns(self.detector(Images(images, sizes)))


class _OfProposals(nn.Module):
    """The same with proposals, best first, as one more input."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    def forward(
        self,
        images: Float[Tensor, "B D H W"],
        sizes: Shaped[Tensor, "B 2"],
        proposals: Float[Tensor, "B P 4"],
        proposals_valid: Bool[Tensor, "B P"],
    ) -> dict[str, Tensor]:
        scores = proposals_valid.to(proposals)
        given = Detections(proposals, scores, torch.zeros_like(proposals_valid, dtype=torch.int64), proposals_valid)
        return _columns(self.detector(Images(images, sizes), proposals=given))


def _columns(found: Detections | dict[str, Detections]) -> dict[str, Tensor]:
    if isinstance(found, dict):
        return {f"{name}.{key}": part for name, own in found.items() for key, part in _columns(own).items()}
    return {key: part for key, part in found._asdict().items() if part is not None}
