"""Freezing: frozen layers learn nothing and compute the same in training, the others as before."""

import copy

import pytest
import timm
import torch
import torchvision
from strategies import assert_refused
from torch import nn

from detkit.detectors import fpn_ssd
from detkit.tricks import SyncBatchNorm, freeze, parameter_groups
from detkit.tricks.depth import layers_of


def moved_stem(model: nn.Module) -> nn.Module:
    """A model whose statistics are not those it was built with."""
    model.train()
    with torch.no_grad():
        model(torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) + 1)
    return model


@pytest.mark.slow
def test_a_frozen_layer_computes_the_same_before_and_after_train():
    model = moved_stem(torchvision.models.resnet18())
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    stem = nn.Sequential(model.conv1, model.bn1, model.relu, model.maxpool, model.layer1)
    expected, rest = copy.deepcopy(stem).eval()(images), copy.deepcopy(model.layer2[0].bn1.running_mean)
    frozen = freeze(model, 3)
    model.train()
    stem = nn.Sequential(model.conv1, model.bn1, model.relu, model.maxpool, model.layer1)
    torch.testing.assert_close(stem(images), expected, rtol=1e-5, atol=1e-5)
    state = {key: value.clone() for key, value in stem.state_dict().items()}
    optimizer = torch.optim.SGD(parameter_groups(model, 0.1, weight_decay=0.1), momentum=0.9)
    model(images).square().mean().backward()
    optimizer.step()
    assert all(torch.equal(value, state[key]) for key, value in stem.state_dict().items())
    assert not torch.equal(model.layer2[0].bn1.running_mean, rest)
    assert {name.split(".")[0] for name in frozen} == {"conv1", "bn1", "layer1"}


@pytest.mark.parametrize("layers", range(11))
@pytest.mark.slow
def test_exactly_the_first_layers_are_frozen(layers):
    model = torchvision.models.resnet18()
    expected = [name for layer in layers_of(model)[:layers] for name in layer]
    assert freeze(model, layers) == expected
    learning = {name for name, value in model.named_parameters() if value.requires_grad}
    assert learning == {name for name, _ in torchvision.models.resnet18().named_parameters()} - set(expected)
    assert all(isinstance(model.get_submodule(name), nn.BatchNorm2d) for name in ("layer4.1.bn2",)) is (layers < 9)


def test_norms_stay_as_they_are_where_asked_and_what_is_frozen_is_not_named_again():
    model = torchvision.models.resnet18()
    first = freeze(model, 1, norms=False)
    assert isinstance(model.bn1, nn.BatchNorm2d)
    assert first == ["conv1.weight", "bn1.weight", "bn1.bias"]
    assert not set(freeze(model, 2)) & set(first)


def test_weights_load_into_a_frozen_model_and_the_whole_is_frozen_without_a_number():
    plain = moved_stem(torchvision.models.resnet18())
    model = torchvision.models.resnet18()
    freeze(model)
    assert not any(value.requires_grad for value in model.parameters())
    assert not any(isinstance(part, nn.BatchNorm2d) for part in model.modules())
    state = {key: value for key, value in plain.state_dict().items() if "num_batches_tracked" not in key}
    model.load_state_dict(state)
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(model.train()(images), plain.eval()(images), rtol=1e-4, atol=1e-4)


def test_a_detectors_backbone_freezes_whatever_its_norms_are():
    detector = SyncBatchNorm.convert(fpn_ssd(2, size=(64, 64)))
    names = freeze(detector.trunk[0])
    assert names
    assert not any(value.requires_grad for value in detector.trunk[0].parameters())
    before = {key: value.clone() for key, value in detector.trunk[0].state_dict().items()}
    targets = [{"boxes": torch.tensor([[4.0, 4, 40, 40]]), "labels": torch.tensor([1])}]
    losses = detector.train()([torch.rand(3, 64, 64)], targets)
    sum(losses.values()).backward()
    assert all(torch.equal(value, before[key]) for key, value in detector.trunk[0].state_dict().items())
    assert all(value.grad is not None for value in detector.parameters() if value.requires_grad)


def test_timms_norms_that_hold_an_activation_freeze_too():
    model = timm.create_model("efficientnet_b0", pretrained=False)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    expected = copy.deepcopy(model).eval()(images)
    freeze(model)
    assert not any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in model.modules())
    kept = {key: value.clone() for key, value in model.state_dict().items()}
    for part in model.modules():  # dropout and stochastic depth stay
        part.drop_rate = part.drop_prob = 0.0
        part.p = 0.0
    torch.testing.assert_close(model.train()(images), expected, rtol=1e-3, atol=1e-3)
    assert all(torch.equal(value, kept[key]) for key, value in model.state_dict().items())


def test_a_norm_without_affine_terms_is_frozen_with_the_whole():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, affine=False))
    freeze(model, 1)
    assert isinstance(model[1], nn.BatchNorm2d)
    freeze(model)
    assert not isinstance(model[1], nn.BatchNorm2d)


@pytest.mark.parametrize("layers", [1, None])
def test_a_norm_that_stands_in_two_places_is_frozen_in_both(layers):
    norm = nn.BatchNorm2d(4)
    model = nn.Sequential(nn.Conv2d(4, 4, 1), norm, nn.Conv2d(4, 4, 1), norm)
    freeze(model, layers)
    assert model[1] is model[3]
    assert not isinstance(model[1], nn.BatchNorm2d)
    kept = {key: value.clone() for key, value in model.state_dict().items()}
    model.train()(torch.rand(2, 4, 3, 3))
    assert all(torch.equal(value, kept[key]) for key, value in model.state_dict().items())


def test_more_layers_than_there_are_and_other_norms_are_refused():
    assert_refused("freeze: layers=11 ResNet 10", freeze, torchvision.models.resnet18(), 11)
    assert_refused("freeze: layers=-1 must be at least 0", freeze, torchvision.models.resnet18(), -1)
    assert_refused("freeze_batch_norm: BatchNorm1d", freeze, nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
    assert_refused("freeze: module BatchNorm2d norms=False", freeze, nn.BatchNorm2d(2))
    assert freeze(nn.BatchNorm2d(2), norms=False) == ["weight", "bias"]
