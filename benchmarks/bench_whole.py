"""Whole detectors against torchvision's and transformers', same weights and images: ``python -m benchmarks whole``.

torchvision's models are as they come with published weights: norms frozen, the stem and the first stage too. Inference
as converted, then in the :func:`~detkit.detectors.inference_form`; training steps (losses and gradients) as
converted and in channels_last memory, eagerly and compiled as a whole, which torchvision's cannot be: there the peer's
is its eager step.
"""

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.harness import Case
from benchmarks.models import labels_from_zero, objects_in, peer, pictures
from detkit.boxes import xyxy_to_cxcywh
from detkit.detectors import inference_form
from detkit.structures import Images, pad_targets
from detkit.weights import from_torchvision, from_transformers

NAMES = ("RetinaNet", "Faster R-CNN", "Faster R-CNN MobileNet", "SSD300", "FCOS")
OBJECTS = 20
_SIZE = (600, 800)
_SIDES = (320, 640)  # to which torchvision resizes, so that all cases take minutes


def cases() -> Iterator[Case]:
    """Each detector at inference and in training, then DETR."""
    for name in NAMES:
        for count in (1, 4):
            yield _inference(name, count, "as converted", 1.0)
            yield _inference(name, count, "inference form", 1.4)
        for count in (1, 2, 4):
            yield _training(name, count, "as converted")
            yield _training(name, count, "channels_last")
        yield _training(name, 2, "compiled")
        yield _training(name, 2, "compiled, channels_last")
    for count in (1, 4):
        yield _detr_inference(count, "as converted", 1.0)
        yield _detr_inference(count, "inference form", 1.15)
    yield _detr_training(2, "as converted")
    yield _detr_training(2, "channels_last")


@cache
def _models(name: str) -> tuple[nn.Module, Any]:
    theirs = peer(name, sides=None if name in ("SSD300", "Faster R-CNN MobileNet") else _SIDES)
    for part in theirs.modules():  # noise has no objects that random weights could find
        if isinstance(part, nn.Conv2d) and part.out_channels % 91 == 0 and part.bias is not None:
            nn.init.normal_(part.bias, mean=-4 if name in ("RetinaNet", "FCOS") else 0, std=0.5)
    return theirs.eval(), from_torchvision(theirs)


def _inference(name: str, count: int, form: str, target: float) -> Case:
    images = pictures(count, *_SIZE)

    @cache
    def sides() -> tuple[nn.Module, Any]:
        theirs, converted = _models(name)
        return theirs, inference_form(converted) if form == "inference form" else converted

    return Case(
        f"{name}, inference, {form}",
        f"batch {count} of 600 x 800",
        "torchvision",
        lambda: _without_gradients(sides()[1], images),
        lambda: _without_gradients(sides()[0], images),
        lambda ours, theirs: _found_equal(ours, theirs, 0 if name in ("RetinaNet", "FCOS") else 1),
        target,
        "convolutions",
        _clock(),
    )


def _clock() -> Callable[[], float]:
    """That of the process, which counts no neighbors', where one thread says all."""
    return time.process_time if torch.get_num_threads() == 1 else time.perf_counter


def _without_gradients(model: nn.Module, *arguments: Any) -> Any:
    with torch.no_grad():
        return model.eval()(*arguments)


def _found_equal(ours: Sequence[Any], theirs: Sequence[Any], shift: int) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine["scores"], other["scores"], rtol=1e-3, atol=1e-4)
        same = (mine["labels"] + shift == other["labels"]).float()
        assert same.sum() >= 0.98 * len(same), f"{same.mean():.3f} of the labels agree"  # close scores change places


