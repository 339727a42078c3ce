"""transformers' Deformable DETR finds and costs the same in this library, in all its variants, and goes both ways."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from detr_peers import assert_costs_the_same, assert_finds_the_same, batch, truth
from torch import Tensor, nn

from detkit.detectors import deformable_detr, small_deformable_detr
from detkit.structures import pad_targets
from detkit.weights.transformers import from_transformers, to_transformers

transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed: weights from and to its Deformable DETR were NOT tested"
)


def model(**settings) -> nn.Module:
    """As small as it gets, with weights that let queries differ; nothing is what it starts as."""
    torch.manual_seed(0)
    backbone = transformers.ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 12, 16],
        depths=[1, 2, 1],
        layer_type="basic",
        out_features=["stage2", "stage3"],
    )
    sizes = {"d_model": 32, "encoder_ffn_dim": 40, "decoder_ffn_dim": 48, "encoder_layers": 2, "decoder_layers": 3}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 2, "num_queries": 7, "num_labels": 3}
    points = {"encoder_n_points": 2, "decoder_n_points": 3, "num_feature_levels": 4, "two_stage_num_proposals": 7}
    config = transformers.DeformableDetrConfig(**({"backbone_config": backbone} | sizes | heads | points | settings))
    peer = transformers.DeformableDetrForObjectDetection(config).eval()
    for name, parameter in peer.named_parameters():
        if not name.startswith("model.backbone"):
            mean = float("norm.weight" in name or ("input_proj" in name and name.endswith("1.weight")))
            nn.init.normal_(parameter, mean=mean, std=0.2 if parameter.ndim == 1 else 0.4)
    for name, buffer in peer.named_buffers():
        if buffer.ndim == 1:
            nn.init.uniform_(buffer, *((0.5, 1.5) if name.endswith(("weight", "var")) else (-0.3, 0.3)))
    return peer


costs = {"class_cost": 3, "bbox_cost": 1, "giou_cost": 4, "bbox_loss_coefficient": 2, "giou_loss_coefficient": 7}
MODELS: dict[str, Callable[..., nn.Module]] = {
    "plain": partial(model, auxiliary_loss=True),
    "learned positions, other costs, no auxiliary losses": partial(
        model, position_embedding_type="learned", activation_function="gelu", focal_alpha=0.4, **costs
    ),
    "refinement": partial(model, with_box_refine=True, auxiliary_loss=True),
    "two stages": partial(model, with_box_refine=True, two_stage=True, auxiliary_loss=True),
}
every_model = pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)


@pytest.fixture
def double(monkeypatch):
    """transformers' loss works in the default precision, and its positions of proposals in single: not here."""
    torch.set_default_dtype(torch.float64)

    def waves(self: nn.Module, proposals: Tensor) -> Tensor:
        count = self.config.d_model // 2
        steps = 10000 ** (2 * torch.div(torch.arange(count), 2, rounding_mode="floor") / count)
        angles = (proposals.sigmoid() * 2 * math.pi)[..., None] / steps
        return torch.stack((angles[..., 0::2].sin(), angles[..., 1::2].cos()), 4).flatten(2)

    kind = transformers.models.deformable_detr.modeling_deformable_detr.DeformableDetrModel
    monkeypatch.setattr(kind, "get_proposal_pos_embed", waves)
    yield
    torch.set_default_dtype(torch.float32)


def assert_the_same(peer: nn.Module, *, dtype: torch.dtype, tolerance: float) -> None:
    detector, (images, mask), (ours, theirs) = from_transformers(peer), batch(dtype), truth(dtype)
    close = partial(torch.testing.assert_close, rtol=tolerance, atol=tolerance)
    with torch.no_grad():
        expected = peer(images.tensors, pixel_mask=mask, labels=theirs)
        outputs = detector.objects(detector.trunk(images.tensors), images, None)
        close(outputs.found[0][-1], expected.logits)
        close(outputs.found[1][-1], expected.pred_boxes)
        assert expected.logits[0].std(0).min() > 1e-2  # queries differ
        assert_costs_the_same(detector(images, pad_targets(ours)), peer, expected, close)
        found = detector(images)
    assert_finds_the_same(found, transformers.DeformableDetrImageProcessor(), expected, close)


@pytest.mark.slow(2)
@every_model
def test_a_model_costs_and_finds_the_same(build):
    assert_the_same(build(), dtype=torch.float32, tolerance=1e-4)


@pytest.mark.slow
@every_model
def test_a_model_costs_and_finds_the_same_in_double_precision(build, double):
    assert_the_same(build(), dtype=torch.float64, tolerance=1e-9)


