"""What augmentations of whole batches share: reading images and targets, drawing numbers, giving back what came in."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Shaped
from torch import Tensor, nn
from torchvision import tv_tensors

from detkit._door import door
from detkit._inputs import check_box_values, check_finite, looked_at
from detkit._ranges import Fraction
from detkit.structures import FIELDS, VOID, Target, read_target
from detkit.structures.rows import complete_rows

_ROWS = 64
_TYPES = (torch.uint8, torch.uint16, torch.float32, torch.float64, torch.float16, torch.bfloat16)


class Batch(NamedTuple):
    """Images and targets after reading: plain tensors on one device, and ``keys``, the entries with a row an object."""

    images: list[Tensor]
    targets: list[dict[str, Any]]
    keys: list[str]


class BatchAugmentation(nn.Module, ABC):
    """What :class:`Mosaic`, :class:`DetectionMixup`, :class:`CopyPaste` and :class:`ColorDistortion` have in common.

    Call it on a batch as :func:`~detkit.structures.collate` yields it, in the training loop or in a ``collate_fn``: it
    returns lists of new images and new targets, and changes neither the given tensors nor the given dicts. Image i of
    the result begins with image i; ``probability`` of its being augmented is per image, the others come back as they
    are. Numbers are drawn from ``generator``, by default torch's global one, in one draw whose size depends on the
    number of images alone: the same on every device and for any number of threads.

    images: B tensors (D, H, W) of one type (uint8, uint16 or floats), one D and one device; targets: B dicts. What
    becomes of their entries says :data:`~detkit.structures.FIELDS`. Unknown tensors and arrays with as many rows as
    boxes are of the objects; other unknown entries are those of image i. Entries of the table come back as plain
    tensors on the device of the images, but tv_tensors as tv_tensors: BoundingBoxes in XYXY, on the new canvas.

    Raises ValueError for images and targets that differ in number or are none, boxes that are inverted or not finite
    (on accelerators only with ``DETKIT_CHECKS=full``), entries of objects that only some images have, and entries that
    speak of a whole image (``image_labels``), since that would no longer be true.

    >>> from detkit.tricks import DetectionMixup, Mosaic
    >>> batch = [torch.zeros(3, 8, 8), torch.ones(3, 9, 6)], [{"image_id": 7}, {"image_id": 8}]
    >>> for augmentation in (Mosaic((32, 32)), DetectionMixup(probability=0.5)):
    ...     batch = augmentation(*batch, generator=torch.Generator().manual_seed(0))
    >>> [tuple(image.shape) for image in batch[0]], [target["image_id"] for target in batch[1]]
    ([(3, 32, 32), (3, 32, 32)], [7, 8])
    """

    draws = 0
    """Random numbers that one image takes."""
    refused: tuple[str, ...] = ("no",)
    """Kinds of entries, by ``joins`` in the table of fields, that it cannot take."""

    @door
    def __init__(self, *, probability: Fraction = 1.0) -> None:
        super().__init__()
        self.probability = probability

    @door
    def forward(
        self,
        images: Sequence[Shaped[Tensor, "D _ _"]],
        targets: Sequence[Target],
        *,
        generator: torch.Generator | None = None,
    ) -> tuple[list[Tensor], list[Target]]:
        """The augmented images and targets, as many as came."""
        batch = read_batch(images, targets, refused=self.refused, function=type(self).__name__)
        chances = uniform((len(images), 1 + self.draws), generator)
        results = []
        for i, (chance, *numbers) in enumerate(chances):
            taken = chance < self.probability
            image, target = self._augmented(batch, i, numbers) if taken else (batch.images[i], batch.targets[i])
            results.append(_as_given(image, target, images[i], targets[i]))
        return [image for image, _ in results], [target for _, target in results]

    @abstractmethod
    def _augmented(self, batch: Batch, index: int, numbers: list[float]) -> tuple[Tensor, dict[str, Any]]:
        """The image ``index`` of the batch and its target after augmentation, by ``numbers`` uniform in [0, 1)."""
        raise NotImplementedError


def uniform(shape: tuple[int, ...], generator: torch.Generator | None) -> list[Any]:
    """Numbers in [0, 1), as nested lists: drawn where the generator lives, and else on the CPU.

    >>> uniform((1, 2), torch.Generator().manual_seed(0))
    [[0.9700530018065531, 0.707819864399788]]
    """
    device = torch.device("cpu") if generator is None else generator.device
    return torch.rand(shape, generator=generator, device=device, dtype=torch.float64).tolist()


def between(reach: Sequence[float], number: float) -> float:
    """A ``number`` in [0, 1) taken to the range from the first to the second of ``reach``.

    >>> between((2.0, 4.0), 0.25)
    2.5
    """
    return reach[0] + (reach[1] - reach[0]) * number


def strips(*images: Shaped[Tensor, "D H W"]) -> Iterator[tuple[Tensor, ...]]:
    """The same rows of all images, some at a time: on the CPU their floats stay in the cache, and in memory it has.

    >>> [one.shape[1] for one, other in strips(torch.zeros(3, 100, 4), torch.zeros(3, 100, 4))]
    [64, 36]
    """
    rows = _ROWS if images[0].device.type == "cpu" else images[0].shape[1]
    return zip(*(image.split(rows, 1) for image in images), strict=True)


def whole(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Floats that lie in the range of an integer type of pixels, cut to whole numbers of a wider type.

    By this way they get to uint8 in a fifth of the time.

    >>> torch.zeros(1, dtype=torch.uint8).copy_(whole(torch.tensor([254.9]), torch.uint8))
    tensor([254], dtype=torch.uint8)
    """
    return values.to(torch.int16 if dtype == torch.uint8 else torch.int32)


