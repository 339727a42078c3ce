"""The layers of a cfg file as a trunk: every section is a module, and reads the layers that the section names."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from detkit.layers import ConvNormActivation, Passthrough
from detkit.weights.darknet_cfg import Section
from detkit.weights.darknet_file import Header

_IMAGE = -1
_SLOPE = 0.1
_LARGEST_WINDOW = 64  # the largest in use is 13
_MAX_NUMBERS = 1 << 30
_ACTIVATIONS: Mapping[str, Callable[[], nn.Module] | None] = {
    "linear": None,
    "leaky": partial(nn.LeakyReLU, _SLOPE),
    "relu": nn.ReLU,
    "logistic": nn.Sigmoid,
}
DETECTIONS = "yolo", "region"


class Predictor(NamedTuple):
    """A section that detects, the convolution before it, and the shape (1, D, H, W) of what that convolution reads."""

    detection: Section
    convolution: Section
    reads: torch.Size


class Concatenate(nn.Module):
    """A [route]: the maps of several layers behind each other, or that of one as it is.

    >>> Concatenate()(torch.zeros(1, 2, 4, 4), torch.zeros(1, 3, 4, 4)).shape
    torch.Size([1, 5, 4, 4])
    """

    def forward(self, *maps: Float[Tensor, "B _ H W"]) -> Float[Tensor, "B _ H W"]:
        """All channels, in the order given."""
        first, *others = maps
        return torch.cat(maps, dim=1) if others else first


class Shortcut(nn.Module):
    """A [shortcut]: the sum of two layers, activated.

    >>> Shortcut(nn.ReLU())(torch.full((1, 1, 1, 2), -3.0), torch.tensor([[[[1.0, 5.0]]]]))
    tensor([[[[0., 2.]]]])
    """

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, one: Float[Tensor, "B D H W"], other: Float[Tensor, "B D H W"]) -> Float[Tensor, "B D H W"]:
        """The sum."""
        return self.activation(one + other)


class DarknetTrunk(nn.Module):
    """The layers of a cfg file but for those that predict, under Darknet's numbers.

    ``reads`` are the layers that each one reads, -1 being the image; ``predictors`` the numbers of the convolutions
    that predict, finest level first: each reads the layer before it. ``version``, ``cfg``, ``filters`` of the
    predictors and ``shapes`` of the anchors, in pixels, are those of the files that it was read from. Maps images (B,
    3, H, W) to a list of what the predictors read. A map is let go after the last layer that reads it.

    >>> layers = {0: nn.Conv2d(3, 4, 2, 2), 1: nn.MaxPool2d(2), 4: Concatenate()}
    >>> trunk = DarknetTrunk(layers, {0: [-1], 1: [0], 4: [0, 0]}, [5, 2])
    >>> [tuple(level.shape) for level in trunk(torch.zeros(1, 3, 8, 8))]
    [(1, 8, 4, 4), (1, 4, 2, 2)]
    """

    def __init__(
        self, layers: Mapping[int, nn.Module], reads: Mapping[int, Sequence[int]], predictors: Sequence[int]
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({str(number): layer for number, layer in layers.items()})
        self.reads, self.predictors = {number: tuple(read) for number, read in reads.items()}, tuple(predictors)
        self.version: tuple[int, int, int] = Header().version
        self.cfg: bytes | None = None
        self.filters: tuple[int, ...] = ()
        self.shapes: list[list[tuple[float, float]]] = []
        self._last_read = self._spent()

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        """What each predictor reads, finest first."""
        maps = {_IMAGE: images}
        for name, layer in self.layers.items():
            number = int(name)
            maps[number] = layer(*[maps[read] for read in self.reads[number]])
            for spent in self._last_read[number]:
                del maps[spent]
        return [maps[number - 1] for number in self.predictors]

    def _spent(self) -> dict[int, list[int]]:
        """The layers that nobody reads after each one."""
        last = {read: number for number, reads in self.reads.items() for read in reads}
        spent: dict[int, list[int]] = {number: [] for number in self.reads}
        for read, number in last.items():
            if read + 1 not in self.predictors:
                spent[number].append(read)
        return spent


def trunk_of(net: Section, layers: Sequence[Section]) -> tuple[DarknetTrunk, list[Predictor]]:
    """The trunk that the sections ``layers`` describe, on the meta device, and its predictors, finest level first.

    Shapes are found by running each layer there, where nothing is computed. Raises ValueError naming file and line for
    a section that cannot read what it names, and where the last section does not detect.
    """
    if not layers or layers[-1].kind not in DETECTIONS:
        (layers[-1] if layers else net).fault("the last section must be [yolo] or [region]")
    detections = [section for section in layers if section.kind in DETECTIONS]
    convolutions = [layers[section.number - 1] for section in detections if section.number]
    apart = {section.number for section in (*detections, *convolutions)}
    modules: dict[int, nn.Module] = {}
    reads: dict[int, list[int]] = {}
    with torch.device("meta"):
        maps = {_IMAGE: torch.empty(1, 3, net.whole("height", lowest=1), net.whole("width", lowest=1))}
        for number, section in enumerate(layers):
            if number not in apart:
                section.check_only()
                reads[number] = _reads(section, maps)
                modules[number], maps[number] = _built(section, [maps[read] for read in reads[number]])
    predictors = [_predictor(section, layers[section.number - 1], maps) for section in detections]
    predictors.sort(key=lambda predictor: -predictor.reads[2] * predictor.reads[3])  # stable
    return DarknetTrunk(modules, reads, [predictor.convolution.number for predictor in predictors]), predictors


def _predictor(detection: Section, convolution: Section, maps: Mapping[int, Tensor]) -> Predictor:
    detection.check_only()
    convolution.check_only()
    if convolution.kind != "convolutional" or convolution.number > detection.number:
        detection.fault("the section before it must be the [convolutional] that predicts")
    if convolution.number - 1 not in maps:
        convolution.fault("the section before it must be no [convolutional] that predicts, and none that detects")
    for key, value in (("size", 1), ("stride", 1), ("batch_normalize", 0)):
        if convolution.whole(key, value) != value:
            convolution.fault(f"allowed is {value} before {detection}", key)
    if _padding(convolution, 1):
        convolution.fault(f"allowed is 0 before {detection}", "padding")
    if convolution.text("activation", "logistic") != "linear":
        convolution.fault(f"allowed is linear before {detection}", "activation")
    return Predictor(detection, convolution, maps[convolution.number - 1].shape)


def _reads(section: Section, maps: Mapping[int, Tensor]) -> list[int]:
    """The numbers of the layers that a section reads."""
    key = {"route": "layers", "shortcut": "from"}.get(section.kind)
    named = section.wholes(key) if key else []
    numbers = [number + section.number if number < 0 else number for number in named]
    if key == "from" and len(numbers) != 1:
        section.fault("allowed is one number", key)
    for number in numbers:
        if not 0 <= number < section.number:
            section.fault(f"allowed are layers from {-section.number} to {section.number - 1}", key)
        if number not in maps:
            section.fault(f"layer {number} predicts or detects; allowed are layers before it", key)
    if key != "layers":
        if section.number - 1 not in maps:
            section.fault("it follows a section that detects; allowed is a [route] to a layer before")
        numbers.insert(0, section.number - 1)
    return numbers


def _built(section: Section, maps: Sequence[Tensor]) -> tuple[nn.Module, Tensor]:
    """The module of a section, and what it makes of the ``maps`` that it reads."""
    _check_alike(section, maps)
    try:
        module = _LAYERS[section.kind](section, maps[0])
        made = module.eval()(*maps)  # in training batch norm refuses a map of one pixel
    except RuntimeError as error:  # torch's, about sizes
        sizes, reason = " and ".join(_size(each) for each in maps), str(error).splitlines()[0]
        section.fault(f"it cannot read {sizes} (channels, height, width): {reason}")
    if made.numel() > _MAX_NUMBERS:
        section.fault(f"it makes {_size(made)} (channels, height, width); allowed are {_MAX_NUMBERS} numbers")
    return module.train(), made


def _check_alike(section: Section, maps: Sequence[Tensor]) -> None:
    """Raise ValueError where maps that are put together differ: in a [route] channels may."""
    first = 1 if section.kind == "shortcut" else 2
    if any(each.shape[first:] != maps[0].shape[first:] for each in maps):
        sizes = " and ".join(_size(each) for each in maps)
        kind = "shape" if first == 1 else "height and width"
        section.fault(f"its layers are {sizes} (channels, height, width); allowed are layers of one {kind}")


def _size(features: Tensor) -> str:
    return " x ".join(map(str, features.shape[1:]))


def _activation(section: Section, default: str) -> Callable[[], nn.Module] | None:
    name = section.text("activation", default)
    if name not in _ACTIVATIONS:
        section.fault(f"allowed are {' '.join(_ACTIVATIONS)}", "activation")
    return _ACTIVATIONS[name]


def _padding(section: Section, size: int) -> int:
    """On each side; ``pad=1`` keeps the size of a map where that of the kernel is odd, whatever ``padding`` says."""
    keeps, padding = section.whole("pad", 0), section.whole("padding", 0)
    return size // 2 if keeps else padding


def _convolution(section: Section, features: Tensor) -> nn.Module:
    size = section.whole("size", 1, lowest=1)
    return ConvNormActivation(
        features.shape[1],
        section.whole("filters", 1, lowest=1),
        kernel_size=size,
        stride=section.whole("stride", 1, lowest=1),
        padding=_padding(section, size),
        norm=nn.BatchNorm2d if section.whole("batch_normalize", 0) else None,
        activation=_activation(section, "logistic"),
    )


def _max_pool(section: Section, features: Tensor) -> nn.Module:
    """Of ``padding`` the smaller half lies to the left and above; nothing is there, however low the maximum."""
    stride = section.whole("stride", 1, lowest=1)
    size = section.whole("size", stride, lowest=1, highest=_LARGEST_WINDOW)
    padding = section.whole("padding", size - 1)
    if padding >= size:
        section.fault(f"allowed are 0 to {size - 1}: less than the size", "padding")
    before, after = padding // 2, padding - padding // 2
    pad = nn.ConstantPad2d((before, after, before, after), float("-inf"))
    return nn.Sequential(pad, nn.MaxPool2d(size, stride))


def _shortcut(section: Section, features: Tensor) -> nn.Module:
    activation = _activation(section, "linear")
    return Shortcut(nn.Identity() if activation is None else activation())


def _upsample(section: Section, features: Tensor) -> nn.Module:
    return nn.Upsample(scale_factor=section.whole("stride", 2, lowest=1, highest=_LARGEST_WINDOW), mode="nearest")


def _reorg(section: Section, features: Tensor) -> nn.Module:
    stride = section.whole("stride", 1, lowest=1)
    _, channels, height, width = features.shape
    if channels % stride**2 or height % stride or width % stride:
        section.fault(
            f"it reads {_size(features)} (channels, height, width); allowed are multiples of {stride**2}, {stride} and "
            f"{stride}"
        )
    return Passthrough(stride)


_LAYERS: Mapping[str, Callable[[Section, Tensor], nn.Module]] = {
    "convolutional": _convolution,
    "maxpool": _max_pool,
    "route": lambda section, features: Concatenate(),
    "shortcut": _shortcut,
    "upsample": _upsample,
    "reorg": _reorg,
}
