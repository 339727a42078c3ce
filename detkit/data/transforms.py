"""Augmentations for boxes as compositions of torchvision.transforms.v2, reproducible from a seed.

v2 has the parts (crops that keep boxes, zooming out, photometric distortion, flips). This module adds what v2 leaves to
the caller: every field moves with the pixels, all fields of a dropped box are dropped with it, as the table of fields
says (``detkit.structures.FIELDS``), and a resumed run draws the same random numbers.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from detkit._door import door
from detkit._inputs import as_boxes, promote, white_of
from detkit._ranges import Ascending, Count, NotNegative, Positive, Range, Size, Whole
from detkit.data.truth import Transforms
from detkit.structures import FIELDS, VOID, Target, read_target
from detkit.structures.rows import keep_rows

MEAN_COLOR = (123.0, 117.0, 104.0)
"""ImageNet's mean RGB: what uncovered canvas is filled with, in the range of the image's own type."""


class Augmented(Dataset[tuple[Any, Target]]):
    """A data set whose transforms are a pure function of (seed, epoch, index): the same in every run, worker and order.

    torch's CPU generator is seeded for each item and its state restored afterwards, so nothing else is affected.
    Transforms must draw from torch's global generator, as all of torchvision.transforms.v2 does, not from ``random`` or
    NumPy. ``set_epoch`` also reaches running workers: the epoch is in shared memory.
    Raises ValueError for a negative seed or epoch.

    >>> from detkit.data import DigitScenes
    >>> scenes = Augmented(DigitScenes(4), flip_augmentation(), seed=1)
    >>> scenes.set_epoch(3)
    >>> first, again = scenes[2][0], scenes[2][0]
    >>> bool((first == again).all())
    True
    """

    @door
    def __init__(self, dataset: Dataset[tuple[Any, Target]], transforms: Transforms, *, seed: Whole = 0) -> None:
        self.dataset = dataset
        self.transforms = transforms
        self.seed = seed
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    @property
    def epoch(self) -> int:
        """The epoch that the random numbers depend on."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Use the random numbers of another epoch; call it before creating the epoch's iterator."""
        if epoch < 0:
            raise ValueError(f"Augmented.set_epoch: epoch={epoch} must not be negative")
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.dataset)  # pyright: ignore[reportArgumentType]  (Dataset declares no length)

    def __getitem__(self, index: int) -> tuple[Any, Target]:
        image, target = self.dataset[index]
        place = range(len(self))[index]
        seed = int(np.random.default_rng((self.seed, self.epoch, place)).integers(1 << 63))
        generator = torch.default_generator
        state = generator.get_state()
        try:
            # Not torch.manual_seed, which would seed every accelerator too.
            generator.manual_seed(seed)
            return self.transforms(image, target)
        finally:
            generator.set_state(state)


@door
def sanitize(*, min_size: NotNegative = 1.0) -> v2.Compose:
    """Clamp boxes to the image; drop those with a side below ``min_size`` pixels, and their rows in all other fields.

    Those are the fields that :data:`~detkit.structures.FIELDS` lists per object and, among unknown entries, the tensors
    and NumPy arrays with as many rows as there are boxes. All others stay. It belongs at the end of every composition.
    Without clamping, v2 would drop boxes that stick out by a fraction of a pixel, as rounded annotations do. Targets
    are read by :func:`~detkit.structures.read_target`, here and at the start of the compositions below; boxes, masks
    and segmentation become tv_tensors, so that plain tensors move with the image, too, and boxes of integers floats, so
    that resizing truncates none. Raises ValueError for a target with keypoints: v2 would leave plain (T, P, 3) tensors
    in place while the boxes move.

    >>> boxes = tv_tensors.BoundingBoxes([[0., 0., 4., 4.], [2., 2., 2., 2.]], format="XYXY", canvas_size=(8, 8))
    >>> target = {"boxes": boxes, "labels": torch.tensor([7, 8]), "weights": torch.tensor([.5, 1.]), "image_id": 3}
    >>> image, target = sanitize()(tv_tensors.Image(torch.zeros(3, 8, 8)), target)
    >>> target["labels"].tolist(), target["weights"].tolist(), target["image_id"]
    ([7], [0.5], 3)
    """
    return _composed(min_size=min_size)


def flip_augmentation(*, vertical: bool = False) -> v2.Compose:
    """Flip horizontally with probability 1/2, and with ``vertical`` also vertically (cells, aerial images).

    >>> type(flip_augmentation()).__name__
    'Compose'
    """
    return _composed(v2.RandomHorizontalFlip(0.5), *([v2.RandomVerticalFlip(0.5)] if vertical else []))


