"""Augmentations of a batch against the same recipe image by image, as torchvision v2 and NumPy are put together for it.

One data loading process: one thread. Both sides draw the same numbers and resize only what is in view; their boxes are
the same. Theirs distort colors by v2's steps, ours by one matrix of each image: the pixels differ there, see
``ColorDistortion``; so a second case leaves out colors.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from benchmarks.harness import Case
from detkit.data import flip_augmentation
from detkit.tricks import ColorDistortion, DetectionMixup, Mosaic
from detkit.tricks.mixup import beta
from detkit.tricks.samples import others, uniform

_SEED, _SIZE = 3, (640, 640)
_MOSAIC, _MIXUP, _COLOR = Mosaic(_SIZE), DetectionMixup(), ColorDistortion()
Batch = tuple[list[Any], list[dict[str, Any]]]


def cases() -> Iterator[Case]:
    """32 images of COCO's usual sizes, seven objects each, to 640 x 640."""
    images, targets = _batch(32)
    for colors, target in ((True, 2.0), (False, 1.0)):
        name, size = "mosaic + mixup + flips" + " + colors" * colors, "32 images, one thread"
        ours, theirs = (_one_thread(side, images, targets, colors) for side in (_ours, _theirs))
        agree = _same_boxes if colors else _same
        yield Case(name, size, "torchvision v2 and NumPy", ours, theirs, agree, target, "CPU time", time.process_time)


def _batch(count: int) -> Batch:
    generator = torch.Generator().manual_seed(0)
    sizes = [[(480, 640), (640, 480), (427, 640), (640, 640)][i % 4] for i in range(count)]
    images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator) for size in sizes]
    targets = []
    for height, width in sizes:
        corners = torch.rand(7, 2, 2, generator=generator) * torch.tensor([width - 1.0, height - 1.0])
        boxes = torch.cat((corners.amin(1), corners.amax(1) + 1), dim=1)
        targets.append({"boxes": boxes, "labels": torch.arange(7)})
    return images, targets


def _one_thread(
    side: Callable[..., Batch], images: list[Tensor], targets: list[Any], colors: bool
) -> Callable[[], Batch]:
    def run() -> Batch:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            torch.manual_seed(_SEED)
            return side(images, targets, colors, torch.Generator().manual_seed(_SEED))
        finally:
            torch.set_num_threads(threads)

    return run


def _ours(images: list[Tensor], targets: list[Any], colors: bool, generator: torch.Generator) -> Batch:
    batch = _MIXUP(*_MOSAIC(images, targets, generator=generator), generator=generator)
    flip = flip_augmentation()
    flipped = [flip(image, target) for image, target in zip(*batch, strict=True)]
    batch = [image for image, _ in flipped], [target for _, target in flipped]
    return _COLOR(*batch, generator=generator) if colors else batch


def _theirs(images: list[Tensor], targets: list[Any], colors: bool, generator: torch.Generator) -> Batch:
    samples = [
        (tv_tensors.Image(image), {**target, "boxes": _boxes(target["boxes"], image.shape[-2:])})
        for image, target in zip(images, targets, strict=True)
    ]
    numbers = uniform((len(samples), 1 + _MOSAIC.draws), generator)
    mosaics = [_mosaic(samples, i, row[1:]) for i, row in enumerate(numbers)]
    numbers = uniform((len(samples), 1 + _MIXUP.draws), generator)
    mixed = [_mixup(mosaics, i, row[1:]) for i, row in enumerate(numbers)]
    flip, distort = v2.RandomHorizontalFlip(0.5), v2.RandomPhotometricDistort(p=0.5)
    flipped = [flip(*sample) for sample in mixed]
    done = [distort(*sample) for sample in flipped] if colors else flipped
    return [image for image, _ in done], [target for _, target in done]


def _boxes(boxes: Any, size: Any) -> Any:
    make: Any = tv_tensors.BoundingBoxes  # its overloads are followed by no type checker
    return make(boxes, format="XYXY", canvas_size=tuple(size))


def _mosaic(samples: list[Any], index: int, numbers: list[float]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """A canvas (H, W, 3), its boxes and labels; where the pieces lie is as ours says."""
    members = [index, *others(index, numbers[2:5], len(samples))]
    center = [round(side * (0.25 + 0.5 * at)) for side, at in zip(_SIZE, numbers[:2], strict=True)]
    canvas, boxes, labels = np.full((*_SIZE, 3), 114, np.uint8), [], []
    for quarter, member in enumerate(members):
        image, target = samples[member]
        piece = _MOSAIC._piece(image.shape[-2:], center, quarter, numbers[5 + 3 * quarter : 8 + 3 * quarter])
        assert piece is not None
        (top, left, bottom, right), (up, west, down, east) = piece
        part = v2.functional.resized_crop(
            image, top, left, bottom - top, right - left, [down - up, east - west], antialias=True
        )
        canvas[up:down, west:east] = part.permute(1, 2, 0).numpy()
        scale = np.array([(east - west) / (right - left), (down - up) / (bottom - top)] * 2, np.float32)
        whole = (target["boxes"].numpy() - np.array([left, top] * 2, np.float32)) * scale + np.array([west, up] * 2)
        clipped = np.clip(whole, [west, up] * 2, [east, down] * 2)
        sides, full = clipped[:, 2:] - clipped[:, :2], whole[:, 2:] - whole[:, :2]
        keep = (sides >= 1).all(1) & (sides.prod(1) >= 0.1 * full.prod(1))
        boxes.append(clipped[keep])
        labels.append(target["labels"].numpy()[keep])
    return canvas, {"boxes": np.concatenate(boxes), "labels": np.concatenate(labels)}


def _mixup(samples: list[Any], index: int, numbers: list[float]) -> tuple[Any, dict[str, Any]]:
    (share,), (other,) = beta(numbers[:1], 1.5), others(index, numbers[1:], len(samples))
    (first, one), (second, two) = samples[index], samples[other]
    mixed = np.float32(share) * first + np.float32(1 - share) * second
    image = tv_tensors.Image(torch.from_numpy((mixed + np.float32(0.5)).astype(np.uint8)).permute(2, 0, 1).contiguous())
    target = {key: torch.from_numpy(np.concatenate((one[key], two[key]))) for key in one}
    weights = torch.cat((torch.full((len(one["labels"]),), share), torch.full((len(two["labels"]),), 1 - share)))
    return image, {**target, "boxes": _boxes(target["boxes"].float(), _SIZE), "weights": weights}


def _same(ours: Batch, theirs: Batch) -> None:
    _same_boxes(ours, theirs)
    for image, other in zip(ours[0], theirs[0], strict=True):
        assert (image.int() - other.int()).abs().max() <= 1  # where a half is rounded


def _same_boxes(ours: Batch, theirs: Batch) -> None:
    for (image, target), (other, expected) in zip(zip(*ours, strict=True), zip(*theirs, strict=True), strict=True):
        assert image.shape == other.shape
        assert image.dtype == other.dtype == torch.uint8
        assert target["labels"].tolist() == expected["labels"].tolist()
        torch.testing.assert_close(Tensor(target["boxes"]), Tensor(expected["boxes"]), rtol=0, atol=1e-3)
        torch.testing.assert_close(target["weights"], expected["weights"])
