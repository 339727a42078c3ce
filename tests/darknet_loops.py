"""Darknet's files and its forward pass as loops over numbers.

Written from the description of the files and the layers; it shares no code with the library, and needs none but Python.
"""

import math
import random
import struct
from typing import NamedTuple

Map = list[list[list[float]]]
"""Channels of rows of numbers."""
Section = tuple[str, dict[str, str]]


class Weights(NamedTuple):
    """What a file holds of one convolution; without batch norm only biases and kernels."""

    biases: list[float]
    scales: list[float]
    means: list[float]
    variances: list[float]
    kernels: list[float]


class Box(NamedTuple):
    """Of an anchor: center and size as fractions of the network's input, objectness, class probabilities."""

    x: float
    y: float
    w: float
    h: float
    objectness: float
    classes: list[float]


def sections_of(cfg: str) -> list[Section]:
    """A plain reading of a cfg without faults."""
    found: list[Section] = []
    for line in (line.strip() for line in cfg.splitlines()):
        if line.startswith("["):
            found.append((line[1:-1], {}))
        elif line and not line.startswith("#"):
            key, value = line.split("=")
            found[-1][1][key.strip()] = value.strip()
    return found


def layer_channels(sections: list[Section]) -> list[int]:
    """The number of channels that each layer gives."""
    channels: list[int] = []
    for number, (kind, keys) in enumerate(sections[1:]):
        before = channels[-1] if channels else 3
        if kind == "convolutional":
            before = int(keys["filters"])
        elif kind == "route":
            named = [int(value) for value in keys["layers"].split(",")]
            before = sum(channels[number + value if value < 0 else value] for value in named)
        elif kind == "reorg":
            before *= int(keys["stride"]) ** 2
        channels.append(before)
    return channels


def random_weights(cfg: str, seed: int = 0) -> dict[int, Weights]:
    """Numbers that a float32 holds, for each convolution by the number of its layer."""
    sections, draw = sections_of(cfg), random.Random(seed)
    channels = layer_channels(sections)

    def numbers(count: int, low: float, high: float) -> list[float]:
        return list(
            struct.unpack(f"<{count}f", struct.pack(f"<{count}f", *(draw.uniform(low, high) for _ in range(count))))
        )

    found = {}
    for number, (kind, keys) in enumerate(sections[1:]):
        if kind == "convolutional":
            filters, size = int(keys["filters"]), int(keys.get("size", 1))
            inputs = (channels[number - 1] if number else 3) * size * size
            span = 1.5 / math.sqrt(inputs)
            normed = filters if int(keys.get("batch_normalize", 0)) else 0
            found[number] = Weights(
                numbers(filters, -0.5, 0.5),
                numbers(normed, 0.5, 1.5),
                numbers(normed, -0.3, 0.3),
                numbers(normed, 0.2, 1.2),
                numbers(filters * inputs, -span, span),
            )
    return found


def weights_file(weights: dict[int, Weights], version: tuple[int, int, int] = (0, 2, 0), seen: int = 0) -> bytes:
    """Header, then of each convolution biases, scales, means, variances, kernels."""
    wide = version[0] * 10 + version[1] >= 2
    content = [struct.pack("<iii", *version), struct.pack("<Q" if wide else "<i", seen)]
    for _, own in sorted(weights.items()):
        numbers = [*own.biases, *own.scales, *own.means, *own.variances, *own.kernels]
        content.append(struct.pack(f"<{len(numbers)}f", *numbers))
    return b"".join(content)


def detect(cfg: str, weights: dict[int, Weights], image: Map) -> list[list[Box]]:
    """What each [yolo] and [region] of a cfg finds in an image of the network's size: row by row, anchor by anchor."""
    sections = sections_of(cfg)
    net = sections[0][1]
    maps: list[Map] = []
    found = []
    for number, (kind, keys) in enumerate(sections[1:]):
        before = maps[-1] if maps else image
        if kind == "convolutional":
            before = activated(convolved(before, keys, weights[number]), keys["activation"])
        elif kind == "maxpool":
            before = [pooled(channel, keys) for channel in before]
        elif kind == "route":
            named = [int(value) for value in keys["layers"].split(",")]
            before = [channel for value in named for channel in maps[number + value if value < 0 else value]]
        elif kind == "shortcut":
            start = int(keys["from"])
            other = maps[number + start if start < 0 else start]
            before = activated(added(before, other), keys["activation"])
        elif kind == "upsample":
            before = [enlarged(channel, int(keys["stride"])) for channel in before]
        elif kind == "reorg":
            before = reorganized(before, int(keys["stride"]))
        else:
            found.append(decoded(before, kind, keys, int(net["width"]), int(net["height"])))
        maps.append(before)
    return found


