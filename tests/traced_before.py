"""Imported before processes are forked: what torch.compile and torch.export load and remember at their first use.

No gradient is taken: a forked child could not use the threads of autograd.
"""

import torch
from torch import nn

from detkit.boxes import generalized_box_iou


class _Overlap(nn.Module):
    def forward(self, boxes: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        return generalized_box_iou(boxes, others).sum(1)


_sizes = ({0: torch.export.Dim.DYNAMIC},) * 2
torch.export.export(_Overlap(), (torch.rand(3, 4), torch.rand(5, 4)), dynamic_shapes=_sizes).module()
_compiled = torch.compile(_Overlap(), backend="aot_eager", fullgraph=True)
for _count in (3, 4):  # the second has a graph of any size
    _compiled(torch.rand(_count, 4, requires_grad=True), torch.rand(5, 4))
torch.compiler.reset()
