"""D-FINE's recipes: the published sizes, what has a loss, what parts are told; its contract is in test_rt_detr."""

import pytest
import torch
from contracts import two_images
from strategies import assert_refused

from detkit.detectors import d_fine, d_fine_stage, elan_neck, small_d_fine
from detkit.layers import RepVGGBlock


@pytest.mark.parametrize(
    ("scale", "millions", "layers", "strides"),
    [
        ("n", 4, 3, (16, 32)),
        ("s", 10, 3, (8, 16, 32)),
        ("m", 20, 4, (8, 16, 32)),
        ("l", 31, 6, (8, 16, 32)),
        ("x", 63, 6, (8, 16, 32)),
    ],
)
@pytest.mark.slow
def test_the_published_sizes_have_their_parameters(scale, millions, layers, strides):
    with torch.device("meta"):
        detector = d_fine(80, scale=scale)
    assert round(sum(parameter.numel() for parameter in detector.parameters()) / 1e6) == millions
    stage = detector.objects
    assert len(stage.decoder.layers) == layers
    assert detector.trunk[1].strides == strides
    assert stage.decoder.layers[0].memory_attention.points == ((6, 6) if scale == "n" else (3, 6, 3))
    assert stage.decoder.layers[0].attention.heads == 8
    assert stage.decoder.coder.scale == (8.0 if scale == "x" else 4.0)
    assert stage.losses.edges.coder is stage.decoder.coder
    assert isinstance(stage.encoder.projections[0], torch.nn.Identity) == (scale != "x")


@pytest.mark.slow
def test_every_layer_has_losses_and_all_but_the_last_learn_from_it():
    losses = small_d_fine(3, size=(96, 128), channels=32, depth=2, queries=8)(*two_images())
    kinds = ("classification", "l1", "giou")
    places = ("", "layer0.", "first.", "proposals.", "denoising.")
    expected = {f"objects.{place}{kind}" for place in places for kind in kinds}
    expected |= {f"objects.{place}fgl" for place in ("", "layer0.", "denoising.")}
    assert losses.keys() == expected | {"objects.layer0.ddf", "objects.denoising.ddf"}


@pytest.mark.slow
def test_with_one_layer_there_is_nobody_to_learn_from():
    losses = small_d_fine(3, size=(96, 128), channels=32, depth=1, queries=8)(*two_images())
    assert not any("ddf" in name for name in losses)


def test_blocks_of_the_neck_are_as_deep_and_wide_as_asked():
    neck = elan_neck([8, 16], [8, 16], channels=32, hidden=64, depth=2, expansion=0.5)
    blocks = [part for part in neck.modules() if isinstance(part, RepVGGBlock)]
    assert len(blocks) == 2 * 2 * 2
    assert {block.wide[0].out_channels for block in blocks} == {8}


def test_a_size_that_was_not_published_is_refused_by_name():
    assert_refused("d_fine scale='xx' allowed 'n'", d_fine, 2, scale="xx")


def test_channels_that_no_heads_fit_are_refused():
    with pytest.raises(ValueError, match="d_fine_stage: channels=48 must be a multiple of 8, or of 32 below 128"):
        d_fine_stage(3, [48], channels=48)
