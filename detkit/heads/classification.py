"""A class head shared by all feature levels."""

import math
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from detkit._door import door
from detkit._ranges import Count, Probability
from detkit.heads.multibox import check_neck, flatten_levels, prediction_conv
from detkit.layers.recomputation import lean_tower


class ClassificationHead(nn.Module):
    """Class logits for every anchor: a tower that all levels share, then one 3 x 3 convolution.

    ``tower`` maps (B, in_channels, H, W) to the same shape and may be any module (default: no tower). The head has
    ``num_classes`` outputs per anchor: add one yourself if a softmax needs background last. ``prior`` sets the bias so
    that every sigmoid score starts at that probability, which keeps a focal loss stable; without it the bias is 0.
    Raises ValueError for counts below 1 and a prior outside (0, 1).
    Source: Lin et al. 2017 (RetinaNet), sections 3.3 and 4.

    >>> import torch
    >>> head = ClassificationHead(8, 3, num_classes=5, prior=0.01)
    >>> head([torch.zeros(2, 8, 4, 4), torch.zeros(2, 8, 2, 2)]).shape
    torch.Size([2, 60, 5])
    """

    @door
    def __init__(
        self,
        in_channels: Count,
        per_cell: Count,
        *,
        num_classes: Count,
        tower: nn.Module | None = None,
        prior: Probability | None = None,
    ) -> None:
        super().__init__()
        self.in_channels, self.num_classes = in_channels, num_classes
        self.tower = nn.Identity() if tower is None else tower
        bias = 0.0 if prior is None else math.log(prior / (1 - prior))
        self.logits = prediction_conv(in_channels, per_cell * num_classes, std=0.01, bias=bias)

    @door
    def forward(self, features: Sequence[Float[Tensor, "B _ _ _"]]) -> Float[Tensor, "B N C"]:
        """Logits of all levels, in the order of the anchors: level, row, column, anchor."""
        check_neck(features, self.in_channels, function="ClassificationHead")
        return flatten_levels([lean_tower(self.tower, level, self.logits)[0] for level in features], self.num_classes)
