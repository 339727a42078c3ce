"""Slow, obvious references in plain Python floats: what the fast operations on boxes, maps and logits must equal."""

import math


def area(box) -> float:
    return max(box[2] - box[0], 0) * max(box[3] - box[1], 0)


def ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0


def overlap(a, b) -> float:
    """IoU of two boxes, 0 where both lack an area."""
    both = area([max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])])
    return ratio(both, area(a) + area(b) - both)


def hull(a, b) -> list[float]:
    return [min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])]


def generalized(a, b) -> float:
    both = area([max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])])
    return overlap(a, b) - ratio(area(hull(a, b)) - (area(a) + area(b) - both), area(hull(a, b)))


def distance(a, b, *, power=2) -> float:
    x1, y1, x2, y2 = hull(a, b)
    apart = math.hypot(*((a[i] + a[i + 2] - b[i] - b[i + 2]) / 2 for i in (0, 1)))
    return overlap(a, b) - ratio(apart**power, (x2 - x1) ** 2 + (y2 - y1) ** 2)


def complete(a, b) -> float:
    if not (area(a) and area(b)):
        return distance(a, b)
    angles = [math.atan2(box[2] - box[0], box[3] - box[1]) for box in (a, b)]
    penalty = 4 / math.pi**2 * (angles[0] - angles[1]) ** 2
    return distance(a, b) - penalty * ratio(penalty, 1 - overlap(a, b) + penalty)


def mask_overlap(a, b) -> float:
    """IoU of two masks given as lists of rows."""
    first, second = ([bool(pixel) for row in mask for pixel in row] for mask in (a, b))
    both = sum(p and q for p, q in zip(first, second, strict=True))
    return ratio(both, sum(first) + sum(second) - both)


def greedy(rows, scores, threshold, groups=None) -> list[int]:
    """NMS: best first, ties to the lower index; a box goes if a better survivor of its group overlaps it more."""
    kept: list[int] = []
    for i in sorted(range(len(rows)), key=lambda i: (-scores[i], i)):
        rivals = [j for j in kept if groups is None or groups[j] == groups[i]]
        if all(overlap(rows[j], rows[i]) <= threshold for j in rivals):
            kept.append(i)
    return kept


def greedy_by_class(rows, scores, threshold, *, score_threshold, candidates, most) -> list[tuple[int, int]]:
    """(box, class): NMS of the best candidates of each class alone, then all by score, box and class.

    A row is a box, or a list of one box for each class.
    """
    found = []
    for label, column in enumerate(zip(*scores, strict=True)):
        above = [i for i, score in enumerate(column) if score > score_threshold]
        best = sorted(above, key=lambda i: (-column[i], i))[:candidates]
        own = [rows[i][label] if isinstance(rows[i][0], list) else rows[i] for i in best]
        kept = greedy(own, [column[i] for i in best], threshold)
        found += [(-column[best[place]], best[place], label) for place in kept]
    return [(box, label) for _, box, label in sorted(found)[:most]]


def encoded(box, anchor, weights) -> list[float]:
    """A box as shift and log-scale from its anchor; zeros where one of them has no area."""
    if not (area(box) and area(anchor)):
        return [0.0] * 4
    deltas = []
    for i in (0, 1):
        size, other = box[i + 2] - box[i], anchor[i + 2] - anchor[i]
        shift = ((box[i] + box[i + 2]) - (anchor[i] + anchor[i + 2])) / 2 / other
        deltas.append((shift, math.log(size / other)))
    (dx, dw), (dy, dh) = deltas
    return [delta * weight for delta, weight in zip((dx, dy, dw, dh), weights, strict=True)]


def decoded(deltas, anchor, weights) -> list[float]:
    numbers = [delta / weight for delta, weight in zip(deltas, weights, strict=True)]
    corners = []
    for i in (0, 1):
        size = anchor[i + 2] - anchor[i]
        center = (anchor[i] + anchor[i + 2]) / 2 + numbers[i] * size
        half = size * math.exp(min(numbers[i + 2], math.log(1000 / 16))) / 2
        corners.append((center - half, center + half))
    (x1, x2), (y1, y2) = corners
    return [x1, y1, x2, y2]


def distances(box, anchor, unit=None) -> list[float]:
    """From the center of an anchor, or a point (x, y), to left, top, right and bottom, in pixels or shares of it."""
    anchor = anchor if len(anchor) == 4 else [*anchor, *anchor]
    if unit and not area(anchor):
        return [0.0] * 4
    center = [(anchor[i] + anchor[i + 2]) / 2 for i in (0, 1)]
    units = [unit * (anchor[i + 2] - anchor[i]) if unit else 1 for i in (0, 1)]
    return [(center[i] - box[i]) / units[i] for i in (0, 1)] + [(box[i + 2] - center[i]) / units[i] for i in (0, 1)]


