"""Where the cases that a GPU shares run in this folder: on the CPU, whose operators hand over to the kernels too."""

from collections.abc import Iterator
from importlib import import_module

import pytest

from detkit.anchors import assigned, atss, threshold
from detkit.boxes import padded, segments
from detkit.kernels import deformable as sampling
from detkit.kernels.switch import running, takes_over
from detkit.layers import deformable

nms = import_module("detkit.boxes.nms")  # the package's name is the function's
HANDED_OVER = (
    (nms._nms_operator, nms._nms, segments.nms),
    (padded._nms_padded_operator, padded._nms_padded, segments.nms_padded),
    (padded._multiclass_operator, padded._multiclass_nms_padded, segments.multiclass_nms_padded),
    (deformable._sampled, deformable._plain_of_sizes, sampling.sampled),
    (deformable._sampled_backward, deformable._plain_backward, sampling.sampled_backward),
    (threshold._operator, threshold._match_rows, threshold._match_on_device),
    (assigned._operator, assigned._in_crowd, assigned._in_crowd_on_device),
    (atss._operator, atss._nearest_points, atss._nearest_on_device),
)


@pytest.fixture(scope="session")
def device() -> Iterator[str]:
    for operator, plain, kernel in HANDED_OVER:
        takes_over(operator, plain, lambda kernel=kernel: kernel, device="cpu")
    with pytest.MonkeyPatch.context() as patch:
        for part in (threshold, nms):
            patch.setattr(part, "on_host", lambda values: not running())  # the operator answers, as on a device
        yield "cpu"
