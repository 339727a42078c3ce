"""What all criteria of anchors share: their settings, shapes and labels, and anchors that teach nothing."""

import inspect
import math
from functools import partial

import pytest
import torch
from dense_rows import judge
from strategies import assert_refused
from torchvision import tv_tensors

from detkit.anchors import Assigned
from detkit.boxes import DeltaCoder, DistanceCoder
from detkit.losses import (
    DenseCriterion,
    FCOSLoss,
    MultiBoxLoss,
    ObjectnessLoss,
    QualityLoss,
    RCNNLoss,
    RetinaNetLoss,
    RPNLoss,
    YOLOLoss,
    YOLOv1Loss,
    ciou_cost,
    dense,
    diou_cost,
    giou_cost,
    grid_cost,
    iou_cost,
    l1_cost,
    l2_cost,
    quality_focal_loss,
    smooth_l1_cost,
    varifocal_loss,
)
from detkit.losses.dense import box_costs, described, mean_count
from detkit.structures import IGNORED, Anchors, DensePredictions

PRINTED = {  # how each prints itself with nothing set
    FCOSLoss: "FCOSLoss(giou_cost, alpha=0.25, gamma=2.0, box_weight=1.0, centerness_weight=1.0, label_smoothing=0.0)",
    ObjectnessLoss: (
        "ObjectnessLoss(iou_cost, box_weight=5.0, objectness_weight=1.0, class_weight=1.0, soft_classes=True, "
        "label_smoothing=0.0)"
    ),
    QualityLoss: ("QualityLoss(quality_focal_loss, giou_cost, quality='iou', box_weight=2.0, distribution_weight=0.0)"),
    RPNLoss: "RPNLoss(smooth_l1_cost(beta=0.1111111111111111), box_weight=1.0)",
    RCNNLoss: "RCNNLoss(smooth_l1_cost(beta=0.1111111111111111), box_weight=1.0, label_smoothing=0.0)",
    YOLOv1Loss: (
        "YOLOv1Loss(l2_cost, rescore=True, object_weight=1.0, background_weight=0.5, class_weight=1.0, box_weight=5.0)"
    ),
    YOLOLoss: (
        "YOLOLoss(grid_cost, classes='logistic', rescore=False, object_weight=1.0, background_weight=1.0, "
        "class_weight=1.0, box_weight=1.0, prior_images=0, label_smoothing=0.0)"
    ),
    RetinaNetLoss: "RetinaNetLoss(l1_cost, alpha=0.25, gamma=2.0, box_weight=1.0, scope='image', label_smoothing=0.0)",
    MultiBoxLoss: (
        "MultiBoxLoss(\n  smooth_l1_cost, box_weight=1.0, label_smoothing=0.0\n"
        "  (sampler): HardNegativeSampler(3.0, scope='image', minimum=0)\n)"
    ),
}
COSTS = (l1_cost, l2_cost, smooth_l1_cost, iou_cost, giou_cost, diou_cost, ciou_cost, grid_cost)
every_loss = pytest.mark.parametrize("kind", PRINTED)
softmax = {MultiBoxLoss, RCNNLoss}


def rows(kind: type[DenseCriterion], *, count: int = 6, seed: int = 0) -> dict[str, torch.Tensor]:
    """Predictions of two images with 2 classes, boxes to learn among positives, negatives and ignored anchors."""
    generator = torch.Generator().manual_seed(seed)
    outputs = 1 if kind is RPNLoss else 2 + (kind in softmax)
    corners = torch.rand(2, count, 2, 2, generator=generator, dtype=torch.float64).sort(-2).values.flatten(2) * 9
    labels = torch.tensor([[0, 1, -1, -2, -1, -1], [-1, -1, -1, -1, 0, -2]])[:, :count]
    return {
        "logits": torch.randn(2, count, outputs, generator=generator, dtype=torch.float64),
        "deltas": corners + torch.tensor([0.0, 0, 1, 1]),
        "labels": labels,
        "wanted": corners + torch.rand(2, count, 4, generator=generator, dtype=torch.float64),
        "quality": torch.randn(2, count, generator=generator, dtype=torch.float64),
    }


@every_loss
def test_it_prints_its_settings(kind):
    assert repr(kind()) == PRINTED[kind]


