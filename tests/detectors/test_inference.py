"""The inference form finds what the detector finds, without its norms; what may not be folded stays."""

import pytest
import torch
from families import CLASSES, FAMILIES, SIDE
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from detkit.detectors import Detector, Preprocess, Stage, fpn_ssd, inference_form
from detkit.structures import Detections, Images
from detkit.weights import load_weights, save_weights


def norms(module: nn.Module) -> int:
    return sum(isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d)) for part in module.modules())


def lived(detector: nn.Module) -> nn.Module:
    """With statistics and scales as after training: at first a batch norm does next to nothing."""
    generator = torch.Generator().manual_seed(0)
    for part in detector.modules():
        if isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d)):
            lows = {part.running_mean: -0.2, part.running_var: 0.5, part.weight: 0.5, part.bias: -0.2}
            for values, low in lows.items():
                values.data.uniform_(low, low + 0.5, generator=generator)
    return detector.eval()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.slow
def test_every_family_finds_the_same_in_float64(family):
    torch.manual_seed(0)
    detector = lived(FAMILIES[family]()).double()
    fast = inference_form(detector)
    assert norms(fast) == 0
    sizes = torch.tensor([[SIDE, SIDE], [SIDE - 9, SIDE - 4]])
    images = Images(torch.rand(2, 3, SIDE, SIDE, dtype=torch.float64), sizes)
    with torch.no_grad():
        expected, found = detector(images), fast(images)
    for one, other in zip(tree_leaves(found), tree_leaves(expected), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)


def test_the_detector_stays_as_it_was():
    detector = fpn_ssd(CLASSES, size=(64, 64), channels=8).train()
    before = {key: value.clone() for key, value in detector.state_dict().items()}
    fast = inference_form(detector)
    assert detector.training
    assert norms(detector) > 0
    assert all(part.requires_grad for part in detector.parameters())
    assert all(torch.equal(value, before[key]) for key, value in detector.state_dict().items())
    assert not fast.training
    assert fast.recipe is None
    assert not any(part.requires_grad for part in fast.parameters())


class Trunk(nn.Module):
    """A trunk of given layers and a given way through them."""

    def __init__(self, run, **layers: nn.Module) -> None:
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, images: Tensor) -> list[Tensor]:
        return [self.run(self, images)]


def conv() -> nn.Module:
    return nn.Conv2d(3, 3, 3, padding=1)


@pytest.mark.parametrize(
    ("run", "left"),
    [
        (lambda own, x: own.norm(own.a(x)), 0),
        (lambda own, x: own.norm(own.a(own.norm(own.a(x)))), 0),  # used twice, in the same way
        (lambda own, x: (y := own.a(x)) + own.norm(y), 1),  # somebody else reads the convolution's output
        (lambda own, x: own.norm(own.a(x)) + own.norm(own.b(x)), 1),  # a norm of two convolutions
        (lambda own, x: own.norm(own.a(x)) + own.norm(x), 1),  # and of something that is none
        (lambda own, x: own.norm(own.a(x).relu()), 1),
        (lambda own, x: own.norm(own.a(x)) + own.a(x), 1),  # once with the norm, once without
        (lambda own, x: own.a(x), 1),  # a norm that never runs
    ],
)
def test_a_norm_is_folded_only_into_a_layer_that_nobody_else_reads(run, left):
    torch.manual_seed(0)
    trunk = lived(Trunk(run, a=conv(), b=conv(), norm=nn.BatchNorm2d(3)))
    fast = inference_form(Detector(trunk, preprocess=Preprocess((32, 32)), blind=Blind()))
    assert norms(fast) == left
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(fast.trunk(images), trunk(images), rtol=1e-5, atol=1e-5)


class Blind(Stage):
    """Finds nothing."""

    def forward(self, features, images, detections, targets=None):
        return len(images.sizes)

    def detections(self, outputs, images):
        rows = torch.zeros(outputs, 1)
        return Detections(torch.zeros(outputs, 1, 4), rows, rows.long(), rows.bool())


def test_norms_behind_linear_layers_are_folded_too():
    torch.manual_seed(0)
    layers = {"linear": nn.Linear(32, 8), "norm": nn.BatchNorm1d(8)}
    trunk = lived(Trunk(lambda own, x: own.norm(own.linear(x[:, 0, 0])), **layers))
    fast = inference_form(Detector(trunk, preprocess=Preprocess((32, 32)), blind=Blind()))
    images = torch.rand(2, 3, 32, 32)
    assert norms(fast) == 0
    torch.testing.assert_close(fast.trunk(images), trunk(images))


def test_its_weights_are_saved_and_loaded_into_another_inference_form(tmp_path):
    torch.manual_seed(0)
    fast = inference_form(lived(fpn_ssd(CLASSES, size=(64, 64), channels=8)))
    save_weights(fast, tmp_path / "fast.safetensors")
    again = inference_form(fpn_ssd(CLASSES, size=(64, 64), channels=8))
    load_weights(again, tmp_path / "fast.safetensors")
    images = [torch.rand(3, 50, 70)]
    assert torch.equal(fast(images)[0]["boxes"], again(images)[0]["boxes"])


def test_another_type_is_that_of_the_trunk_alone_and_boxes_move_little():
    torch.manual_seed(0)
    detector = lived(fpn_ssd(CLASSES, size=(64, 64), channels=8))
    fast = inference_form(detector, dtype=torch.bfloat16)
    assert {part.dtype for part in fast.trunk.parameters()} == {torch.bfloat16}
    assert {part.dtype for part in fast.dense.parameters()} == {torch.float32}
    images = torch.rand(1, 3, 64, 64)
    for half, whole in zip(fast.trunk(images), detector.trunk(images), strict=True):
        assert half.dtype == torch.float32
        assert (half - whole).abs().max() < 0.05 * whole.abs().max()
    assert fast([images[0]])[0]["scores"].dtype == torch.float32


def test_what_is_no_detector_is_refused():
    with pytest.raises(ValueError, match="inference_form: detector is a Conv2d; allowed is a Detector"):
        inference_form(conv())


def hooked(layer: nn.Module) -> nn.Module:
    layer.register_forward_hook(lambda _, __, output: output * 2)
    return layer


@pytest.mark.parametrize(
    ("layer", "norm"),
    [
        (hooked(conv()), nn.BatchNorm2d(3)),
        (conv(), hooked(nn.BatchNorm2d(3))),
        (nn.utils.parametrizations.weight_norm(conv()), nn.BatchNorm2d(3)),
    ],
)
def test_what_hooks_or_parametrizations_change_is_left_as_it_is(layer, norm):
    trunk = lived(Trunk(lambda own, x: own.norm(own.a(x)), a=layer, norm=norm))
    fast = inference_form(Detector(trunk, preprocess=Preprocess((32, 32)), blind=Blind()))
    images = torch.rand(2, 3, 32, 32)
    assert norms(fast) == 1
    torch.testing.assert_close(fast.trunk(images), trunk(images), rtol=1e-5, atol=1e-5)


def test_the_picture_it_looks_at_has_the_channels_of_the_detector():
    trunk = lived(Trunk(lambda own, x: own.norm(own.a(x)), a=nn.Conv2d(1, 3, 3), norm=nn.BatchNorm2d(3)))
    gray = Preprocess((32, 32), mean=(0.5,), std=(1.0,))
    assert norms(inference_form(Detector(trunk, preprocess=gray, blind=Blind()))) == 0
