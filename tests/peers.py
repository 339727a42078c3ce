"""torchvision's models with random weights that find something, and how they are compared with detkit's."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from detkit.detectors import Detector
from detkit.structures import Target
from detkit.weights import from_torchvision

LOSS_NAMES = {"classification": "classification", "box": "bbox_regression", "centerness": "bbox_ctrness"}


class Differences(NamedTuple):
    """The largest differences between the two libraries: relative for losses, absolute for the others."""

    losses: float
    scores: float
    boxes: float


def calibrated(model: Any) -> Any:
    """Scale the convolutions of an untrained model: features vary by 1, logits lie in -1.5 +- 3, deltas in +- 1.

    Else features grow from layer to layer, and all scores are 1.
    """
    named = [(name, layer) for name, layer in model.head.named_modules() if isinstance(layer, nn.Conv2d)]
    final = [layer for name, layer in named if ".conv." not in name and layer.bias is not None]
    inner = [module for module in model.modules() if isinstance(module, nn.Conv2d) and module not in final]
    seen: set[int] = set()

    def scale(layer: nn.Conv2d, inputs: tuple[Tensor], output: Tensor) -> Tensor | None:
        if id(layer) in seen or output.numel() < 100:  # shared by the levels
            return None
        seen.add(id(layer))
        factor = 1 / output.std()
        layer.weight *= factor
        return output * factor

    hooks = [layer.register_forward_hook(scale) for layer in inner]
    with torch.no_grad():
        images, _ = model.transform(scenes(torch.float32)[0])
        features = list(model.backbone(images.tensors).values())
        for layer in final:
            layer.bias.zero_()
            layer.weight.normal_(std=0.01)
        outputs = model.head(features)
        for hook in hooks:
            hook.remove()
        for key, values in outputs.items():
            part = model.head.classification_head if key == "cls_logits" else model.head.regression_head
            limit, middle = {"cls_logits": (3.0, -1.5), "bbox_ctrness": (3.0, 0.0)}.get(key, (1.0, 0.2))
            for name, layer in part.named_modules():
                if layer in final and (name == key or "ctrness" not in name + key):
                    layer.weight *= limit / values.abs().max()
                    layer.bias.normal_(mean=middle, std=0.1)
    return model


def scenes(dtype: torch.dtype) -> tuple[list[Tensor], list[Target]]:
    """Two images of different sizes, the second without objects; they are resized by powers of two to 128 pixels.

    (torchvision rounds the factors of boxes to single precision, which would hide how close the two are in double.)
    """
    boxes = torch.tensor([[10.0, 20, 80, 100], [15, 22, 90, 101], [90, 30, 155, 110], [3, 3, 25, 30]], dtype=dtype)
    targets = [
        Target(boxes=boxes, labels=torch.tensor([0, 3, 2, 1])),
        Target(boxes=torch.zeros(0, 4, dtype=dtype), labels=torch.zeros(0, dtype=torch.int64)),
    ]
    return [torch.rand(3, 128, 160, dtype=dtype), torch.rand(3, 80, 64, dtype=dtype)], targets


def differences(build: Callable[[], Any], dtype: torch.dtype, *, shift: int = 0) -> Differences:
    """Losses and detections of ``build()`` and of its conversion; labels of theirs are ``shift`` more."""
    torch.manual_seed(0)
    peer = calibrated(build().eval()).to(dtype)
    ours = from_torchvision(peer)
    images, targets = scenes(dtype)
    theirs = [{"boxes": one["boxes"].clone(), "labels": one["labels"] + shift} for one in targets]
    with torch.no_grad():
        losses, found, expected = ours(images, targets), ours(images), peer([image.clone() for image in images])
        expected_losses = in_training(peer, [image.clone() for image in images], theirs)
    assert all(loss > 0 for loss in losses.values())
    gaps = [abs(1 - loss / expected_losses[LOSS_NAMES[key.split(".")[1]]]).item() for key, loss in losses.items()]
    pairs = [paired(one, other, shift) for one, other in zip(found, expected, strict=True)]
    return Differences(max(gaps), max(scores for scores, _ in pairs), max(boxes for _, boxes in pairs))


def paired(found: Any, expected: Any, shift: int) -> tuple[float, float]:
    """Largest differences of scores and boxes of two lists; close scores may change places in single precision."""
    assert len(found["labels"]) == len(expected["labels"]) > 20
    assert found["scores"].max() < 0.99
    others = found["labels"][:, None] != expected["labels"] - shift
    apart = (found["boxes"][:, None] - expected["boxes"]).abs().amax(-1) + others * 1e6
    rows, columns = linear_sum_assignment(apart)
    if apart.dtype == torch.float64:
        assert rows.tolist() == columns.tolist()
    scores = (found["scores"][rows] - expected["scores"][columns]).abs().max()
    return scores.item(), apart[rows, columns].max().item()


def in_training(peer: Any, images: list[Tensor], targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """torchvision gives losses in training mode only; batch norm stays as in inference."""
    peer.train()
    for module in peer.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    losses = peer(images, targets)
    peer.eval()
    return losses


def assert_round_trip(peer: Any, detector: Detector, state: dict[str, Tensor], fresh: Any) -> None:
    """``state``, made from ``detector``, is the peer's own, key by key, and a fresh peer loads it."""
    expected = peer.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], expected[key]) for key in expected)
    fresh.load_state_dict(state, strict=True)
