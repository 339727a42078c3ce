"""RT-DETR v2's recipes: the published sizes, what has a loss, and the contract, which D-FINE keeps as well."""

import pytest
import torch
from contracts import CONTRACT, Case, Check, two_images
from strategies import assert_refused
from torch import nn

from detkit.detectors import Detector, Preprocess, hybrid_neck, rt_detr_stage, rt_detr_v2, small_d_fine, small_rt_detr
from detkit.layers import RepVGGBlock

LAYERS = ("", "layer0.", "proposals.")
BACKGROUND = frozenset(f"objects.{layer}classification" for layer in LAYERS)
CHECKS = [
    check
    for check in CONTRACT
    if check.__name__
    not in (  # an object without area has a query, too; and queries outside a crowd learn background
        "a_batch_without_positives_trains_every_parameter",
        "crowds_teach_nothing",
        "bfloat16_autocast_stays_finite_and_close",  # it chooses other cells of nearly equal scores
    )
]


def still(detector: Detector) -> Detector:
    """Noise is none; boxes are as large as the image, and queries differ, or ties hide what is wrong."""
    stage = detector.objects
    stage.denoising.label_noise = stage.denoising.box_noise = 0.0
    stage.denoising.contrastive, stage.denoising.groups = False, 2
    for head in stage.decoder.heads:
        nn.init.normal_(head.logits.weight, std=0.5)
    stage.selection.head.boxes[-1].bias.data[2:] = 4.0
    for name, parameter in stage.named_parameters():
        if name.endswith(("boxes.4.weight", "edges.4.weight", "initial.4.weight")):
            nn.init.normal_(parameter, std=0.2)
    return detector


def small() -> Detector:
    return still(small_rt_detr(3, size=(96, 128), channels=32, depth=2, queries=8))


def fine() -> Detector:
    return still(small_d_fine(3, size=(96, 128), channels=32, depth=2, queries=8))


CASES = {
    "rt detr": Case(small, 3, BACKGROUND),
    "d fine": Case(fine, 3, BACKGROUND | {"objects.first.classification", "objects.layer0.ddf"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_detector_of_selected_queries_keeps_the_contract(check: Check, case: Case):
    check(case)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.slow
def test_bfloat16_autocast_stays_finite(case: Case):
    detector = case.detector()
    with torch.autocast("cpu", torch.bfloat16):
        losses, found = detector(*two_images()), detector(two_images()[0])
    assert all(loss.isfinite() and loss.dtype == torch.float32 for loss in losses.values())
    assert all(one["boxes"].isfinite().all() for one in found)


@pytest.mark.parametrize(
    ("depth", "millions", "layers", "channels"),
    [(18, 20, 3, 256), (34, 31, 4, 256), (50, 43, 6, 256), (101, 77, 6, 384)],
)
def test_the_published_sizes_have_their_parameters(depth, millions, layers, channels):
    with torch.device("meta"):
        detector = rt_detr_v2(80, depth=depth)
    assert round(sum(parameter.numel() for parameter in detector.parameters()) / 1e6) == millions
    assert len(detector.objects.decoder.layers) == layers
    assert detector.trunk[1].out_channels == (channels,) * 3
    assert detector.trunk[1].strides == (8, 16, 32)
    assert (detector.objects.selection.count, detector.objects.denoising.max_queries) == (300, 200)
    assert detector.objects.decoder.layers[0].attention.heads == 8
    assert detector.trunk[1].attention.encoder.layers[0].attention.heads == 8
    assert detector.preprocess.size == (640, 640)


def test_every_layer_and_the_cells_have_losses_and_noised_queries_too():
    losses = small()(*two_images())
    kinds = ("classification", "l1", "giou")
    places = ("", "layer0.", "proposals.", "denoising.")
    assert losses.keys() == {f"objects.{place}{kind}" for place in places for kind in kinds}


def test_a_given_preprocess_is_taken():
    preprocess = Preprocess((64, 64))
    with torch.device("meta"):
        assert rt_detr_v2(2, depth=18, preprocess=preprocess).preprocess is preprocess


def test_blocks_of_the_neck_are_as_deep_as_asked():
    neck = hybrid_neck([8, 16], [8, 16], channels=32, hidden=64, depth=2)
    assert sum(isinstance(part, RepVGGBlock) for part in neck.modules()) == 2 * 2


def test_a_size_that_was_not_published_is_refused_by_name():
    assert_refused("rt_detr_v2 depth=20 allowed 18", rt_detr_v2, 2, depth=20)


def test_channels_that_no_heads_fit_are_refused():
    with pytest.raises(ValueError, match="rt_detr_stage: channels=48 must be a multiple of 8, or of 32 below 128"):
        rt_detr_stage(3, [48], channels=48)
    with pytest.raises(ValueError, match="hybrid_neck: channels=132 must be a multiple of 8"):
        hybrid_neck([8], [8], channels=132)
