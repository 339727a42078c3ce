"""The hourglass RPN: its published numbers, what its levels and gray anchors learn, and suppression between scales."""

import pytest
import torch
from strategies import assert_refused, random_boxes
from torch import Tensor, nn

from detkit.anchors import BalancedSampler, GrayMatcher, ThresholdMatcher
from detkit.boxes import box_iou
from detkit.detectors import (
    DenseStage,
    Detector,
    Preprocess,
    ProposalPostprocess,
    RPNStage,
    at_scales,
    hourglass_anchors,
    hourglass_rpn,
    hourglass_stage,
    small_hourglass_rpn,
)
from detkit.heads import RPNHead
from detkit.losses import HourglassLoss, MultiBoxLoss, RPNLoss
from detkit.structures import GRAY, Images, pad_targets
from detkit.tricks import NMSFusion, TestTimeAugmentation


def small(**settings) -> Detector:
    torch.manual_seed(0)
    return small_hourglass_rpn(size=(96, 128), channels=8, **settings).eval()


def test_thirty_anchors_of_the_source_are_split_over_three_levels():
    shapes = [hourglass_anchors((8, 16, 32)).get_buffer(f"shapes_{level}") for level in range(3)]
    assert [len(level) for level in shapes] == [10, 10, 10]
    sizes = torch.cat(shapes).prod(1).sqrt().round().unique().tolist()
    assert sizes == [16, 32, 64, 128, 256, 512]
    width, height = shapes[0][0].tolist()
    assert (width, height) == (pytest.approx(6.1968, abs=1e-3), pytest.approx(41.3118, abs=1e-3))
    ratios = (shapes[2][:, 0] / shapes[2][:, 1]).tolist()
    assert ratios == pytest.approx([ratio for ratio in (0.15, 0.5, 1, 2, 6.7) for _ in range(2)], rel=1e-5)


def test_it_is_composed_of_the_published_numbers():
    with torch.device("meta"):
        detector = hourglass_rpn()
    stage = detector.rpn
    assert detector.preprocess.size == 600
    assert (stage.sampler.count, stage.sampler.negatives_per_positive, stage.sampler.gray_per_other) == (300, 2.0, 0.5)
    assert stage.postprocess.iou_threshold == 0.7
    assert [head.out_channels for head in stage.head.class_head.levels] == [30, 30, 30]
    assert [head.out_channels for head in stage.head.box_head.levels] == [40, 40, 40]
    assert detector.trunk[1].out_channels == (512, 512, 512)


def test_levels_learn_apart_and_their_losses_are_summed():
    detector = small()
    images = Images(torch.rand(2, 3, 96, 128), torch.tensor([[96, 128]] * 2))
    targets = pad_targets([{"boxes": torch.tensor([[8.0, 8, 56, 56]]), "labels": torch.tensor([1])}] * 2)
    stage, features = detector.rpn, detector.trunk(images.tensors)
    stage.sampler = BalancedSampler(10_000, positive_fraction=1.0, gray_per_other=1.0)
    outputs = stage(features, images, None)
    losses = stage.loss(outputs, targets)
    (logits, deltas, *_), anchors, _ = outputs
    total, start = dict.fromkeys(losses, 0.0), 0
    for level, count in enumerate(anchors.counts):
        rows = slice(start, start + count)
        part = outputs._replace(
            predictions=outputs.predictions._replace(logits=logits[:, rows], deltas=deltas[:, rows]),
            anchors=anchors._replace(boxes=anchors.boxes[rows], strides=anchors.strides[rows], counts=(count,)),
        )
        own = stage.loss(part, targets)
        assert own["objectness"] > 0, level
        total = {name: total[name] + own[name] for name in total}
        start += count
    torch.testing.assert_close(losses, total)


def test_each_level_has_a_sample_of_its_own():
    stage = small().rpn
    matched = torch.tensor([[0] * 50 + [-1] * 500 + [GRAY] * 300] * 2).repeat(1, 3)
    counts = (850, 850, 850)
    rows, valid, sampled = stage._sampled(matched, counts)
    labels = matched.gather(1, rows)
    for level, (own, real) in enumerate(zip(labels.split(sampled, 1), valid.split(sampled, 1), strict=True)):
        assert [int(((own == kind) & real).sum()) for kind in (0, -1, GRAY)] == [100, 200, 150], level
    assert sampled == (450, 450, 450)
    assert (rows.split(sampled, 1)[1] >= 850).all()