def _training(name: str, count: int, form: str) -> Case:
    images = pictures(count, *_SIZE)
    targets = objects_in(images, OBJECTS)
    shifted = targets if name in ("RetinaNet", "FCOS") else labels_from_zero(targets)

    @cache
    def sides() -> tuple[nn.Module, Any]:
        theirs, converted = _models(name)
        return theirs, _formed(converted, form)

    @cache
    def step() -> Callable[[], Tensor]:
        mine = sides()[1]
        if "compiled" not in form:
            return lambda: _step(mine, images, shifted)
        batch, padded = mine.preprocess(images, shifted)
        fast: Any = torch.compile(mine, options={"layout_optimization": "channels_last" in form})  # or always in that
        start = time.perf_counter()
        _step(fast, batch, padded)
        print(f"{name}: compiled in {time.perf_counter() - start:.0f} s")
        return lambda: _step(fast, *mine.preprocess(images, shifted))

    return Case(
        f"{name}, training step, {form}",
        f"batch {count} of 600 x 800, {OBJECTS} objects",
        "torchvision",
        lambda: step()(),
        lambda: _step(sides()[0], images, targets),
        _losses_near if "R-CNN" in name else _losses_equal,
        1.25 if "compiled" in form else 1.1,
        "convolutions",
        _clock(),
    )


def _formed(converted: Any, form: str) -> Any:
    """A copy to train: as it is, or in channels_last memory."""
    mine = copy.deepcopy(converted)
    return mine.to(memory_format=torch.channels_last) if "channels_last" in form else mine


def _step(model: nn.Module, *batch: Any) -> Tensor:
    model.train()
    torch.manual_seed(0)  # R-CNNs sample
    for value in model.parameters():
        value.grad = None
    loss = torch.stack([*model(*batch).values()]).sum()
    loss.backward()
    return loss.detach()


def _losses_equal(ours: Tensor, theirs: Tensor) -> None:
    """Of SSD's negatives those of nearly equal losses change places."""
    torch.testing.assert_close(ours, theirs, rtol=5e-3, atol=1e-3)


def _losses_near(ours: Tensor, theirs: Tensor) -> None:
    """Both sample anchors and boxes at random."""
    torch.testing.assert_close(ours, theirs, rtol=0.1, atol=0.05)


@cache
def _detr() -> tuple[nn.Module, Any]:
    import transformers

    peers: Any = transformers

    torch.manual_seed(0)
    backbone = peers.ResNetConfig(out_features=["stage4"])
    model = peers.DetrForObjectDetection(
        peers.DetrConfig(use_timm_backbone=False, backbone_config=backbone, num_labels=91)
    )
    return model.eval(), from_transformers(model)


def _detr_inference(count: int, form: str, target: float) -> Case:
    batch = torch.stack(pictures(count, *_SIZE))
    images = Images(batch, torch.tensor([_SIZE] * count))

    @cache
    def sides() -> tuple[nn.Module, Any]:
        theirs, converted = _detr()
        return theirs, inference_form(converted) if form == "inference form" else converted

    return Case(
        f"DETR, inference, {form}",
        f"batch {count} of 600 x 800",
        "transformers",
        lambda: _without_gradients(sides()[1], images),
        lambda: _without_gradients(sides()[0], batch),
        _detr_equal,
        target,
        "convolutions",
        _clock(),
    )


def _detr_equal(ours: Any, theirs: Any) -> None:
    scores = theirs.logits.softmax(-1)[..., :-1].amax(-1).sort(descending=True).values
    torch.testing.assert_close(ours.scores[:, :50].sort(descending=True).values, scores[:, :50], rtol=1e-3, atol=1e-4)


def _detr_training(count: int, form: str) -> Case:
    batch = torch.stack(pictures(count, *_SIZE))
    images, targets = Images(batch, torch.tensor([_SIZE] * count)), objects_in(list(batch), OBJECTS)
    sides = torch.tensor(_SIZE * 2).flip(0)
    given = [{"class_labels": target["labels"], "boxes": xyxy_to_cxcywh(target["boxes"]) / sides} for target in targets]

    @cache
    def models() -> tuple[nn.Module, Any]:
        theirs, converted = _detr()
        return theirs, _formed(converted, form)

    def their_step() -> Tensor:
        model = models()[0].train()
        model.zero_grad()
        loss = model(pixel_values=batch, labels=given).loss
        loss.backward()
        return loss.detach()

    return Case(
        f"DETR, training step, {form}",
        f"batch {count} of 600 x 800, {OBJECTS} objects",
        "transformers",
        lambda: _step(models()[1], images, pad_targets(targets)),
        their_step,
        _losses_near,  # dropout
        1.3,
        "convolutions",
        _clock(),
    )
