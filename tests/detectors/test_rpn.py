"""RPNStage and its proposals, against plain loops and torchvision's filter_proposals."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest
import torch
from dense_rows import assigned_to
from strategies import random_boxes, targets_of, unhooked
from torch import Tensor, nn
from torchvision.models.detection.rpn import RegionProposalNetwork

from detkit.anchors import BalancedSampler, HardNegativeSampler, TaskAlignedMatcher, ThresholdMatcher
from detkit.boxes import DeltaCoder
from detkit.detectors import Postprocess
from detkit.detectors.dense import DenseOutputs
from detkit.detectors.rpn import ProposalPostprocess, RPNStage, best_of_levels
from detkit.heads import RPNHead
from detkit.losses import FCOSLoss, RetinaNetLoss, RPNLoss
from detkit.structures import Anchors, DensePredictions, Detections, Images, Targets

COUNTS = [40, 15, 5]
SIZES = torch.tensor([[80, 100], [60, 50]])
IMAGES = Images(torch.zeros(2, 3, 80, 100), SIZES)


class Given(NamedTuple):
    """Predictions of two images, the anchors, and how many each level has."""

    logits: Tensor
    deltas: Tensor
    anchors: Tensor
    counts: Sequence[int]

    def outputs(self) -> DenseOutputs:
        sides = self.anchors[:, 2:] - self.anchors[:, :2]
        return DenseOutputs(DensePredictions(self.logits, self.deltas), Anchors(self.anchors, sides, self.counts))


def propose(postprocess: ProposalPostprocess, given: "Given", sizes: Tensor = SIZES) -> Detections:
    """The proposals of a stage that predicts what is given."""
    images = Images(torch.zeros(len(sizes), 3, 80, 100), sizes)
    return stage(given, postprocess=postprocess).detections(given.outputs(), images)


def outputs(*, counts: list[int] = COUNTS, levels: int = 1000, seed: int = 0, scale: float = 0.5) -> Given:
    """Predictions for two images; logits out of ``levels`` values, so with ties where these are few."""
    generator = torch.Generator().manual_seed(seed)
    total = sum(counts)
    logits = (torch.randint(-levels, levels, (2, total, 1), generator=generator) / levels * 4).double()
    deltas = torch.randn(2, total, 4, generator=generator, dtype=torch.float64) * scale
    return Given(logits, deltas, random_boxes(total, seed=seed, dtype=torch.float64) - 10, counts)


def overlap(one: list[float], other: list[float]) -> float:
    width, height = (min(one[i + 2], other[i + 2]) - max(one[i], other[i]) for i in (0, 1))
    shared = max(width, 0) * max(height, 0)
    union = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)) - shared
    return shared / union if union > 0 else 0.0


def decoded(anchor: list[float], deltas: list[float], size: list[int]) -> list[float]:
    """Ren et al., equation 2, clipped to the image."""
    width, height = anchor[2] - anchor[0], anchor[3] - anchor[1]
    x, y = anchor[0] + (0.5 + deltas[0]) * width, anchor[1] + (0.5 + deltas[1]) * height
    across, down = (
        side / 2 * math.exp(min(d, math.log(62.5))) for side, d in ((width, deltas[2]), (height, deltas[3]))
    )
    corners = x - across, y - down, x + across, y + down
    return [min(max(side, 0.0), limit) for side, limit in zip(corners, (size[1], size[0]) * 2, strict=True)]


def slow_proposals(given: Given, image: int, settings: ProposalPostprocess) -> list[tuple[float, list[float]]]:
    """(score, box) of one image: best of each level, decoded, clipped, suppressed in the level, best of all."""
    logits, found, start = given.logits[image, :, 0].tolist(), [], 0
    for count in given.counts:
        rows = [i for i in range(start, start + count) if logits[i] > -math.inf]
        best = sorted(rows, key=lambda i: (-logits[i], i))[: settings.candidates_per_level]
        kept: list[list[float]] = []
        for i in best:
            if not all(map(math.isfinite, given.deltas[image, i].tolist())):
                continue
            box = decoded(given.anchors[i].tolist(), given.deltas[image, i].tolist(), SIZES[image].tolist())
            solid = min(box[2] - box[0], box[3] - box[1]) >= settings.min_size
            if solid and all(overlap(box, other) <= settings.iou_threshold for other in kept):
                kept.append(box)
                found.append((1 / (1 + math.exp(-logits[i])), box))
        start += count
    return sorted(found, key=lambda pair: -pair[0])[: settings.max_proposals]  # stable: finer levels first


def assert_as_slow(given: Given, postprocess: ProposalPostprocess) -> None:
    found = propose(postprocess, given, SIZES)
    rows = min(postprocess.max_proposals, sum(min(count, postprocess.candidates_per_level) for count in given.counts))
    assert found.boxes.shape == (2, rows, 4)
    assert found.scores.shape == found.labels.shape == found.valid.shape == (2, rows)
    for i in range(2):
        expected = slow_proposals(given, i, postprocess)
        valid = found.valid[i]
        assert valid.tolist() == [row < len(expected) for row in range(rows)]
        scores, boxes = torch.tensor([one for one, _ in expected]), torch.tensor([box for _, box in expected])
        torch.testing.assert_close(found.scores[i, valid], scores.to(found.scores))
        torch.testing.assert_close(found.boxes[i, valid], boxes.to(found.boxes).reshape(-1, 4))
    for part in (found.boxes, found.scores):
        assert not part[~found.valid].any()
    assert not found.labels.any()


@pytest.mark.parametrize("levels", [3, 1000])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"candidates_per_level": 7, "max_proposals": 12},
        {"candidates_per_level": 1, "max_proposals": 100},
        {"max_proposals": 1},
        {"iou_threshold": 0.2, "min_size": 20.0},
        {"iou_threshold": 0.0},
        {"iou_threshold": 1.0, "min_size": 0.0},
    ],
    ids=str,
)
def test_proposals_are_those_of_loops(settings, levels):
    assert_as_slow(outputs(levels=levels), ProposalPostprocess(**settings))


@pytest.mark.parametrize("counts", [[0, 15, 5], [20], [3, 0], [1, 1, 1], [0]])
def test_levels_may_be_short_or_empty(counts):
    assert_as_slow(outputs(counts=counts), ProposalPostprocess(candidates_per_level=10, max_proposals=12))


@pytest.mark.parametrize(("before", "after", "iou_threshold"), [(10, 8, 0.7), (1000, 1000, 0.5), (25, 30, 0.3)])
def test_proposals_are_torchvisions(before, after, iou_threshold):
    given = outputs(seed=3, levels=10**6)  # torchvision leaves the order of ties open
    counts = {"training": before, "testing": before}, {"training": after, "testing": after}
    absent: Any = None
    peer = RegionProposalNetwork(absent, absent, 0.7, 0.3, 256, 0.5, *counts, iou_threshold)
    boxes = DeltaCoder().decode(given.deltas, given.anchors)
    sizes = [(int(height), int(width)) for height, width in SIZES.tolist()]
    expected, scores = peer.filter_proposals(boxes, given.logits.flatten(0, 1), sizes, COUNTS)
    postprocess = ProposalPostprocess(candidates_per_level=before, max_proposals=after, iou_threshold=iou_threshold)
    found = propose(postprocess, given, SIZES)
    for i in range(2):
        assert len(expected[i]) > 5
        torch.testing.assert_close(found.boxes[i, found.valid[i]], expected[i], rtol=1e-12, atol=1e-9)
        torch.testing.assert_close(found.scores[i, found.valid[i]], scores[i], rtol=1e-12, atol=0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("part", ["logits", "deltas", "both"])
def test_a_row_that_is_not_finite_changes_no_other(part, bad):
    given, anchors = outputs(scale=0.1), random_boxes(60, dtype=torch.float64)
    given = given._replace(anchors=anchors)
    spoilt = given._replace(logits=given.logits.clone(), deltas=given.deltas.clone())
    absent = given._replace(logits=given.logits.clone())
    absent.logits[:, 11] = -math.inf
    if part != "deltas":
        spoilt.logits[:, 11] = bad
    if part != "logits":
        spoilt.deltas[:, 11] = bad
        absent = absent._replace(deltas=given.deltas)
    postprocess = ProposalPostprocess(iou_threshold=0.9)
    found = propose(postprocess, spoilt, SIZES)
    assert torch.isfinite(found.boxes).all()
    assert ((found.scores >= 0) & (found.scores <= 1)).all()
    if part == "logits" and bad == math.inf:  # surely an object
        assert found.scores[0, 0] == 1
        return
    expected = propose(postprocess, absent, SIZES)
    for one, other in zip(found[:4], expected[:4], strict=True):
        assert torch.equal(one, other)


def test_without_a_single_number_nothing_is_proposed():
    given = outputs()
    found = propose(ProposalPostprocess(), given._replace(logits=given.logits * math.nan), SIZES)
    assert not found.valid.any()
    assert not found.boxes.any()


def test_boxes_that_lie_outside_or_have_no_size_are_not_proposed():
    anchors = torch.tensor([[0.0, 0, 20, 20], [200, 200, 220, 220], [-30, 5, -1, 15], [5, 5, 5, 5], [9, 9, 4, 4]])
    given = Given(torch.zeros(1, 5, 1), torch.zeros(1, 5, 4), anchors, [5])
    found = propose(ProposalPostprocess(min_size=1.0), given, SIZES[:1])
    assert found.boxes[found.valid].tolist() == [[0, 0, 20, 20]]


def test_boxes_of_different_levels_do_not_suppress_each_other():
    anchors = torch.tensor([[0.0, 0, 20, 20]]).repeat(3, 1)
    given = Given(torch.tensor([[[1.0], [2], [3]]]), torch.zeros(1, 3, 4), anchors, [2, 1])
    found = propose(ProposalPostprocess(), given, SIZES[:1])
    assert found.scores[found.valid].tolist() == pytest.approx([1 / (1 + math.exp(-3)), 1 / (1 + math.exp(-2))])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_promoted_before_boxes_are_made(dtype):
    given = outputs()
    half = given._replace(logits=given.logits.to(dtype), deltas=given.deltas.to(dtype), anchors=given.anchors.float())
    exact = half._replace(logits=half.logits.float(), deltas=half.deltas.float())
    found, expected = (propose(ProposalPostprocess(), one, SIZES) for one in (half, exact))
    assert found.boxes.dtype == found.scores.dtype == torch.float32
    assert all(torch.equal(one, other) for one, other in zip(found[:4], expected[:4], strict=True))


def test_an_image_alone_gets_what_it_gets_in_a_batch():
    given, postprocess = outputs(), ProposalPostprocess(max_proposals=15)
    together = propose(postprocess, given, SIZES)
    for i in range(2):
        own = given._replace(logits=given.logits[i : i + 1], deltas=given.deltas[i : i + 1])
        alone = propose(postprocess, own, SIZES[i : i + 1])
        assert all(torch.equal(one[0], other[i]) for one, other in zip(alone[:4], together[:4], strict=True))


def test_proposals_carry_no_gradient():
    given = outputs()
    given = given._replace(logits=given.logits.requires_grad_(), deltas=given.deltas.requires_grad_())
    found = propose(ProposalPostprocess(), given, SIZES)
    assert not found.boxes.requires_grad
    assert not found.scores.requires_grad


@pytest.mark.parametrize("most", [1, 3, 100])
@pytest.mark.parametrize("counts", [[6, 0, 4], [10], [0, 0, 10]])
def test_the_best_of_each_level_are_found_ties_to_the_lower_index(counts, most, generator):
    scores = torch.randint(0, 4, (3, 10), generator=generator).float()
    scores[0, 2], scores[1, 5], scores[2, 7] = torch.nan, -torch.inf, torch.inf
    rows, lengths, valid = best_of_levels(scores, counts, most)
    assert lengths == tuple(min(count, most) for count in counts)
    for i in range(3):
        expected, start = [], 0
        for count in counts:
            row = scores[i].nan_to_num(-math.inf, math.inf).tolist()
            order = sorted(range(start, start + count), key=lambda n, row=row: (-row[n], n))
            expected += order[:most] if count > most else sorted(order)  # a short level comes as it is
            start += count
        finite = [not (math.isnan(scores[i, n]) or scores[i, n] == -torch.inf) for n in expected]
        assert valid[i].tolist() == finite
        assert rows[i][valid[i]].tolist() == [n for n, good in zip(expected, finite, strict=True) if good]


# The stage


class Head(nn.Module):
    """Hands out fixed predictions."""

    def __init__(self, given: Given) -> None:
        super().__init__()
        self.logits, self.deltas = nn.Parameter(given.logits.clone()), nn.Parameter(given.deltas.clone())

    def forward(self, features: list[Tensor]) -> DensePredictions:
        return DensePredictions(self.logits, self.deltas)


class Fixed(nn.Module):
    """Lays the given anchors."""

    def __init__(self, given: Given) -> None:
        super().__init__()
        self.given = given

    def forward(self, features: list[Tensor], images: Images) -> Anchors:
        return self.given.outputs().anchors


def stage(given: Given, *, count: int = 1000, fraction: float = 1.0, **more: Any) -> RPNStage:
    parts = {
        "head": Head(given),
        "anchors": Fixed(given),
        "matcher": ThresholdMatcher(positive_iou=0.7, negative_iou=0.3, low_quality=True),
        "sampler": BalancedSampler(count, positive_fraction=fraction),
        "coder": DeltaCoder(),
        "criterion": RPNLoss(),
        "postprocess": ProposalPostprocess(max_proposals=9),
    }
    return RPNStage(**parts | more)


def half_hidden() -> Given:
    """Predictions whose anchors 40 to 42 are the left 45 % of the first three."""
    given = outputs()
    given.anchors[40:43] = given.anchors[:3]
    given.anchors[40:43, 2] = 0.55 * given.anchors[:3, 0] + 0.45 * given.anchors[:3, 2]
    return given


def truth(**entries: Any) -> Targets:
    """The first three anchors are objects in the first image; in the second there is none."""
    return targets_of(half_hidden().anchors[:3], torch.zeros(0, 4, dtype=torch.float64), **entries)


def learned(rpn: RPNStage, targets: Targets) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    losses = rpn.loss(rpn([], IMAGES, None, targets), targets)
    sum(losses.values()).backward()
    return losses, rpn.head.logits.grad, rpn.head.deltas.grad


def slow_labels(anchors: Tensor, boxes: list[list[float]]) -> list[int]:
    """Faster R-CNN's rule for one image: object number, -1 or -2."""
    table = [[overlap(anchor, box) for box in boxes] for anchor in anchors.tolist()]
    best = [max((row[t] for row in table), default=0) for t in range(len(boxes))]
    labels = []
    for row in table:
        fit = max(row, default=0)
        forced = any(value == top > 0 for value, top in zip(row, best, strict=True))
        labels.append(row.index(fit) if boxes and (fit >= 0.7 or forced) else -1 if fit < 0.3 else -2)
    return labels


