"""The border between images as they come and the padded batch that a trunk takes; and the way back for results."""

from collections.abc import Sequence
from typing import Literal, cast

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from detkit._inputs import as_boxes, check_fraction, first_bad, full_checks, promote
from detkit.boxes import clip_boxes_to_image
from detkit.detectors.paste import paste_masks
from detkit.proposals import Proposals, pad_proposals
from detkit.structures import Detection, Detections, Images, Target, Targets, batch_images, pad_targets

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Preprocess(nn.Module):
    """Resize, normalize and pad images and their targets; map detections back to the images they were found in.

    ``size`` reads as in torchvision's Resize: an int is the length of the shorter side, the aspect ratio kept and the
    longer side held to ``max_size``; a pair (height, width) is the exact size, ratio given up; None resizes nothing.
    Sides are rounded down as torchvision's detectors do, so that the shorter may come out one pixel less than asked.
    Images are bilinear, uint8 in [0, 255] or float in [0, 1], then ``(image - mean) / std`` per channel. The batch is
    padded with zeros, after normalizing, to a height and width that ``multiple_of`` divides.

    Masks that come back are bool, True where the probability reaches ``mask_threshold``; None leaves probabilities.
    Targets with a side that is not above 0 pixels are an error (``degenerate="raise"``; on accelerators only with
    ``DETKIT_CHECKS=full``), or taken out (``"drop"``).

    >>> preprocess = Preprocess(600, max_size=1000, multiple_of=32)
    >>> batch, _ = preprocess([torch.zeros(3, 480, 640), torch.zeros(3, 300, 600, dtype=torch.uint8)])
    >>> batch.tensors.shape, batch.sizes.tolist()
    (torch.Size([2, 3, 608, 1024]), [[600, 800], [500, 1000]])
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        size: int | tuple[int, int] | None,
        *,
        max_size: int | None = None,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        multiple_of: int = 1,
        mask_threshold: float | None = 0.5,
        degenerate: Literal["raise", "drop"] = "raise",
    ) -> None:
        super().__init__()
        sides = () if size is None else (size,) if isinstance(size, int) else tuple(size)
        if any(side < 1 for side in (*sides, multiple_of)) or len(sides) > 2:
            raise ValueError(f"Preprocess: size={size} and multiple_of={multiple_of} must be at least 1 pixel")
        if max_size is not None and (not isinstance(size, int) or max_size < size):
            raise ValueError(f"Preprocess: max_size={max_size} needs an int size that it is not below; size={size}")
        if degenerate not in ("raise", "drop"):
            raise ValueError(f"Preprocess: degenerate={degenerate!r}; allowed are 'drop' and 'raise'")
        if mask_threshold is not None:
            check_fraction(mask_threshold, name="mask_threshold", function="Preprocess")
        self.size, self.max_size, self.multiple_of = size, max_size, multiple_of
        self.mask_threshold, self.degenerate = mask_threshold, degenerate
        self.register_buffer("mean", torch.tensor(mean).reshape(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).reshape(-1, 1, 1), persistent=False)

    def forward(
        self, images: Sequence[Shaped[Tensor, "D _ _"]], targets: Sequence[Target] | None = None
    ) -> tuple[Images, Targets | None]:
        """A padded batch of B images (D, H, W), and its targets in the batch's pixels; masks are resized by nearest.

        Raises ValueError where images and targets differ in number, an image is not (D, H, W) with the D channels that
        ``mean`` has, or a target has a degenerate box.
        """
        if targets is not None and len(targets) != len(images):
            raise ValueError(f"Preprocess: {len(images)} images but {len(targets)} targets; each image needs its own")
        tensors = [self._prepare(i, image) for i, image in enumerate(images)]
        batch = batch_images(tensors, multiple_of=self.multiple_of)
        originals = torch.tensor([image.shape[-2:] for image in images], device=batch.sizes.device)
        batch = batch._replace(original_sizes=originals)
        if targets is None:
            return batch, None
        sizes = zip(batch.sizes.tolist(), originals.tolist(), strict=True)
        resized = [resize_target(target, new, old) for target, (new, old) in zip(targets, sizes, strict=True)]
        return batch, self._with_solid_boxes(pad_targets(resized, device=batch.tensors.device))

    def proposals(self, proposals: Sequence[Proposals], images: Images) -> Detections:
        """Proposals that came in each image's own pixels, padded and in the pixels of the batch.

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
        return padded._replace(boxes=padded.boxes / _factors(images, padded.boxes))

    def undo(self, detections: Detections, images: Images) -> list[Detection]:
        """The valid detections of every image, in its own pixels, clipped to it; best first as they came."""
        original = images.sizes if images.original_sizes is None else images.original_sizes
        factors = _factors(images, detections.boxes)
        boxes = clip_boxes_to_image(detections.boxes * factors, original)
        keypoints = detections.keypoints
        if keypoints is not None:
            keypoints = torch.cat((keypoints[..., :2] * factors[:, None, :, :2], keypoints[..., 2:]), dim=-1)
        sizes = original.tolist() if detections.masks is not None else []
        results: list[Detection] = []
        for i, valid in enumerate(detections.valid):
            found = {"boxes": boxes[i], "scores": detections.scores[i], "labels": detections.labels[i]}
            if keypoints is not None:
                found["keypoints"] = keypoints[i]
            if detections.keypoint_scores is not None:
                found["keypoints_scores"] = detections.keypoint_scores[i]
            result = {key: rows[valid] for key, rows in found.items()}
            if detections.masks is not None:
                masks, size = detections.masks[i][valid], (sizes[i][0], sizes[i][1])
                result["masks"] = paste_masks(masks, result["boxes"], size, threshold=self.mask_threshold)
            results.append(cast(Detection, result))
        return results

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        return f"size={self.size}, max_size={self.max_size}, multiple_of={self.multiple_of}"

    def _with_solid_boxes(self, targets: Targets) -> Targets:
        """Rows with a side of at most 0 pixels, or none that can be told, refused or taken out."""
        flat = targets.valid & ~(targets.boxes[..., 2:] > targets.boxes[..., :2]).all(-1)
        if self.degenerate == "drop":
            return targets._replace(valid=targets.valid & ~flat)
        if (flat.device.type == "cpu" or full_checks()) and flat.any():
            (image, row), count = first_bad(flat)
            raise ValueError(
                f"Preprocess: targets[{image}]: boxes[{row}] is {targets.boxes[image, row].tolist()} in the batch's "
                f"pixels; x2 > x1 and y2 > y1 are allowed, {count} are not so; repair them, or drop them with "
                "degenerate='drop'"
            )
        return targets

    def _prepare(self, index: int, image: Tensor) -> Float[Tensor, "D _ _"]:
        if image.ndim != 3 or image.shape[0] != len(self.mean) or image.numel() == 0:
            raise ValueError(
                f"Preprocess: images[{index}] has shape {tuple(image.shape)}; allowed is ({len(self.mean)}, height, "
                "width) with at least one pixel"
            )
        image = image.as_subclass(Tensor).to(self.mean.device)
        pixels = image.to(self.mean.dtype) / (1 if image.is_floating_point() else 255)
        new = self._resized(*image.shape[-2:])
        if new != tuple(image.shape[-2:]):
            pixels = F.interpolate(pixels[None], size=new, mode="bilinear", align_corners=False)[0]
        return (pixels - self.mean) / self.std

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        if self.size is None:
            return height, width
        if not isinstance(self.size, int):
            return self.size
        factor = self.size / min(height, width)
        if self.max_size is not None:
            factor = min(factor, self.max_size / max(height, width))
        return max(1, int(height * factor)), max(1, int(width * factor))


