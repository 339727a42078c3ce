"""Who competes: small recipes of this library, and two of torchvision's detectors behind the same call."""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn
from torchvision.models import detection

from detkit import detectors

Build = Callable[[int, tuple[int, int]], nn.Module]


class Torchvision(nn.Module):
    """A torchvision detector called as detkit's are: labels count from 0, targets decide, floats in 0..1."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: list[Tensor], targets: list[Any] | None = None) -> Any:
        """Losses, or detections."""
        images = [image / 255 for image in images]
        if targets is not None:
            return self.model(images, [{"boxes": t["boxes"].float(), "labels": t["labels"] + 1} for t in targets])
        return [{**found, "labels": found["labels"] - 1} for found in self.model(images)]


class Entry(NamedTuple):
    """How to build a detector, at which rate it is trained, and whether in bfloat16 where that is fast."""

    build: Build
    rate: float = 2e-3
    bf16: bool = True


def _recipe(recipe: Callable[..., nn.Module], **settings: Any) -> Build:
    return lambda classes, size: recipe(classes, size=size, **settings)


def _faster_rcnn(classes: int, size: tuple[int, int]) -> nn.Module:
    sizes = {"min_size": min(size), "max_size": max(size)}
    return Torchvision(
        detection.fasterrcnn_mobilenet_v3_large_320_fpn(
            weights=None, weights_backbone=None, num_classes=classes + 1, trainable_backbone_layers=6, **sizes
        )
    )


def _ssdlite(classes: int, size: tuple[int, int]) -> nn.Module:
    return Torchvision(
        detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=classes + 1)
    )


def _yolo_v3_tiny(classes: int, size: tuple[int, int]) -> nn.Module:
    """Its grids halve five times: sides are rounded up to multiples of 32."""
    height, width = (-(-side // 32) * 32 for side in size)
    return detectors.yolo_v3_tiny(classes, size=(height, width))


ENTRIES = {
    "fpn_ssd": Entry(_recipe(detectors.fpn_ssd)),
    "small_retinanet": Entry(_recipe(detectors.small_retinanet)),
    "small_fcos": Entry(_recipe(detectors.small_fcos)),
    "small_tood": Entry(_recipe(detectors.small_tood)),
    "small_yolox": Entry(_recipe(detectors.small_yolox)),
    "small_yolo_v3": Entry(_recipe(detectors.small_yolo_v3)),
    "ssd7": Entry(_recipe(detectors.ssd7)),
    "yolo_v3_tiny": Entry(_yolo_v3_tiny, 1e-3),
    "small_faster_rcnn": Entry(_recipe(detectors.small_faster_rcnn)),
    "small_detr": Entry(_recipe(detectors.small_detr), 1e-3),
    "small_deformable_detr": Entry(_recipe(detectors.small_deformable_detr), 1e-3),
    "small_rt_detr": Entry(_recipe(detectors.small_rt_detr), 1e-3),
    "small_d_fine": Entry(_recipe(detectors.small_d_fine), 1e-3),
    "small_pix2seq": Entry(_recipe(detectors.small_pix2seq, max_objects=30), 1e-3),
    "torchvision ssdlite320": Entry(_ssdlite, 1e-3, bf16=False),
    "torchvision fasterrcnn_320": Entry(_faster_rcnn, 1e-3),
}
