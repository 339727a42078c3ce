"""CopyPaste: objects of another image pasted by their masks, which hide what lies under them."""

import math
from collections.abc import Sequence
from typing import Annotated, Any

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor
from torchvision.ops import masks_to_boxes
from torchvision.transforms.v2 import functional as v2

from detkit._door import door
from detkit._inputs import promote
from detkit._ranges import Ascending, Fraction, NotNegative, Positive
from detkit.structures import FIELDS
from detkit.structures.rows import join_rows, keep_rows
from detkit.tricks.pieces import Piece, View, crowds, draw_piece, mask_areas, place_target
from detkit.tricks.samples import Batch, BatchAugmentation, between, check_partners, others, whole

_SEEDS = 2**32  # more bits torch's generator on the CPU leaves out


class CopyPaste(BatchAugmentation):
    """Pastes objects of another image of the batch onto each image, cut out by their masks.

    Each object of the partner but for crowds is pasted with probability ``object_probability``. The partner is first
    resized by a factor in ``scale_range``, mirrored with probability ``flip``, and laid on the image, whose size stays,
    at a random place (a larger one cut). Of pasted objects those stay that have ``min_visible`` of the area of their
    box in view and sides of at least ``min_size`` pixels. ``blend`` is the standard deviation, in pixels, of a Gaussian
    that softens the edge of what is pasted; masks stay sharp. The paper found 0, no blending, as good.

    What lies below is hidden: masks, crowds' too, lose the pixels that are pasted over, boxes become those of what is
    left, areas its pixels. Objects of which less than ``min_visible`` of the pixels are left are dropped, crowds once
    they are hidden whole. Objects that lose no pixel keep their box as it was. Keypoints under a pasted object get
    visibility 1: labeled, not visible. Segmentations take the pixels pasted from the partner's. All else, and the
    errors, as in :class:`BatchAugmentation`; also raises ValueError for objects without masks, for a batch of one, and
    for ``flip`` of images with keypoints, whose left and right nobody would exchange.

    Source: Ghiasi et al. 2021, section 3; there both images go through large-scale jittering and flips before:
    :func:`~detkit.data.large_scale_jitter`. The paper says a random subset of objects, without its law.

    >>> masks = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    >>> masks[0, :, :, :3], masks[1, :, :2, 2:] = 1, 1
    >>> boxes = [torch.tensor([[0.0, 0, 3, 4]]), torch.tensor([[2.0, 0, 4, 2]])]
    >>> targets = [{"boxes": boxes[i], "labels": torch.tensor([i]), "masks": masks[i]} for i in range(2)]
    >>> paste = CopyPaste(object_probability=1.0)
    >>> images, targets = paste([torch.zeros(1, 4, 4), torch.ones(1, 4, 4)], targets)
    >>> images[0], targets[0]["boxes"].tolist(), targets[0]["masks"][0]
    (tensor([[[0., 0., 1., 1.],
             [0., 0., 1., 1.],
             [0., 0., 0., 0.],
             [0., 0., 0., 0.]]]), [[0.0, 0.0, 3.0, 4.0], [2.0, 0.0, 4.0, 2.0]], tensor([[1, 1, 0, 0],
            [1, 1, 0, 0],
            [1, 1, 1, 0],
            [1, 1, 1, 0]], dtype=torch.uint8))
    """

    draws = 6

    @door
    def __init__(
        self,
        *,
        object_probability: Fraction = 0.5,
        scale_range: Annotated[tuple[Positive, Positive], Ascending()] = (1.0, 1.0),
        flip: Fraction = 0.0,
        min_visible: Fraction = 0.1,
        min_size: NotNegative = 1.0,
        blend: NotNegative = 0.0,
        probability: Fraction = 1.0,
    ) -> None:
        super().__init__(probability=probability)
        self.object_probability, self.scale_range, self.flip = object_probability, tuple(scale_range), flip
        self.view, self.blend = View(min_visible, min_size), blend

    def _augmented(self, batch: Batch, index: int, numbers: list[float]) -> tuple[Tensor, dict[str, Any]]:
        """The image ``index`` with objects of another one."""
        count = len(batch.images)
        check_partners(count, function="CopyPaste")
        self._check(batch.targets)
        (partner,), (choice, scale, flip, *place) = others(index, numbers[:1], count), numbers[1:]
        image, target = batch.images[index], batch.targets[index]
        above, source = batch.images[partner], self._chosen(batch.targets[partner], choice, batch.keys)
        if flip < self.flip:
            above, source = above.flip(-1), _mirrored(source, above.shape[-1])
        size = image.shape[-2], image.shape[-1]
        piece = _piece(above.shape[-2:], size, between(self.scale_range, scale), place)
        pasted = place_target(source, piece, size, keys=batch.keys, view=self.view)
        if not len(pasted["boxes"]):
            return image, target
        over = pasted["masks"].bool().any(0)
        canvas = image.clone()
        draw_piece(canvas, above, piece)
        hidden = self._hidden(target, over, batch.keys)
        joined = join_rows([hidden, pasted], batch.keys)
        for key in (key for key in joined if key in FIELDS and FIELDS[key].moves == "map"):
            joined[key] = torch.where(over, pasted[key], target[key])
        return self._pasted(image, canvas, over), joined

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        return (
            f"object_probability={self.object_probability}, scale_range={self.scale_range}, flip={self.flip}, "
            f"probability={self.probability}"
        )

    def _check(self, targets: Sequence[dict[str, Any]]) -> None:
        for i, target in enumerate(targets):
            if "masks" not in target and len(target["boxes"]):
                raise ValueError(
                    f"CopyPaste: targets[{i}] has {len(target['boxes'])} boxes but no 'masks'; objects are pasted by "
                    "their masks: read them (CocoDataset(..., masks=True)), or use Mosaic or DetectionMixup"
                )
            if "keypoints" in target and self.flip > 0:
                raise ValueError(
                    f"CopyPaste: targets[{i}] has 'keypoints', whose left and right a flip would exchange; use flip=0"
                )

    def _chosen(self, target: dict[str, Any], choice: float, keys: Sequence[str]) -> dict[str, Any]:
        """The objects to paste: one number decides for all, however many there are."""
        crowd, generator = crowds(target), torch.Generator().manual_seed(int(choice * _SEEDS))
        drawn = torch.rand(len(crowd), generator=generator) < self.object_probability
        return keep_rows(target, drawn.to(crowd.device) & ~crowd, keys)

    def _hidden(self, target: dict[str, Any], over: Bool[Tensor, "H W"], keys: Sequence[str]) -> dict[str, Any]:
        """What the target says of the image below what is pasted ``over`` it."""
        before, left = target["masks"].bool(), target["masks"].bool() & ~over
        counts, after = before.flatten(1).sum(1), left.flatten(1).sum(1)
        changed = after < counts
        enough = (after >= self.view.min_visible * counts) | crowds(target)
        keep = ~changed | ((after > 0) & enough)
        hidden = keep_rows(target | {"masks": target["masks"] * ~over}, keep, keys)
        if bool((lost := changed[keep]).any()):
            hidden["boxes"] = hidden["boxes"].to(torch.promote_types(hidden["boxes"].dtype, torch.float32), copy=True)
            hidden["boxes"][lost] = _tight(left[keep][lost]).to(hidden["boxes"])
            areas = mask_areas(hidden)
            hidden |= {key: torch.where(lost, areas[key], hidden[key].to(areas[key])) for key in areas}
        for key in (key for key in hidden if key in FIELDS and FIELDS[key].moves == "points"):
            hidden[key] = _covered(hidden[key], over)
        return hidden

    def _pasted(self, image: Tensor, above: Tensor, over: Bool[Tensor, "H W"]) -> Tensor:
        if not self.blend:
            return torch.where(over, above, image)
        reach = min(math.ceil(3 * self.blend), *(side - 1 for side in over.shape))
        share = v2.gaussian_blur(over[None].to(torch.float32), [2 * reach + 1] * 2, [self.blend] * 2)
        wide = torch.promote_types(image.dtype, torch.float32)
        mixed = image.to(wide).lerp(above.to(wide), share.to(wide))
        return (mixed if image.dtype.is_floating_point else whole(mixed.round(), image.dtype)).to(image.dtype)