def at_distances(numbers, anchor, unit=None) -> list[float]:
    anchor = anchor if len(anchor) == 4 else [*anchor, *anchor]
    center = [(anchor[i] + anchor[i + 2]) / 2 for i in (0, 1)]
    units = [unit * (anchor[i + 2] - anchor[i]) if unit else 1 for i in (0, 1)]
    low = [center[i] - numbers[i] * units[i] for i in (0, 1)]
    return low + [center[i] + numbers[i + 2] * units[i] for i in (0, 1)]


def in_grid(box, anchor, cell, form) -> list[float]:
    """Place in the cell and scale of the anchor, in both forms of YOLO; zeros where one has no area."""
    if not (area(box) and area(anchor)):
        return [0.0] * 4
    places, scales = [], []
    for i in (0, 1):
        places.append((box[i] + box[i + 2] - anchor[i] - anchor[i + 2]) / 2 / cell[i] + 0.5)
        scales.append((box[i + 2] - box[i]) / (anchor[i + 2] - anchor[i]))
    if form == "root":
        return places + [math.sqrt(scale) for scale in scales]
    places = [min(max(place, 1e-6), 1 - 1e-6) for place in places]
    return [math.log(place / (1 - place)) for place in places] + [math.log(scale) for scale in scales]


def out_of_grid(deltas, anchor, cell, form, clamp) -> list[float]:
    low, high = [], []
    for i in (0, 1):
        place, scale = deltas[i], min(deltas[i + 2] ** 2, math.exp(clamp))
        if form == "log":
            place, scale = sigmoid(place), math.exp(min(deltas[i + 2], clamp))
        center = (anchor[i] + anchor[i + 2]) / 2 + (place - 0.5) * cell[i]
        half = (anchor[i + 2] - anchor[i]) * scale / 2
        low.append(center - half)
        high.append(center + half)
    return low + high


def spoken(rows, labels, size, valid, *, bins, coordinate, label, noise) -> list[list[int]]:
    """The five tokens of each box of an image; ``coordinate`` and ``label`` are the first of their kinds, 0 ends."""
    said = []
    for (x1, y1, x2, y2), kind, counts in zip(rows, labels, valid, strict=True):
        shares = (min(max(c / size[i % 2], 0), 1) for i, c in enumerate((y1, x1, y2, x2)))
        bin_of = [coordinate + round(share * (bins - 1)) for share in shares]  # Python rounds halves to even
        said.append([*bin_of, noise if kind == -1 else label + kind] if counts else [0] * 5)
    return said


def understood(rows, size, *, classes, bins, coordinate, label) -> tuple[list[list[float]], list[int], list[bool]]:
    """Box, label and whether it is one, of each five tokens of an image."""
    boxes, labels, valid = [], [], []
    for row in rows:
        y1, x1, y2, x2 = ((token - coordinate) / (bins - 1) for token in row[:4])
        inside = all(coordinate <= token < coordinate + bins for token in row[:4])
        valid.append(inside and label <= row[4] < label + classes and y1 <= y2 and x1 <= x2)
        boxes.append([x1 * size[1], y1 * size[0], x2 * size[1], y2 * size[0]] if valid[-1] else [0.0] * 4)
        labels.append(row[4] - label if valid[-1] else 0)
    return boxes, labels, valid


def decay(method, iou, sigma, iou_threshold) -> float:
    if method == "gaussian":
        return math.exp(-iou * iou / sigma)
    return 1 - iou if iou > iou_threshold else 1.0


def softened(
    rows, scores, groups=None, *, method="gaussian", sigma=0.5, iou_threshold=0.3, score_threshold=0.001
) -> list[tuple[int, float]]:
    """Soft-NMS: pick the best, lower the rest of its group, drop what is low, again."""
    left = {i: score for i, score in enumerate(scores) if score >= score_threshold}
    picked = []
    while left:
        best = max(left, key=lambda i: (left[i], -i))
        picked.append((best, left.pop(best)))
        for i in left:
            if groups is None or groups[i] == groups[best]:
                left[i] *= decay(method, overlap(rows[best], rows[i]), sigma, iou_threshold)
        left = {i: score for i, score in left.items() if score >= score_threshold}
    return picked


def matrixed(overlaps, scores, groups=None, *, method="gaussian", sigma=0.5) -> list[float]:
    """Matrix NMS: for each box, the least ratio over all better boxes of its group."""

    def better(j):
        rivals = [i for i in range(len(scores)) if groups is None or groups[i] == groups[j]]
        return [i for i in rivals if scores[i] > scores[j] or (scores[i] == scores[j] and i < j)]

    covered = [max((overlaps[k][i] for k in better(i)), default=0.0) for i in range(len(scores))]
    lowered = []
    for j, score in enumerate(scores):
        least = 1.0
        for i in better(j):
            if method == "gaussian":
                least = min(least, math.exp(-(overlaps[i][j] ** 2 - covered[i] ** 2) / sigma))
            elif covered[i] < 1:
                least = min(least, (1 - overlaps[i][j]) / (1 - covered[i]))
        lowered.append(score * least if score > 0 else score)
    return lowered