@door
def ssd_augmentation(*, size: tuple[Count, Count] | None = None) -> v2.Compose:
    """SSD's augmentation (Liu et al. 2016, section 2.2 and 3.6): colors, zooming out, patches, flip, each at random.

    Patches: the whole image, one with a minimum IoU of .1 .3 .5 .7 .9 with some object, or a free one; scale .3 to 1,
    aspect .5 to 2, 50 trials; an object stays if its center does. Zooming out by up to 4, filled with the mean color.
    ``size`` (height, width) resizes at the end; area stays in pixels of the original image.

    Deviations of v2 from the Caffe code: brightness is a factor of .875 to 1.125 instead of an offset up to 32, a patch
    with a minimum IoU of zero replaces the free one, and half of the images have their color channels permuted.

    >>> image = tv_tensors.Image(torch.zeros(3, 50, 40, dtype=torch.uint8))
    >>> boxes = tv_tensors.BoundingBoxes([[5., 5., 35., 45.]], format="XYXY", canvas_size=(50, 40))
    >>> image, target = ssd_augmentation(size=(30, 30))(image, {"boxes": boxes, "labels": torch.tensor([2])})
    >>> image.shape
    torch.Size([3, 30, 30])
    """
    steps = [
        v2.RandomPhotometricDistort(p=0.5),
        _OnCanvas(v2.RandomZoomOut, side_range=(1.0, 4.0), p=0.5),
        v2.RandomIoUCrop(trials=50),
        v2.RandomHorizontalFlip(0.5),
    ]
    return _composed(*steps, *([v2.Resize(list(size))] if size else []))


@door
def large_scale_jitter(
    size: Size | None = None, *, scale_range: Annotated[tuple[Positive, Positive], Ascending()] = (0.1, 2.0)
) -> v2.Compose:
    """Large-scale jittering (Ghiasi et al. 2021, section 3): flip, resize by a random factor of wide range, crop or
    pad.

    ``size`` is (height, width) of every result, None the image's own; the factor is relative to fitting the image into
    it.

    >>> image = tv_tensors.Image(torch.zeros(3, 50, 40, dtype=torch.uint8))
    >>> boxes = tv_tensors.BoundingBoxes([[5., 5., 35., 45.]], format="XYXY", canvas_size=(50, 40))
    >>> large_scale_jitter((64, 64))(image, {"boxes": boxes, "labels": torch.tensor([2])})[0].shape
    torch.Size([3, 64, 64])
    """
    return _composed(v2.RandomHorizontalFlip(0.5), _Scaled(size, scale_range))


@door
def short_side_augmentation(
    short_sides: Sequence[Count] = (640, 672, 704, 736, 768, 800), *, long_side: Count = 1333
) -> v2.Compose:
    """Multi-scale training of the R-CNN family: flip, then resize the short side to one of several lengths at random.

    All lengths are equally likely. The long side never exceeds ``long_side`` pixels; the aspect ratio is kept.

    >>> image = tv_tensors.Image(torch.zeros(3, 50, 100, dtype=torch.uint8))
    >>> boxes = tv_tensors.BoundingBoxes([[5., 5., 35., 45.]], format="XYXY", canvas_size=(50, 100))
    >>> target = {"boxes": boxes, "labels": torch.tensor([2])}
    >>> short_side_augmentation([25], long_side=80)(image, target)[0].shape
    torch.Size([3, 25, 50])
    """
    return _composed(v2.RandomHorizontalFlip(0.5), v2.RandomShortestSize(list(short_sides), max_size=long_side))


@door
def localization_augmentation(
    *,
    degrees: NotNegative = 15.0,
    scale_range: Annotated[tuple[Positive, Positive], Ascending()] = (0.8, 1.25),
    color: Annotated[float, Range(0, 0.5)] = 0.2,
    horizontal: bool = True,
    vertical: bool = True,
) -> v2.Compose:
    """Rotation, scale, both flips and colors at random, for images of one object; the image keeps its size.

    It is rotated about its center by up to ``degrees`` either way, enlarged by a factor in ``scale_range``, and flipped
    ``horizontal`` and ``vertical`` with probability 1/2 each: turn off what changes a class, as the 6 into a 9.
    Brightness, contrast and saturation change by up to a part ``color`` of themselves, the hue by as much of a turn.
    Canvas that comes into view has the mean color. The box of a rotated object is the hull of the rotated box: at
    worst, at 45 degrees, a square grows to twice its area. Source: Howard, Williamson and Sarma, "Object
    Classification and Localization on ImageNet", section 2.2, which gives no amounts.

    >>> image = tv_tensors.Image(torch.zeros(3, 50, 40, dtype=torch.uint8))
    >>> target = {"boxes": torch.tensor([[15.0, 15, 25, 35]]), "labels": torch.tensor([2])}
    >>> image, target = localization_augmentation()(image, target)
    >>> image.shape, len(target["boxes"])
    (torch.Size([3, 50, 40]), 1)
    """
    flips = [v2.RandomHorizontalFlip(0.5)] * horizontal + [v2.RandomVerticalFlip(0.5)] * vertical
    affine = _OnCanvas(v2.RandomAffine, degrees=degrees, scale=scale_range)
    return _composed(v2.ColorJitter(color, color, color, color), affine, *flips)


