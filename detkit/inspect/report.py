"""What a data set is like, and how a detector's anchors fit it, as lines of text and as a picture."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from detkit.anchors import cluster_anchors, mean_shape_iou
from detkit.data import object_statistics
from detkit.data.wrapped import find_item
from detkit.inspect.anchors import AnchorFit, Fit
from detkit.structures import Target
from detkit.viz import draw_boxes

_QUANTILES = (0.0, 0.1, 0.5, 0.9, 1.0)
_HARDEST = 6


class Truth(NamedTuple):
    """The targets of a data set and the (height, width) of its images, of ``places`` spread over it."""

    places: list[int]
    targets: list[Target]
    sizes: list[tuple[int, int]]


def read_truth(dataset: Any, most: int) -> Truth:
    """At most so many targets, spread over the data set; no picture is opened."""
    places = list(range(0, len(dataset), max(1, math.ceil(len(dataset) / most))))
    found = [find_item(dataset, index, function="detkit.inspect") for index in places]
    return Truth(
        places, [part.target(place) for part, place in found], [part.image_size(place) for part, place in found]
    )


def describe(truth: Truth, categories: Sequence[str], total: int) -> Iterator[str]:
    """Counts and sizes of the objects, in the pixels of their pictures."""
    numbers = object_statistics(truth.targets, truth.sizes)
    looked = "" if len(truth.places) == total else f" ({len(truth.places)} of them looked at)"
    yield f"images      {total}{looked}, {_sizes(truth.sizes)}"
    small = f"{numbers.small:.0%} below 32 x 32 pixels" if numbers.objects else "nothing to learn"
    yield f"objects     {numbers.objects}, {numbers.objects_per_image:.1f} an image, {small}"
    labels = Counter(label for target in truth.targets for label in objects_of(target)[1].tolist())
    counts = ", ".join(f"{name} {labels[label]}" for label, name in enumerate(categories))
    yield f"classes     {counts}"
    yield f"sides       {_quantiles(torch.cat([sides(objects_of(target)[0]) for target in truth.targets]))}"


def describe_fit(anchors: AnchorFit, truth: Truth, fits: Sequence[Fit], count: int) -> Iterator[str]:
    """How the anchors fit, and which sizes would."""
    boxes, fitting = torch.cat([fit.boxes for fit in fits]), torch.cat([fit.fits for fit in fits])
    yield f"at input    {_quantiles(sides(boxes))}"
    side = anchors.smallest(truth.sizes[0]) if truth.sizes else None
    yield f"smallest    {'none' if side is None else f'{side} x {side}'} pixels have an anchor in nine of ten places"
    rule = (
        "the center of a cell inside" if anchors.positive_iou is None else f"an anchor of IoU {anchors.positive_iou:g}"
    )
    without = int((~fitting).sum())
    share = without / max(1, len(fitting))
    yield f"no anchor   {share:.1%} of the objects ({without} of {len(fitting)}) are without {rule}"
    sizes = (boxes[:, 2:] - boxes[:, :2]).double()
    if len(sizes.unique(dim=0)) >= count:
        found = cluster_anchors(sizes, count, generator=torch.Generator().manual_seed(0))
        shown = ", ".join(f"{width:.0f} x {height:.0f}" for width, height in found.tolist())
        fit = mean_shape_iou(sizes, found)
        yield f"suggested   {shown} (width x height at input; mean IoU {fit:.2f} with the objects)"


def hardest(dataset: Any, truth: Truth, fits: Sequence[Fit], anchors: AnchorFit) -> Image.Image | None:
    """The pictures with most objects that no anchor fits, with those and their overlap; None where all fit."""
    order = sorted(range(len(fits)), key=lambda i: -int((~fits[i].fits).sum()))
    chosen = [i for i in order[:_HARDEST] if (~fits[i].fits).any()]
    cells = []
    for i in chosen:
        lost = ~fits[i].fits
        boxes = torch.as_tensor(truth.targets[i]["boxes"])[fits[i].rows[lost]].as_subclass(Tensor)
        texts = [f"{value:.2f}" if anchors.positive_iou is not None else "" for value in fits[i].overlap[lost].tolist()]
        image, _ = dataset[truth.places[i]]
        cells.append(draw_boxes(image, boxes, texts=texts))
    return _column(cells) if cells else None


def _column(cells: Sequence[Image.Image]) -> Image.Image:
    sheet = Image.new("RGB", (max(cell.width for cell in cells), sum(cell.height + 8 for cell in cells)), "white")
    top = 0
    for cell in cells:
        sheet.paste(cell, (0, top))
        top += cell.height + 8
    return sheet


def objects_of(target: Target) -> tuple[Tensor, Tensor]:
    """Boxes and labels of what is no crowd."""
    boxes = torch.as_tensor(target["boxes"]).as_subclass(Tensor)
    kept = ~torch.as_tensor(target.get("iscrowd", torch.zeros(len(boxes)))).bool()
    return boxes[kept], torch.as_tensor(target["labels"])[kept]


def sides(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] - boxes[:, :2]).double().prod(1).clamp(min=0).sqrt()


def _quantiles(sides: Tensor) -> str:
    if not len(sides):
        return "none"
    values = sides.quantile(torch.tensor(_QUANTILES).double()).tolist()
    low, tenth, half, nine, high = (f"{value:.0f}" for value in values)
    return f"{low} to {high} pixels (root of the area), half below {half}, eight of ten from {tenth} to {nine}"


def _sizes(sizes: Sequence[tuple[int, int]]) -> str:
    shown = [f"{height} x {width}" for (height, width), _ in Counter(sizes).most_common(3)]
    return f"{', '.join(shown)}{' ...' if len(set(sizes)) > 3 else ''} (height x width)"
