"""Groups for optimizers: every trainable parameter once, at the rate and decay that the rules say."""

import functools

import pytest
import timm
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from strategies import assert_refused
from torch import nn
from torch.nn.parallel import DataParallel

from detkit.backbones import TimmBackbone
from detkit.detectors import faster_rcnn, fpn_ssd, small_detr
from detkit.tricks import freeze, parameter_groups
from detkit.tricks.depth import layers_of
from detkit.weights import load_checkpoint, save_checkpoint

MODELS = {
    "fpn_ssd": (lambda: fpn_ssd(2), lambda model: model.trunk[0]),
    "faster_rcnn": (lambda: faster_rcnn(2), lambda model: model.trunk[0]),
    "detr": (lambda: small_detr(2), lambda model: model.trunk),
    "resnet18": (torchvision.models.resnet18, lambda model: model.layer4),
    "vgg11": (torchvision.models.vgg11, lambda model: model.features),
    "swin_t": (torchvision.models.swin_t, lambda model: model.features),
    "convnext_tiny": (torchvision.models.convnext_tiny, lambda model: model.features),
    "timm": (lambda: timm.create_model("vit_tiny_patch16_224", pretrained=False), lambda model: model.blocks),
    "timm backbone": (
        lambda: nn.ModuleDict({
            "backbone": TimmBackbone(timm.create_model("resnet10t", pretrained=False, features_only=True)),
            "head": nn.Conv2d(512, 4, 1),
        }),
        lambda model: model["backbone"],
    ),
}  # fmt: skip


@functools.cache
def made(name: str) -> nn.Module:
    """The model, without memory for what it holds."""
    with torch.device("meta"):
        return MODELS[name][0]()