def test_its_losses_are_those_of_every_anchor_labeled_by_loops():
    given, targets = half_hidden(), truth()
    losses, logits, deltas = learned(stage(given), targets)
    labels = torch.tensor([slow_labels(given.anchors, targets.boxes[i, : 3 * (1 - i)].tolist()) for i in range(2)])
    assert {-2, -1} < set(labels.flatten().tolist())
    own = torch.stack([targets.boxes[i, labels[i].clamp(min=0)] for i in range(2)])
    rows = given.logits.clone().requires_grad_(), given.deltas.clone().requires_grad_()
    expected = RPNLoss()(DensePredictions(*rows), assigned_to(labels, own), given.anchors, DeltaCoder())
    sum(expected.values()).backward()
    for name, loss in expected.items():
        torch.testing.assert_close(losses[name], loss)
    torch.testing.assert_close(logits, rows[0].grad)
    torch.testing.assert_close(deltas, rows[1].grad)


def test_only_sampled_anchors_learn_and_the_gathered_loss_is_that_of_the_mask():
    given, targets = half_hidden(), truth()
    rpn = stage(given, count=10, fraction=0.3)
    torch.manual_seed(4)
    _, logits, deltas = learned(rpn, targets)
    matched = rpn.matcher(given.anchors, targets).matched
    torch.manual_seed(4)
    chosen = rpn.sampler(matched)
    assert chosen.sum(1).tolist() == [10, 10]
    assert torch.equal(logits[..., 0] != 0, chosen)
    assert torch.equal((deltas != 0).any(-1), chosen & (matched >= 0))


