"""transformers' DETR finds and costs the same in this library, in any of its shapes, and its weights go both ways."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from detr_peers import assert_costs_the_same, assert_finds_the_same, batch, truth
from torch import nn
from torchvision.models import resnet18

from detkit.backbones import ResNetBackbone, SmallBackbone
from detkit.detectors import Detector, Preprocess, detr, tiny_ssd
from detkit.detectors.recipes.detr import detr_stage
from detkit.structures import pad_targets
from detkit.weights.transformers import from_transformers, to_transformers

transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed: weights from and to its DETR were NOT tested"
)
pytest.importorskip("timm", reason="timm is not installed: DETR on its backbones was NOT tested")


def resnet(*hidden: int, layer_type: str, **settings) -> object:
    depths = [1 + i % 2 for i in range(len(hidden))]
    return transformers.ResNetConfig(
        embedding_size=8,
        hidden_sizes=list(hidden),
        depths=depths,
        layer_type=layer_type,
        out_features=[f"stage{len(hidden)}"],
        **settings,
    )


def model(**settings) -> nn.Module:
    """As small as it gets, with weights that let queries differ; nothing is what it starts as."""
    torch.manual_seed(0)
    sizes = {"d_model": 32, "encoder_ffn_dim": 40, "decoder_ffn_dim": 48, "encoder_layers": 2, "decoder_layers": 3}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 2, "num_queries": 7, "num_labels": 3}
    peer = transformers.DetrForObjectDetection(transformers.DetrConfig(**(sizes | heads | settings))).eval()
    for name, parameter in peer.named_parameters():
        if not name.startswith("model.backbone"):
            nn.init.normal_(
                parameter,
                mean=float("norm.weight" in name),
                std=0.2 if parameter.ndim == 1 else 2.0 if "query_p" in name else 0.4,
            )
    for name, buffer in peer.named_buffers():
        if buffer.ndim == 1:
            nn.init.uniform_(buffer, *((0.5, 1.5) if name.endswith(("weight", "var")) else (-0.3, 0.3)))
    return peer


basic = partial(model, backbone_config=resnet(8, 12, layer_type="basic"), use_timm_backbone=False)
bottleneck = partial(
    model,
    backbone_config=resnet(
        16, 24, 32, layer_type="bottleneck", downsample_in_bottleneck=True, downsample_in_first_stage=True
    ),
    use_timm_backbone=False,
)
MODELS: dict[str, Callable[..., nn.Module]] = {
    "basic blocks, sines, auxiliary losses": partial(basic, auxiliary_loss=True),
    "bottlenecks, learned positions, other costs": partial(
        bottleneck,
        position_embedding_type="learned",
        activation_function="gelu",
        class_cost=3,
        bbox_cost=1,
        giou_cost=4,
        bbox_loss_coefficient=2,
        giou_loss_coefficient=7,
        eos_coefficient=0.3,
    ),
    "a dilated resnet18 of timm": partial(model, backbone="resnet18", dilation=True),
}
every_model = pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)


@pytest.fixture
def double():
    """transformers' loss makes its class weights in the default precision."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def assert_the_same(peer: nn.Module, *, dtype: torch.dtype, tolerance: float) -> None:
    detector, (images, mask), (ours, theirs) = from_transformers(peer), batch(dtype), truth(dtype)
    close = partial(torch.testing.assert_close, rtol=tolerance, atol=tolerance)
    with torch.no_grad():
        expected = peer(images.tensors, pixel_mask=mask, labels=theirs)
        outputs = detector.objects(detector.trunk(images.tensors), images, None)
        close(outputs.logits[-1], expected.logits)
        close(outputs.boxes[-1], expected.pred_boxes)
        assert expected.logits.std(1).min() > 1e-2  # queries differ
        assert_costs_the_same(detector(images, pad_targets(ours)), peer, expected, close)
        found = detector(images)
    assert_finds_the_same(found, transformers.DetrImageProcessor(), expected, close)