def gradients(gray: bool) -> tuple[Tensor, Tensor, Tensor]:
    """What the logits and deltas learn of an object, and which anchor it makes what."""
    torch.manual_seed(0)
    stage = hourglass_stage((8,), hourglass_anchors((8,)), gray=gray)
    stage.sampler = BalancedSampler(10_000, positive_fraction=1.0, gray_per_other=1.0 if gray else 0.0)
    images = Images(torch.rand(1, 3, 64, 64), torch.tensor([[64, 64]]))
    outputs = stage([torch.randn(1, 8, 8, 8)], images, None)
    targets = pad_targets([{"boxes": torch.tensor([[10.0, 10, 44, 40]]), "labels": torch.tensor([0])}])
    columns = outputs.predictions[:2]
    found = torch.autograd.grad(sum(stage.loss(outputs, targets).values()), columns)
    return *found, stage.matcher(outputs.anchors, targets).matched


def test_gray_anchors_train_neither_as_object_nor_as_background():
    logits, deltas, matched = gradients(gray=True)
    gray = matched == GRAY
    assert gray.any()
    assert (logits[gray][:, 1] < 0).all()
    assert (logits[gray][:, [0, 2]] > 0).all()
    assert not deltas[gray].any()
    assert (logits[matched >= 0][:, 0] < 0).all()
    assert (logits[matched == -1][:, 2] < 0).all()


def test_without_the_category_they_teach_nothing():
    with_gray, without = gradients(gray=True)[2], gradients(gray=False)
    assert not without[0][with_gray == GRAY].any()
    assert without[0].shape[-1] == 2


def test_proposals_are_ranked_by_the_probability_of_an_object():
    detector = small()
    images = Images(torch.rand(1, 3, 96, 128), torch.tensor([[96, 128]]))
    outputs = detector.rpn(detector.trunk(images.tensors), images, None)
    outputs = outputs._replace(predictions=outputs.predictions._replace(logits=outputs.predictions.logits * 400))
    detector.rpn.postprocess = ProposalPostprocess(candidates_per_level=9, max_proposals=40, iou_threshold=1.0)
    found = detector.rpn.detections(outputs, images)
    scores = outputs.predictions.logits.softmax(-1)[0, :, 0].split(list(outputs.anchors.counts))
    best = torch.cat([level.topk(9).values for level in scores]).sort(descending=True).values
    torch.testing.assert_close(found.scores[0, found.valid[0]], best[: int(found.valid.sum())])


# Several scales


def slow_fusion(boxes: Tensor, scores: Tensor, threshold: float) -> list[int]:
    kept: list[int] = []
    overlaps, values = box_iou(boxes, boxes).tolist(), scores.tolist()
    for i in sorted(range(len(boxes)), key=lambda i: (-values[i], i)):
        if all(overlaps[i][j] <= threshold for j in kept):
            kept.append(i)
    return kept


class Given(nn.Module):
    """Finds what it is given, whatever the image."""

    def __init__(self, boxes: Tensor, scores: Tensor) -> None:
        super().__init__()
        self.found = {"boxes": boxes, "scores": scores, "labels": torch.zeros(len(boxes), dtype=torch.int64)}

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        return [self.found] * len(images)


@pytest.mark.parametrize("seed", range(5))
def test_suppression_between_scales_is_that_of_a_slow_loop(seed):
    generator = torch.Generator().manual_seed(seed)
    views = [Given(random_boxes(25, seed=10 * seed + i), torch.rand(25, generator=generator)) for i in range(3)]
    fused = TestTimeAugmentation(views, flips=("none",), fusion=NMSFusion(0.5))([torch.zeros(3, 110, 110)])[0]
    boxes, scores = (torch.cat([view.found[key] for view in views]) for key in ("boxes", "scores"))
    rows = slow_fusion(boxes, scores, 0.5)
    assert torch.equal(fused["boxes"], boxes[rows])
    assert torch.equal(fused["scores"], scores[rows])
    assert 0 < len(rows) < 75


def test_scales_share_everything_but_the_size():
    detector = small()
    detector.preprocess = Preprocess(96, mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0))
    scales = at_scales(detector, (128, 64), max_size=200, multiple_of=32)
    assert [scale.preprocess.size for scale in scales] == [128, 64]
    for scale in scales:
        assert scale.trunk is detector.trunk
        assert scale.rpn is detector.rpn
        assert not scale.training
        torch.testing.assert_close(scale.preprocess.mean, detector.preprocess.mean)
        assert scale.preprocess.max_size == 200
    assert [scale.preprocess.size for scale in at_scales(detector)] == list(range(1400, 0, -200))


