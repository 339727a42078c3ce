"""Pictures of tiny objects, and the detectors that are compared on them."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from detkit import data, detectors, tricks
from detkit.anchors import GridAnchors, cluster_anchors
from detkit.detectors.recipes.trunks import small_pyramid

TILE, TILED = 256, "small_tood, stride 4, tiles"
Build = Callable[[int, tuple[int, int], Sequence[Any]], nn.Module]
"""Of the number of classes, the (height, width) of the pictures, and the pictures."""


class Patchwork(Dataset[Any]):
    """Three by three items of a data set as one picture, each at a third of its size."""

    def __init__(self, items: Any, length: int, seed: int = 0) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.items, self.places = items, torch.randint(len(items), (length, 3, 3), generator=draw)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        """The picture; objects of less than a pixel are left out."""
        rows, boxes, labels = [], [], []
        for y, places in enumerate(self.places[index].tolist()):
            row = []
            for x, place in enumerate(places):
                image, target = self.items[place]
                height, width = (side // 3 for side in image.shape[-2:])
                row.append(v2.functional.resize(image, [height, width]).as_subclass(Tensor))
                boxes.append(target["boxes"].as_subclass(Tensor) / 3 + torch.tensor([x * width, y * height] * 2))
                labels.append(target["labels"])
            rows.append(torch.cat(row, 2))
        picture, found = tv_tensors.Image(torch.cat(rows, 1)), torch.cat(boxes)
        kept, (height, width) = (found[:, 2:] - found[:, :2]).amin(1) >= 1, picture.shape[-2:]
        found = tv_tensors.BoundingBoxes(found[kept], format="XYXY", canvas_size=(height, width))  # pyright: ignore
        return picture, {"boxes": found, "labels": torch.cat(labels)[kept]}


def in_tiles(detector: nn.Module) -> nn.Module:
    """The detector on overlapping tiles of a picture, each object seen whole by one of them."""
    return tricks.TiledInference(detector, tile=TILE, overlap=48, merge=tricks.NMSFusion(0.6), batch_size=4)


def crops() -> v2.Transform:
    """What tiles are to the detector, in training: random parts, with the objects in them."""
    return v2.Compose([v2.RandomCrop((TILE, TILE)), data.sanitize(min_size=2)])


def clustered_ssd(classes: int, size: tuple[int, int], pictures: Sequence[Any]) -> nn.Module:
    """fpn_ssd from stride 4 on, whose anchors are the middles of the objects' sizes: two for each level."""
    boxes = torch.cat([target["boxes"].as_subclass(Tensor) for _, target in pictures])
    shapes = cluster_anchors(boxes[:, 2:] - boxes[:, :2], 8, generator=torch.Generator().manual_seed(0))
    trunk, strides = small_pyramid(64, 1, nn.BatchNorm2d, finest=4)
    anchors: Any = GridAnchors(shapes=[shapes[i : i + 2].tolist() for i in range(0, 8, 2)], strides=strides)
    return detectors.ssd(classes, trunk, [64] * 4, anchors, preprocess=detectors.Preprocess(size))


def _recipe(recipe: Callable[..., nn.Module], divide: int = 1, **options: Any) -> Build:
    return lambda classes, size, _: recipe(classes, size=(size[0] // divide, size[1] // divide), **options)


ROWS = {
    "fpn_ssd, half the size": _recipe(detectors.fpn_ssd, 2),
    "small_tood, half the size": _recipe(detectors.small_tood, 2),
    "small_tood": _recipe(detectors.small_tood),
    "fpn_ssd, stride 4, clustered anchors": clustered_ssd,
    "small_tood, stride 4": _recipe(detectors.small_tood, finest=4),
    TILED: lambda classes, *_: detectors.small_tood(classes, size=(TILE, TILE), finest=4),
}