@pytest.mark.parametrize("matcher", [ThresholdMatcher(), TaskAlignedMatcher()])
def test_objects_are_of_one_class_for_every_criterion_and_matcher(matcher):
    given, targets = half_hidden(), truth()
    rpn = stage(given, criterion=RetinaNetLoss(), matcher=matcher)
    losses = [
        rpn.loss(rpn([], IMAGES, None), targets._replace(labels=labels))
        for labels in (torch.zeros_like(targets.labels), torch.full_like(targets.labels, 7))
    ]
    assert losses[0] == losses[1]
    assert losses[0]["box"] > 0


def test_an_image_without_objects_learns_that_all_is_background():
    given = half_hidden()
    targets = targets_of(torch.zeros(0, 4), torch.zeros(0, 4))
    losses, logits, deltas = learned(stage(given), targets)
    assert losses["box"] == 0
    torch.testing.assert_close(losses["objectness"], nn.functional.softplus(given.logits).mean())
    assert (logits > 0).all()
    assert not deltas.any()


def test_crowds_make_no_positive_and_anchors_inside_them_learn_nothing():
    given, rows = half_hidden(), torch.tensor([[-50.0, -50, 200, 200]])
    crowd = targets_of(rows, rows, iscrowd=[torch.ones(1)] * 2)
    losses, logits, deltas = learned(stage(given), crowd)
    assert [loss.item() for loss in losses.values()] == [0, 0]
    assert not logits.any()
    assert not deltas.any()


