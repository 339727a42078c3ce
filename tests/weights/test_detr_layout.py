"""Backbones built by the shapes of their weights: any ResNet of torchvision, and what is none."""

import pytest
import torch
from torch import nn
from torchvision.models import resnet18, resnet50, resnext50_32x4d, wide_resnet50_2
from torchvision.models.resnet import Bottleneck, ResNet

from detkit.backbones import ResNetBackbone
from detkit.detectors import Detector, tiny_ssd
from detkit.weights.detr_layout import FACEBOOK, count, detr_renames, detr_stage_of, published_steps, resnet_of


def steps_of(model: nn.Module) -> dict[str, tuple[int, int]]:
    """What the model itself says."""
    parts = {name: part for name, part in model.named_modules() if isinstance(part, nn.Conv2d)}
    return {name: (part.stride[0], part.dilation[0]) for name, part in parts.items()}


MODELS = {
    "resnet18": (resnet18, {}),
    "resnet50": (resnet50, {}),
    "resnext50_32x4d": (resnext50_32x4d, {}),
    "wide_resnet50_2": (wide_resnet50_2, {}),
    "dc5": (resnet50, {"replace_stride_with_dilation": [False, False, True]}),
}


@pytest.mark.parametrize(("build", "settings"), MODELS.values(), ids=MODELS)
def test_strides_and_dilations_of_published_backbones_are_known(build, settings):
    with torch.device("meta"):
        model = build(weights=None, **settings)
    assert published_steps(model.state_dict(), dilated=bool(settings)) == steps_of(model)


def test_a_backbone_of_groups_and_dilation_sees_what_the_model_of_the_same_weights_sees():
    torch.manual_seed(0)
    model = ResNet(
        Bottleneck, [2, 1, 1, 2], groups=4, width_per_group=4, replace_stride_with_dilation=[False, True, True]
    ).eval()
    state = {key: value for key, value in model.state_dict().items() if not key.startswith("fc.")}
    built = resnet_of(state, steps_of(model)).eval()
    built.load_state_dict(state)
    expected = ResNetBackbone(model, levels=("layer4",))
    assert (built.strides, built.out_channels) == (expected.strides, expected.out_channels) == ((8,), (2048,))
    image = torch.rand(1, 3, 40, 56)
    with torch.no_grad():
        torch.testing.assert_close(built(image)[0], expected(image)[0], rtol=1e-4, atol=1e-5)


def test_strides_that_disagree_in_a_block_are_refused():
    state = resnet18(weights=None).state_dict()
    steps = published_steps(state) | {"layer3.0.downsample.0": (1, 1)}
    with pytest.raises(ValueError, match=r"layer3.0 of the backbone has stride 2, what passes it 1; they must agree"):
        resnet_of(state, steps)


@pytest.mark.parametrize("missing", ["conv1.weight", "layer1.0.conv1.weight"])
def test_weights_of_no_resnet_are_refused(missing):
    state = resnet18(weights=None).state_dict()
    del state[missing]
    with pytest.raises(
        ValueError, match=r"the backbone has \d stages of residual blocks; allowed are 1 to 4 behind co"
    ):
        resnet_of(state, {})


def test_rules_follow_the_number_of_layers():
    keys = [f"transformer.encoder.layers.{i}.linear1.bias" for i in range(12)]
    rules = detr_renames(keys, FACEBOOK, other=FACEBOOK, stage="found")
    assert {rule.ours.split(".")[0] for rule in rules} == {"found"}
    assert sum(".layers.11." in rule.ours for rule in rules) == 8
    assert not any(".decoder.layers." in rule.ours for rule in rules)
    assert count([], "layers.") == count(["layers.norm.bias"], "layers.") == 0


def test_a_stage_among_others_is_refused():
    one, two = tiny_ssd(2), tiny_ssd(2)
    both = Detector(one.trunk, preprocess=one.preprocess, a=one.dense, b=two.dense)
    with pytest.raises(ValueError, match="here: stages are DenseStage, DenseStage; allowed is one SetPredictionStage"):
        detr_stage_of(both, "here")
