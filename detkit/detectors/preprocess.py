"""The border between images as they come and the padded batch that a trunk takes; and the way back for results."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from typing import Any, Literal, cast

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn import functional as F

from detkit._constants import Constants
from detkit._door import door
from detkit._inputs import first_bad, full_checks, promote, white_of
from detkit._ranges import Count, Finite, Fraction, Positive
from detkit._sent import numbers_like, sent
from detkit.boxes import clip_boxes_to_image
from detkit.detectors.paste import paste_masks
from detkit.detectors.placement import Place, factors_of, fitted, places_of, shifts_of
from detkit.proposals import Proposals, pad_proposals
from detkit.structures import (
    FIELDS,
    VOID,
    Detection,
    Detections,
    Images,
    Target,
    Targets,
    batch_images,
    pad_targets,
    read_target,
)
from detkit.structures.padding import check_size

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_SAMPLED, _FARTHEST = 4, 8.0  # every fourth row and column is looked at; normalized images may come, too
_MASKS_AT_ONCE = 32  # that are resized together
_GRAY = 0.5
_PREDICT = "Detector.predict takes files, folders, Pillow images and arrays"
_TINY = 16  # images up to so many pixels may hold nothing but boxes within one pixel


class Preprocess(Constants):
    """Resize, normalize and pad images and their targets; map detections back to the images they were found in.

    ``size`` reads as in torchvision's Resize: an int is the length of the shorter side, the aspect ratio kept and the
    longer side held to ``max_size``; a pair (height, width) is the exact size, ratio given up; None resizes nothing.
    Sides are rounded down as torchvision's detectors do, so that the shorter may come out one pixel less than asked.
    Images are bilinear, float in [0, 1], or uint8, uint16 or bool, whose range is that of the type, then
    ``(image - mean) / std`` per channel. Floats far outside are an error (on accelerators only with
    ``DETKIT_CHECKS=full``) unless the mean is too. The batch is padded with zeros, after normalizing, to a height and
    width that ``multiple_of`` divides.

    ``letterbox`` keeps the aspect ratio with a pair, too: the image is as large as fits, in the middle of gray (.5) of
    that size, as in Darknet. Its place is rounded down to whole pixels, and the way back is exact.

    Masks that come back are bool, True where the probability reaches ``mask_threshold``; None leaves probabilities.
    Targets with a side that is not above 0 pixels, or wholly outside their image, are an error (``degenerate="raise"``;
    on accelerators only with ``DETKIT_CHECKS=full``), or taken out (``"drop"``). What moves with the pixels, and how,
    says :data:`~detkit.structures.FIELDS`. What lies on the host is copied to the device of the module without waiting
    for it; pinned memory must then stay as it is until the copy is made.

    >>> preprocess = Preprocess(600, max_size=1000, multiple_of=32)
    >>> batch, _ = preprocess([torch.zeros(3, 480, 640), torch.zeros(3, 300, 600, dtype=torch.uint8)])
    >>> batch.tensors.shape, batch.sizes.tolist()
    (torch.Size([2, 3, 608, 1024]), [[600, 800], [500, 1000]])
    """

    mean: Tensor
    std: Tensor

    @door
    def __init__(
        self,
        size: Count | tuple[Count, Count] | None,
        *,
        max_size: Count | None = None,
        mean: Sequence[Finite] = IMAGENET_MEAN,
        std: Sequence[Positive] = IMAGENET_STD,
        multiple_of: Count = 1,
        mask_threshold: Fraction | None = 0.5,
        degenerate: Literal["raise", "drop"] = "raise",
        letterbox: bool = False,
    ) -> None:
        super().__init__()
        size = int(size) if isinstance(size, Integral) else size
        if max_size is not None and (not isinstance(size, int) or max_size < size):
            raise ValueError(f"Preprocess: max_size={max_size} needs an int size that it is not below; size={size}")
        if letterbox and (size is None or isinstance(size, int)):
            raise ValueError(f"Preprocess: letterbox needs a size (height, width); size={size}")
        if degenerate not in ("raise", "drop"):
            raise ValueError(f"Preprocess: degenerate={degenerate!r}; allowed are 'drop' and 'raise'")
        self.size, self.max_size, self.multiple_of = size, max_size, multiple_of
        self.mask_threshold, self.degenerate, self.letterbox = mask_threshold, degenerate, letterbox
        self.in_unit_range = all(-1 <= float(value) <= 1 for value in mean)  # else the pixels are in units of their own
        for name, values in (("mean", mean), ("std", std)):
            numbers = [float(value) for value in values]  # of whole ones torch would make whole pixels: black images
            self.register_constant(name, torch.tensor(numbers, device="cpu").reshape(-1, 1, 1))

    @door
    def forward(
        self, images: Sequence[Shaped[Tensor, "D _ _"]], targets: Sequence[Target] | None = None
    ) -> tuple[Images, Targets | dict[str, Targets] | None]:
        """A padded batch of B images (D, H, W), and its targets in the batch's pixels.

        A segmentation is padded to the frame of the batch. Targets that hold one target for each of several names, the
        same in every image, come out by name: see :class:`~detkit.detectors.SideBySide`. Raises ValueError where images
        and targets differ in number, an image is not (D, H, W) with the D channels that ``mean`` has, masks are not of
        the size of their image, a target has a degenerate box, and as :func:`~detkit.structures.pad_targets` does.
        """
        if isinstance(images, Tensor | str) or not isinstance(images, Sequence):
            kind = type(images).__name__
            raise TypeError(
                f"Preprocess: images is a {kind}; give a list of images (D, H, W): [image] or list(batch); {_PREDICT}"
            )
        if targets is not None and len(targets) != len(images):
            raise ValueError(f"Preprocess: {len(images)} images but {len(targets)} targets; each image needs its own")
        tensors = [self._prepare(i, image) for i, image in enumerate(images)]
        places = [self._place(*image.shape[-2:]) for image in images]
        batch = self._placed(batch_images(tensors, multiple_of=self.multiple_of), places)
        return batch, None if targets is None else self._targets(targets, batch, places)

    @door
    def proposals(self, proposals: Sequence[Proposals], images: Images) -> Detections:
        """Proposals that came in each image's own pixels, padded and in the pixels of the batch.

        Raises ValueError for BoundingBoxes on another canvas than their image.

        >>> preprocess = Preprocess((64, 64))
        >>> batch, _ = preprocess([torch.zeros(3, 32, 32)])
        >>> preprocess.proposals([{"boxes": torch.tensor([[0.0, 1, 2, 3]]), "scores": torch.ones(1)}], batch).boxes
        tensor([[[0., 2., 4., 6.]]])
        """
        if len(proposals) != len(images.sizes):
            raise ValueError(
                f"Preprocess: {len(images.sizes)} images but {len(proposals)} proposals; each needs its own"
            )
        padded = pad_proposals(proposals, device=images.tensors.device)
        original = images.sizes if images.original_sizes is None else images.original_sizes
        for i, given in enumerate(proposals):
            if (canvas := getattr(given["boxes"], "canvas_size", None)) is not None:
                check_size(canvas, original[i].tolist(), where=f"Preprocess: proposals[{i}]: boxes")
        boxes = padded.boxes / factors_of(images, padded.boxes) + shifts_of(images, padded.boxes)
        return padded._replace(boxes=boxes)

    @door
    def undo(self, detections: Detections | dict[str, Detections], images: Images) -> list[Detection]:
        """The valid detections of every image, in its own pixels, clipped to it; best first as they came.

        All that stages found comes back under the names of :class:`~detkit.structures.Detection`. Detections by name
        come back by name: every image's dict then holds a Detection for each.
        """
        if isinstance(detections, dict):
            parts = zip(*(self.undo(part, images) for part in detections.values()), strict=True)
            return [cast(Detection, dict(zip(detections, part, strict=True))) for part in parts]
        found = _in_original_pixels(detections, images)
        drawn = [key for key in found if FIELDS[key].moves in ("masks", "map")]
        places = places_of(images) if drawn else []
        results: list[Detection] = []
        for i, valid in enumerate(detections.valid.cpu()):  # one wait for a device, not one for each entry
            rows = sent(valid.nonzero().squeeze(1), detections.valid.device)
            result = {
                key: values[i].index_select(0, rows) if FIELDS[key].of == "object" else values[i]
                for key, values in found.items()
            }
            for key in drawn:
                if FIELDS[key].moves == "masks":
                    boxes, size = result["boxes"], places[i].old
                    result[key] = paste_masks(result[key], boxes, size, threshold=self.mask_threshold)
                else:
                    result[key] = _of_image(result[key], images.tensors.shape[-2:], places[i])
            results.append(cast(Detection, result))
        return results

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        letterbox = ", letterbox=True" if self.letterbox else ""
        return f"size={self.size}, max_size={self.max_size}, multiple_of={self.multiple_of}{letterbox}"

    def _targets(
        self, targets: Sequence[Target], batch: Images, places: Sequence[Place]
    ) -> Targets | dict[str, Targets]:
        if names := _names(targets):
            by_name = {name: [cast(Any, target)[name] for target in targets] for name in names}
            return {name: cast(Targets, self._targets(own, batch, places)) for name, own in by_name.items()}
        read = [
            read_target(target, where=f"Preprocess: targets[{i}]", size=place.old)
            for i, (target, place) in enumerate(zip(targets, places, strict=True))
        ]
        _warn_of_fractions(read, places)
        resized = [
            _shifted(_resized(target, place.new, place.old, _blank), place.start)
            for target, place in zip(read, places, strict=True)
        ]
        padded = self._with_solid_boxes(pad_targets(resized), places)
        padded = Targets._make(None if rows is None else sent(rows, batch.tensors.device) for rows in padded)
        if padded.masks is not None:
            for canvas, target, (new, _, (top, left)) in zip(padded.masks, read, places, strict=True):
                _draw(canvas[:, top:, left:], target.get("masks"), new)
        if padded.segmentation is not None:
            height, width = (
                whole - own for whole, own in zip(batch.tensors.shape[-2:], padded.segmentation.shape[-2:], strict=True)
            )
            padded = padded._replace(segmentation=F.pad(padded.segmentation, (0, width, 0, height), value=VOID))
        return padded

    def _with_solid_boxes(self, targets: Targets, places: Sequence[Place]) -> Targets:
        """Rows with a side of at most 0 pixels, none that can be told, or outside their image, refused or taken out."""
        low, high = targets.boxes.split(2, dim=-1)
        frames = [[left, top, left + width, top + height] for (height, width), _, (top, left) in places]
        start, end = numbers_like(frames, low)[:, None].split(2, dim=-1)
        solid = ((high > low) & (high > start) & (low < end)).all(-1) & torch.isfinite(targets.boxes).all(-1)
        none = targets.valid & ~solid
        if self.degenerate == "drop":
            return targets._replace(valid=targets.valid & ~none)
        if (none.device.type == "cpu" or full_checks()) and none.any():
            (image, row), count = first_bad(none)
            raise ValueError(
                f"Preprocess: targets[{image}]: boxes[{row}] is {targets.boxes[image, row].tolist()} in the batch's "
                f"pixels; x2 > x1 and y2 > y1, all finite, with a part inside the image {frames[image]} are allowed, "
                f"{count} are not so; repair them, or drop them with degenerate='drop'"
            )
        return targets

    def _prepare(self, index: int, image: Tensor) -> Float[Tensor, "D _ _"]:
        if not isinstance(image, Tensor):
            raise TypeError(
                f"Preprocess: images[{index}] is a {type(image).__name__}; give a tensor (D, H, W): "
                f"torchvision.transforms.v2.functional.to_image makes one of a picture or an array; {_PREDICT}"
            )
        if image.ndim != 3 or image.shape[0] != len(self.mean) or image.numel() == 0:
            raise ValueError(
                f"Preprocess: images[{index}] has shape {tuple(image.shape)}; allowed is ({len(self.mean)}, height, "
                "width) with at least one pixel"
            )
        where = f"Preprocess: images[{index}]"
        image = image.as_subclass(Tensor)
        if self.in_unit_range and image.is_floating_point():
            _check_range(image, where)
        image = sent(image, self.mean.device)
        pixels = image.to(self.mean.dtype) / white_of(image.dtype, where=where)
        new = self._resized(*image.shape[-2:])
        if new != tuple(image.shape[-2:]):
            pixels = F.interpolate(pixels[None], size=new, mode="bilinear", align_corners=False)[0]
        if self.letterbox:
            (top, left), (height, width) = self._offset(new), cast(tuple[int, int], self.size)
            pixels = F.pad(pixels, (left, width - new[1] - left, top, height - new[0] - top), value=_GRAY)
        return (pixels - self.mean) / self.std

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        if self.size is None:
            return height, width
        if not isinstance(self.size, int):
            return fitted(height, width, self.size) if self.letterbox else self.size
        factor = self.size / min(height, width)
        if self.max_size is not None:
            factor = min(factor, self.max_size / max(height, width))
        return max(1, int(height * factor)), max(1, int(width * factor))

    def _offset(self, new: tuple[int, int]) -> tuple[int, int]:
        """(top, left) of an image of the size ``new`` in the middle of the letterbox."""
        height, width = cast(tuple[int, int], self.size)
        return (height - new[0]) // 2, (width - new[1]) // 2

    def _place(self, height: int, width: int) -> Place:
        new = self._resized(height, width)
        return Place(new, (height, width), self._offset(new) if self.letterbox else (0, 0))

    def _placed(self, batch: Images, places: Sequence[Place]) -> Images:
        """The batch, with how large each image was, and where it begins and ends in its letterbox."""
        new, old, starts = zip(*places, strict=True)
        batch = batch._replace(original_sizes=numbers_like(old, batch.sizes))
        if not self.letterbox:
            return batch
        offsets = numbers_like(starts, batch.sizes)
        return batch._replace(sizes=offsets + numbers_like(new, batch.sizes), offsets=offsets)


def _warn_of_fractions(targets: Sequence[Target], places: Sequence[Place]) -> None:
    """Warn where all boxes of a batch lie in 0..1 and images are larger: as pixels they would be all but empty."""
    boxes = [target["boxes"] for target, place in zip(targets, places, strict=True) if min(place.old) > _TINY]
    count = sum(map(len, boxes))
    if not count or (boxes[0].device.type != "cpu" and not full_checks()):
        return
    if all(((rows >= 0) & (rows <= 1)).all() for rows in boxes):
        warnings.warn(
            f"Preprocess: targets: all {count} boxes of the batch lie in 0..1; boxes are in pixels: if these are "
            "fractions of the image, multiply them by its (width, height, width, height)",
            stacklevel=3,
        )


def _check_range(image: Float[Tensor, "D _ _"], where: str) -> None:
    """Raise ValueError for floats far outside [0, 1], those in 0..255 say; a sample of the pixels is looked at."""
    if image.device.type != "cpu" and not full_checks():
        return
    low, high = (bound.item() for bound in image[:, ::_SAMPLED, ::_SAMPLED].aminmax())
    if not (low >= -_FARTHEST and high <= _FARTHEST):
        raise ValueError(
            f"{where} has pixels from {low:.4g} to {high:.4g}; allowed are floats in [0, 1] (divide those in 0..255 by "
            "255), uint8, uint16 and bool"
        )


def _in_original_pixels(detections: Detections, images: Images) -> dict[str, Tensor]:
    """What was found, by the key that it has outside, boxes and points in the pixels of the images as they came."""
    original = images.sizes if images.original_sizes is None else images.original_sizes
    factors, shifts, found = factors_of(images, detections.boxes), shifts_of(images, detections.boxes), {}
    for key, field in FIELDS.items():
        values = getattr(detections, field.inside or "", None)
        if values is None:
            continue
        if field.moves == "boxes":
            values = clip_boxes_to_image((values - shifts) * factors, original)
        elif field.moves == "points":
            places = (values[..., :2] - shifts[:, None, :, :2]) * factors[:, None, :, :2]
            values = torch.cat((places, values[..., 2:]), dim=-1)
        found[key] = values
    return found


@door
def resize_target(target: Target, new: Sequence[int], old: Sequence[int], *, where: str = "resize_target") -> Target:
    """``target`` of an image of size ``old`` as it is after resizing to ``new``, both (height, width).

    What it holds is read as :func:`~detkit.structures.read_target` does; ``where`` is what errors name. Raises
    ValueError also for masks or a segmentation of another size than ``old``.

    >>> resize_target({"boxes": torch.tensor([[0.0, 0, 10, 20]]), "labels": torch.tensor([1])}, (50, 100), (100, 100))
    {'boxes': tensor([[ 0.,  0., 10., 10.]]), 'labels': tensor([1])}
    """
    return _resized(read_target(target, where=where, size=old), new, old, _nearest)


def _resized(
    target: Target,
    new: Sequence[int],
    old: Sequence[int],
    masks: Callable[[Tensor, Sequence[int]], Tensor],
) -> Target:
    resized: dict[str, Any] = {**target}
    fy, fx = (after / before for after, before in zip(new, old, strict=True))
    for key in resized.keys() & FIELDS.keys():
        moves, values = FIELDS[key].moves, resized[key]
        if moves in ("masks", "map"):
            resized[key] = (masks if moves == "masks" else _nearest)(values, new)
        elif moves in ("boxes", "points") and tuple(new) != tuple(old):
            factors = (fx, fy, fx, fy) if moves == "boxes" else (fx, fy, 1.0)
            resized[key] = promote(values) * numbers_like(factors, promote(values))
    return cast(Target, resized)


def _shifted(target: Target, offset: Sequence[int]) -> Target:
    """``target``, whose image begins at ``offset`` (top, left) of a frame, in the pixels of that frame."""
    top, left = offset
    if top == left == 0:
        return target
    shifted: dict[str, Any] = {**target}
    for key in shifted.keys() & FIELDS.keys():
        moves, values = FIELDS[key].moves, shifted[key]
        if moves == "masks":  # blank: only their size counts
            shifted[key] = _blank(values, (values.shape[-2] + top, values.shape[-1] + left))
        elif moves == "map":
            shifted[key] = F.pad(values.long(), (left, 0, top, 0), value=VOID)
        elif moves in ("boxes", "points"):
            shift = (left, top, left, top) if moves == "boxes" else (left, top, 0)
            shifted[key] = promote(values) + numbers_like(shift, promote(values))
    return cast(Target, shifted)


def _names(targets: Sequence[Target]) -> list[str]:
    """The names for which all targets hold targets; none where they are targets themselves."""
    first = targets[0] if targets and isinstance(targets[0], Mapping) else {}
    if not first or not all(isinstance(entry, Mapping) for entry in first.values()):
        return []
    for i, target in enumerate(targets):
        if target.keys() != targets[0].keys():
            raise ValueError(
                f"Preprocess: targets[{i}] has the names {sorted(target)}; allowed are those of targets[0]: "
                f"{sorted(targets[0])}"
            )
    return [*targets[0]]


def _blank(masks: Shaped[Tensor, "T H W"], size: Sequence[int]) -> Shaped[Tensor, "T h w"]:
    """Masks of another size that take no memory: what is to be drawn later."""
    return masks.new_zeros(()).expand(len(masks), *size)


def _draw(canvas: Shaped[Tensor, "T H W"], masks: Tensor | None, size: Sequence[int]) -> None:
    """Resized to ``size`` and written where they are padded, a few at a time: large stacks are not held twice."""
    if masks is None:
        return
    for start in range(0, len(masks), _MASKS_AT_ONCE):
        block = masks[start : start + _MASKS_AT_ONCE]
        canvas[start : start + len(block), : size[0], : size[1]] = _nearest(sent(block, canvas.device), size)


def _nearest(values: Shaped[Tensor, "*T H W"], size: Sequence[int]) -> Shaped[Tensor, "*T h w"]:
    """Enlarged or reduced to ``size``, each pixel that of the nearest; no array of another type in between."""
    if tuple(values.shape[-2:]) == tuple(size):
        return values
    if 0 in values.shape:
        return values.new_zeros((*values.shape[:-2], *size))
    if values.dtype == torch.bool:
        return _nearest(values.view(torch.uint8), size).view(torch.bool)
    if values.dtype == torch.uint8 or values.is_floating_point():
        return F.interpolate(values.reshape(-1, 1, *values.shape[-2:]), size=tuple(size), mode="nearest").reshape(
            *values.shape[:-2], *size
        )
    rows, columns = (
        F.interpolate(torch.arange(float(old), device=values.device)[None, None], size=side, mode="nearest")[
            0, 0
        ].long()
        for old, side in zip(values.shape[-2:], size, strict=True)
    )
    return values[..., rows[:, None], columns]


def _of_image(values: Shaped[Tensor, "*C h w"], frame: Sequence[int], place: Place) -> Tensor:
    """A map of the batch's frame, cut to one image and in its own pixels: classes by nearest, scores bilinearly."""
    (height, width), (top, left) = place.new, place.start
    rows, columns = slice(top, top + height), slice(left, left + width)
    if not values.is_floating_point():
        return _nearest(_nearest(values, frame)[..., rows, columns], place.old)
    planes = promote(values).reshape(1, -1, *values.shape[-2:])
    planes = F.interpolate(planes, size=tuple(frame), mode="bilinear", align_corners=False)[..., rows, columns]
    return F.interpolate(planes, size=place.old, mode="bilinear", align_corners=False).reshape(
        *values.shape[:-2], *place.old
    )