def mean_box(members) -> list[float]:
    """The mean of (box, score) pairs weighted by score; a plain one where all scores are 0."""
    total = sum(score for _, score in members)
    shares = [score / total if total else 1 / len(members) for _, score in members]
    return [sum(share * box[i] for (box, _), share in zip(members, shares, strict=True)) for i in range(4)]


def clustered(models, *, weights=None, iou_threshold=0.55, score_threshold=0.0, allow_overflow=False):
    """Weighted boxes fusion of models (boxes, scores, labels): (box, score, label, members) a cluster, best first."""
    weights = weights or [1.0] * len(models)
    found = [
        (box, score * weight, label)
        for detections, weight in zip(models, weights, strict=True)
        for box, score, label in zip(*detections, strict=True)
        if score >= score_threshold
    ]
    clusters: list[tuple[int, list]] = []  # founder, members
    for i in sorted(range(len(found)), key=lambda i: (-found[i][1], i)):
        box, score, label = found[i]
        rivals = [members for founder, members in clusters if found[founder][2] == label]
        best = max(rivals, key=lambda members: overlap(mean_box(members), box), default=None)
        if best is not None and overlap(mean_box(best), box) > iou_threshold:
            best.append((box, score))
        else:
            clusters.append((i, [(box, score)]))
    results = []
    for founder, members in clusters:
        count = len(members) if allow_overflow else min(len(members), len(models))
        mean = sum(score for _, score in members) / len(members)
        results.append((founder, mean_box(members), mean * count / sum(weights), found[founder][2], members))
    results.sort(key=lambda result: (-round(result[2], 12), result[0]))
    return [result[1:] for result in results]


def sigmoid(x) -> float:
    return 1 / (1 + math.exp(-x))


def softplus(x) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def entropy(x, y) -> float:
    """Binary cross-entropy of a logit and a target in [0, 1]."""
    return y * softplus(-x) + (1 - y) * softplus(x)


def focal(x, y, *, alpha=0.25, gamma=2.0) -> float:
    wrong = y * sigmoid(-x) + (1 - y) * sigmoid(x)
    balance = 1 if alpha is None else alpha * y + (1 - alpha) * (1 - y)
    return balance * wrong**gamma * entropy(x, y)


def varifocal(x, y, *, alpha=0.75, gamma=2.0) -> float:
    return (y if y > 0 else alpha * sigmoid(x) ** gamma) * entropy(x, y)


def quality_focal(x, y, *, beta=2.0) -> float:
    return abs(y - sigmoid(x)) ** beta * entropy(x, y)


def log_shares(logits) -> list[float]:
    """The logarithm of softmax."""
    total = max(logits) + math.log(sum(math.exp(x - max(logits)) for x in logits))
    return [x - total for x in logits]


def distribution_focal(logits, target) -> float:
    target = min(max(target, 0), len(logits) - 1)
    return -sum(max(1 - abs(i - target), 0) * share for i, share in enumerate(log_shares(logits)))


def smoothed_entropy(logits, shares, *, smoothing=0.1) -> float:
    rest = smoothing / (len(logits) - 1)
    wanted = [share * (1 - smoothing) + (1 - share) * rest for share in shares]
    return -sum(share * score for share, score in zip(wanted, log_shares(logits), strict=True))


def smooth_l1(a, b, *, beta=1.0) -> float:
    apart = abs(a - b)
    return apart**2 / (2 * beta) if apart < beta else apart - beta / 2


def between(plane, y, x) -> float:
    """The bilinear value of a map at a point counted in cells; 0 a cell or more outside."""
    height, width = len(plane), len(plane[0])
    if not (-1 <= y <= height and -1 <= x <= width):
        return 0.0
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    y0, x0 = int(y), int(x)
    y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
    fy, fx = y - y0, x - x0
    upper = plane[y0][x0] * (1 - fx) + plane[y0][x1] * fx
    lower = plane[y1][x0] * (1 - fx) + plane[y1][x1] * fx
    return upper * (1 - fy) + lower * fy


def aligned(plane, box, size, points=None) -> list[list[float]]:
    """RoIAlign of one map and a box in cells: ``points`` in each direction of a bin, or as many as it covers cells."""
    x1, y1, x2, y2 = box
    width, height = max(x2 - x1, 1) / size, max(y2 - y1, 1) / size
    rows, columns = ([(k + 0.5) / n for k in range(n)] for n in (points or math.ceil(s) for s in (height, width)))
    return [
        [
            sum(between(plane, y1 + (i + a) * height, x1 + (j + b) * width) for a in rows for b in columns)
            / (len(rows) * len(columns))
            for j in range(size)
        ]
        for i in range(size)
    ]


def cell_of(point, box, cells) -> tuple[int, bool]:
    """Of a keypoint (x, y, visibility): its cell, row by row, in a box of ``cells`` x ``cells``; whether it counts."""
    places = []
    for i in (1, 0):
        low, high = box[i], box[i + 2]
        inside = low <= point[i] <= high
        if not inside or point[2] <= 0:
            return 0, False
        places.append(cells - 1 if point[i] == high else math.floor((point[i] - low) * cells / (high - low)))
    return places[0] * cells + places[1], True