def _factors(images: Images, like: Tensor) -> Float[Tensor, "B 1 4"]:
    """What takes boxes from the pixels of the batch to those of the images as they came."""
    original = images.sizes if images.original_sizes is None else images.original_sizes
    return (original / images.sizes).to(like).flip(-1).repeat(1, 2)[:, None]


def resize_target(target: Target, new: Sequence[int], old: Sequence[int]) -> Target:
    """``target`` of an image of size ``old`` as it is after resizing to ``new``, both (height, width).

    >>> resize_target({"boxes": torch.tensor([[0.0, 0, 10, 20]]), "labels": torch.tensor([1])}, (50, 100), (100, 100))
    {'boxes': tensor([[ 0.,  0., 10., 10.]]), 'labels': tensor([1])}
    """
    if tuple(new) == tuple(old):
        return target
    fy, fx = (after / before for after, before in zip(new, old, strict=True))
    resized = dict(target)
    boxes = as_boxes(target["boxes"], function="resize_target")
    resized["boxes"] = boxes * boxes.new_tensor((fx, fy, fx, fy))
    if "masks" in target:
        masks = target["masks"].as_subclass(Tensor)
        resized["masks"] = (
            F.interpolate(masks[:, None].float(), size=tuple(new), mode="nearest")[:, 0].to(masks.dtype)
            if len(masks)
            else masks.new_zeros((0, *new))  # whatever shape nothing came in
        )
    if "keypoints" in target:
        keypoints = promote(target["keypoints"].as_subclass(Tensor))
        resized["keypoints"] = keypoints * keypoints.new_tensor((fx, fy, 1.0)) if len(keypoints) else keypoints
    return cast(Target, resized)