@pytest.mark.slow(2)
@every_model
def test_a_model_costs_and_finds_the_same(build):
    assert_the_same(build(), dtype=torch.float32, tolerance=1e-4)


@pytest.mark.slow
@every_model
def test_a_model_costs_and_finds_the_same_in_double_precision(build, double):
    assert_the_same(build(), dtype=torch.float64, tolerance=1e-10)


@every_model
def test_weights_go_back_bit_for_bit_and_load_strictly(build):
    peer = build()
    expected = {key: value.clone() for key, value in peer.state_dict().items()}
    detector = from_transformers(peer)
    state = to_transformers(detector, timm=peer.config.backbone_config.model_type == "timm_backbone")
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], value) for key, value in expected.items())
    with torch.no_grad():
        for parameter in detector.parameters():
            parameter.add_(1)
    assert all(torch.equal(value, expected[key]) for key, value in peer.state_dict().items())  # a copy
    peer.load_state_dict(state)
    assert not torch.equal(peer.class_labels_classifier.bias, expected["class_labels_classifier.bias"])


@pytest.mark.slow
def test_a_published_size_has_the_parts_of_the_recipe():
    config = transformers.DetrConfig(num_labels=91, dilation=True)
    detector = from_transformers(transformers.DetrForObjectDetection(config))
    recipe = detr(91)
    assert {key: value.shape for key, value in detector.objects.state_dict().items()} == {
        key: value.shape for key, value in recipe.objects.state_dict().items()
    }
    assert detector.trunk.strides == (16,)
    assert repr(detector.objects.matcher) == repr(recipe.objects.matcher)
    assert detector.objects.encoder.encoder.layers[0].attention.heads == 8
    state = to_transformers(Detector(recipe.trunk, preprocess=recipe.preprocess, found=recipe.objects), timm=True)
    transformers.DetrForObjectDetection(config).load_state_dict(state)  # it drops the counts of batch norms itself


def test_mode_precision_and_frozen_parameters_come_along():
    peer = basic().train().to(torch.bfloat16)
    for parameter in peer.model.encoder.layers[1].parameters():
        parameter.requires_grad_(False)
    detector = from_transformers(peer)
    assert detector.training
    assert not from_transformers(peer.eval()).training
    assert {value.dtype for value in detector.state_dict().values()} == {torch.bfloat16}
    frozen = {
        name.split(".")[0] for name, parameter in detector.trunk.named_parameters() if not parameter.requires_grad
    }
    theirs = sum(not parameter.requires_grad for parameter in peer.parameters())
    assert sum(not parameter.requires_grad for parameter in detector.parameters()) == theirs
    assert frozen == {"conv1", "layer1", "layer2"}  # as the model has it
    assert not any(parameter.requires_grad for parameter in detector.objects.encoder.encoder.layers[1].parameters())
    assert all(parameter.requires_grad for parameter in detector.objects.encoder.encoder.layers[0].parameters())


def test_in_training_mode_the_same_is_dropped_out():
    peer = basic(dropout=0.1, attention_dropout=0.2, activation_dropout=0.3).train()
    detector, (images, mask), (ours, theirs) = from_transformers(peer), batch(), truth()
    torch.manual_seed(5)
    expected = peer(images.tensors, pixel_mask=mask, labels=theirs).loss
    torch.manual_seed(5)
    losses = detector(images, pad_targets(ours))
    torch.testing.assert_close(sum(losses.values()), expected, rtol=1e-4, atol=1e-4)
    still = sum(detector.eval()(images, pad_targets(ours)).values())
    assert not torch.isclose(still, expected, rtol=1e-2)