def _piece(old: Sequence[int], size: tuple[int, int], scale: float, place: Sequence[float]) -> Piece:
    """The part of an image, resized by ``scale``, that is in view where it lies at random on a canvas of ``size``."""
    source, shown = [], []
    for length, room, at in zip(old, size, place, strict=True):
        wanted = max(1, round(length * scale))
        taken = length if wanted <= room else min(length, max(1, round(length * room / wanted)))
        start, stays = int(at * (length - taken + 1)), min(wanted, room)
        offset = int(at * (room - stays + 1))
        source.append((start, start + taken))
        shown.append((offset, offset + stays))
    (top, bottom), (left, right) = source
    (up, down), (west, east) = shown
    return Piece((top, left, bottom, right), (up, west, down, east))


def _mirrored(target: dict[str, Any], width: int) -> dict[str, Any]:
    """The target of the image mirrored left to right."""
    mirrored = dict(target)
    for key in target.keys() & FIELDS.keys():
        moves, values = FIELDS[key].moves, target[key]
        if moves == "boxes":
            x1, y1, x2, y2 = promote(values).unbind(-1)
            mirrored[key] = torch.stack((width - x2, y1, width - x1, y2), dim=-1)
        elif moves in ("masks", "map"):
            mirrored[key] = values.flip(-1)
    return mirrored


def _tight(masks: Bool[Tensor, "T H W"]) -> Float[Tensor, "T 4"]:
    """The boxes of masks with pixels, from edge to edge of the outermost ones."""
    boxes = masks_to_boxes(masks)  # whose last pixel is inside
    return boxes + boxes.new_tensor((0, 0, 1, 1))


def _covered(points: Shaped[Tensor, "T P 3"], over: Bool[Tensor, "H W"]) -> Shaped[Tensor, "T P 3"]:
    """The points, those that something is pasted ``over`` no longer visible."""
    height, width = over.shape
    columns, rows = points[..., 0].floor().long(), points[..., 1].floor().long()
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    under = inside & over[rows.clamp(0, height - 1), columns.clamp(0, width - 1)]
    visibility = torch.where(under, points[..., 2].clamp(max=1), points[..., 2])
    return torch.cat((points[..., :2], visibility[..., None]), dim=-1)