@every_model
def test_weights_go_back_bit_for_bit_and_load_strictly(build):
    peer = build()
    expected = {key: value.clone() for key, value in peer.state_dict().items()}
    detector = from_transformers(peer)
    state = to_transformers(detector)
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], value) for key, value in expected.items())
    with torch.no_grad():
        for parameter in detector.parameters():
            parameter.add_(1)
    assert all(torch.equal(value, expected[key]) for key, value in peer.state_dict().items())  # a copy
    peer.load_state_dict(state)
    assert not torch.equal(peer.class_embed[0].bias, expected["class_embed.0.bias"])


@every_model
def test_as_much_learns_as_there(build):
    """What is tied is one here too."""
    peer = build()
    for parameter in (*peer.model.encoder.layers[1].parameters(), *peer.bbox_embed[0].parameters()):
        parameter.requires_grad_(False)
    detector = from_transformers(peer.train())
    assert detector.training
    for grad in (True, False):
        theirs = sum(p.numel() for p in peer.parameters() if p.requires_grad == grad)
        assert sum(p.numel() for p in detector.parameters() if p.requires_grad == grad) == theirs
    assert not any(parameter.requires_grad for parameter in detector.objects.encoder.layers[1].parameters())


@every_model
@pytest.mark.slow
def test_in_training_mode_the_same_is_dropped_out(build):
    peer = build(dropout=0.1, attention_dropout=0.2, activation_dropout=0.3).train()
    detector, (images, mask), (ours, theirs) = from_transformers(peer), batch(), truth()
    torch.manual_seed(5)
    expected = peer(images.tensors, pixel_mask=mask, labels=theirs).loss
    torch.manual_seed(5)
    losses = detector(images, pad_targets(ours))
    torch.testing.assert_close(sum(losses.values()), expected, rtol=1e-4, atol=1e-4)
    still = sum(detector.eval()(images, pad_targets(ours)).values())
    assert not torch.isclose(still, expected, rtol=1e-2)


@pytest.mark.slow
def test_on_a_resnet_of_timm_and_one_level():
    pytest.importorskip("timm", reason="timm is not installed: Deformable DETR on its backbones was NOT tested")
    peer = model(backbone_config=None, backbone="resnet18", dilation=True)
    assert_the_same(peer, dtype=torch.float32, tolerance=1e-4)
    state = to_transformers(from_transformers(peer), timm=True)
    assert all(torch.equal(state[key], value) for key, value in peer.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize(("refine", "two_stage"), [(False, False), (True, True)])
def test_a_published_size_has_the_parts_of_the_recipe(refine, two_stage):
    settings = {"with_box_refine": refine, "two_stage": two_stage, "num_labels": 91}
    with torch.device("meta"):
        config = transformers.DeformableDetrConfig(class_cost=2, use_timm_backbone=False, **settings)
        config.backbone_config.out_features = ["stage2", "stage3", "stage4"]
    peer = transformers.DeformableDetrForObjectDetection(config)
    detector, recipe = from_transformers(peer), deformable_detr(91, refine=refine, two_stage=two_stage)
    assert {key: value.shape for key, value in detector.objects.state_dict().items()} == {
        key: value.shape for key, value in recipe.objects.state_dict().items()
    }
    assert detector.trunk.strides == recipe.trunk.strides
    assert repr(detector.objects.losses.matcher) == repr(recipe.objects.losses.matcher)
    peer.load_state_dict(to_transformers(recipe))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"encoder_layerdrop": 0.1}, r"encoder_layerdrop=0.1; allowed is 0.0"),
        ({"activation_function": "quick_gelu"}, r"activation_function='quick_gelu'; allowed is 'relu' or 'gelu' or"),
    ],
    ids=lambda value: None if isinstance(value, str) else "-".join(value),
)  # fmt: skip
def test_what_has_no_counterpart_is_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=rf"^from_transformers: .*{message}"):
        from_transformers(model(**settings))


def test_fewer_levels_than_maps_are_refused():
    peer = model()
    peer.config.num_feature_levels = 1
    with pytest.raises(ValueError, match="num_feature_levels=1; allowed is at least 2, the number of the"):
        from_transformers(peer)


def test_a_model_whose_parts_were_changed_is_refused():
    peer = model()
    peer.extra = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"there is no rule for the key 'extra.weight'"):
        from_transformers(peer)


def test_detectors_that_transformers_has_no_model_for_are_refused():
    with pytest.raises(ValueError, match="to_transformers: 1 stages on a SmallBackbone; allowed is one on a ResNet"):
        to_transformers(small_deformable_detr(2))
