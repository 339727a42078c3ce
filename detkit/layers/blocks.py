"""The few building blocks that backbones, necks and heads share."""

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchvision import ops

from detkit._door import door
from detkit._inputs import is_transformed
from detkit._ranges import Count, Positive, Whole
from detkit.layers.recomputation import is_hooked

_GROUPS_OF_EIGHT = partial(nn.GroupNorm, 8)


class ConvNormActivation(nn.Sequential):
    """A convolution, a norm and an activation in that order; without a norm the convolution has a bias.

    Maps (B, in_channels, H, W) to (B, out_channels, H / stride, W / stride), rounded up: for an odd kernel the default
    ``padding`` keeps the size at stride 1. ``norm`` is called with the number of channels
    (``functools.partial(nn.GroupNorm, 8)`` fits), ``activation`` with no argument; None leaves the step out. Raises
    ValueError for an even kernel without ``padding``, because no symmetric padding keeps the size.

    >>> block = ConvNormActivation(3, 8, stride=2, activation=nn.SiLU)
    >>> block(torch.zeros(1, 3, 7, 10)).shape
    torch.Size([1, 8, 4, 5])
    """

    @door
    def __init__(
        self,
        in_channels: Count,
        out_channels: Count,
        *,
        kernel_size: Count = 3,
        stride: Count = 1,
        padding: Whole | None = None,
        dilation: Count = 1,
        norm: Callable[[int], nn.Module] | None = nn.BatchNorm2d,
        activation: Callable[[], nn.Module] | None = nn.ReLU,
    ) -> None:
        convolution = nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=_padding("ConvNormActivation", kernel_size, padding, dilation),
            dilation=dilation,
            bias=norm is None,
        )
        super().__init__(*_followed(convolution, norm, activation))


class SeparableConv(nn.Sequential):
    """A depthwise convolution, which filters each channel by itself, then a 1 x 1 one, which mixes them.

    Maps (B, in_channels, H, W) to (B, out_channels, H / stride, W / stride), rounded up. Each of the two is followed by
    ``norm``, called with the number of channels, and ``activation``, called with no argument; None leaves the step out,
    and a convolution without a norm has a bias. ``linear`` leaves both out behind the second, as a predictor needs it.
    ``padding`` as in :class:`ConvNormActivation`. Raises ValueError for an even kernel without ``padding``.
    Source: Sandler et al. 2018 (MobileNetV2), section 6.2 ("SSDLite").

    >>> SeparableConv(8, 24, stride=2)(torch.zeros(1, 8, 7, 10)).shape
    torch.Size([1, 24, 4, 5])
    >>> sum(weights.numel() for weights in SeparableConv(8, 24, norm=None, linear=True).parameters())
    296
    """

    @door
    def __init__(
        self,
        in_channels: Count,
        out_channels: Count,
        *,
        kernel_size: Count = 3,
        stride: Count = 1,
        padding: Whole | None = None,
        norm: Callable[[int], nn.Module] | None = nn.BatchNorm2d,
        activation: Callable[[], nn.Module] | None = nn.ReLU6,
        linear: bool = False,
    ) -> None:
        depthwise = nn.Conv2d(
            in_channels,
            in_channels,
            kernel_size,
            stride=stride,
            padding=_padding("SeparableConv", kernel_size, padding),
            groups=in_channels,
            bias=norm is None,
        )
        pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=norm is None or linear)
        super().__init__(
            nn.Sequential(*_followed(depthwise, norm, activation)),
            pointwise if linear else nn.Sequential(*_followed(pointwise, norm, activation)),
        )


@door
def conv_tower(
    channels: Count,
    *,
    depth: Count = 1,
    norm: Callable[[int], nn.Module] | None = _GROUPS_OF_EIGHT,
    activation: Callable[[], nn.Module] | None = nn.ReLU,
) -> nn.Sequential:
    """The tower of a dense head: ``depth`` 3 x 3 convolutions of ``channels``, each a :class:`ConvNormActivation`.

    ``norm`` is called with the number of channels (default: group norm of 8 groups), None stands for a bias instead.
    Weights are normal with deviation .01. Source: Lin et al. 2017 (RetinaNet), section 4; group norm as in FCOS.
    Raises ValueError for ``channels`` that the default norm cannot divide.

    >>> [type(layer).__name__ for layer in conv_tower(16)[0]]
    ['Conv2d', 'GroupNorm', 'ReLU']
    """
    if norm is _GROUPS_OF_EIGHT and channels % 8:
        raise ValueError(f"conv_tower: channels={channels} has no 8 groups; allowed are multiples of 8, or a norm")
    block = partial(ConvNormActivation, channels, channels, norm=norm, activation=activation)
    tower = nn.Sequential(*(block() for _ in range(depth)))
    init_convolutions(tower, partial(nn.init.normal_, std=0.01))
    return tower


