"""transformers' Conditional DETR finds and costs the same in this library, and its weights go both ways."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from detr_peers import assert_costs_the_same, assert_finds_the_same, batch, truth
from torch import Tensor, nn

from detkit.backbones import SmallBackbone
from detkit.detectors import Detector, Preprocess
from detkit.structures import pad_targets
from detkit.weights.transformers import from_transformers, to_transformers

transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed: weights from and to its Conditional DETR were NOT tested"
)


def model(**settings) -> nn.Module:
    """As small as it gets, with weights that let queries differ; nothing is what it starts as."""
    torch.manual_seed(0)
    backbone = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 12], depths=[1, 2], layer_type="basic", out_features=["stage2"]
    )
    sizes = {"d_model": 32, "encoder_ffn_dim": 40, "decoder_ffn_dim": 48, "encoder_layers": 2, "decoder_layers": 3}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 2, "num_queries": 7, "num_labels": 3}
    config = transformers.ConditionalDetrConfig(**({"backbone_config": backbone} | sizes | heads | settings))
    peer = transformers.ConditionalDetrForObjectDetection(config).eval()
    for name, parameter in peer.named_parameters():
        if not name.startswith("model.backbone"):
            nn.init.normal_(parameter, mean=float("norm.weight" in name), std=0.2 if parameter.ndim == 1 else 0.4)
    for name, buffer in peer.named_buffers():
        if buffer.ndim == 1:
            nn.init.uniform_(buffer, *((0.5, 1.5) if name.endswith(("weight", "var")) else (-0.3, 0.3)))
    return peer


MODELS: dict[str, Callable[..., nn.Module]] = {
    "sines, auxiliary losses": partial(model, auxiliary_loss=True),
    "learned positions, other costs": partial(
        model,
        position_embedding_type="learned",
        activation_function="gelu",
        focal_alpha=0.4,
        class_cost=3,
        bbox_cost=1,
        bbox_loss_coefficient=2,
        giou_loss_coefficient=7,
    ),
}
every_model = pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)


@pytest.fixture
def double(monkeypatch):
    """transformers' loss works in the default precision; wave lengths are rounded to single, but not here."""
    torch.set_default_dtype(torch.float64)

    def waves(points: Tensor, num_pos_feats: int) -> Tensor:
        count = torch.arange(num_pos_feats)
        steps = 10000 ** (2 * torch.div(count, 2, rounding_mode="floor") / num_pos_feats)
        angles = (points.flip(-1) * 2 * math.pi)[..., None] / steps
        return torch.stack((angles[..., 0::2].sin(), angles[..., 1::2].cos()), -1).flatten(-3)

    module = transformers.models.conditional_detr.modeling_conditional_detr
    monkeypatch.setattr(module, "encode_sinusoidal_position_embedding", waves)
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
    assert_finds_the_same(found, transformers.ConditionalDetrImageProcessor(), expected, close)


@every_model
@pytest.mark.slow
def test_a_model_costs_and_finds_the_same(build):
    assert_the_same(build(), dtype=torch.float32, tolerance=1e-4)


@every_model
@pytest.mark.slow
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


def test_what_has_no_counterpart_is_refused_by_name():
    with pytest.raises(ValueError, match=r"^from_transformers: decoder_layerdrop=0.5; allowed is 0.0"):
        from_transformers(model(decoder_layerdrop=0.5))
    stage = from_transformers(model()).objects
    with pytest.raises(ValueError, match="to_transformers: the trunk is a SmallBackbone; allowed is a ResNetBackbone"):
        to_transformers(Detector(SmallBackbone(), preprocess=Preprocess(64), objects=stage))
