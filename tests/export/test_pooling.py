"""RoIAlign in plain operators reads what the operator reads."""

import pytest
import torch
from strategies import assert_refused
from torch import Tensor, nn

from detkit.boxes import PyramidRoIAlign, roi_align
from detkit.export import plain
from detkit.export.pooling import plain_roi_align

BOXES = {
    "inside": [3.0, 5, 40, 50],
    "one pixel": [10.0, 10, 11, 11],
    "no area": [7.0, 7, 7, 7],
    "inverted": [40.0, 50, 3, 5],
    "over the edge": [-30.0, -20, 200, 150],
    "beyond": [500.0, 500, 600, 700],
    "on the last cell": [56.0, 40, 64, 48],
    "huge": [-1e9, -1e9, 1e9, 1e9],
    "not finite": [0.0, torch.nan, 5, 5],
}


def pyramid(batch: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(batch, 3, 48 // stride, 64 // stride, generator=generator) for stride in (4, 8, 16)]


@pytest.mark.parametrize("ratio", [1, 2, 3])
def test_the_plain_form_is_the_operator(ratio, monkeypatch):
    pool = PyramidRoIAlign(3, strides=(4, 8, 16), sampling_ratio=ratio, canonical_size=32, canonical_level=3)
    boxes = torch.tensor(list(BOXES.values())).expand(2, -1, -1).contiguous()
    given = []

    def operator(*arguments):
        given.append(arguments)
        return arguments[0][0].new_zeros(boxes.shape[:2].numel(), 3, 3, 3)

    expected = pool(pyramid(), boxes)
    monkeypatch.setattr(torch.ops.detkit, "roi_align", operator)
    pool(pyramid(), boxes)
    found = plain_roi_align(*given[0])
    assert given[0][2].unique().tolist() == [-1, 0, 1, 2]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert found[0].any()


@pytest.mark.slow
def test_roi_align_exports_in_plain_operators():
    class Regions(nn.Module):
        def forward(self, level: Tensor, boxes: Tensor) -> Tensor:
            return roi_align(level, boxes, (2, 3), 0.25, sampling_ratio=2, aligned=True)

    level, boxes = pyramid()[0], torch.tensor([[BOXES["inside"]], [BOXES["over the edge"]]])
    exported = plain(torch.export.export(Regions(), (level, boxes)))
    torch.testing.assert_close(exported.module()(level, boxes), Regions()(level, boxes))


def test_as_many_points_as_cells_have_no_plain_form():
    rois, levels = torch.zeros(1, 5), torch.tensor([0])
    said = "plain sampling_ratio=0 allowed is at least 1"
    assert_refused(said, plain_roi_align, pyramid(), rois, levels, [0.25, 0.125, 0.0625], (3, 3), 0)