class L2Norm(nn.Module):
    """Normalize the channel vector at each position to length 1, then multiply by a learned scale per channel.

    Maps (B, D, H, W) to the same shape and dtype. A zero vector stays zero, with a finite gradient; half precision is
    normalized in float32. Source: ParseNet (arXiv 1506.04579, section 3.3); SSD applies it to conv4_3 with scale 20.

    >>> L2Norm(2, scale=20.0)(torch.tensor([3.0, 4.0]).reshape(1, 2, 1, 1)).flatten().tolist()
    [12.0, 16.0]
    """

    @door
    def __init__(self, channels: Count, *, scale: Positive = 20.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels,), float(scale)))

    @door
    def forward(self, features: Float[Tensor, "B D H W"]) -> Float[Tensor, "B D H W"]:
        """The normalized ``features``, scaled."""
        wide = features.to(torch.promote_types(features.dtype, torch.float32))
        length = torch.linalg.vector_norm(wide, dim=1, keepdim=True)
        # Dividing by max(length, eps) would give dead positions a gradient of 1 / eps.
        unit = wide / torch.where(length > 0, length, 1.0)
        return (unit * self.weight[:, None, None]).to(features.dtype)

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        return f"channels={len(self.weight)}"


class FrozenBatchNorm2d(ops.FrozenBatchNorm2d):
    """torchvision's, which adds to its product in place: half the time, and one array less at once.

    >>> FrozenBatchNorm2d(2)(torch.ones(1, 2, 1, 1)).flatten()
    tensor([1.0000, 1.0000])
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """``x`` (B, D, H, W), normalized by statistics (D,) that never change."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        product, shift = x * scale[:, None, None], shift[:, None, None]
        if not torch.jit.is_scripting():  # noqa: SIM102 - a script has no rest  # pyright: ignore[reportPrivateImportUsage]
            if torch.compiler.is_compiling() or is_transformed():  # vmap of statistics cannot add them in place
                return product + shift
        return product.add_(shift)


def lean_norms(module: nn.Module) -> nn.Module:
    """Replace every FrozenBatchNorm2d of torchvision inside ``module`` by ours, which shares its buffers.

    One with hooks stays.

    >>> type(lean_norms(nn.Sequential(ops.FrozenBatchNorm2d(3)))[0]) is FrozenBatchNorm2d
    True
    """
    for part in module.modules():
        for name, child in part.named_children():
            if type(child) is ops.FrozenBatchNorm2d and not is_hooked(child):
                lean = FrozenBatchNorm2d(len(child.get_buffer("weight")), eps=child.eps).train(child.training)
                lean._buffers.update(child._buffers)
                setattr(part, name, lean)
    return module


def freeze_batch_norm(module: nn.Module) -> nn.Module:
    """Replace every batch norm inside ``module`` with one whose statistics and affine terms never change.

    Works in place, and returns the module (or its replacement, where ``module`` itself is a batch norm). The result is
    a FrozenBatchNorm2d of torchvision, with the same state_dict keys. Raises ValueError for a batch norm that keeps no
    running statistics, or whose class does more than normalize.

    >>> frozen = freeze_batch_norm(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))
    >>> [name for name, _ in frozen.named_parameters()]
    ['0.weight', '0.bias']
    """
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return _frozen(module)
    for name, child in module.named_children():
        setattr(module, name, freeze_batch_norm(child))
    return module


@door
def init_convolutions(module: nn.Module, init: Callable[[Tensor], object]) -> None:
    """Apply ``init`` to the weight of every convolution in ``module``, and set its bias to zero.

    >>> convolution = nn.Conv2d(3, 4, 1)
    >>> init_convolutions(convolution, nn.init.ones_)
    >>> convolution.weight.sum().item(), convolution.bias.sum().item()
    (12.0, 0.0)
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            init(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def _padding(function: str, kernel_size: int, padding: int | None, dilation: int = 1) -> int:
    if padding is None and kernel_size % 2 == 0:
        raise ValueError(f"{function}: kernel_size={kernel_size} is even; give its padding, or use an odd kernel")
    return dilation * (kernel_size // 2) if padding is None else padding


def _followed(
    convolution: nn.Conv2d,
    norm: Callable[[int], nn.Module] | None,
    activation: Callable[[], nn.Module] | None,
) -> list[nn.Module]:
    after = [norm(convolution.out_channels)] if norm else []
    return [convolution, *after, *([activation()] if activation else [])]


def _frozen(norm: nn.modules.batchnorm._BatchNorm) -> FrozenBatchNorm2d:
    if type(norm) not in (nn.BatchNorm2d, nn.SyncBatchNorm):
        raise ValueError(
            f"freeze_batch_norm: cannot replace a {type(norm).__name__}, which may do more than normalize; "
            "allowed are nn.BatchNorm2d and nn.SyncBatchNorm (for timm: timm.layers.freeze_batch_norm_2d)"
        )
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError(
            f"freeze_batch_norm: {norm} has no running statistics to freeze; build it with track_running_stats=True"
        )
    frozen = FrozenBatchNorm2d(norm.num_features, eps=norm.eps).to(norm.running_mean.device, norm.running_mean.dtype)
    frozen.load_state_dict({**frozen.state_dict(), **norm.state_dict()})
    return frozen.train(norm.training)
