"""The Pix2Seq recipes: what they consist of, and the contract of detectors."""

import pytest
import torch
from contracts import CONTRACT, Case, Check
from thorough import on_request
from torch import nn

from detkit.backbones import SmallBackbone
from detkit.boxes.tokens import TokenCoder
from detkit.data import DigitScenes, collate
from detkit.detectors import Detector, Preprocess, fpn_ssd
from detkit.detectors.recipes.pix2seq import pix2seq, sequence_stage, small_pix2seq
from detkit.detectors.sequence_targets import SequenceTargetBuilder
from detkit.metrics import CocoMetrics
from detkit.tricks import warmup_cosine


def certain() -> Detector:
    """A small detector that leaves nothing to chance, with logits that differ, and boxes that reach every border."""
    detector = small_pix2seq(3, size=(96, 128), channels=16, layers=1, max_objects=6, bins=16, order="area")
    stage = detector.sequence
    stage.targets.noise = False
    for parameter in stage.decoder.parameters():
        nn.init.normal_(parameter, std=0.3)
    with torch.no_grad():
        stage.decoder.head.bias[stage.coder.first_coordinate + 15] += 1.0
    return detector


@pytest.mark.slow
@pytest.mark.parametrize("check", CONTRACT, ids=lambda check: check.__name__)
def test_a_small_pix2seq_keeps_the_contract(check: Check):
    check(Case(certain, 3, frozenset({"sequence.tokens"})))


def test_pix2seq_is_that_of_the_paper():
    backbone = SmallBackbone((8, 16), levels=(1,))
    detector = pix2seq(80, backbone=backbone, preprocess=Preprocess((64, 64)))
    stage = detector.sequence
    assert (stage.coder.size, stage.coder.bins, stage.coder.vocabulary) == (3000, 1000, "code")
    assert (stage.targets.max_objects, stage.targets.order, stage.targets.noise) == (100, "random", True)
    assert (stage.sampler.rule, stage.sampler.top_p, stage.sampler.temperature) == ("reference", 0.4, 1.0)
    assert len(stage.encoder.encoder.layers) == len(stage.decoder.decoder.layers) == 6
    assert stage.decoder.length == 500
    assert stage.decoder.embedding.weight.shape == (3000, 256)
    layer = stage.decoder.decoder.layers[0]
    assert (layer.attention.heads, layer.attention.dropout) == (8, 0.1)
    assert layer.attention_residual.norm_first
    assert layer.feed_forward.inner.out_features == 1024
    assert detector.trunk is backbone


def test_a_small_one_begins_with_the_backbone_of_a_small_ssd():
    taught, detector = fpn_ssd(3, channels=16).trunk[0].state_dict(), small_pix2seq(3, channels=16)
    missing, _ = detector.trunk.load_state_dict(taught, strict=False)
    assert missing == []
    assert detector.trunk.strides == (16,)
    assert detector.sequence.targets.class_weight == 3


def test_in_a_small_one_neighboring_tokens_and_cells_start_alike():
    stage = small_pix2seq(3, channels=16, size=(96, 192), bins=32).sequence
    places = stage.decoder.embedding.weight[stage.coder.first_coordinate :][:32]
    likeness = places @ places.T
    assert likeness.diagonal(1).mean() > 2 * likeness.diagonal(8).mean()
    assert (stage.encoder.positions.turns, stage.encoder.positions.temperature) == (6, 12)


def test_images_of_the_paper_are_640_pixels_on_the_longer_side():
    preprocess = pix2seq(2, backbone=SmallBackbone((8, 16), levels=(1,)), max_objects=1).preprocess
    batch, _ = preprocess([torch.zeros(3, 480, 960), torch.zeros(3, 300, 200)])
    assert batch.sizes.tolist() == [[320, 640], [640, 426]]


def test_a_stage_reads_the_last_of_several_maps():
    builder = SequenceTargetBuilder(TokenCoder(2, bins=9, vocabulary="paper"), max_objects=2)
    backbone = SmallBackbone((8, 16), levels=(0, 1))
    stage = sequence_stage(16, builder, channels=8, heads=2, layers=1)
    found = Detector(backbone, preprocess=Preprocess((64, 64)), sequence=stage)([torch.zeros(3, 64, 64)])
    assert len(found[0]["boxes"]) == 2


def test_training_and_inference_of_one_image_with_several_objects_more_than_fit():
    detector = small_pix2seq(2, size=(64, 64), channels=16, layers=1, max_objects=2)
    boxes = torch.tensor([[1.0, 1, 20, 20], [5, 5, 60, 60], [30, 2, 50, 40]])
    losses = detector([torch.zeros(3, 64, 64)], [{"boxes": boxes, "labels": torch.tensor([0, 1, 1])}])
    assert torch.isfinite(losses["sequence.tokens"])
    assert len(detector.eval()([torch.zeros(3, 64, 64)])[0]["scores"]) == 2


@on_request("Pix2Seq did NOT learn scenes by heart, which takes it 200 steps")
@pytest.mark.slow(8)
def test_a_small_pix2seq_learns_eight_scenes_of_digits_by_heart():
    """In the recipe's random order, with noise: what is said depends on the image alone."""
    torch.manual_seed(0)
    scenes = DigitScenes(8)
    images, targets = collate([scenes[i] for i in range(8)])
    detector = small_pix2seq(10, max_objects=6, bins=48)
    optimizer = torch.optim.AdamW(detector.parameters(), lr=3e-3, betas=(0.9, 0.98), fused=True)
    schedule = warmup_cosine(optimizer, warmup_steps=20, total_steps=201)
    for _ in range(200):
        optimizer.zero_grad()
        sum(detector(images, targets).values()).backward()
        nn.utils.clip_grad_norm_(detector.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    metrics = CocoMetrics(scenes.categories)
    metrics.update(detector.eval()(images), targets)
    assert metrics.compute()["bbox/AP50"] >= 0.95
