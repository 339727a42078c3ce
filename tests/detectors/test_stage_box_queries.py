"""BoxQueryStage: noised queries tell nobody the truth, leave no trace at inference, and cost what they should."""

import pytest
import torch
from torch import Tensor, nn

from detkit.boxes import pixels_to_fractions
from detkit.detectors import BoxQueryStage, box_query_stage
from detkit.detectors.box_queries import BoxQueryOutputs
from detkit.detectors.set_prediction import SetPredictionOutputs, match_layers
from detkit.structures import Images, Target, Targets, pad_targets


@pytest.fixture
def stage() -> BoxQueryStage:
    """Two layers, with weights that let queries differ."""
    torch.manual_seed(0)
    stage = box_query_stage(3, 6, channels=32, hidden=20, depth=2, queries=7, groups=2).double().eval()
    for name, parameter in stage.named_parameters():
        if parameter.ndim > 1 and "queries.boxes" not in name:
            nn.init.normal_(parameter, std=0.2)
    return stage


def images(*sizes: tuple[int, int], frame: tuple[int, int] = (96, 128)) -> Images:
    return Images(torch.zeros(len(sizes), 3, *frame), torch.tensor(sizes))


def cells(count: int, rows: int = 3, columns: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 6, rows, columns, generator=generator, dtype=torch.float64)


def truth() -> Targets:
    """Two objects and one."""
    first = Target(boxes=torch.tensor([[10.0, 8, 40, 60], [50, 20, 90, 80]]), labels=torch.tensor([0, 2]))
    return pad_targets([first, Target(boxes=torch.tensor([[8.0, 8, 60, 56]]), labels=torch.tensor([1]))])


BATCH = images((96, 128), (64, 96))


def test_noised_queries_change_nothing_for_the_others(stage):
    learning, finding = stage([cells(2)], BATCH, None, truth()), stage([cells(2)], BATCH, None)
    torch.testing.assert_close(learning.found, finding.found)
    assert finding.noised is None
    assert finding.found.logits.shape == (2, 2, 7, 4)
    assert learning.noised.logits.shape == (2, 2, 2 * 2, 4)
    assert learning.assignment.matched.tolist() == [[0, 1] * 2, [0, -2] * 2]
    assert not torch.allclose(finding.found.logits[0], finding.found.logits[1])
    assert not torch.allclose(finding.found.boxes[0], finding.found.boxes[1])


def test_noised_queries_start_at_their_boxes(stage):
    stage.denoising.box_noise = 0.0
    for head in stage.decoder.heads:
        for parameter in head.boxes[-1].parameters():
            nn.init.zeros_(parameter)
    outputs = stage([cells(2)], BATCH, None, truth())
    expected = torch.tensor([[25 / 128, 34 / 96, 30 / 128, 52 / 96], [70 / 128, 50 / 96, 40 / 128, 60 / 96]] * 2)
    for layer in outputs.noised.boxes:
        torch.testing.assert_close(layer[0], expected.double(), rtol=1e-6, atol=1e-7)


def test_without_denoising_there_are_only_queries(stage):
    expected = stage([cells(2)], BATCH, None, truth()).found
    stage.denoising = None
    outputs = stage([cells(2)], BATCH, None, truth())
    torch.testing.assert_close(outputs.found, expected)
    assert outputs.noised is None
    assert len(stage.loss(outputs, truth())) == 6


def test_what_lies_in_the_padding_is_not_looked_at(stage):
    features = cells(2)
    found = stage([features], BATCH, None).found
    features[1, :, 2:], features[1, :, :, 3:] = 1e3, -1e3
    torch.testing.assert_close(stage([features], BATCH, None).found, found)
    alone = stage([features[1:, :, :2, :3]], images((64, 96), frame=(64, 96)), None).found
    torch.testing.assert_close(found.logits[:, 1:], alone.logits)
    torch.testing.assert_close(found.boxes[:, 1:], alone.boxes)


