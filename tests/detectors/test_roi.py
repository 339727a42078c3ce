"""BoxStage against plain loops and torchvision's RoIHeads; and what runs only on rows that count."""

import math
from typing import Any

import pytest
import torch
from strategies import assert_refused, random_boxes, targets_of
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss

from detkit.anchors import BalancedSampler, GrayMatcher, ThresholdMatcher
from detkit.boxes import DeltaCoder, PyramidRoIAlign
from detkit.detectors import Postprocess
from detkit.detectors.roi import BoxOutputs, BoxStage, learns_from_rows, on_valid_rows
from detkit.heads import BoxHead, conv_body, dense_body
from detkit.losses import RCNNLoss
from detkit.structures import IGNORED, Detections, Images, Targets

CLASSES = 3
WEIGHTS = (10.0, 10.0, 5.0, 5.0)
SIZES = torch.tensor([[80, 100], [60, 50]])
IMAGES = Images(torch.zeros(2, 3, 80, 100), SIZES)


def stage(
    *, count: int = 1000, fraction: float = 1.0, agnostic: bool = False, norm: Any = None, score: float = 0.3
) -> BoxStage:
    """A small stage whose untrained head is sure of this and that."""
    torch.manual_seed(0)
    body = dense_body(4, 3, width=16) if norm is None else conv_body(4, 3, channels=(8,), width=16, norm=norm)
    head = BoxHead(body, 16, num_classes=CLASSES, class_agnostic=agnostic)
    with torch.no_grad():
        head.logits.weight.mul_(8)
        head.deltas.weight.mul_(4)
    return BoxStage(
        pool=PyramidRoIAlign(3, strides=(8, 16), canonical_size=60),
        head=head,
        matcher=ThresholdMatcher(positive_iou=0.5, negative_iou=0.5, low_quality=False),
        sampler=BalancedSampler(count, positive_fraction=fraction),
        coder=DeltaCoder(WEIGHTS),
        criterion=RCNNLoss(),
        postprocess=Postprocess(
            score_threshold=score, iou_threshold=0.5, max_detections=20, candidates_per_class=None, min_size=1e-2
        ),
    ).double()


def features() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, 4, 80 // s, 96 // s, generator=generator, dtype=torch.float64) for s in (8, 16)]


def proposals(*, padding: int = 0, fill: float = 0.0) -> Detections:
    """Seven proposals for the first image and four for the second, near the objects and far from them."""
    boxes = random_boxes(14, seed=4, extent=70, dtype=torch.float64).reshape(2, 7, 4)
    objects = truth().boxes[:, :2]
    boxes[:, 0], boxes[:, 2] = objects[:, 0] + 1, objects[:, 1] - 2
    valid = torch.arange(7 + padding) < torch.tensor([[7], [4]])
    boxes = torch.cat((boxes, torch.zeros(2, padding, 4, dtype=torch.float64)), dim=1)
    boxes = torch.where(valid[..., None], boxes, fill)
    return Detections(boxes, valid.double(), torch.zeros_like(valid, dtype=torch.int64), valid)


def truth(**entries: Any) -> Targets:
    first = torch.tensor([[5.0, 6, 50, 60], [30, 10, 90, 70], [2, 40, 20, 75]], dtype=torch.float64)
    second = torch.tensor([[4.0, 3, 40, 50], [10, 20, 45, 58]], dtype=torch.float64)
    targets = targets_of(first, second, **entries)
    return targets._replace(labels=torch.where(targets.valid, (targets.labels + 1) % CLASSES, 0))


def nothing() -> Targets:
    return targets_of(torch.zeros(0, 4), torch.zeros(0, 4))


def overlap(one: list[float], other: list[float]) -> float:
    width, height = (min(one[i + 2], other[i + 2]) - max(one[i], other[i]) for i in (0, 1))
    shared = max(width, 0) * max(height, 0)
    return shared / (sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)) - shared)