def convolved(image: Map, keys: dict[str, str], weights: Weights) -> Map:
    """Convolution, and batch norm or bias."""
    size, stride = int(keys.get("size", 1)), int(keys.get("stride", 1))
    padding = size // 2 if int(keys.get("pad", 0)) else int(keys.get("padding", 0))
    rows, columns = len(image[0]), len(image[0][0])
    result = []
    for f, bias in enumerate(weights.biases):
        channel = []
        for i in range((rows + 2 * padding - size) // stride + 1):
            line = []
            for j in range((columns + 2 * padding - size) // stride + 1):
                total = 0.0
                for c in range(len(image)):
                    for m in range(size):
                        for n in range(size):
                            y, x = i * stride + m - padding, j * stride + n - padding
                            if 0 <= y < rows and 0 <= x < columns:
                                total += image[c][y][x] * weights.kernels[((f * len(image) + c) * size + m) * size + n]
                if weights.scales:
                    total = (total - weights.means[f]) / math.sqrt(weights.variances[f] + 1e-5) * weights.scales[f]
                line.append(total + bias)
            channel.append(line)
        result.append(channel)
    return result


def activated(image: Map, activation: str) -> Map:
    rules = {
        "linear": lambda value: value,
        "leaky": lambda value: value if value > 0 else 0.1 * value,
        "relu": lambda value: max(value, 0.0),
        "logistic": sigmoid,
    }
    return [[[rules[activation](value) for value in line] for line in channel] for channel in image]


def pooled(channel: list[list[float]], keys: dict[str, str]) -> list[list[float]]:
    """Padding is size - 1 in all, its smaller half before; it holds nothing."""
    stride, size = int(keys["stride"]), int(keys["size"])
    padding = int(keys.get("padding", size - 1))
    rows, columns = len(channel), len(channel[0])
    result = []
    for i in range((rows + padding - size) // stride + 1):
        line = []
        for j in range((columns + padding - size) // stride + 1):
            ys = [i * stride + n - padding // 2 for n in range(size)]
            xs = [j * stride + n - padding // 2 for n in range(size)]
            line.append(max(channel[y][x] for y in ys for x in xs if 0 <= y < rows and 0 <= x < columns))
        result.append(line)
    return result


def added(one: Map, other: Map) -> Map:
    return [
        [[a + b for a, b in zip(*lines, strict=True)] for lines in zip(*channels, strict=True)]
        for channels in zip(one, other, strict=True)
    ]


def enlarged(channel: list[list[float]], stride: int) -> list[list[float]]:
    rows, columns = len(channel) * stride, len(channel[0]) * stride
    return [[channel[i // stride][j // stride] for j in range(columns)] for i in range(rows)]


def reorganized(image: Map, stride: int) -> Map:
    """The loop of the authors' layer over one run of memory, whose shape changes from the input to the result."""
    channels, rows, columns = len(image), len(image[0]), len(image[0][0])
    memory = [value for channel in image for line in channel for value in line]
    result = [0.0] * len(memory)
    inner = channels // stride**2
    for k in range(channels):
        for j in range(rows):
            for i in range(columns):
                x, y = i * stride + k // inner % stride, j * stride + k // inner // stride
                source = x + columns * stride * (y + rows * stride * (k % inner))
                result[i + columns * (j + rows * k)] = memory[source]
    height, width = rows // stride, columns // stride
    return [
        [result[(k * height + j) * width : (k * height + j + 1) * width] for j in range(height)]
        for k in range(channels * stride**2)
    ]


def decoded(image: Map, kind: str, keys: dict[str, str], width: int, height: int) -> list[Box]:
    numbers = [float(value) for value in keys["anchors"].split(",")]
    shapes = [(numbers[i], numbers[i + 1]) for i in range(0, len(numbers), 2)]
    mask = [int(value) for value in keys["mask"].split(",")] if "mask" in keys else range(len(shapes))
    rows, columns, count = len(image[0]), len(image[0][0]), 5 + int(keys["classes"])
    span = (columns, rows) if kind == "region" else (width, height)
    found = []
    for i in range(rows):
        for j in range(columns):
            for place, anchor in enumerate(mask):
                raw = [image[place * count + q][i][j] for q in range(count)]
                x, y = (j + sigmoid(raw[0])) / columns, (i + sigmoid(raw[1])) / rows
                w, h = (math.exp(raw[2 + d]) * shapes[anchor][d] / span[d] for d in (0, 1))
                exclusive = kind == "region" and int(keys["softmax"])
                classes = softmax(raw[5:]) if exclusive else [sigmoid(value) for value in raw[5:]]
                found.append(Box(x, y, w, h, sigmoid(raw[4]), classes))
    return found


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def softmax(values: list[float]) -> list[float]:
    parts = [math.exp(value) for value in values]
    return [part / sum(parts) for part in parts]