def test_a_padded_image_gives_the_same_as_alone(stage):
    small = cells(1, 2, 3)
    padded = torch.full((1, 6, 3, 4), 7.0, dtype=torch.float64)
    padded[..., :2, :3] = small
    alone = stage([small], images((60, 90), frame=(64, 96)), None).found
    together = stage([padded], images((60, 90), frame=(96, 128)), None).found
    torch.testing.assert_close(together.boxes, alone.boxes, rtol=0, atol=1e-12)
    torch.testing.assert_close(together.logits, alone.logits, rtol=0, atol=1e-12)


def test_the_noised_queries_cost_all_layers_together(stage):
    outputs = stage([cells(2)], BATCH, None, truth())
    losses = stage.loss(outputs, truth())
    targets = truth()._replace(boxes=pixels_to_fractions(truth().boxes, BATCH.sizes))
    plain = stage.criterion(*outputs.found[:2], targets, match_layers(stage.matcher, *outputs.found[:2], targets))
    assert losses.keys() == plain.keys() | {f"denoising.{name}" for name in ("classification", "l1", "giou")}
    for name, loss in plain.items():
        torch.testing.assert_close(losses[name], loss)
    count = (outputs.assignment.matched >= 0).sum()
    noised = stage.criterion(*outputs.noised[:2], targets, outputs.assignment, count=count)
    for name in ("classification", "l1", "giou"):
        torch.testing.assert_close(losses[f"denoising.{name}"], noised[name] + noised[f"layer0.{name}"])
        assert losses[f"denoising.{name}"] > 0


def test_more_groups_do_not_cost_more(stage):
    stage.denoising.box_noise = stage.denoising.label_noise = 0.0
    costs = []
    for groups in (1, 4):
        stage.denoising.groups = groups
        costs.append(stage.loss(stage([cells(2)], BATCH, None, truth()), truth()))
    torch.testing.assert_close(costs[0], costs[1])


def test_detections_are_those_of_the_last_layer(stage):
    outputs = stage([cells(2)], BATCH, None)
    logits, boxes, sizes, _ = outputs.found
    earlier = BoxQueryOutputs(SetPredictionOutputs(logits[-1:], boxes[-1:], sizes))
    found = stage.detections(outputs, BATCH)
    assert found.valid.sum() == 14
    torch.testing.assert_close(found.boxes, stage.detections(earlier, BATCH).boxes)
    best = logits[-1].softmax(-1)[..., :-1].amax(-1).sort(descending=True).values
    torch.testing.assert_close(found.scores, best)


def test_junk_in_crowds_and_padding_costs_nothing(stage):
    junk = truth()
    junk.boxes[1, 1], junk.labels[1, 1] = torch.nan, 99
    torch.manual_seed(3)
    expected = stage.loss(stage([cells(2)], BATCH, None, truth()), truth())
    for targets in (junk, junk._replace(valid=torch.ones_like(junk.valid), ignore=~junk.valid)):
        torch.manual_seed(3)
        torch.testing.assert_close(stage.loss(stage([cells(2)], BATCH, None, targets), targets), expected)


@pytest.mark.parametrize("label", [3, 7, -1])
def test_a_label_that_is_no_class_is_named(stage, label):
    targets = truth()
    targets.labels[0, 1] = label
    with pytest.raises(ValueError, match=rf"image 0, target 1: label {label}.*0..2"):
        stage.loss(stage([cells(2)], BATCH, None, targets), targets)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_close_and_boxes_stay_exact(stage, dtype):
    expected = stage([cells(2)], BATCH, None).found
    half = stage.to(dtype)
    found = half([cells(2).to(dtype)], BATCH, None, truth())
    assert found.found.boxes.dtype == torch.float32
    torch.testing.assert_close(found.found.boxes.double(), expected.boxes, atol=0.1, rtol=0)
    assert all(torch.isfinite(loss) for loss in half.loss(found, truth()).values())


def test_every_parameter_learns_also_without_objects(stage):
    nothing = pad_targets([Target(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64))])
    outputs = stage.train()([cells(1)], images((96, 128)), None, nothing)
    losses = stage.loss(outputs, nothing)
    sum(losses.values()).backward()
    assert losses["denoising.classification"] == 0
    for name, parameter in stage.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