def test_a_test_at_several_scales_is_the_union_of_them_in_the_images_own_pixels():
    detector, image = small(), torch.rand(3, 70, 90)
    scales = at_scales(detector, (128, 64), max_size=200, multiple_of=32)
    (found,) = TestTimeAugmentation(scales, flips=("none",), fusion=NMSFusion(0.5, max_detections=50))([image])
    (one,), (other,) = (scale([image]) for scale in scales)
    boxes, scores = (torch.cat((one[key], other[key])) for key in ("boxes", "scores"))
    rows = slow_fusion(boxes, scores, 0.5)[:50]
    assert torch.equal(found["boxes"], boxes[rows])
    assert len(rows) == 50


# Parts that do not fit


def parts(**more) -> dict:
    stage = hourglass_stage((8,), hourglass_anchors((8,)))
    names = "head", "anchors", "matcher", "sampler", "coder", "criterion", "postprocess"
    return {name: getattr(stage, name) for name in names} | more


def test_gray_anchors_and_a_criterion_that_knows_none_are_refused_and_the_reverse():
    plain = ThresholdMatcher(positive_iou=0.6, negative_iou=0.15, low_quality=False)
    assert_refused("RPNStage: HourglassLoss ThresholdMatcher", RPNStage, **parts(matcher=plain))
    assert_refused("RPNStage: RPNLoss GrayMatcher", RPNStage, **parts(criterion=RPNLoss()))
    dense = {name: part for name, part in parts(criterion=MultiBoxLoss()).items() if name != "sampler"}
    assert_refused("DenseStage: MultiBoxLoss GrayMatcher", DenseStage, **dense)
    assert RPNStage(**parts(matcher=plain, criterion=HourglassLoss(gray=False))).criterion.reads_gray is False


@pytest.mark.parametrize("outputs", [1, 2, 4])
def test_logits_of_other_classes_are_refused(outputs):
    stage = RPNStage(**parts())
    head = stage.head.class_head
    head.levels[0], head.outputs = nn.Conv2d(8, 10 * outputs, 1), outputs
    images = Images(torch.zeros(1, 3, 64, 64), torch.tensor([[64, 64]]))
    assert_refused("RPNStage: head DenseHead, logits", stage.forward, [torch.zeros(1, 8, 8, 8)], images, None)


def test_a_softmax_of_object_and_background_is_a_region_proposal_network_too():
    """With one logit each the same proposals come out as with their difference."""
    torch.manual_seed(0)
    head, given = RPNHead(8, 10), parts(matcher=ThresholdMatcher(), sampler=BalancedSampler(64))
    images = Images(torch.zeros(1, 3, 64, 64), torch.tensor([[64, 64]]))
    one = RPNStage(**given | {"head": head, "criterion": RPNLoss()})
    two = RPNStage(**given | {"criterion": MultiBoxLoss()})
    features = [torch.randn(1, 8, 8, 8)]
    single = one(features, images, None)
    logits = single.predictions.logits.double() * 100  # so that 3 more and 3 less is no other order
    single = single._replace(predictions=single.predictions._replace(logits=logits))
    double = single._replace(
        predictions=single.predictions._replace(logits=torch.cat((logits + 3, logits * 0 + 3), -1))
    )
    for found, expected in zip(two.detections(double, images)[:4], one.detections(single, images)[:4], strict=True):
        torch.testing.assert_close(found, expected)


def test_the_best_anchor_of_an_object_can_be_forced_beside_gray_ones():
    stage = hourglass_stage((8,), hourglass_anchors((8,)))
    stage.matcher = GrayMatcher(ThresholdMatcher(positive_iou=0.6, negative_iou=0.15))
    images = Images(torch.rand(1, 3, 64, 64), torch.tensor([[64, 64]]))
    targets = pad_targets([{"boxes": torch.tensor([[1.0, 1, 3, 3]]), "labels": torch.tensor([0])}])
    losses = stage.loss(stage([torch.zeros(1, 8, 8, 8)], images, None), targets)
    assert losses["box"] > 0
    assert all(torch.isfinite(loss) for loss in losses.values())
