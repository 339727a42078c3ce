"""Faster and Mask R-CNN behind their trunk against torchvision's own models: same weights, same feature maps.

The first cases run whole stages, where the heads' matrix products are the same work on both sides: they bound the
ratio. In the cases "without layers" convolutions, linear layers and pooling (bench_pooling.py) hand out stored values,
so that what is left is what the libraries write themselves: matching, sampling, encoding, losses and their gradient;
proposals, suppression and decoding.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import detection
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import paste_masks_in_image

from benchmarks.bench_matching import objects_of
from benchmarks.harness import Case
from detkit.detectors import Detector
from detkit.detectors.paste import paste_masks
from detkit.structures import Detections, Images, pad_targets
from detkit.weights import from_torchvision

CLASSES, OBJECTS = 90, 8
LARGE, MEDIUM, SMALL = (800, 1066), (480, 640), (320, 427)
KINDS = {"Faster R-CNN": detection.FasterRCNN, "Mask R-CNN": detection.MaskRCNN}
SHARED = "the heads' layers, the same on both sides"
LOSSES = {
    "loss_objectness": "rpn.objectness",
    "loss_rpn_box_reg": "rpn.box",
    "loss_classifier": "box.classification",
    "loss_box_reg": "box.box",
    "loss_mask": "mask.mask",
}


def cases() -> Iterator[Case]:
    """Training steps and inference behind the trunk, with and without the layers, and the pasting of masks."""
    for name, images, size in (
        ("Faster R-CNN", 1, MEDIUM),
        ("Faster R-CNN", 8, SMALL),
        ("Mask R-CNN", 1, MEDIUM),
    ):
        yield from _cases(name, images, size, layers=True)
    for name in KINDS:
        for images in (1, 8):
            yield from _cases(name, images, LARGE, layers=False)
    yield _pasting(100, LARGE)


class Scene(NamedTuple):
    """What both models read: feature maps that want gradients, the images' size, and the objects."""

    features: list[Tensor]
    size: tuple[int, int]
    targets: list[dict[str, Tensor]]

    @property
    def images(self) -> int:
        """How many."""
        return len(self.targets)