def _composed(*steps: Callable[..., Any], min_size: float = 1.0) -> v2.Compose:
    """The steps between reading a target, which makes all its fields movable, and dropping small boxes."""
    return v2.Compose([_movable, *steps, v2.ClampBoundingBoxes(), functools.partial(_without_small, min_size=min_size)])


def _movable(image: Any, target: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Image and target after reading, with everything that moves with the pixels as tv_tensors."""
    size = v2.functional.get_size(image)
    entries: dict[str, Any] = {**read_target(target, where="augmentation: target", size=size)}
    if isinstance(image, Tensor) and image.dtype in (torch.uint16, torch.bool):  # which no transform computes with
        image = tv_tensors.Image(image.to(torch.float32) / white_of(image.dtype, where="augmentation: image"))
    image = tv_tensors.Image(image) if type(image) is Tensor else image
    for key in entries.keys() & FIELDS.keys():
        moves = FIELDS[key].moves
        if moves == "points":
            raise ValueError(
                f"augmentation: target has {key!r}, which these transforms would leave in place while boxes move; "
                "take them out, or use transforms of your own"
            )
        if moves == "boxes":
            make_boxes: Any = tv_tensors.BoundingBoxes  # its overloads are followed by no type checker
            boxes = promote(entries[key])  # v2 would keep integers, and cut off what lies between two pixels
            entries[key] = make_boxes(boxes, format="XYXY", canvas_size=tuple(size))
        elif moves in ("masks", "map"):
            entries[key] = (tv_tensors.Mask if moves == "masks" else _ClassMap)(entries[key])
    return image, entries


def _without_small(image: Any, target: dict[str, Any], *, min_size: float) -> tuple[Any, dict[str, Any]]:
    """Image and target without the objects whose boxes have a side below ``min_size`` pixels."""
    boxes = as_boxes(target["boxes"], function="sanitize")
    keep = (boxes[:, 2:] - boxes[:, :2] >= min_size).all(1)
    if bool(keep.all()):
        return image, target
    return image, keep_rows(target, keep)


class _ClassMap(tv_tensors.Mask):
    """A segmentation: it moves as masks do, but canvas outside the image has no class."""


class _Scaled:
    """Resizes by a random factor relative to fitting ``size``, or the image's own, and crops or pads to it."""

    def __init__(self, size: Size | None, scale_range: tuple[float, float]) -> None:
        self.size, self.scale_range = size, scale_range

    def __call__(self, image: Any, target: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        own, (low, high) = v2.functional.get_size(image), self.scale_range
        height, width = self.size or own
        factor = min(height / own[0], width / own[1]) * (low + (high - low) * torch.rand(()).item())
        sides = [max(2, int(side * factor)) for side in own]  # torch refuses 0, and fails at 1 x 1
        scaled = v2.Resize(sides)(image, target)
        return _OnCanvas(v2.RandomCrop, size=[height, width], pad_if_needed=True)(*scaled)

    def __repr__(self) -> str:
        return f"Scaled(size={self.size}, scale_range={self.scale_range})"


class _OnCanvas:
    """A transform that uncovers canvas, filled with the mean color in the range and the channels of each image."""

    def __init__(self, transform: Callable[..., v2.Transform], **settings: Any) -> None:
        self.transform, self.settings = transform, settings

    def __call__(self, image: Any, target: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        white = white_of(image.dtype, where="augmentation: image") if isinstance(image, Tensor) else 255.0
        color = [channel * white / 255 for channel in MEAN_COLOR]
        fill = color if v2.functional.get_num_channels(image) == 3 else sum(color) / 3
        fills = {type(image): fill, _ClassMap: VOID, "others": 0}
        return self.transform(**self.settings, fill=fills)(image, target)

    def __repr__(self) -> str:
        return f"{self.transform.__name__}({', '.join(f'{name}={value}' for name, value in self.settings.items())})"