def test_samples_count_by_the_weight_of_their_objects():
    """With two of them all weigh as much as twice the positives and the negatives."""
    given = half_hidden()
    plain, _, deltas = learned(stage(given), truth())
    once, thrice = (
        learned(stage(given), truth(weights=[torch.full((3,), weight), torch.zeros(0)])) for weight in (1.0, 3.0)
    )
    torch.testing.assert_close(once[0], plain, rtol=0, atol=0)
    share = plain["box"] / (thrice[0]["box"] / 3)  # (negatives + 3 positives) / (negatives + positives)
    positives = (deltas != 0).any(-1).sum()
    judged = 2 * positives / (share - 1)
    assert judged.item() == pytest.approx(round(judged.item()), rel=1e-6)
    assert judged > positives > 0
    torch.testing.assert_close(thrice[2], deltas * (3 / share))
    assert thrice[0]["objectness"] > plain["objectness"]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_ignored_anchor_that_is_not_finite_teaches_nothing(bad):
    given, targets = half_hidden(), truth()
    expected = learned(stage(given), targets)
    ignored = stage(given).matcher(given.anchors, targets).matched[0].eq(-2).nonzero()[0]
    spoilt = given._replace(logits=given.logits.clone(), deltas=given.deltas.clone())
    spoilt.logits[0, ignored], spoilt.deltas[0, ignored] = bad, bad
    losses, *gradients = learned(stage(spoilt), targets)
    torch.testing.assert_close(losses, expected[0])
    for one, other in zip(gradients, expected[1:], strict=True):
        torch.testing.assert_close(one, other)


