"""Every kernel compiles ahead of time for the GPUs of three generations; no GPU is needed for that.

A kernel needs a row in ``ROWS``: the file, the kernel, the types of its arguments as Triton writes them, its constants,
and the options that it is launched with. It is also marked ``@no_type_check``, which keeps the hook of the shape checks
away from what Triton compiles.
"""

import importlib
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest

triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

import detkit.kernels  # noqa: E402
from detkit.kernels import box_loss, deformable, focal, nearest, nms, threshold  # noqa: E402
from detkit.kernels.overlap import EXACT  # noqa: E402

GENERATIONS = (80, 90, 100)  # A100, H100 and H200, B200


class Row(NamedTuple):
    file: str
    kernel: str
    signature: dict[str, str]
    constants: Mapping[str, Any] = MappingProxyType({})
    options: Mapping[str, Any] = MappingProxyType({})


PAIRS = {"boxes1": "*fp32", "boxes2": "*fp32", "losses": "*fp32", "gradient1": "*fp32", "gradient2": "*fp32"}
LIMITS = {"LIMIT": 2.3e18, "SMALLEST": 7.5e-37, "PAIRS": box_loss.PAIRS}
SLOPES = {"losses": "*fp32", "slopes": "*fp32", "count": "i64", "scale0": "fp32", "scale1": "fp32"}
POINTS = {"HEADS": 8, "DEPTH": 32, "POINTS": 16, "QUERIES": deformable.QUERIES, "LANES": 32}


def sampled(kind: str, others: str, **more: str) -> dict[str, str]:
    """The signature of a kernel of deformable attention: the types of values, and of locations and weights."""
    given = {"values": kind, "levels": "*i32", "locations": others, "weights": others}
    return {**given, **more, "queries": "i32", "cells": "i32"}


BY = {"upstream": "*bf16", "by_values": "*fp32", "by_locations": "*fp32", "by_weights": "*fp32"}

NMS_ROWS = dict.fromkeys(("places", "keep", "starts", "lengths", "found", "owners"), "*i64") | {"keep": "*u8"}
NMS = {"boxes": "*fp32", **NMS_ROWS, "threshold": "fp32", "count": "i32", "block": "i32", "most": "i32"}
IOU = {"LIMIT": 2e18, "SMALLEST": 1e-36, "CENTERS": False, "BLOCK": nms.BLOCK, "TILE": nms.TILE}
DIOU = {**IOU, "CENTERS": True}

HIGHEST = {"boxes": "*fp32", "objects": "*i1", "anchors": "*fp32", "highest": "*i32"}
MATCHING = {"crowds": "*i1", "matched": "*i64", "quality": "*fp32"}
COUNTS = {"count": "i32", "length": "i32", "stride": "i32"}
TILES = {"LIMIT": 2e18, "SMALLEST": 1e-36, "OBJECTS": threshold.OBJECTS, "ANCHORS": threshold.ANCHORS}

NEAREST = {"points": "*fp32", "goals": "*fp32", "places": "*i64"}
NEAREST |= dict.fromkeys(("count", "stride", "start", "length", "width", "column", "taken"), "i32")

ROWS = [
    Row("box_loss", "one_minus_kernel", {**PAIRS, "count": "i32"}, {"MEASURE": 1, **LIMITS}, EXACT),
    Row("box_loss", "one_minus_kernel", {**PAIRS, "count": "i64"}, {"MEASURE": 3, **LIMITS}, EXACT),
    Row(
        "box_loss",
        "one_minus_kernel",
        {**PAIRS, "gradient2": "constexpr", "count": "i32"},
        {"gradient2": None, "MEASURE": 4, **LIMITS},
        EXACT,
    ),
    Row(
        "focal",
        "focal_kernel",
        {"logits": "*bf16", "targets": "*i64", **SLOPES},
        {"LABELS": True, "CLASSES": 80, "GAMMA": 2.0, "LOGITS": focal.LOGITS},
        focal.OPTIONS,
    ),
    Row(
        "focal",
        "focal_kernel",
        {"logits": "*fp32", "targets": "*fp16", **SLOPES},
        {"LABELS": False, "CLASSES": 91, "GAMMA": 1.5, "LOGITS": focal.LOGITS},
        focal.OPTIONS,
    ),
    Row("deformable", "sampled_kernel", sampled("*fp32", "*fp32", found="*fp32"), POINTS, deformable.OPTIONS),
    Row("deformable", "sampled_kernel", sampled("*fp16", "*fp16", found="*fp16"), POINTS, deformable.OPTIONS),
    Row("deformable", "sampled_backward_kernel", sampled("*bf16", "*fp32", **BY), POINTS, deformable.OPTIONS),
    Row("nms", "settle", NMS, DIOU, nms.OPTIONS),
    Row("nms", "suppress", {**NMS, "span": "i32"}, IOU, nms.OPTIONS),
    Row("nearest", "find_nearest", NEAREST, {"GOALS": nearest.GOALS, "POINTS": nearest.POINTS}, EXACT),
    Row("threshold", "find_highest", {**HIGHEST, **COUNTS}, TILES, EXACT),
    Row(
        "threshold",
        "match_anchors",
        {**HIGHEST, **MATCHING, **COUNTS, "positive_iou": "fp32", "negative_iou": "fp32"},
        {"FORCED": True, **TILES},
        EXACT,
    ),
]


def launched_kernels() -> set[tuple[str, str]]:
    """(file, function) of every function of detkit/kernels that is launched, as ``function[grid]``."""
    found = set()
    for path in Path(detkit.kernels.__file__).parent.glob("*.py"):
        source = path.read_text(encoding="utf-8")
        names = re.findall(r"^@triton\.jit.*\n(?:@.*\n)*def (\w+)", source, re.MULTILINE)
        found |= {(path.stem, name) for name in names if re.search(rf"\b{name}\[", source)}
    return found


def test_every_kernel_has_a_row_and_every_row_a_kernel():
    assert {(row.file, row.kernel) for row in ROWS} == launched_kernels()


@pytest.mark.slow
@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: "-".join((row.kernel, *row.signature.values())))
def test_a_kernel_compiles(row: Row, generation: int):
    kernel = getattr(importlib.import_module(f"detkit.kernels.{row.file}"), row.kernel)
    signature = {**row.signature, **dict.fromkeys(row.constants, "constexpr")}
    assert list(signature) == kernel.arg_names
    source = ASTSource(kernel, signature, dict(row.constants))
    compiled = triton.compile(source, target=GPUTarget("cuda", generation, 32), options=dict(row.options))
    assert f".target sm_{generation}" in compiled.asm["ptx"]
    assert compiled.asm["cubin"]
    if row.file not in ("focal", "deformable"):  # what must be exact rounds after every operation
        assert not re.search(r"\bfma\.|div\.full|div\.approx", compiled.asm["ptx"])