def test_a_cost_is_described_by_name_and_settings():
    assert described(partial(varifocal_loss, alpha=0.5)) == "varifocal_loss(alpha=0.5)"
    assert described(lambda *rows: rows).endswith("<lambda>")


@every_loss
@pytest.mark.parametrize("cost", COSTS)
def test_every_box_cost_fits_every_loss(kind, cost):
    given = rows(kind)
    learned = given["logits"].requires_grad_(), given["deltas"].requires_grad_()
    losses = judge(kind(box_cost=cost), **given)
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert losses["box"] > 0
    assert all(torch.isfinite(part.grad).all() and part.grad.any() for part in learned)
    assert not learned[1].grad[given["labels"] < 0].any()


@every_loss
@pytest.mark.parametrize("part", ["logits", "deltas", "quality"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_ignored_anchor_that_is_not_finite_changes_no_loss_and_no_gradient(kind, part, bad):
    def learned(given):
        parts = [given[name].requires_grad_() for name in ("logits", "deltas", "quality")]
        losses = judge(kind(), **given)
        sum(losses.values()).backward()
        return [*losses.values(), *(rows.grad for rows in parts if rows.grad is not None)]

    expected, spoilt = learned(rows(kind)), rows(kind)
    spoilt[part][spoilt["labels"] == -2] = bad
    for one, other in zip(learned(spoilt), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=0)


@every_loss
@pytest.mark.parametrize("label", [-1, -2])
@pytest.mark.parametrize("count", [0, 6])
def test_without_positives_boxes_cost_nothing_and_gradients_stay(kind, label, count):
    given = rows(kind, count=count)
    parts = [given[name].requires_grad_() for name in ("logits", "deltas", "quality")]
    losses = judge(kind(), **{**given, "labels": torch.full_like(given["labels"], label)})
    assert losses["box"] == 0
    sum(losses.values()).backward()
    assert all(torch.isfinite(part.grad).all() for part in parts[: 2 + kind.reads_quality])
    if label == -2:
        assert sum(losses.values()) == 0


@every_loss
def test_weights_scale_each_anchor(kind):
    """All weigh less than 1 together, so that all sums are divided by 1 where they are divided by weights."""
    given, weights = rows(kind), torch.rand(2, 6, dtype=torch.float64) / 12
    criterion = MultiBoxLoss(minimum=12) if kind is MultiBoxLoss else kind()
    losses = judge(criterion, **given, weights=weights)
    parts = torch.eye(12, dtype=torch.float64).reshape(12, 2, 6) * weights
    apart = [judge(criterion, **given, weights=part) for part in parts]
    for name, loss in losses.items():
        assert loss.item() == pytest.approx(sum(one[name].item() for one in apart))


@every_loss
@pytest.mark.parametrize("share", [0.5, 0.3, 0.0])
def test_a_positive_in_two_parts_equals_it_whole(kind, share):
    """In sums, in normalizers and in how many hard negatives are mined; a second part of weight 0 is none."""
    given = rows(kind)
    positive = given["labels"] >= 0
    twice = {name: None if part is None else torch.cat((part, part), 1) for name, part in given.items()}
    again = torch.where(positive, given["labels"], IGNORED)
    weights = torch.cat((torch.where(positive, 1 - share, 1.0), torch.where(positive, share, 1.0)), 1)
    found = judge(kind(), **{**twice, "labels": torch.cat((given["labels"], again), 1)}, weights=weights)
    for name, loss in judge(kind(), **given).items():
        assert found[name].item() == pytest.approx(loss.item(), rel=1e-6)


@every_loss
def test_predictions_and_labels_that_are_not_equally_many_are_refused(kind):
    given = rows(kind)
    for name in ("logits", "deltas", "labels"):
        short = {**given, name: given[name][:, 1:]}
        if name == "labels":
            short["wanted"] = given["wanted"][:, 1:]
        with pytest.raises(ValueError, match=rf"^{kind.__name__}: .*{name} \(2, 5"):
            judge(kind(), **short)


@pytest.mark.parametrize("kind", [FCOSLoss, ObjectnessLoss, YOLOLoss, YOLOv1Loss])
@pytest.mark.parametrize("columns", [None, 5])
def test_a_loss_that_reads_a_quality_asks_for_one_of_each_anchor(kind, columns):
    given = rows(kind)
    given["quality"] = None if columns is None else given["quality"][:, :columns]
    with pytest.raises(ValueError, match=rf"^{kind.__name__}: quality has shape"):
        judge(kind(), **given)


@pytest.mark.parametrize("kind", [kind for kind in PRINTED if kind is not RPNLoss])
@pytest.mark.parametrize("label", [2, 3, 7, -3])
def test_a_label_that_is_no_class_is_refused_also_that_of_background(kind, label):
    given = rows(kind)
    given["labels"] = given["labels"].masked_fill(given["labels"] == 1, label)
    with pytest.raises(ValueError, match=rf"(labels|targets)\[0, 1\]={label}.*0..1"):
        judge(kind(), **given)


@every_loss
def test_no_weight_may_be_negative_or_endless(kind):
    names = [name for name in inspect.signature(kind).parameters if name.endswith("_weight")]
    assert "box_weight" in names
    for name in names:
        assert getattr(kind(**{name: 0}), name) == 0
        for bad in (-0.1, math.inf, math.nan):
            assert_refused(f"{kind.__name__}: {name}={bad}", kind, **{name: bad})


@every_loss
def test_scores_are_fractions_of_as_many_classes_as_it_says(kind):
    given = rows(kind)
    predictions = DensePredictions(given["logits"] * 40, given["deltas"], given["quality"])
    scores = kind().scores(predictions)
    assert scores.shape == (2, 6, kind().num_classes(predictions))
    assert ((scores >= 0) & (scores <= 1)).all()


def test_counts_are_at_least_one():
    assert mean_count(torch.zeros(2, 3).bool(), torch.zeros(1)) == 1
    assert mean_count(torch.ones(2, 3).bool(), torch.zeros(1).double()).dtype == torch.float64
    weights = torch.tensor([[0.25, 9.0], [0.5, 9.0]])
    assert mean_count(torch.tensor([[True, False]] * 2), torch.zeros(1), weights=weights) == 1


def test_a_count_by_weight_is_a_sum_and_nothing_of_the_other_rows_enters_it():
    rows, weights = torch.tensor([[True, False, True]]), torch.tensor([[1.5, torch.nan, 2]])
    assert mean_count(rows, torch.zeros(1), weights=weights) == 3.5
    assert mean_count(rows.mT, torch.zeros(1), weights=torch.tensor([[2.0]])) == 4  # broadcast
    assert mean_count(rows, torch.zeros(1).double(), weights=weights).dtype == torch.float64


def test_an_abstract_criterion_names_what_is_missing():
    predictions = DensePredictions(torch.zeros(1, 1, 1), torch.zeros(1, 1, 4))
    for method in ("scores", "num_classes"):
        with pytest.raises(NotImplementedError, match=rf"DenseCriterion must define {method}\(\)"):
            getattr(DenseCriterion(), method)(predictions)


def test_two_class_costs_learn_the_quality_of_boxes():
    for cost in (quality_focal_loss, varifocal_loss):
        assert judge(QualityLoss(cost), **rows(QualityLoss))["classification"] > 0


@every_loss
@pytest.mark.parametrize("cost", ["giou", lambda deltas, boxes: deltas], ids=["text", "two arguments"])
def test_a_box_cost_that_is_not_called_as_one_is_refused(kind, cost):
    assert_refused(f"{kind.__name__} box_cost deltas, boxes, anchors, coder", kind.__init__, kind(), box_cost=cost)


@pytest.mark.parametrize("cost", dense._ROW_BY_ROW[:-2])
@pytest.mark.parametrize("coder", [DeltaCoder(), DistanceCoder()])
@pytest.mark.parametrize("labels", [[[0, -1, 2, -2], [-1, 1, -1, -1]], [[-1] * 4] * 2])
def test_costs_of_the_positives_alone_are_those_among_all(monkeypatch, cost, coder, labels):
    corners = torch.rand(2, 2, 4, 2) * 20
    boxes, anchors = (torch.cat((low, low + 1 + low.flip(-1)), -1) for low in corners)
    labels, ones = torch.tensor(labels), torch.ones(2, 4)
    noise = torch.randn(2, 4, 4).masked_fill((labels < 0)[..., None], torch.nan)
    found = []
    for ways in (dense._ROW_BY_ROW, ()):
        monkeypatch.setattr(dense, "_ROW_BY_ROW", ways)
        for each in (anchors[0], anchors, Anchors(anchors[0], anchors[0, :, 2:], (4,))):
            deltas = noise.clone().requires_grad_()
            costs = box_costs(cost, deltas, Assigned(labels, boxes, ones, ones), each, coder)
            costs.sum().backward()
            found.append((costs.detach(), deltas.grad))
    for alone, among in zip(found[:3], found[3:], strict=True):
        torch.testing.assert_close(alone, among, rtol=1e-6, atol=0)


def test_costs_of_the_library_see_the_positives_alone_others_all(monkeypatch):
    boxes, ones, lengths = torch.tensor([[[0.0, 0, 4, 4]] * 3]), torch.ones(1, 3), []

    class Watched(DeltaCoder):
        def encode(self, boxes, anchors):
            lengths.append(boxes.shape[1])
            return super().encode(boxes, anchors)

    assigned = Assigned(torch.tensor([[1, -1, -1]]), boxes, ones, ones)
    box_costs(l1_cost, torch.ones(1, 3, 4), assigned, boxes[0], Watched())
    monkeypatch.setattr(dense, "_ROW_BY_ROW", (*dense._ROW_BY_ROW, Watched))
    box_costs(l1_cost, torch.ones(1, 3, 4), assigned, boxes[0], Watched())
    assert lengths == [3, 1]


def some_rows():
    boxes, ones = torch.tensor([[[0.0, 0, 4, 4]] * 3, [[2.0, 2, 9, 9]] * 3]), torch.ones(2, 3)
    return Assigned(torch.tensor([[1, -1, 0], [-1, 2, -1]]), boxes, ones, ones), boxes[0] + 1


class Scaled:
    """A cost of one's own around one of the library, that weighs whole images."""

    def __init__(self, func):
        self.func = func

    def __call__(self, deltas, boxes, anchors, coder):
        return self.func(deltas, boxes, anchors, coder) * torch.arange(len(deltas))[:, None]


def test_a_cost_around_one_of_the_librarys_sees_whole_images():
    assigned, anchors = some_rows()
    plain = box_costs(l1_cost, torch.ones(2, 3, 4), assigned, anchors, DeltaCoder())
    weighed = box_costs(Scaled(l1_cost), torch.ones(2, 3, 4), assigned, anchors, DeltaCoder())
    assert weighed[1, 1] == plain[1, 1] > 0
    assert not weighed[0].any()


def test_anchors_are_read_in_their_own_format_and_their_strides_are_not():
    assigned, anchors = some_rows()
    sides = torch.cat((anchors[:, :2], anchors[:, 2:] - anchors[:, :2]), dim=1)
    known = tv_tensors.BoundingBoxes(sides, format="XYWH", canvas_size=(9, 9))  # pyright: ignore[reportCallIssue]
    expected = box_costs(l1_cost, torch.ones(2, 3, 4), assigned, anchors, DeltaCoder())
    for each in (known, Anchors(anchors, torch.ones(1), (3,))):
        assert torch.equal(box_costs(l1_cost, torch.ones(2, 3, 4), assigned, each, DeltaCoder()), expected)


def test_rows_that_do_not_fit_are_refused_in_the_words_of_costs_and_coders():
    assigned, anchors = some_rows()
    for boxes, places, named in ((assigned.boxes, anchors[:2], "anchors"), (assigned.boxes[:, :1], anchors, "boxes")):
        with pytest.raises((ValueError, TypeError), match=named):
            box_costs(l1_cost, torch.ones(2, 3, 4), assigned._replace(boxes=boxes), places, DeltaCoder())


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_boxes_of_positives_that_are_not_finite_are_refused_others_not_read(bad):
    labels, ones = torch.tensor([[1, -1]]), torch.ones(1, 2)
    boxes = torch.tensor([[[0.0, 0, 4, 4], [0, 0, bad, 4]]])

    def losses(boxes):
        predictions = DensePredictions(torch.zeros(1, 2, 3), torch.zeros(1, 2, 4))
        return RetinaNetLoss()(predictions, Assigned(labels, boxes, ones, ones), torch.ones(2, 4), DeltaCoder())

    assert all(torch.isfinite(loss) for loss in losses(boxes).values())
    assert_refused("RetinaNetLoss boxes finite", losses, boxes.flip(1))
