"""detkit's blocks with their layers in one row, as published files number them."""

from functools import partial

from torch import nn

from detkit.layers import ConvNormActivation, SeparableConv

linear = partial(ConvNormActivation, activation=None)
"""A convolution and its norm."""


def separable(before: int, after: int, *, stride: int = 1) -> nn.Sequential:
    """Convolution, norm, ReLU, 1 x 1 convolution, norm, ReLU: 0 to 5."""
    return _flat(SeparableConv(before, after, stride=stride, activation=nn.ReLU))


def without_norms(before: int, after: int, *, stride: int = 1) -> nn.Sequential:
    """Convolution, ReLU, 1 x 1 convolution: 0 to 2, the convolutions with biases."""
    return _flat(SeparableConv(before, after, stride=stride, norm=None, activation=nn.ReLU, linear=True))


def _flat(convolution: SeparableConv) -> nn.Sequential:
    return nn.Sequential(*(layer for layer in convolution.modules() if not isinstance(layer, nn.Sequential)))