def slow_samples(found: Detections, targets: Targets, image: int) -> list[tuple[list[float], int]]:
    """(box, object or -1) of one image where all are taken: proposals, then objects; positives first."""
    rows = targets.valid[image] & ~targets.ignore[image]
    objects = {i: targets.boxes[image, i].tolist() for i in rows.nonzero().flatten().tolist()}
    boxes = found.boxes[image, found.valid[image]].tolist() + list(objects.values())
    samples = []
    for box in boxes:
        fits = {i: overlap(box, other) for i, other in objects.items()}
        best = max(fits, key=lambda i: (fits[i], -i), default=-1)
        samples.append((box, best if fits.get(best, 0) >= 0.5 else -1))
    return sorted(samples, key=lambda sample: sample[1] < 0)


def learned(box: BoxStage, found: Detections, targets: Targets) -> tuple[dict[str, Tensor], list[Tensor | None]]:
    """The losses, and the gradients of all parameters and of the features."""
    maps = [level.requires_grad_() for level in features()]
    box.zero_grad(set_to_none=True)
    losses = box.loss(box(maps, IMAGES, found, targets), targets)
    sum(losses.values()).backward()
    return losses, [parameter.grad for parameter in box.parameters()] + [level.grad for level in maps]


def assert_same(found, expected) -> None:
    """Losses and gradients of two runs agree."""
    torch.testing.assert_close(found[0], expected[0], rtol=1e-10, atol=1e-12)
    for one, other in zip(found[1], expected[1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-12)


# Training


def test_proposals_and_objects_are_sampled_positives_first_as_loops_do():
    found, targets = proposals(padding=3), truth()
    outputs = stage()(features(), IMAGES, found, targets)
    for i in range(2):
        expected = slow_samples(found, targets, i)
        assert {sample[1] for sample in expected} >= {-1, 0, 1}
        valid = outputs.valid[i]
        assert valid.tolist() == [row < len(expected) for row in range(outputs.valid.shape[1])]
        assert outputs.boxes[i, valid].tolist() == [box for box, _ in expected]
        assert outputs.matched[i, valid].tolist() == [number for _, number in expected]
        labels = [targets.labels[i, number].item() if number >= 0 else -1 for _, number in expected]
        assert outputs.assigned.labels[i].tolist() == labels + [-2] * (~valid).sum().item()
        assert not outputs.boxes[i, ~valid].any()


@pytest.mark.parametrize("agnostic", [False, True])
def test_its_losses_and_gradients_are_torchvisions(agnostic):
    box, found, targets = stage(agnostic=agnostic), proposals(), truth()
    losses, gradients = learned(box, found, targets)
    samples = [slow_samples(found, targets, i) for i in range(2)]
    boxes = [torch.tensor([row for row, _ in own], dtype=torch.float64) for own in samples]
    images = torch.cat([torch.full((len(own),), i) for i, own in enumerate(boxes)])
    rows = torch.cat(boxes)
    box.zero_grad()
    regions = torch.cat(
        [box.pool([level[i : i + 1] for level in features()], own[None]) for i, own in enumerate(boxes)]
    )
    logits, deltas = box.head(regions)
    numbers = torch.tensor([number for own in samples for _, number in own])
    labels = torch.where(numbers >= 0, targets.labels[images, numbers.clamp(min=0)] + 1, 0)
    wanted = DeltaCoder(WEIGHTS).encode(targets.boxes[images, numbers.clamp(min=0)], rows)
    if agnostic:
        deltas = deltas.expand(-1, CLASSES, -1)
    background_first = torch.cat((torch.zeros_like(deltas[:, :1]), deltas), dim=1).flatten(1)
    expected = fastrcnn_loss(logits.roll(1, dims=1), background_first, [labels], [wanted])
    sum(expected).backward()
    for one, other in zip(losses.values(), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=0)
    for gradient, parameter in zip(gradients, box.parameters(), strict=False):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("fill", [0.0, 40.0, math.nan, math.inf])
@pytest.mark.parametrize("norm", [None, nn.BatchNorm2d])
def test_padding_teaches_nothing_whatever_it_holds(fill, norm):
    expected_stage, other = stage(norm=norm).train(), stage(norm=norm).train()
    expected = learned(expected_stage, proposals(), truth())
    assert_same(learned(other, proposals(padding=9, fill=fill), truth()), expected)
    for one, two in zip(other.buffers(), expected_stage.buffers(), strict=True):
        torch.testing.assert_close(one, two)


def test_batch_norm_learns_from_what_was_sampled_only():
    box, found, targets = stage(norm=nn.BatchNorm2d).train(), proposals(padding=5), truth()
    before = [values.clone() for values in box.head.buffers()]
    outputs = box(features(), IMAGES, found, targets)
    after = [values.clone() for values in box.head.buffers()]
    assert not torch.equal(before[0], after[0])
    other = stage(norm=nn.BatchNorm2d).train()
    rows = outputs.valid.flatten().nonzero().squeeze(1)
    other.head(other.pool(features(), outputs.boxes, rows))
    for one, two in zip(after, other.head.buffers(), strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize("norm", [None, nn.BatchNorm2d])
def test_without_proposals_the_objects_teach(norm):
    none = Detections(*(part[:, :0] for part in proposals()[:4]))
    losses, gradients = learned(stage(norm=norm).train(), none, truth())
    assert all(loss > 0 for loss in losses.values())
    outputs = stage()(features(), IMAGES, none, truth())
    assert outputs.valid.sum(1).tolist() == [3, 2]
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


def test_without_objects_all_is_background():
    losses, gradients = learned(stage(), proposals(), nothing())
    assert losses["box"] == 0
    assert losses["classification"] > 0
    assert all(gradient is not None and torch.isfinite(gradient).all() for gradient in gradients)
    outputs = stage()(features(), IMAGES, proposals(), nothing())
    assert outputs.valid.sum(1).tolist() == [7, 4]
    assert (outputs.assigned.labels[outputs.valid] == -1).all()


@pytest.mark.parametrize("norm", [None, nn.BatchNorm2d])
@pytest.mark.parametrize("rows", [0, 7])
def test_with_neither_losses_are_0_and_everything_has_a_gradient_of_zeros(norm, rows):
    found = Detections(*(part[:, :rows] * 0 for part in proposals()[:3]), valid=torch.zeros(2, rows, dtype=torch.bool))
    box = stage(norm=norm).train()
    losses, gradients = learned(box, found, nothing())
    assert [loss.item() for loss in losses.values()] == [0, 0]
    for gradient in gradients:
        assert gradient is not None
        assert not gradient.any()
    assert all(torch.isfinite(values).all() for values in box.buffers())


def test_crowds_are_no_samples_and_what_lies_inside_them_teaches_nothing():
    everywhere = torch.tensor([[-50.0, -50, 300, 300]], dtype=torch.float64)
    crowd = targets_of(everywhere, everywhere, iscrowd=[torch.ones(1)] * 2)
    losses, gradients = learned(stage(), proposals(), crowd)
    assert [loss.item() for loss in losses.values()] == [0, 0]
    assert not any(gradient.any() for gradient in gradients)
    assert not stage()(features(), IMAGES, proposals(), crowd).valid.any()


def test_samples_count_by_the_weight_of_their_objects():
    (plain, _), labels = learned(stage(), proposals(), truth()), samples(truth())
    doubled, _ = learned(stage(), proposals(), truth(weights=[torch.full((3,), 2.0), torch.full((2,), 2.0)]))
    positives, judged = (labels >= 0).sum(), (labels != IGNORED).sum()
    assert 0 < positives < judged
    torch.testing.assert_close(doubled["box"], plain["box"] * 2 * judged / (judged + positives))


def samples(targets: Targets) -> Tensor:
    """The labels of all samples."""
    assigned = stage()(features(), IMAGES, proposals(), targets).assigned
    assert assigned is not None
    return assigned.labels


@pytest.mark.parametrize(("count", "fraction", "most"), [(8, 0.25, 2), (6, 1.0, 6), (4, 0.5, 2), (8, 0.0, 1)])
def test_it_hands_over_the_sampled_positives_as_they_were_proposed(count, fraction, most):
    box, found, targets = stage(count=count, fraction=fraction), proposals(padding=2), truth()
    outputs = box(features(), IMAGES, found, targets)
    assert outputs.boxes.shape == (2, count, 4)
    given = box.handover(outputs, IMAGES, targets)
    assert given.boxes.shape == (2, most, 4)
    for i in range(2):
        known = {(tuple(row), number) for row, number in slow_samples(found, targets, i) if number >= 0}
        positives = min(len(known), int(count * fraction))
        assert given.valid[i].tolist() == [row < positives for row in range(most)]
        rows = zip(given.boxes[i, given.valid[i]].tolist(), given.matched[i, given.valid[i]].tolist(), strict=True)
        assert {(tuple(row), number) for row, number in rows} <= known
        assert torch.equal(given.labels[i][given.valid[i]], targets.labels[i][given.matched[i][given.valid[i]]])
    assert torch.equal(given.scores, given.valid.double())
    assert (given.matched >= 0).all()
    assert (given.labels >= 0).all()


def test_fewer_candidates_than_are_sampled_make_fewer_rows():
    outputs = stage(count=1000)(features(), IMAGES, proposals(), truth())
    assert outputs.valid.shape == (2, 7 + 4)  # objects are padded to a power of two
    assert stage(count=5)(features(), IMAGES, proposals(), truth()).valid.shape == (2, 5)


# Inference


def predictions(*, agnostic: bool = False) -> BoxOutputs:
    """Hostile proposals with logits and deltas of every size."""
    generator = torch.Generator().manual_seed(2)
    boxes = random_boxes(60, seed=1, extent=90, dtype=torch.float64).reshape(2, 30, 4)
    boxes[:, 0, 2:] = boxes[:, 0, :2]  # no size
    boxes[:, 1] += 300  # outside
    boxes[:, 2] *= 50
    logits = torch.randn(2, 30, CLASSES + 1, generator=generator, dtype=torch.float64) * 2
    deltas = torch.randn(2, 30, 1 if agnostic else CLASSES, 4, generator=generator, dtype=torch.float64)
    return BoxOutputs(logits, deltas, boxes, torch.ones(2, 30, dtype=torch.bool))


@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("score", [0.05, 0.4])
def test_detections_are_torchvisions(agnostic, score):
    outputs = predictions(agnostic=agnostic)
    absent: Any = None
    peer = RoIHeads(absent, absent, absent, 0.5, 0.5, 512, 0.25, WEIGHTS, score, 0.5, 20)
    deltas = outputs.deltas.expand(-1, -1, CLASSES, -1)
    background_first = torch.cat((torch.zeros_like(deltas[:, :, :1]), deltas), dim=2).flatten(2).flatten(0, 1)
    sizes = [(int(height), int(width)) for height, width in SIZES.tolist()]
    boxes, scores, labels = peer.postprocess_detections(
        outputs.logits.roll(1, dims=2).flatten(0, 1), background_first, list(outputs.boxes), sizes
    )
    found = stage(score=score).detections(outputs, IMAGES)
    for i in range(2):
        valid = found.valid[i]
        assert valid.sum() > 5
        torch.testing.assert_close(found.boxes[i, valid], boxes[i], rtol=1e-10, atol=1e-9)
        torch.testing.assert_close(found.scores[i, valid], scores[i], rtol=1e-10, atol=0)
        assert torch.equal(found.labels[i, valid] + 1, labels[i])


@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("part", ["logits", "deltas", "boxes"])
def test_a_row_that_is_not_finite_changes_no_other(part, bad, agnostic):
    outputs, box = predictions(agnostic=agnostic), stage(score=0.05)
    absent = outputs._replace(valid=outputs.valid.clone())
    absent.valid[0, 7] = False
    values = getattr(outputs, part).clone()
    values[0, 7] = bad
    found, expected = (box.detections(one, IMAGES) for one in (outputs._replace(**{part: values}), absent))
    for one, other in zip(found[:4], expected[:4], strict=True):
        assert torch.equal(one, other)


def test_rows_that_are_not_valid_are_not_found_whatever_they_hold():
    outputs, box = predictions(), stage(score=0.05)
    valid = torch.arange(30) < torch.tensor([[20], [0]])
    fewer = BoxOutputs(outputs.logits[:1, :20], outputs.deltas[:1, :20], outputs.boxes[:1, :20], valid[:1, :20])
    expected = box.detections(fewer, Images(IMAGES.tensors[:1], SIZES[:1]))
    for bad in (0.0, 99.0, math.nan):
        spoilt = [torch.where(valid.reshape(2, 30, *(1,) * (v.ndim - 2)), v, bad) for v in outputs[:3]]
        found = box.detections(BoxOutputs(spoilt[0], spoilt[1], spoilt[2], valid), IMAGES)
        assert not found.valid[1].any()
        assert all(torch.equal(one[0], other[0]) for one, other in zip(found[:4], expected[:4], strict=True))


@pytest.mark.parametrize("norm", [None, nn.BatchNorm2d])
@pytest.mark.parametrize("rows", [0, 4])
def test_no_proposals_give_no_detections(norm, rows):
    none = Detections(
        torch.zeros(2, rows, 4, dtype=torch.float64),
        torch.zeros(2, rows),
        torch.zeros(2, rows, dtype=torch.int64),
        torch.zeros(2, rows, dtype=torch.bool),
    )
    box = stage(norm=norm).eval()
    found = box.detections(box(features(), IMAGES, none), IMAGES)
    assert found.valid.shape == (2, min(20, rows * CLASSES))
    assert not found.valid.any()
    assert not found.boxes.any()


def test_padding_of_proposals_changes_no_detection():
    box = stage(score=0.05)
    expected = box.detections(box(features(), IMAGES, proposals()), IMAGES)
    assert expected.valid.sum() > 5
    for fill in (0.0, 30.0, math.nan):
        found = box.detections(box(features(), IMAGES, proposals(padding=20, fill=fill)), IMAGES)
        for one, other in zip(found[:4], expected[:4], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_promoted_before_boxes_are_made(dtype):
    outputs = predictions()
    half = outputs._replace(
        logits=outputs.logits.to(dtype), deltas=outputs.deltas.to(dtype), boxes=outputs.boxes.float()
    )
    exact = half._replace(logits=half.logits.float(), deltas=half.deltas.float())
    found, expected = (stage(score=0.05).float().detections(one, IMAGES) for one in (half, exact))
    assert found.boxes.dtype == found.scores.dtype == torch.float32
    assert all(torch.equal(one, other) for one, other in zip(found[:4], expected[:4], strict=True))


@pytest.mark.parametrize("targets", [None, nothing()])
def test_without_anything_that_proposes_it_says_so(targets):
    with pytest.raises(
        ValueError, match=r"^BoxStage: got no proposals; put a stage that makes them before it, or give"
    ):
        stage()(features(), IMAGES, None, targets)


# Rows that count


@pytest.mark.parametrize("always", [False, True])
def test_only_valid_rows_are_run_and_the_others_are_zeros(always):
    seen, valid = [], torch.tensor([[True, False, True], [False, False, True]])
    values = torch.arange(12.0).reshape(6, 2).requires_grad_()

    def run(rows):
        seen.append(rows.tolist())
        return values[rows], values[rows, 0]

    pair, single = on_valid_rows(run, valid, always=always)
    assert seen == [[0, 2, 5]]
    assert torch.equal(pair, torch.where(valid[..., None], values.reshape(2, 3, 2), 0))
    assert torch.equal(single, torch.where(valid, values[:, 0].reshape(2, 3), 0))
    (pair.sum() + single.sum()).backward()
    assert values.grad.tolist() == [[2.0 * v, 1.0 * v] for v in valid.flatten().tolist()]


@pytest.mark.parametrize("shape", [(2, 3), (2, 0), (0, 3)])
def test_where_all_rows_are_valid_they_are_not_picked(shape):
    valid = torch.ones(shape, dtype=torch.bool)
    values = torch.rand(valid.numel(), 4)
    assert torch.equal(
        on_valid_rows(lambda rows: values if rows is None else values * 0, valid), values.reshape(*shape, 4)
    )


def test_without_a_valid_row_the_result_still_has_the_shape_of_one():
    head = nn.Linear(3, 5)
    found = on_valid_rows(lambda rows: head(torch.ones(0 if rows is not None else 4, 3)), torch.zeros(2, 2).bool())
    assert found.shape == (2, 2, 5)
    found.sum().backward()
    assert head.weight.grad is not None


@pytest.mark.parametrize(("always", "run_on"), [(False, None), (True, [0])])
def test_compiled_code_runs_all_rows_unless_padding_would_mislead(monkeypatch, always, run_on):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    seen = []

    def run(rows):
        seen.append(None if rows is None else rows.tolist())
        return torch.ones(2 if rows is None else len(rows))

    on_valid_rows(run, torch.tensor([[True, False]]), always=always)
    assert seen == [run_on]


@pytest.mark.parametrize("norm", [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.LazyBatchNorm2d])
def test_a_batch_norm_learns_from_rows_in_training_only(norm):
    layer = norm() if norm is nn.LazyBatchNorm2d else norm(3)
    assert learns_from_rows(nn.Sequential(nn.ReLU(), nn.Sequential(layer)))
    assert not learns_from_rows(nn.Sequential(layer).eval())


@pytest.mark.parametrize("layer", [nn.GroupNorm(1, 3), nn.LayerNorm(3), nn.Linear(3, 3), nn.Dropout()])
def test_what_looks_at_one_row_only_does_not(layer):
    assert not learns_from_rows(layer)


@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("label", [-1, CLASSES, 99])
def test_a_label_that_is_no_class_is_named(label, agnostic):
    box, targets = stage(agnostic=agnostic), truth()
    targets.labels[1, 1] = label
    message = rf"^(BoxStage|gather_assigned): targets\.labels\[1, 1\]={label} must (lie in 0\.\.2|be at least 0)"
    with pytest.raises(ValueError, match=message):
        box.loss(box(features(), IMAGES, proposals(), targets), targets)


def test_labels_of_padding_and_of_crowds_may_be_anything():
    box, targets = stage(), truth(iscrowd=[torch.tensor([0, 0, 1]), torch.zeros(2)])
    expected = box.loss(box(features(), IMAGES, proposals(), targets), targets)
    targets.labels[~targets.valid | targets.ignore] = 99
    assert box.loss(box(features(), IMAGES, proposals(), targets), targets) == expected


@pytest.mark.parametrize("dtype", [torch.int64, torch.float16])
def test_objects_join_proposals_of_any_type_as_they_are(dtype):
    found, targets = proposals(), truth()
    targets = targets._replace(boxes=targets.boxes.float() + 0.4)
    outputs = stage().float()(
        [level.float() for level in features()], IMAGES, found._replace(boxes=found.boxes.to(dtype)), targets
    )
    for i, objects in enumerate(targets.boxes.tolist()):
        rows = [[round(side, 3) for side in row] for row in outputs.boxes[i].tolist()]
        assert [round(side, 3) for side in objects[0]] in rows


def test_a_batch_of_no_images_has_no_detections():
    none = BoxOutputs(*(part[:0] for part in predictions()[:4]))
    found = stage().detections(none, Images(IMAGES.tensors[:0], SIZES[:0]))
    assert found.boxes.shape == (0, 20, 4)


def test_gray_boxes_are_refused():
    parts = {name: getattr(stage(), name) for name in ("pool", "head", "coder", "criterion", "postprocess")}
    plain, sampler = stage().matcher, BalancedSampler()
    for matcher, chosen in ((GrayMatcher(plain), sampler), (plain, BalancedSampler(gray_per_other=0.5))):
        assert_refused("BoxStage: matcher sampler gray allowed", BoxStage, **parts, matcher=matcher, sampler=chosen)