def test_it_proposes_less_at_inference_than_in_training_where_told_so():
    given, targets = half_hidden(), truth()
    few, many = ProposalPostprocess(max_proposals=4), ProposalPostprocess(max_proposals=30, iou_threshold=0.9)
    rpn = stage(given, postprocess=few, training_postprocess=many)
    predicted = rpn([], IMAGES, None)
    at_inference, in_training = rpn.detections(predicted, IMAGES), rpn.handover(predicted, IMAGES, targets)
    for found, postprocess in ((at_inference, few), (in_training, many)):
        expected = propose(postprocess, given, SIZES)
        assert all(torch.equal(one, other) for one, other in zip(found[:4], expected[:4], strict=True))
    same = stage(given, postprocess=few)
    assert same.training_postprocess is few


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"iou_threshold": 1.5}, r"iou_threshold=1\.5 must lie in \[0, 1\]"),
        ({"candidates_per_level": 0}, "candidates_per_level=0 must be at least 1"),
        ({"max_proposals": 0}, "max_proposals=0 must be at least 1"),
        ({"min_size": -1.0}, "min_size=-1.0 must be at least 0"),
        ({"min_size": math.nan}, "min_size=nan"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=f"^ProposalPostprocess: .*{message}"):
        unhooked(ProposalPostprocess)(**settings)