@pytest.mark.parametrize("part", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_every_trainable_parameter_is_in_one_group_of_its_name(name, part):
    model = made(name)
    backbone = MODELS[name][1](model) if part else None
    groups = parameter_groups(
        model, 0.1, weight_decay=0.05, backbone=backbone, layer_decay=0.7, backbone_factor=0.5 if part else 1.0
    )
    found = {name: value for group in groups for name, value in zip(group["param_names"], group["params"], strict=True)}
    expected = {name: value for name, value in model.named_parameters() if value.requires_grad}
    assert found.keys() == expected.keys()
    assert all(found[key] is value for key, value in expected.items())
    assert sum(len(group["params"]) for group in groups) == len(expected)
    assert len({(group["lr"], group["weight_decay"]) for group in groups}) == len(groups) > 2
    assert all(value.ndim > 1 for group in groups if group["weight_decay"] for value in group["params"])
    torch.optim.AdamW(groups)  # refuses what is there twice
    if part:
        inside = {id(value) for value in backbone.parameters()}
        for group in groups:
            assert {id(value) in inside for value in group["params"]} == {group["lr"] < 0.1}


class Twig(nn.Module):
    """Any network: a tree of small parts, some shared, some frozen."""

    def __init__(self, parts: list) -> None:
        super().__init__()
        for i, part in enumerate(parts):
            self.add_module(f"{'abc'[i % 3]}{i if i % 2 else ''}", part if isinstance(part, nn.Module) else Twig(part))


SHARED = nn.Linear(2, 2)
leaves = (
    st.builds(lambda: nn.Linear(2, 2)) | st.builds(lambda: nn.BatchNorm1d(2)) | st.just(SHARED) | st.builds(nn.ReLU)
)
trees = st.recursive(leaves, lambda below: st.lists(below, min_size=1, max_size=4), max_leaves=12)


@given(
    tree=st.lists(trees, min_size=1, max_size=4), frozen=st.sets(st.integers(0, 9)), decay=st.sampled_from([0.5, 1.0])
)
def test_any_network_has_every_trainable_parameter_once(tree, frozen, decay):
    model = nn.ModuleDict({"backbone": Twig(tree), "head": nn.Linear(2, 2)})
    for i, value in enumerate(model.parameters()):
        value.requires_grad_(i not in frozen or value is model["head"].weight)
    groups = parameter_groups(model, 1.0, backbone=model["backbone"], layer_decay=decay)
    found = [id(value) for group in groups for value in group["params"]]
    assert sorted(found) == sorted(id(value) for value in model.parameters() if value.requires_grad)
    rates = {id(value): group["lr"] for group in groups for value in group["params"]}
    layers = layers_of(model["backbone"])
    named = dict(model["backbone"].named_parameters())
    for depth, layer in enumerate(layers):
        for name in layer:
            assert rates.get(id(named[name]), decay ** (len(layers) - depth)) == decay ** (len(layers) - depth)
    for value in model.parameters():
        value.requires_grad_(True)


def test_layers_decay_from_the_last_one_down():
    model = torchvision.models.resnet18()
    groups = parameter_groups(model, 1.0, layer_decay=0.5)
    rates = {name: group["lr"] for group in groups for name in group["param_names"]}
    assert rates["fc.weight"] == 1
    assert rates["layer4.1.conv2.weight"] == rates["layer4.1.bn2.bias"] == 0.5
    assert rates["conv1.weight"] == rates["bn1.weight"] == 0.5**9
    whole = {name: rate * 0.5 * 0.1 for name, rate in rates.items()}  # a backbone's last layer is below the head
    detector = nn.ModuleDict({"backbone": model, "head": nn.Linear(2, 2)})
    groups = parameter_groups(detector, 1.0, backbone=model, backbone_factor=0.1, layer_decay=0.5)
    assert {name: group["lr"] for group in groups for name in group["param_names"]} == {
        **{f"backbone.{name}": pytest.approx(rate) for name, rate in whole.items()}, "head.weight": 1, "head.bias": 1
    }  # fmt: skip


def test_detrs_groups_are_two_rates():
    model = small_detr(2)
    groups = parameter_groups(model, 1e-4, weight_decay=1e-4, backbone=model.trunk, backbone_factor=0.1)
    assert sorted({group["lr"] for group in groups}) == pytest.approx([1e-5, 1e-4])


@pytest.mark.slow
def test_vectors_and_named_parameters_do_not_decay():
    model = torchvision.models.swin_t()
    groups = parameter_groups(model, 0.1, weight_decay=0.05, undecayed=["relative_position_bias_table"])
    decays = {name: group["weight_decay"] for group in groups for name in group["param_names"]}
    assert decays.keys() == dict(model.named_parameters()).keys()
    for name, value in model.named_parameters():
        assert decays[name] == (0.05 if value.ndim > 1 and "relative_position" not in name else 0), name


def test_a_timm_model_says_what_does_not_decay():
    model = timm.create_model("vit_tiny_patch16_224", pretrained=False)
    groups = parameter_groups(model, 0.1, weight_decay=0.05)
    decays = {name: group["weight_decay"] for group in groups for name in group["param_names"]}
    assert decays["pos_embed"] == decays["cls_token"] == 0
    assert decays["blocks.0.mlp.fc1.weight"] == 0.05


def test_frozen_parameters_are_left_out():
    model = torchvision.models.resnet18()
    frozen = freeze(model, 3)
    names = [name for group in parameter_groups(model, 0.1) for name in group["param_names"]]
    assert not set(frozen) & set(names)
    assert names == [name for name, _ in model.named_parameters() if not name.startswith(("conv1", "bn1", "layer1"))]


def test_wrapped_models_have_the_groups_of_what_they_wrap():
    model = fpn_ssd(2)
    plain = parameter_groups(model, 0.1, backbone=model.trunk[0], backbone_factor=0.1)
    wrapped = parameter_groups(DataParallel(model), 0.1, backbone=DataParallel(model.trunk[0]), backbone_factor=0.1)
    assert [group["param_names"] for group in wrapped] == [group["param_names"] for group in plain]


def test_the_optimizer_steps_by_group_and_its_state_keeps_the_names(tmp_path):
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    before = [value.item() for value in model.parameters()]
    optimizer = torch.optim.SGD(parameter_groups(model, 1.0, backbone=model[0], backbone_factor=0.25))
    for value in model.parameters():
        value.grad = torch.ones(1, 1)
    optimizer.step()
    moved = [old - value.item() for old, value in zip(before, model.parameters(), strict=True)]
    assert moved == pytest.approx([0.25, 1.0])
    save_checkpoint({"optimizer": optimizer.state_dict()}, tmp_path / "state.pt")
    groups = load_checkpoint(tmp_path / "state.pt")["optimizer"]["param_groups"]
    assert [group["param_names"] for group in groups] == [["0.weight"], ["1.weight"]]


def test_what_cannot_be_grouped_is_refused():
    model, other = nn.Sequential(nn.Linear(1, 1)), nn.Linear(1, 1)
    assert_refused("parameter_groups: backbone Linear part of the model", parameter_groups, model, 0.1, backbone=other)
    assert_refused("parameter_groups: backbone ReLU no part", parameter_groups, model, 0.1, backbone=nn.ReLU())
    assert_refused("parameter_groups: backbone_factor=0.5 backbone", parameter_groups, model, 0.1, backbone_factor=0.5)
    assert_refused(
        "parameter_groups: undecayed ['nothing']", parameter_groups, model, 0.1, undecayed=["bias", "nothing"]
    )
    assert_refused("parameter_groups: lr=0 must be above 0", parameter_groups, model, 0)
    freeze(model)
    assert_refused("parameter_groups: model no parameter gradient", parameter_groups, model, 0.1)
