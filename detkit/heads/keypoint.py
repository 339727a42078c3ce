"""The keypoint head of Mask R-CNN for human poses, which predicts a heatmap for every keypoint of every region."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from detkit._door import door
from detkit._ranges import Count
from detkit.heads.mask import conv_tower, kaiming_fan_out


class KeypointHead(nn.Module):
    """Predicts heatmap logits of every keypoint for pooled regions, at four times their resolution.

    One 3 x 3 convolution with ReLU for each of ``channels``, a 4 x 4 transposed convolution of stride 2 to
    ``num_keypoints``, and bilinear upsampling by 2. Weights are initialized as in torchvision: normal, with He's
    fan-out variance, and zero biases. Raises ValueError for counts below 1.
    Source: He et al. 2017 (Mask R-CNN), section 5.

    >>> import torch
    >>> KeypointHead(8, 17, channels=(4, 4))(torch.zeros(5, 8, 14, 14)).shape
    torch.Size([5, 17, 56, 56])
    """

    @door
    def __init__(self, in_channels: Count, num_keypoints: Count, *, channels: Sequence[Count] = (512,) * 8) -> None:
        super().__init__()
        self.num_keypoints = num_keypoints
        self.tower = conv_tower(in_channels, channels)
        last = (in_channels, *channels)[-1]
        self.upsample = nn.ConvTranspose2d(last, num_keypoints, kernel_size=4, stride=2, padding=1)
        kaiming_fan_out(self.upsample.weight)
        nn.init.zeros_(self.upsample.get_parameter("bias"))

    @door
    def forward(self, pooled: Float[Tensor, "M D _ _"]) -> Float[Tensor, "M P _ _"]:
        """Logits (M, P, 4 S, 4 S) of pooled regions (M, D, S, S)."""
        coarse = self.upsample(self.tower(pooled))
        return F.interpolate(coarse, scale_factor=2.0, mode="bilinear", align_corners=False)
