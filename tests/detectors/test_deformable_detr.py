"""Deformable DETR's recipes: their parts, the contract, where queries come from, and what has a loss."""

import math

import pytest
import torch
from contracts import CONTRACT, Case, Check, two_images
from torch import nn

from detkit.backbones import SmallBackbone
from detkit.detectors import Detector, Preprocess
from detkit.detectors.recipes.deformable_detr import (
    box_selection,
    deformable_detr,
    deformable_detr_stage,
    level_projections,
    small_deformable_detr,
)
from detkit.layers import LevelMemory, PointQueries, QuerySelection
from detkit.layers.box_decoder import waves

BACKGROUND = frozenset(f"objects.{layer}classification" for layer in ("", "layer0."))
CHECKS = [
    check
    for check in CONTRACT
    if check.__name__
    not in (  # an object without area has a query, too; and queries outside a crowd learn background
        "a_batch_without_positives_trains_every_parameter",
        "crowds_teach_nothing",
    )
]


def spread(detector: Detector) -> Detector:
    """Queries must differ, or ties hide what is wrong; boxes are as large as the image."""
    for head in detector.objects.decoder.heads:
        head.boxes[-1].bias.data[2:] = 4.0
        nn.init.normal_(head.logits.weight, std=0.5)
    return detector


def plain(refine: bool = False) -> Detector:
    backbone = SmallBackbone((8, 16, 32), levels=(1, 2))
    stage = deformable_detr_stage(
        3,
        backbone.out_channels,
        channels=32,
        hidden=64,
        depth=(1, 2),
        levels=3,
        queries=8,
        dropout=0.0,
        refine=refine,
    )
    return spread(Detector(backbone, preprocess=Preprocess((96, 128)), objects=stage))


def selected() -> Detector:
    return spread(small_deformable_detr(3, size=(96, 128), channels=32, depth=2, queries=8))


CASES = {
    "plain": Case(plain, 3, BACKGROUND),
    "two stages": Case(selected, 3, BACKGROUND | {"objects.proposals.classification"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_deformable_detr_keeps_the_contract(check: Check, case: Case):
    check(case)


def test_heads_are_one_without_refinement_and_start_small_around_points():
    stage = plain().objects
    assert stage.decoder.heads[0] is stage.decoder.heads[1]
    assert stage.decoder.refine is False
    stage = plain(refine=True).objects
    assert stage.decoder.heads[0] is not stage.decoder.heads[1]
    stage = deformable_detr_stage(3, [8], channels=32, depth=(1, 2), levels=1, queries=4, refine=True)
    assert stage.decoder.heads[0].boxes[-1].bias.tolist() == [0, 0, -2, -2]
    assert not stage.decoder.heads[1].boxes[-1].bias.any()
    for head in stage.decoder.heads:
        assert head.logits.bias[0].sigmoid().item() == pytest.approx(0.01)


@pytest.mark.parametrize("two_stage", [False, True])
@pytest.mark.slow
def test_it_is_that_of_the_paper(two_stage):
    """The sizes of all its parts are compared in tests/weights/test_transformers_deformable.py."""
    with torch.device("meta"):
        detector = deformable_detr(91, two_stage=two_stage)
    stage = detector.objects
    assert detector.trunk.strides == (8, 16, 32)
    assert len(stage.encoder.layers) == len(stage.decoder.layers) == 6
    assert stage.encoder.layers[0].attention.points == (4, 4, 4, 4)
    assert stage.encoder.layers[0].feed_forward.dropout.p == 0.1
    assert isinstance(stage.selection, QuerySelection if two_stage else PointQueries)
    assert stage.decoder.refine == two_stage
    assert (detector.preprocess.size, detector.preprocess.max_size) == (800, 1333)


def test_learned_queries_look_around_points_of_their_positions():
    torch.manual_seed(0)
    queries, memory = PointQueries(5, 8), small_memory()
    found = queries(memory)
    positions, embeddings = queries.queries.weight.split(8, 1)
    torch.testing.assert_close(found.positions, positions.expand(2, -1, -1))
    torch.testing.assert_close(found.embeddings, embeddings.expand(2, -1, -1))
    torch.testing.assert_close(found.boxes[1], queries.points(positions).sigmoid())
    assert found.logits is None
    assert found.proposals is None


def small_memory(channels: int = 8) -> LevelMemory:
    inside = torch.ones(2, 20, dtype=torch.bool)
    inside[1, 2:4] = inside[1, 17] = False
    shares = torch.tensor([[[1.0, 1.0], [1.0, 1.0]], [[0.5, 1.0], [0.5, 1.0]]])
    return LevelMemory(torch.randn(2, 20, channels), inside, [(4, 4), (2, 2)], shares)


def test_chosen_queries_are_waves_of_their_boxes():
    torch.manual_seed(0)
    selection = box_selection(32, 3, 5)
    nn.init.normal_(selection.head.logits.weight)
    nn.init.normal_(selection.head.boxes[-1].weight)
    found = selection(small_memory(32))
    torch.testing.assert_close(found.boxes, found.proposals)
    assert not found.boxes.requires_grad
    assert found.proposals.requires_grad
    both = selection.boxes.net(waves(found.boxes, 16, temperature=10000.0))
    torch.testing.assert_close(torch.cat((found.positions, found.embeddings), -1), both)
    assert waves(torch.tensor([0.3]), 4, temperature=9.0).tolist() == pytest.approx(
        [f(2 * math.pi * 0.3 / length) for length in (1, 3) for f in (math.sin, math.cos)], rel=1e-5
    )


def test_the_first_logit_alone_chooses_where_it_shall():
    torch.manual_seed(0)
    selection, memory = box_selection(32, 3, 20), small_memory(32)
    nn.init.normal_(selection.head.logits.weight)
    for first in (False, True):
        selection.first_logit = first
        logits = selection(memory).logits
        scores = logits[..., 0] if first else logits.amax(-1)
        order = scores[0].argsort(descending=True, stable=True)
        assert torch.equal(scores[0], scores[0][order])  # all cells of the first image, the best first
    assert "first_logit=True" in repr(selection)


@pytest.mark.slow
def test_only_the_last_layer_has_losses_without_auxiliary_ones_and_cells_only_with_proposals():
    images, targets = two_images()
    names = {"classification", "l1", "giou"}
    for auxiliary, proposals, layers in (
        (True, True, {"", "layer0.", "proposals."}),
        (True, False, {"", "layer0."}),
        (False, True, {"", "proposals."}),
        (False, False, {""}),
    ):
        detector = selected()
        detector.objects.losses.auxiliary, detector.objects.losses.proposals = auxiliary, proposals
        losses = detector(images, targets)
        assert losses.keys() == {f"objects.{layer}{name}" for layer in layers for name in names}
    assert "auxiliary=False, proposals=False" in repr(detector.objects.losses)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="deformable_detr_stage: channels=48 must be a multiple of 32"):
        deformable_detr_stage(3, [8], channels=48)
    with pytest.raises(ValueError, match="deformable_detr_stage: levels=1 must be at least the 2 feature maps"):
        level_projections([8, 16], 32, levels=1)