def others(index: int, numbers: Sequence[float], count: int) -> list[int]:
    """Other images than ``index``, none twice: one for each number, or as many as there are.

    >>> others(1, [0.0, 0.99, 0.5], 3)
    [2, 0]
    """
    left = [(index + 1 + i) % count for i in range(count - 1)]
    return [left.pop(int(number * len(left))) for number in numbers[: len(left)]]


def check_partners(count: int, *, function: str) -> None:
    """Raise ValueError for a batch that has no second image.

    >>> check_partners(2, function="Mixup")
    """
    if count < 2:
        raise ValueError(
            f"{function}: a batch of {count} has no second image to mix with; allowed are 2 or more (drop_last=True "
            "leaves out a short last batch), or probability=0"
        )


def check_type(dtype: torch.dtype, *, where: str) -> None:
    """Raise ValueError for a type of pixels whose range is not known, or that cannot be blended.

    >>> check_type(torch.uint8, where="Mixup: images")
    """
    if dtype not in _TYPES:
        raise ValueError(f"{where} has type {dtype}; allowed are uint8, uint16 and floats")


def read_batch(
    images: Sequence[Tensor], targets: Sequence[Target], *, refused: tuple[str, ...], function: str
) -> Batch:
    """The batch, checked; entries of a kind that is ``refused`` are an error.

    >>> read_batch([torch.zeros(3, 2, 2)], [{"image_id": 7}], refused=(), function="f").keys
    ['boxes', 'labels']
    """
    if isinstance(images, Tensor | str) or not isinstance(images, Sequence):
        raise TypeError(f"{function}: images is a {type(images).__name__}; give a list of images (D, H, W)")
    if len(targets) != len(images):
        raise ValueError(f"{function}: {len(images)} images but {len(targets)} targets; each image needs its own")
    plain = [_read_image(image, images[0], f"{function}: images[{i}]") for i, image in enumerate(images)]
    read = [
        _read_target(target, image, refused, f"{function}: targets[{i}]")
        for i, (image, target) in enumerate(zip(plain, targets, strict=True))
    ]
    for key in {key for target in read for key in target if key in FIELDS and FIELDS[key].moves == "map"}:
        example = next(target[key] for target in read if key in target)
        for image, target in zip(plain, read, strict=True):
            if key not in target:
                target[key] = example.new_full(image.shape[-2:], VOID)
    complete, keys = complete_rows(read, where=function)
    for key in (key for key in keys if key in FIELDS and FIELDS[key].moves == "masks"):
        for image, target in zip(plain, complete, strict=True):
            if not len(target[key]):  # then it may have any size
                target[key] = target[key].new_zeros((0, *image.shape[-2:]))
    return Batch(plain, complete, keys)


def _read_image(image: Any, first: Tensor, where: str) -> Tensor:
    if not isinstance(image, Tensor):
        raise TypeError(
            f"{where} is a {type(image).__name__}; give a tensor (D, H, W): "
            "torchvision.transforms.v2.functional.to_image makes one of a picture or an array"
        )
    if image.ndim != 3 or image.numel() == 0:
        raise ValueError(f"{where} has shape {tuple(image.shape)}; allowed is (D, H, W) with at least one pixel")
    check_type(image.dtype, where=where)
    for name, found, wanted in (
        ("channels", image.shape[0], first.shape[0]),
        ("type", image.dtype, first.dtype),
        ("device", image.device, first.device),
    ):
        if found != wanted:
            raise ValueError(f"{where} has {name} {found}, images[0] {wanted}; allowed is one for all images")
    return image.as_subclass(Tensor)


def _read_target(target: Mapping[str, Any], image: Tensor, refused: tuple[str, ...], where: str) -> dict[str, Any]:
    read: dict[str, Any] = {**read_target(target, where=where, size=image.shape[-2:])}
    for key in read.keys() & FIELDS.keys():
        if FIELDS[key].joins in refused:
            raise ValueError(
                f"{where} has {key!r}, which would be true of a part of the new image only; take it out, or leave out "
                "this augmentation"
            )
        if isinstance(read[key], Tensor):
            read[key] = read[key].to(image.device)
        if FIELDS[key].moves == "map" and read[key].dtype != torch.uint8:
            read[key] = read[key].to(torch.int64)  # in which there is VOID
    if looked_at(read["boxes"]):
        check_box_values(read["boxes"], function=where, name="boxes")
        if (points := read.get("keypoints")) is not None:
            check_finite(torch.where(points[..., 2:] == 0, 0, points), function=where, name="keypoints")
    return read


def _as_given(image: Tensor, target: dict[str, Any], given_image: Tensor, given: Mapping[str, Any]) -> tuple[Any, Any]:
    """Image and target in tv_tensors where those that came were."""
    wrap: Any = tv_tensors.wrap  # which type checkers take for the method of a class
    canvas = tuple(image.shape[-2:])
    wrapped = dict(target)
    for key in target.keys() & FIELDS.keys():
        like = given.get(key)
        if isinstance(like, tv_tensors.BoundingBoxes):
            wrapped[key] = wrap(target[key], like=like, format=tv_tensors.BoundingBoxFormat.XYXY, canvas_size=canvas)
        elif isinstance(like, tv_tensors.TVTensor):
            wrapped[key] = wrap(target[key], like=like)
    return wrap(image, like=given_image) if isinstance(given_image, tv_tensors.TVTensor) else image, wrapped
