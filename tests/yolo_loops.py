"""YOLO v2's and v3's training rule as loops over numbers: the gradients by raw outputs, as the authors' code sets them.

Written from the papers and the description of the layers; it shares no code with the library.
"""

import math

Box = tuple[float, float, float, float]


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def iou(one: Box, other: Box) -> float:
    """Of two boxes (cx, cy, w, h)."""
    sides = [
        min(one[i] + one[i + 2] / 2, other[i] + other[i + 2] / 2)
        - max(one[i] - one[i + 2] / 2, other[i] - other[i + 2] / 2)
        for i in (0, 1)
    ]
    shared = max(sides[0], 0) * max(sides[1], 0)
    return shared / (one[2] * one[3] + other[2] * other[3] - shared)


def shape_overlap(one: tuple[float, float], other: tuple[float, float]) -> float:
    return iou((0, 0, *one), (0, 0, *other))


def raw_gradients(
    raw: list[list[list[float]]],
    cells: list[tuple[int, int, int, tuple[float, float]]],
    frame: tuple[int, int],
    truth: list[list[tuple[Box, int]]],
    *,
    classes: str,
    ignore_iou: float,
    rescore: bool,
    object_weight: float,
    prior: bool,
) -> list[list[list[float]]]:
    """The gradient of the loss summed over images, by ``raw[image][anchor]`` = (tx, ty, tw, th, objectness, logits).

    ``cells[anchor]`` are its column, row, stride and (width, height) in pixels; ``frame`` is (width, height);
    ``truth[image]`` lists ((cx, cy, w, h) in pixels, class).
    """
    return [
        _image(rows, cells, frame, objects, classes, ignore_iou, rescore, object_weight, prior)
        for rows, objects in zip(raw, truth, strict=True)
    ]


def _image(rows, cells, frame, objects, classes, ignore_iou, rescore, object_weight, prior):
    gradients = [[0.0] * len(row) for row in rows]
    predicted = []
    for row, (column, line, stride, (w, h)) in zip(rows, cells, strict=True):
        x, y = (column + sigmoid(row[0])) * stride, (line + sigmoid(row[1])) * stride
        predicted.append((x, y, w * math.exp(row[2]), h * math.exp(row[3])))
    for n, row in enumerate(rows):
        best = max((iou(predicted[n], box) for box, _ in objects), default=0.0)
        gradients[n][4] = sigmoid(row[4]) if best <= ignore_iou else 0.0
        if prior:
            gradients[n][:2] = [0.01 * (sigmoid(value) - 0.5) for value in row[:2]]
            gradients[n][2:4] = [0.01 * value for value in row[2:4]]
    taken = set()
    for box, label in objects:
        best, n = 0.0, -1
        for m, (column, line, stride, shape) in enumerate(cells):
            if (int(box[0] // stride), int(box[1] // stride)) == (column, line):
                overlap = shape_overlap(shape, box[2:])
                if overlap > best:
                    best, n = overlap, m
        (column, line, stride, shape), row, out = cells[n], rows[n], gradients[n]
        scale = 2 - box[2] * box[3] / (frame[0] * frame[1])
        for i, place in enumerate((column, line)):
            out[i] = scale * (sigmoid(row[i]) - (box[i] / stride - place))
            out[i + 2] = scale * (row[i + 2] - math.log(box[i + 2] / shape[i]))
        wanted = iou(predicted[n], box) if rescore else 1.0
        out[4] = object_weight * (sigmoid(row[4]) - wanted)
        if classes == "softmax":
            total = sum(math.exp(value) for value in row[5:])
            out[5:] = [math.exp(value) / total - (c == label) for c, value in enumerate(row[5:])]
        elif n in taken:
            out[5 + label] = sigmoid(row[5 + label]) - 1
        else:
            out[5:] = [sigmoid(value) - (c == label) for c, value in enumerate(row[5:])]
        taken.add(n)
    return gradients