class Described(RPNHead):
    """A head with one more part."""

    def __init__(self):
        super().__init__(8, 3)
        self.embedding_head = nn.Identity()


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"criterion": FCOSLoss()}, "FCOSLoss reads a quality.* give RPNLoss"),
        ({"head": Described()}, "the head has an embedding_head.* carry no embeddings"),
        ({"sampler": HardNegativeSampler()}, r"sampler is a HardNegativeSampler, .* sampler\(labels\)"),
        ({"sampler": lambda labels: labels >= 0}, "sampler is a function, .* give a BalancedSampler"),
        ({"postprocess": Postprocess()}, "postprocess is a Postprocess, .* give a ProposalPostprocess"),
        ({"training_postprocess": Postprocess()}, "training_postprocess is a Postprocess, .* give a ProposalPostproc"),
    ],
)
def test_parts_that_fit_only_a_dense_stage_are_refused(parts, message):
    good = stage(outputs())
    names = "head", "anchors", "matcher", "sampler", "coder", "criterion", "postprocess"
    given = {name: getattr(good, name) for name in names} | parts
    with pytest.raises(ValueError, match=f"^RPNStage: {message}"):
        unhooked(RPNStage.__init__)(RPNStage.__new__(RPNStage), **given)


def test_a_head_of_several_classes_is_refused():
    given = outputs()
    rpn = stage(given._replace(logits=given.logits.repeat(1, 1, 2)))
    with pytest.raises(ValueError, match=r"^RPNStage: head is a Head, logits \(2, \d+, 2\); allowed is \(B, N, 1\)"):
        rpn([], IMAGES, None)


@pytest.mark.parametrize(
    ("scores", "counts", "message"),
    [
        (torch.zeros(1, 3, 2), None, r"scores have shape \(1, 3, 2\); allowed is \(B, N, 1\)"),
        (torch.zeros(1, 3, 1), [1, 1], r"scores of 3 anchors, boxes of 3, and levels of \[1, 1\]"),
        (torch.zeros(1, 2, 1), None, r"scores of 2 anchors, boxes of 3, and levels of \[2\]"),
    ],
)
def test_scores_that_do_not_fit_are_named_and_never_cut(scores, counts, message):
    with pytest.raises(ValueError, match=f"^ProposalPostprocess: {message}"):
        unhooked(ProposalPostprocess.forward)(
            ProposalPostprocess(), scores, torch.zeros(1, 3, 4), torch.tensor([[9, 9]]), counts
        )


def test_scores_below_the_threshold_are_not_proposed():
    given = outputs()
    everything, some = (propose(ProposalPostprocess(score_threshold=s), given, SIZES) for s in (0.0, 0.5))
    for i in range(2):
        expected = everything.scores[i][everything.valid[i]]
        assert (expected < 0.5).any()
        assert torch.equal(some.scores[i][some.valid[i]], expected[expected >= 0.5])