def scene_of(images: int, size: tuple[int, int]) -> Scene:
    """Feature maps of strides 4 to 64 that vary over a few cells, as a trunk's do; objects are ellipses."""
    generator = torch.Generator().manual_seed(images)
    sides = [tuple(-(-side // stride) for side in _padded(size)) for stride in (4, 8, 16, 32, 64)]
    maps = [torch.randn(images, 256, height // 2 + 1, width // 2 + 1, generator=generator) for height, width in sides]
    maps = [F.interpolate(rough, side, mode="bilinear") for rough, side in zip(maps, sides, strict=True)]
    scale = torch.tensor((size[1], size[0])).repeat(2) / 800
    labels = torch.randint(1, CLASSES + 1, (images, OBJECTS), generator=generator)
    boxes = [objects_of(OBJECTS, seed=seed) * scale for seed in range(images)]
    return Scene(
        [level.requires_grad_() for level in maps],
        size,
        [{"boxes": b, "labels": own, "masks": _ellipses(b, size)} for b, own in zip(boxes, labels, strict=True)],
    )


def _padded(size: tuple[int, int]) -> tuple[int, ...]:
    return tuple(-(-side // 32) * 32 for side in size)


def _ellipses(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    rows, columns = (torch.arange(side) + 0.5 for side in size)
    x1, y1, x2, y2 = boxes[:, :, None, None].unbind(1)
    down, right = (2 * rows[:, None] - y1 - y2) / (y2 - y1), (2 * columns - x1 - x2) / (x2 - x1)
    return (down**2 + right**2 <= 1).to(torch.uint8)


class Stored(nn.Module):
    """A layer that computes nothing: for an input of a shape it has met it hands out the same values again.

    ``shape(input)`` is that of what is drawn at random, ``change`` makes values of it. Rows are copies of one another
    where ``alike``, so that the order of samples, which is each library's own, does not count.
    """

    def __init__(
        self, shape: Callable[..., tuple[int, ...]], change: Callable[[Tensor], Tensor], *, alike: bool = False
    ) -> None:
        super().__init__()
        self.shape, self.change, self.alike = shape, change, alike
        self.made: dict[tuple[int, ...], Tensor] = {}

    def forward(self, *inputs: Any) -> Tensor:
        """The values for inputs of this shape, a leaf that wants a gradient."""
        shape = self.shape(*inputs)
        if shape not in self.made:
            drawn = torch.randn((1, *shape[1:]) if self.alike else shape, generator=torch.Generator().manual_seed(5))
            drawn = self.change(drawn)
            self.made[shape] = drawn.expand(shape[0], *drawn.shape[1:]).contiguous().requires_grad_()
        return self.made[shape]


def without_layers(model: Any, detector: Any, *, training: bool) -> None:
    """Replace every convolution, linear layer and pooling of both by stored values."""

    def cells(channels: int, scale: float) -> Stored:
        def smooth(drawn: Tensor) -> Tensor:
            return scale * F.interpolate(F.avg_pool2d(drawn, 2, ceil_mode=True), drawn.shape[-2:]) + 0.05 * drawn

        return Stored(lambda level: (len(level), channels, *level.shape[-2:]), smooth)

    def rows(
        *shape: int, theirs: Callable[[Tensor], Tensor] = Tensor.contiguous, ours: Callable[[Tensor], Tensor]
    ) -> tuple[Stored, Stored]:
        one, other = theirs, lambda drawn: ours(theirs(drawn))
        first, second = (Stored(lambda x: (len(x), *shape), change, alike=training) for change in (one, other))
        return first, second

    def dull(logits: Tensor) -> Tensor:  # four boxes in five are background, as a trained model's are
        logits = 2 * logits
        logits[:, 0] += torch.where(torch.arange(len(logits)) % 5 > 0, 12, 6)
        return logits

    model.rpn.head.conv, detector.rpn.head.tower = nn.Identity(), nn.Identity()
    model.rpn.head.cls_logits = detector.rpn.head.logits = cells(3, 1.0)  # far from where a sigmoid is 1 and all tie
    model.rpn.head.bbox_pred = detector.rpn.head.deltas = cells(12, 0.3)
    heads = model.roi_heads
    heads.box_roi_pool, detector.box.pool = _Regions(), _Regions()
    heads.box_head, detector.box.head.body = nn.Identity(), nn.Identity()
    predictor, head = heads.box_predictor, detector.box.head
    predictor.cls_score, head.logits = rows(CLASSES + 1, theirs=dull, ours=lambda drawn: drawn.roll(-1, 1))
    predictor.bbox_pred, head.deltas = rows(4 * CLASSES + 4, ours=lambda drawn: drawn[:, 4:])
    if not heads.has_mask():
        return
    heads.mask_roi_pool, detector.mask.pool = _Regions(), _Regions()
    heads.mask_head = nn.Identity()
    heads.mask_predictor, detector.mask.head = rows(CLASSES + 1, 28, 28, ours=lambda drawn: drawn[:, 1:])


class _Regions(nn.Module):
    """Pooling in name only: one zero for each box, for either library's arguments."""

    def forward(self, features: Any, boxes: Any, rows: Any) -> Tensor:
        """(M, 1) or, for pooling that gives images, the same: nobody reads them."""
        if isinstance(boxes, list):
            return torch.zeros(sum(map(len, boxes)), 1)
        return torch.zeros(boxes.shape[:2].numel() if rows is None else len(rows), 1)


class Both(NamedTuple):
    """torchvision's model and ours, and what they read."""

    model: Any
    detector: Any
    scene: Scene

    def theirs(self, *, training: bool) -> Any:
        """Losses, or boxes with scores and labels from 1, masks included."""
        scene = self.scene
        features = OrderedDict(zip(("0", "1", "2", "3", "pool"), scene.features, strict=True))
        images = ImageList(self._blank(), [scene.size] * scene.images)
        targets = scene.targets if training else None
        proposals, losses = self.model.rpn(images, features, targets)
        found, more = self.model.roi_heads(features, proposals, images.image_sizes, targets)
        return losses | more if training else found

    def ours(self, *, training: bool) -> Any:
        """Losses, or Detections; padding the objects is part of it."""
        scene = self.scene
        images = Images(self._blank(), torch.tensor([scene.size] * scene.images))
        if not training:
            return self.detector(images)
        own: list[Any] = [target | {"labels": target["labels"] - 1} for target in scene.targets]
        return self.detector(images, pad_targets(own))

    def _blank(self) -> Tensor:
        return torch.zeros(1, 1, 1, 1).expand(self.scene.images, 3, *_padded(self.scene.size))

    @contextmanager
    def first_samples(self) -> Iterator[None]:
        """Both take the first anchors that may be sampled, instead of any."""
        pairs = (
            (self.model.rpn, self.detector.rpn),
            (self.model.roi_heads, self.detector.box),
        )
        kept = [(one, one.fg_bg_sampler, two, two.sampler) for one, two in pairs]
        for one, _, two, sampler in kept:
            two.sampler = _First(sampler.count, sampler.most_positives)
            one.fg_bg_sampler = two.sampler.for_torchvision
        try:
            yield
        finally:
            for one, theirs, two, ours in kept:
                one.fg_bg_sampler, two.sampler = theirs, ours


class _First(nn.Module):
    """Instead of a random sample the first positives and negatives of each image."""

    def __init__(self, count: int, most_positives: int) -> None:
        super().__init__()
        self.count, self.most_positives = count, most_positives

    def forward(self, labels: Tensor) -> Tensor:
        """As BalancedSampler."""
        positives = self._first(labels >= 0, self.most_positives)
        return positives | self._first(labels == -1, self.count - positives.sum(1, keepdim=True))

    def for_torchvision(self, labels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """As torchvision's sampler: 0 is negative, -1 is ignored."""
        chosen = [self(torch.where(own > 0, 0, torch.where(own == 0, -1, -2))[None])[0] for own in labels]
        pairs = [(own, picked) for own, picked in zip(labels, chosen, strict=True)]
        return [picked & (own > 0) for own, picked in pairs], [picked & (own == 0) for own, picked in pairs]

    @staticmethod
    def _first(eligible: Tensor, most: Any) -> Tensor:
        return eligible & (eligible.cumsum(1) <= most)


def both_of(name: str, scene: Scene, *, layers: bool, training: bool) -> Both:
    """The two models with the same random weights, large enough that boxes and classes differ from place to place."""
    torch.manual_seed(3)
    trunk = resnet_fpn_backbone(backbone_name="resnet18", weights=None)  # small, as it is not run: stages are the same
    model: Any = KINDS[name](trunk, num_classes=CLASSES + 1)
    with torch.no_grad():
        model.rpn.head.cls_logits.weight.mul_(10)
        model.rpn.head.bbox_pred.weight.mul_(5)
        model.roi_heads.box_predictor.cls_score.weight.mul_(40)
    detector: Any = from_torchvision(model)
    if not layers:
        without_layers(model, detector, training=training)
    detector = Detector(_Given(scene.features), preprocess=detector.preprocess, **detector.stages)
    model.backbone = None
    return Both(model.train(training), detector.train(training), scene)


class _Given(nn.Module):
    """A trunk that has already seen."""

    def __init__(self, features: list[Tensor]) -> None:
        super().__init__()
        self.features = features

    def forward(self, images: Tensor) -> list[Tensor]:
        """The stored feature maps."""
        return self.features


def _cases(name: str, images: int, size: tuple[int, int], *, layers: bool) -> Iterator[Case]:
    words = f"{images} image{'s' * (images > 1)} of {size[0]} x {size[1]}"
    for training in (True, False):
        both = both_of(name, scene_of(images, size), layers=layers, training=training)
        run = _step if training else _inference
        yield Case(
            f"{name} behind the trunk, {'training step' if training else 'inference'}"
            + ("" if layers else ", without layers"),
            words + (f", {OBJECTS} objects each" if training else ""),
            f"torchvision {KINDS[name].__name__}, resnet50_fpn's settings",
            lambda both=both, run=run: run(both.ours),
            lambda both=both, run=run: run(both.theirs),
            (lambda ours, theirs, both=both: _same_losses(both)) if training else _same_detections,
            2.0,
            SHARED if layers else "",
        )


def _step(losses: Callable[..., dict[str, Tensor]]) -> None:
    sum(losses(training=True).values(), torch.zeros(())).backward()


@torch.no_grad()
def _inference(detections: Callable[..., Any]) -> Any:
    return detections(training=False)


def _same_losses(both: Both) -> None:
    """On one sample, which both are told to take; the samples that are timed are random."""
    with both.first_samples():
        ours, theirs = both.ours(training=True), both.theirs(training=True)
    assert {LOSSES[name] for name in theirs} == ours.keys()
    for name, loss in theirs.items():
        torch.testing.assert_close(ours[LOSSES[name]], loss, rtol=1e-4, atol=1e-6)


def _same_detections(ours: Detections, theirs: list[dict[str, Tensor]]) -> None:
    for image, found in enumerate(theirs):
        valid = ours.valid[image]
        assert int(valid.sum()) == len(found["boxes"]) > 0
        assert torch.equal(ours.labels[image][valid], found["labels"] - 1)
        torch.testing.assert_close(ours.boxes[image][valid], found["boxes"], rtol=1e-4, atol=1e-2)
        torch.testing.assert_close(ours.scores[image][valid], found["scores"], rtol=1e-4, atol=1e-5)
        if "masks" in found and ours.masks is not None:
            assert ours.masks[image][valid].shape == found["masks"][:, 0].shape


def _pasting(count: int, size: tuple[int, int]) -> Case:
    masks = torch.rand(count, 28, 28, generator=torch.Generator().manual_seed(0))
    boxes = objects_of(count, seed=0)
    return Case(
        "paste_masks",
        f"{count} masks of 28 x 28 into {size[0]} x {size[1]}",
        "torchvision paste_masks_in_image",
        lambda: paste_masks(masks, boxes, size, threshold=None),
        lambda: paste_masks_in_image(masks[:, None], boxes, size)[:, 0],
        lambda ours, theirs: torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5),
        2.0,
        f"{count * size[0] * size[1] * 4 / 1e6:.0f} MB written",
    )