def test_images_are_prepared_as_its_image_processor_prepares_them():
    image = torch.randint(0, 256, (3, 48, 60), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    expected = transformers.DetrImageProcessor()(images=[image], return_tensors="pt")["pixel_values"]
    found, _ = from_transformers(basic()).preprocess([image])
    assert found.tensors.shape == expected.shape == (1, 3, 800, 1000)
    torch.testing.assert_close(found.tensors, expected, rtol=0, atol=0.02)  # it rounds to whole gray values


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"encoder_layerdrop": 0.1}, r"encoder_layerdrop=0.1; allowed is 0.0"),
        ({"decoder_layerdrop": 0.5}, r"decoder_layerdrop=0.5; allowed is 0.0"),
        ({"activation_function": "quick_gelu"}, r"activation_function='quick_gelu'; allowed is 'relu' or 'gelu' or"),
        (
            {"backbone_config": resnet(8, 12, layer_type="basic", hidden_act="mish")},
            r"backbone_config.hidden_act='mish'; allowed is 'relu'",
        ),
        (
            {"backbone_config": resnet(8, 14, layer_type="bottleneck")},
            r"layer2.0 of the backbone gives out 14 channels; a bottleneck's must be a multiple of 4",
        ),
        ({"num_channels": 4, "backbone_config": resnet(8, layer_type="basic", num_channels=4)}, "num_channels=4; allo"),
    ],
    ids=lambda value: None if isinstance(value, str) else "-".join(value),
)  # fmt: skip
def test_what_has_no_counterpart_is_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=rf"^from_transformers: .*{message}"):
        from_transformers(basic(**settings))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnetaa34d", "a layer of the backbone='AvgPool2d'; allowed is 'Conv2d' or"),
        ("resnet18d", "a layer of the backbone='AvgPool2d'; allowed is 'Conv2d' or"),
        ("mobilenetv3_small_050", "a layer of the backbone='.*'; allowed is 'Conv2d' or"),
    ],
)
@pytest.mark.slow
def test_other_backbones_of_timm_are_refused_by_name(name, message):
    with pytest.raises(ValueError, match=rf"^from_transformers: {message}"):
        from_transformers(model(backbone=name))


def test_a_backbone_that_ends_before_its_last_stage_is_refused():
    early = resnet(8, 12, 16, layer_type="basic")
    early.out_features = ["stage2"]
    with pytest.raises(ValueError, match=r"backbone_config.out_features='stage2'.*'stage3'"):
        from_transformers(basic(backbone_config=early))


def test_other_models_are_refused_by_name():
    segmentation = type("DetrForSegmentation", (nn.Linear,), {})(2, 2)
    with pytest.raises(ValueError, match=r"DetrForSegmentation; allowed are transformers' Detr.*, RTDetrV2ForObj"):
        from_transformers(segmentation)


def test_a_model_whose_parts_were_changed_is_refused():
    peer = basic()
    peer.extra = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"is built unlike DETR's: there is no rule for the key 'extra.weight'"):
        from_transformers(peer)


def test_detectors_that_transformers_has_no_model_for_are_refused():
    stage = detr_stage(2, 512, channels=32, depth=1, norm_first=True)
    small, deep = SmallBackbone(), ResNetBackbone(resnet18(weights=None), levels=("layer4",))
    with pytest.raises(ValueError, match="to_transformers: the trunk is a SmallBackbone; allowed is a ResNetBackbone"):
        to_transformers(Detector(small, preprocess=Preprocess(64), objects=stage))
    with pytest.raises(ValueError, match="to_transformers: stages are DenseStage; allowed is one SetPredictionStage"):
        to_transformers(tiny_ssd(2))
    with pytest.raises(ValueError, match="to_transformers: the encoder normalizes first"):
        to_transformers(Detector(deep, preprocess=Preprocess(64), objects=stage))


def test_names_of_classes_come_over_unless_transformers_made_them_up():
    names = {0: "cat", 1: "dog", 2: "N/A"}
    assert from_transformers(basic(id2label=names)).categories == ("cat", "dog", "N/A")
    assert from_transformers(basic()).categories == ()
