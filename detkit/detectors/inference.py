"""The form of a detector for inference only: branches merged, norms folded, memory laid out for convolutions."""

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights
from torch.nn.utils.parametrize import is_parametrized
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from detkit._door import door
from detkit._wrappers import unwrapped
from detkit.detectors.detector import Detector
from detkit.layers import RepVGGBlock
from detkit.structures import Images

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
_SIDE = 128


@door
def inference_form(detector: nn.Module, *, dtype: torch.dtype | None = None, channels_last: bool = True) -> Detector:
    """A copy of a detector that finds the same, faster, and cannot be trained any more.

    A :class:`~detkit.layers.RepVGGBlock` becomes one convolution. Every batch norm that alone reads the output of one
    convolution or linear layer is folded into it; which those are is seen in one run on an empty picture. Convolutions
    get the layout ``channels_last``. The copy is in ``eval()``, its weights need no gradient, and it exports and
    compiles as the detector does. Save its weights with ``save_weights``, and load them into the inference form of a
    detector built anew.

    ``dtype``: the type of the trunk alone, whose features come back in float32; torch.bfloat16 where the processor has
    it in hardware. Raises ValueError for what is no :class:`Detector`.

    >>> from detkit.detectors import fpn_ssd
    >>> detector = fpn_ssd(3, size=(96, 128))
    >>> count = lambda module: sum(isinstance(part, nn.BatchNorm2d) for part in module.modules())
    >>> count(detector), count(inference_form(detector))
    (13, 0)
    """
    inner = unwrapped(detector)
    if not isinstance(inner, Detector):
        raise ValueError(f"inference_form: detector is a {type(inner).__name__}; allowed is a Detector")
    fast = copy.deepcopy(inner).eval().requires_grad_(False)
    fast.recipe = None  # a file of its weights would not fit what the recipe builds
    for block in [part for part in fast.modules() if isinstance(part, RepVGGBlock)]:
        if block.can_merge and all(map(_is_bare, block.modules())):
            _replace(fast, block, block.merged().eval().requires_grad_(False))
    for norm, layer in _foldable(fast).items():
        _fold(layer, norm)
        _replace(fast, norm, nn.Identity())
    if channels_last:
        fast.to(memory_format=torch.channels_last)
    if dtype is not None:
        fast.trunk.to(dtype)
        fast.trunk.register_forward_pre_hook(lambda _, inputs: tree_map(lambda images: images.to(dtype), inputs))
        fast.trunk.register_forward_hook(lambda _, __, features: tree_map(Tensor.float, features))
    return fast


class _Readers(TorchFunctionMode):
    """Which norms read each watched tensor; None stands for everything else that reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs: dict[int, tuple[nn.Module, Tensor]] = {}  # tensors are held: no other one may get their number
        self.readers: dict[nn.Module, set[nn.Module | None]] = {}
        self.sources: dict[nn.Module, set[nn.Module | None]] = {}
        self.running: nn.Module | None = None

    def __torch_function__(self, function: Any, kinds: Any, arguments: Any = (), settings: Any = None) -> Any:
        for value in tree_leaves((arguments, settings)):
            if isinstance(value, Tensor) and id(value) in self.outputs:
                self.readers[self.outputs[id(value)][0]].add(self.running)
        return function(*arguments, **(settings or {}))

    def layer_ran(self, layer: nn.Module, _: Any, output: Tensor) -> None:
        self.outputs[id(output)] = (layer, output)
        self.readers.setdefault(layer, set())

    def norm_runs(self, norm: nn.Module, inputs: tuple[Tensor]) -> None:
        layer = self.outputs.get(id(inputs[0]), (None,))[0]
        self.sources.setdefault(norm, set()).add(layer)
        self.running = norm

    def norm_ran(self, *_: Any) -> None:
        self.running = None


@torch.no_grad()
def _foldable(detector: Detector) -> dict[nn.Module, nn.Module]:
    """The layer that each norm may be folded into: it reads nothing else, and nobody else reads that."""
    seen, hooks = _Readers(), []
    for part in filter(_is_bare, detector.modules()):
        if isinstance(part, (nn.Conv2d, nn.Linear)):
            hooks.append(part.register_forward_hook(seen.layer_ran))
        elif isinstance(part, _NORMS) and part.running_mean is not None:
            hooks += [part.register_forward_pre_hook(seen.norm_runs), part.register_forward_hook(seen.norm_ran)]
    size = detector.preprocess.size
    height, width = size if isinstance(size, tuple) else (_SIDE, _SIDE)
    like = next(detector.parameters())
    channels = len(detector.preprocess.mean)
    empty = torch.zeros(1, channels, height, width, dtype=like.dtype, device=like.device)
    try:
        with seen:
            detector(Images(empty, torch.tensor([[height, width]], device=like.device)))
    finally:
        for hook in hooks:
            hook.remove()
    single = {norm: next(iter(layers)) for norm, layers in seen.sources.items() if len(layers) == 1}
    return {norm: layer for norm, layer in single.items() if layer is not None and seen.readers[layer] == {norm}}


def _is_bare(part: nn.Module) -> bool:
    """Whether a module does what its type says: hooks and parametrizations change that."""
    return not (part._forward_hooks or part._forward_pre_hooks or is_parametrized(part))


def _fold(layer: nn.Module, norm: Any) -> None:
    fuse = fuse_conv_bn_weights if isinstance(layer, nn.Conv2d) else fuse_linear_bn_weights
    part = cast(Any, layer)
    values = norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    part.weight, part.bias = fuse(part.weight, part.bias, *values)


def _replace(detector: nn.Module, old: nn.Module, new: nn.Module) -> None:
    for parent in list(detector.modules()):
        for name, part in list(parent.named_children()):
            if part is old:
                setattr(parent, name, new)
