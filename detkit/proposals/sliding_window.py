"""The oldest detector: classify every window of an image and keep the best positives.

There are two ways to the same scores: crop each window, or run a fully convolutional network once over the image.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from detkit._door import door
from detkit._inputs import as_boxes
from detkit._ranges import Count, Fraction, Positive, Whole
from detkit.boxes import batched_nms
from detkit.structures import Detection

Size = Count | tuple[Count, Count]

CROPS_AT_ONCE = 256
"""Windows that a classifier sees in one batch: bounds the memory, changes nothing else."""


@door
def sliding_windows(
    height: Whole, width: Whole, *, size: Size, stride: Size, aspect_ratios: Sequence[Positive] = (1.0,)
) -> Float[Tensor, "N 4"]:
    """Every window that lies wholly in an image, as xyxy boxes (N, 4) in whole pixels.

    size and stride: pixels, (height, width) or one number for both. Windows of aspect ratio (w/h) r are round(size *
    sqrt(r)) wide and round(size / sqrt(r)) high; they come ratio by ratio, then row by row. Along a side of L pixels
    there are floor((L - k) / s) + 1 windows of k pixels, none if the window is larger than the image.
    Raises ValueError for sizes, strides and ratios that are not positive.

    >>> sliding_windows(6, 9, size=4, stride=2).tolist()
    [[0.0, 0.0, 4.0, 4.0], [2.0, 0.0, 6.0, 4.0], [4.0, 0.0, 8.0, 4.0],
     [0.0, 2.0, 4.0, 6.0], [2.0, 2.0, 6.0, 6.0], [4.0, 2.0, 8.0, 6.0]]
    """
    function = "sliding_windows"
    _pair((height, width), name="(height, width)", function=function)
    steps = _pair(stride, name="stride", function=function)
    windows = [window for _, window in _shapes(size, aspect_ratios, function=function)]
    return torch.cat([_grid((height, width), window, steps) for window in windows])


@door
def scan_windows(
    network: nn.Module, image: Float[Tensor, "D H W"], *, size: Size, stride: Size
) -> tuple[Float[Tensor, "N 4"], Float[Tensor, "N C"]]:
    """Logits of all :func:`sliding_windows` of an image by one pass of a fully convolutional network.

    network: (1, D, H, W) to (1, C, h, w); its output for a single window ``(1, D, *size)`` has h = w = 1. Returns the
    boxes (N, 4) and logits (N, C), equal to those of each window alone as long as nothing in the network pads or pools
    the whole image (Sermanet et al. 2014, section 3.5). Raises ValueError if h x w is not the number of windows: a
    network with padding, or of another size or stride.

    >>> network = nn.Conv2d(1, 2, kernel_size=4, stride=2)
    >>> boxes, logits = scan_windows(network, torch.zeros(1, 6, 9), size=4, stride=2)
    >>> boxes.shape, logits.shape
    (torch.Size([6, 4]), torch.Size([6, 2]))
    """
    boxes = sliding_windows(image.shape[1], image.shape[2], size=size, stride=stride).to(image.device)
    (high, wide), (down, right) = (_pair(value, name="size", function="scan_windows") for value in (size, stride))
    rows, columns = _count(image.shape[1], high, down), _count(image.shape[2], wide, right)
    # An image smaller than the window is filled up, only to learn how many classes there are.
    short = (0, max(0, wide - image.shape[2]), 0, max(0, high - image.shape[1]))
    logits = network(F.pad(image, short)[None])
    allowed = (max(rows, 1), max(columns, 1))
    if logits.ndim != 4 or logits.shape[2:] != allowed:
        raise ValueError(
            f"scan_windows: network gave {tuple(logits.shape)} for an image {tuple(image.shape)}; allowed is "
            f"(1, C, {allowed[0]}, {allowed[1]}), a cell for each window of size={size}, stride={stride}: "
            "no padding, no global pooling"
        )
    return boxes, logits[0].flatten(1).T[: len(boxes)]


@door
def crop_windows(
    classifier: nn.Module, image: Float[Tensor, "D H W"], boxes: Float[Tensor, "N 4"], *, size: Size
) -> Float[Tensor, "N C"]:
    """Logits (N, C) of a classifier for boxes (N, 4) cropped from an image, each on its own.

    boxes: whole pixels inside the image, of any shape; crops of another shape than ``size`` are resized to it
    (bilinear, antialiased). classifier: ``(M, D, *size)`` to (M, C) or (M, C, 1, 1). Raises ValueError for other boxes.

    >>> image = torch.arange(12.0).reshape(1, 3, 4)
    >>> crop_windows(nn.AdaptiveAvgPool2d(1), image, torch.tensor([[0.0, 0, 2, 2], [2, 1, 4, 3]]), size=2)
    tensor([[2.5000],
            [8.5000]])
    """
    shape = _pair(size, name="size", function="crop_windows")
    corners = _whole_corners(boxes, image)
    if not corners:
        return classifier(image.new_zeros(1, image.shape[0], *shape)).flatten(1)[:0]
    batches = [corners[start : start + CROPS_AT_ONCE] for start in range(0, len(corners), CROPS_AT_ONCE)]
    return torch.cat(
        [classifier(torch.stack([_crop(image, box, shape) for box in batch])) for batch in batches]
    ).flatten(1)


class SlidingWindow(nn.Module):
    """A sliding-window detector: a classifier with softmax over classes and background, a threshold, and NMS per class.

    classifier: ``(M, D, *size)`` to logits (M, C + 1), or (M, C + 1, 1, 1), background last. The windows are those of
    :func:`sliding_windows`, at every scale: ``scales`` multiply size and stride. Crops are resized to ``size``.
    score_threshold and iou_threshold in [0, 1]; at most max_detections are kept per image.

    >>> class Bright(nn.Module):
    ...     def forward(self, crops): return torch.stack((crops.mean((1, 2, 3)), torch.full((len(crops),), 0.5)), 1) * 9
    >>> image = torch.zeros(1, 12, 16)
    >>> image[:, 4:8, 8:12] = 1.0
    >>> detector = SlidingWindow(Bright(), size=4, stride=2, score_threshold=0.9)
    >>> [found["boxes"].tolist() for found in detector([image])]
    [[[8.0, 4.0, 12.0, 8.0]]]
    """

    @door
    def __init__(
        self,
        classifier: nn.Module,
        *,
        size: Size,
        stride: Size,
        aspect_ratios: Sequence[Positive] = (1.0,),
        scales: Sequence[Positive] = (1.0,),
        score_threshold: Fraction = 0.5,
        iou_threshold: Fraction = 0.3,
        max_detections: Count = 100,
    ) -> None:
        super().__init__()
        self.classifier = classifier
        self.size = _pair(size, name="size", function="SlidingWindow")
        self.stride = _pair(stride, name="stride", function="SlidingWindow")
        self.shapes = _shapes(self.size, aspect_ratios, scales=scales, function="SlidingWindow")
        self.score_threshold, self.iou_threshold = score_threshold, iou_threshold
        self.max_detections = max_detections

    @door
    @torch.no_grad()
    def forward(
        self, images: Sequence[Float[Tensor, "D _ _"]], *, scores_by: Literal["crops", "scan"] = "crops"
    ) -> list[Detection]:
        """Detections in each image (D, H, W), best first, in its pixels.

        scores_by="scan" runs the classifier, which must then be fully convolutional, over the image resized so that a
        window becomes ``size``. This is far less work. Scores are the same at scale and aspect ratio 1; otherwise they
        differ by resampling and at the border of the resized image. Raises ValueError if the classifier returns fewer
        than 2 logits.
        """
        if scores_by not in ("crops", "scan"):
            raise ValueError(f"SlidingWindow: scores_by={scores_by!r}; allowed is 'crops' or 'scan'")
        look = self._scan if scores_by == "scan" else self._crop
        return [self._decide(*look(image)) for image in images]

    def _crop(self, image: Tensor) -> tuple[Tensor, Tensor]:
        boxes = [
            _grid((image.shape[1], image.shape[2]), window, self._scaled_stride(scale)) for scale, window in self.shapes
        ]
        windows = torch.cat(boxes).to(image.device)
        return windows, crop_windows(self.classifier, image, windows, size=self.size)

    def _scan(self, image: Tensor) -> tuple[Tensor, Tensor]:
        found = [self._scan_resized(image, window) for _, window in self.shapes]
        return torch.cat([boxes for boxes, _ in found]), torch.cat([logits for _, logits in found])

    def _scan_resized(self, image: Tensor, window: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Scan the image resized so that ``window`` becomes ``size``; boxes are mapped back to the image's pixels."""
        old = image.shape[1:]
        new = [
            max(1, round(side * to / window_side)) for side, to, window_side in zip(old, self.size, window, strict=True)
        ]
        resized = image if new == list(old) else _resize(image, (new[0], new[1]))
        boxes, logits = scan_windows(self.classifier, resized, size=self.size, stride=self.stride)
        return boxes * boxes.new_tensor([old[1] / new[1], old[0] / new[0]] * 2), logits

    def _scaled_stride(self, scale: float) -> tuple[int, int]:
        return max(1, round(scale * self.stride[0])), max(1, round(scale * self.stride[1]))

    def _decide(self, boxes: Tensor, logits: Tensor) -> Detection:
        if logits.shape[1] < 2:
            raise ValueError(
                f"SlidingWindow: the classifier gives {logits.shape[1]} logits for a window; allowed are C + 1, at "
                "least 2: the background has the last one"
            )
        scores = logits.softmax(dim=1)[:, :-1]  # the background wins nothing, but takes its share
        rows, labels = torch.nonzero(scores > self.score_threshold, as_tuple=True)
        kept = batched_nms(boxes[rows], scores[rows, labels], labels, self.iou_threshold)[: self.max_detections]
        rows, labels = rows[kept], labels[kept]
        return {"boxes": boxes[rows], "scores": scores[rows, labels], "labels": labels}


def _pair(value: Size, *, name: str, function: str) -> tuple[int, int]:
    """(height, width), both positive."""
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or any(not isinstance(side, int) or side < 1 for side in pair):
        raise ValueError(f"{function}: {name}={value}; allowed is a positive integer, or a pair of them")
    return pair


def _shapes(
    size: Size, aspect_ratios: Sequence[float], *, scales: Sequence[float] = (1.0,), function: str
) -> list[tuple[float, tuple[int, int]]]:
    """Scale and (height, width) of every kind of window."""
    for name, values in (("aspect_ratios", aspect_ratios), ("scales", scales)):
        if not values or not all(0 < value < math.inf for value in values):
            raise ValueError(f"{function}: {name}={values}; allowed are positive numbers, at least one")
    high, wide = _pair(size, name="size", function=function)
    return [
        (scale, (max(1, round(scale * high / ratio**0.5)), max(1, round(scale * wide * ratio**0.5))))
        for scale in scales
        for ratio in aspect_ratios
    ]


def _count(length: int, window: int, stride: int) -> int:
    return max(0, (length - window) // stride + 1)


def _grid(image: tuple[int, int], window: tuple[int, int], stride: tuple[int, int]) -> Float[Tensor, "N 4"]:
    starts = [torch.arange(_count(*sides)) * sides[2] for sides in zip(image, window, stride, strict=True)]
    top, left = torch.meshgrid(*starts, indexing="ij")
    corners = torch.stack((left, top, left + window[1], top + window[0]), dim=-1)
    return corners.reshape(-1, 4).to(torch.float32)


def _whole_corners(boxes: Tensor, image: Tensor) -> list[list[int]]:
    """The boxes as integers, all of them inside the image."""
    height, width = image.shape[1:]
    boxes = as_boxes(boxes, function="crop_windows")
    whole = boxes.to(torch.int64)
    fits = (whole == boxes) & (whole >= 0) & (whole <= whole.new_tensor([width, height] * 2))
    fits[:, 2:] &= whole[:, 2:] > whole[:, :2]
    if not fits.all():
        bad = int((~fits.all(dim=1)).nonzero()[0])
        raise ValueError(
            f"crop_windows: boxes[{bad}]={boxes[bad].tolist()}; allowed are whole pixels with x1 < x2 and y1 < y2 "
            f"inside the image of {height} x {width} (height x width)"
        )
    return whole.tolist()


def _crop(image: Shaped[Tensor, "D H W"], box: Sequence[int], size: tuple[int, int]) -> Tensor:
    x1, y1, x2, y2 = box
    crop = image[:, y1:y2, x1:x2]
    return crop if crop.shape[1:] == size else _resize(crop, size)


def _resize(image: Float[Tensor, "D _ _"], size: tuple[int, int]) -> Float[Tensor, "D _ _"]:
    return F.interpolate(image[None], size=size, mode="bilinear", antialias=True)[0]
