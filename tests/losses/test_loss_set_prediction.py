"""The loss of set prediction: DETR's golden, a loop over queries, transformers' loss, what is left out, processes."""

import itertools
import math

import pytest
import torch
from strategies import unhooked
from torch import Tensor, nn

from detkit.anchors import HungarianMatcher
from detkit.boxes import cxcywh_to_xyxy, paired_box_iou, xyxy_to_cxcywh
from detkit.boxes.overlap import generalized_box_iou
from detkit.losses import set_prediction
from detkit.losses.set_prediction import SetPredictionLoss, VarifocalSetLoss, cardinality_error
from detkit.structures import IGNORED, Assignment, Predictions, Targets, pad_targets

WHOLE = torch.ones(2, 2)
SIZES = torch.tensor([[480, 640], [100, 50], [64, 64]])


def golden() -> tuple[Tensor, Tensor, Targets]:
    logits = torch.linspace(0, 12, 40, dtype=torch.float64).sin().view(1, 2, 5, 4)
    boxes = (1.5 * torch.linspace(0, 9, 40, dtype=torch.float64).cos()).sigmoid().view(1, 2, 5, 4)
    rows = [[[0.5, 0.5, 0.4, 0.3], [0.2, 0.7, 0.1, 0.2]], [[0.6, 0.4, 0.5, 0.5]]]
    corners = [cxcywh_to_xyxy(torch.tensor(row, dtype=torch.float64)) for row in rows]
    labels = [torch.tensor([0, 2]), torch.tensor([1])]
    return logits, boxes, pad_targets([{"boxes": b, "labels": c} for b, c in zip(corners, labels, strict=True)])


def predictions(layers: int = 3, images: int = 3, queries: int = 6, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(layers, images, queries, 4, generator=generator, dtype=torch.float64) * 2
    boxes = torch.rand(layers, images, queries, 4, generator=generator, dtype=torch.float64) * 0.5 + 0.1
    return logits, boxes


def truth(counts=(3, 0, 2), *, seed: int = 1, **more) -> Targets:
    """Objects in the pixels of SIZES."""
    generator, targets = torch.Generator().manual_seed(seed), []
    for count, (height, width) in zip(counts, SIZES.tolist(), strict=False):
        rows = cxcywh_to_xyxy(torch.rand(count, 4, generator=generator, dtype=torch.float64) * 0.5 + 0.1)
        labels = torch.randint(0, 3, (count,), generator=generator)
        boxes = rows * torch.tensor([width, height, width, height])
        targets.append({"boxes": boxes, "labels": labels, **{key: values[:count] for key, values in more.items()}})
    return pad_targets(targets)


def fractions(targets: Targets, sizes: Tensor = SIZES) -> Targets:
    return targets._replace(boxes=targets.boxes / sizes[: len(targets.boxes)].flip(1).repeat(1, 2)[:, None])


def matched(logits: Tensor, boxes: Tensor, targets: Targets) -> Assignment:
    """What DETR's matcher assigns in each layer, layer after layer; targets are fractions."""
    layers = [
        HungarianMatcher()(None, targets, Predictions(cxcywh_to_xyxy(own), logits=one))
        for one, own in zip(logits.detach(), boxes.detach(), strict=True)
    ]
    return Assignment(*(torch.cat(rows) for rows in zip(*layers, strict=True)))


def detr_losses(logits: Tensor, boxes: Tensor, targets: Targets, sizes: Tensor, **settings: float) -> dict[str, Tensor]:
    """The losses of queries that DETR's matcher matched; targets are pixels."""
    targets = fractions(targets, sizes)
    return SetPredictionLoss(**settings)(logits, boxes, targets, matched(logits, boxes, targets))


def one_layer(logits: Tensor, boxes: Tensor, targets: Targets) -> dict[str, float]:
    """Query by query in Python; matches by trying all permutations."""
    entropy = share = l1 = giou = 0.0
    for b in range(len(logits)):
        height, width = SIZES[b].tolist()
        rows = targets.valid[b] & ~targets.ignore[b]
        wanted = targets.boxes[b][rows] / torch.tensor([width, height, width, height])
        labels = targets.labels[b][rows].tolist()
        likely = logits[b].softmax(-1)

        terms = {
            (q, t): (
                (boxes[b, q] - xyxy_to_cxcywh(box)).abs().sum().item(),
                1 - generalized_box_iou(cxcywh_to_xyxy(boxes[b, q])[None], box[None]).item(),
            )
            for q in range(logits.shape[1])
            for t, box in enumerate(wanted)
        }
        cost = {
            (q, t): -likely[q, labels[t]].item() + 5 * distance + 2 * apart
            for (q, t), (distance, apart) in terms.items()
        }

        def total(way: tuple[int, ...], cost=cost) -> float:
            return sum(cost[q, t] for t, q in enumerate(way))

        best = min(itertools.permutations(range(logits.shape[1]), len(labels)), key=total)
        for query in range(logits.shape[1]):
            column, weight = logits.shape[2] - 1, 0.1
            if query in best:
                target = best.index(query)
                column, weight = labels[target], 1.0
                l1, giou = l1 + terms[query, target][0], giou + terms[query, target][1]
            entropy -= weight * math.log(likely[query, column].item())
            share += weight
    count = max(1, int((targets.valid & ~targets.ignore).sum()))
    return {"classification": entropy / share, "l1": 5 * l1 / count, "giou": 2 * giou / count}


def test_golden_of_detr_in_float64():
    logits, boxes, targets = golden()
    losses = detr_losses(logits, boxes, targets, WHOLE)
    assert losses["classification"].item() == pytest.approx(1.29596033, abs=5e-9)
    assert losses["l1"].item() == pytest.approx(5 * 0.47488991, abs=5e-8)
    assert losses["giou"].item() == pytest.approx(2 * 1.10708800, abs=2e-8)
    assert sum(losses.values()).item() == pytest.approx(5.88458586, abs=5e-9)
    assert cardinality_error(logits[0], targets).item() == 1.5


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_every_layer_costs_what_a_loop_over_queries_says(seed):
    logits, boxes = predictions(seed=seed)
    targets = truth(seed=seed)
    losses = detr_losses(logits, boxes, targets, SIZES)
    assert len(losses) == 9
    for layer, prefix in enumerate(("layer0.", "layer1.", "")):
        for name, expected in one_layer(logits[layer], boxes[layer], targets).items():
            assert losses[prefix + name].item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("counts", [(3, 2, 1), (0, 4, 0), (6, 6, 6)], ids=str)
def test_it_equals_transformers_loss_with_auxiliary_layers_and_gradients(counts):
    peer = pytest.importorskip(
        "transformers.loss.loss_for_object_detection",
        reason="transformers is not installed: SetPredictionLoss was NOT compared with its loss",
    )
    logits, boxes = predictions(images=3)
    targets = truth(counts)
    criterion = peer.ImageLoss(
        peer.HungarianMatcher(class_cost=1, bbox_cost=5, giou_cost=2), 3, 0.1, ["labels", "boxes", "cardinality"]
    ).double()
    scale = SIZES.flip(1).repeat(1, 2)
    wanted = [
        {
            "class_labels": targets.labels[i, :count],
            "boxes": xyxy_to_cxcywh(targets.boxes[i, :count] / scale[i]),
        }
        for i, count in enumerate(counts)
    ]
    theirs, ours = ([rows.clone().requires_grad_() for rows in (logits, boxes)] for _ in range(2))
    outputs = [{"logits": one, "pred_boxes": other} for one, other in zip(*theirs, strict=True)]
    expected = criterion({**outputs[-1], "auxiliary_outputs": outputs[:-1]}, wanted)
    losses = detr_losses(*ours, targets, SIZES)
    names = {"classification": ("loss_ce", 1), "l1": ("loss_bbox", 5), "giou": ("loss_giou", 2)}
    sum_of_theirs = 0
    for suffix, prefix in (("_0", "layer0."), ("_1", "layer1."), ("", "")):
        for name, (other, weight) in names.items():
            torch.testing.assert_close(losses[prefix + name], weight * expected[other + suffix], rtol=1e-6, atol=1e-9)
            sum_of_theirs = sum_of_theirs + weight * expected[other + suffix]
    error = cardinality_error(logits[-1], targets)
    torch.testing.assert_close(error.double(), expected["cardinality_error"].double())
    sum_of_theirs.backward()
    sum(losses.values()).backward()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-6, atol=1e-9)


def test_one_assignment_holds_for_every_layer_and_box_losses_are_divided_by_the_count_given():
    logits, boxes = predictions(images=1)
    targets = truth((3,))
    matched = torch.tensor([[2, -1, 0, -2, 0, 1]])  # object 0 has two queries, as of two groups
    targets, known = fractions(targets), Assignment(matched, torch.zeros(1, 6))
    losses = SetPredictionLoss()(logits, boxes, targets, known, count=torch.tensor(4))
    assert len(losses) == 9
    wanted = xyxy_to_cxcywh(targets.boxes[0][[2, 0, 0, 1]])
    positive, judged = [0, 2, 4, 5], [0, 1, 2, 4, 5]
    for layer, prefix in enumerate(("layer0.", "layer1.", "")):
        own = boxes[layer, 0, positive]
        torch.testing.assert_close(losses[prefix + "l1"], 5 * (own - wanted).abs().sum() / 4)
        apart = 1 - generalized_box_iou(cxcywh_to_xyxy(own), cxcywh_to_xyxy(wanted)).diagonal()
        torch.testing.assert_close(losses[prefix + "giou"], 2 * apart.sum() / 4)
        labels = targets.labels[0][[2, 0, 0, 0, 1]]
        labels[1] = 3
        weights = torch.tensor([1, 1, 1, 0.1], dtype=torch.float64)
        expected = torch.nn.functional.cross_entropy(logits[layer, 0, judged], labels, weights)
        torch.testing.assert_close(losses[prefix + "classification"], expected)
    by_objects = SetPredictionLoss()(logits, boxes, targets, known)
    torch.testing.assert_close(by_objects["l1"], losses["l1"] * 4 / 3)


def test_an_assignment_of_one_layer_after_another_is_that_of_each_layer_alone():
    logits, boxes = predictions()
    targets = fractions(truth())
    known = matched(logits, boxes, targets)
    losses = SetPredictionLoss()(logits, boxes, targets, known)
    for layer, prefix in enumerate(("layer0.", "layer1.", "")):
        rows = slice(3 * layer, 3 * layer + 3)
        own = Assignment(known.matched[rows], known.quality[rows])
        alone = SetPredictionLoss()(logits[layer : layer + 1], boxes[layer : layer + 1], targets, own)
        for name, loss in alone.items():
            torch.testing.assert_close(losses[prefix + name], loss)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_row_of_logits_is_left_out_and_moves_no_other_match(bad):
    logits, boxes = predictions(layers=1)
    targets = truth()
    given = Predictions(cxcywh_to_xyxy(boxes[0]), logits=logits[0])
    worst = HungarianMatcher()(None, fractions(targets), given).matched
    query = int((worst[0] < 0).nonzero()[0])  # one without object
    damaged = logits.clone()
    damaged[0, 0, query, 1] = bad
    damaged.requires_grad_()
    losses = detr_losses(damaged, boxes, targets, SIZES)
    sum(losses.values()).backward()
    assert not damaged.grad[0, 0, query].any()
    assert torch.isfinite(damaged.grad).all()
    others = [q for q in range(6) if q != query]
    without = detr_losses(logits[:, :1, others], boxes[:, :1, others], truth((3,)), SIZES[:1])
    alone = detr_losses(damaged.detach()[:, :1], boxes[:, :1], truth((3,)), SIZES[:1])
    for name, loss in without.items():
        torch.testing.assert_close(alone[name], loss)


def test_a_bad_box_is_left_out_too():
    logits, boxes = predictions(layers=1)
    boxes[0, 0, 2, 0] = math.nan
    boxes.requires_grad_()
    losses = detr_losses(logits, boxes, truth(), SIZES)
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert torch.isfinite(boxes.grad).all()
    assert not boxes.grad[0, 0, 2].any()


@pytest.mark.parametrize("counts", [(0, 0, 0), (0, 5, 0)], ids=str)
def test_images_without_objects_learn_background_only(counts):
    logits, boxes = predictions()
    logits, boxes = logits.requires_grad_(), boxes.requires_grad_()
    losses = detr_losses(logits, boxes, truth(counts), SIZES)
    sum(losses.values()).backward()
    assert torch.isfinite(logits.grad).all()
    assert not boxes.grad[:, 0].any()
    if not sum(counts):
        assert all((loss > 0) == ("classification" in name) for name, loss in losses.items())
        expected = -logits.detach()[-1].log_softmax(-1)[..., -1].mean()
        torch.testing.assert_close(losses["classification"].detach(), expected)


def test_queries_in_a_crowd_are_judged_by_nobody():
    logits, boxes = predictions(layers=1, images=1)
    boxes[..., :2], boxes[..., 2:] = 0.25, 0.1
    crowd = truth((1,), iscrowd=torch.ones(1))._replace(boxes=torch.tensor([[[0.0, 0, 640, 480]]]))
    assert all(loss == 0 for loss in detr_losses(logits, boxes, crowd, SIZES[:1]).values())


def test_more_objects_than_queries_are_all_counted():
    logits, boxes = predictions(layers=1, images=1, queries=2)
    targets = truth((4,))
    losses = detr_losses(logits, boxes, targets, SIZES[:1])
    given = Predictions(cxcywh_to_xyxy(boxes[0]), logits=logits[0])
    matched = HungarianMatcher()(None, fractions(targets), given).matched[0]
    assert (matched >= 0).all()
    wanted = xyxy_to_cxcywh(targets.boxes[0, matched] / SIZES[:1].flip(1).repeat(1, 2))
    assert losses["l1"].item() == pytest.approx(5 * (boxes[0, 0] - wanted).abs().sum().item() / 4)


def test_the_weight_of_an_object_scales_its_query_and_counts_in_the_normalizers():
    logits, boxes = predictions(layers=2, images=1)
    weights = torch.tensor([3.0, 1, 0.5], dtype=torch.float64)
    plain = detr_losses(logits, boxes, truth((3,)), SIZES[:1])
    rows = torch.ones(3), weights, *(torch.eye(3, dtype=torch.float64) + 1e-9)  # of 0 they would not be matched
    same, found, *apart = (detr_losses(logits, boxes, truth((3,), weights=row), SIZES[:1]) for row in rows)
    for name in plain:
        assert torch.equal(same[name], plain[name])
        if "classification" not in name:  # an object alone is divided by 1, all of them by 4.5
            expected = sum(weight * one[name] for weight, one in zip(weights, apart, strict=True)) / 4.5
            torch.testing.assert_close(found[name], expected)


def test_a_query_in_two_parts_equals_it_whole():
    targets = pad_targets([{"boxes": torch.tensor([[0.1, 0.2, 0.5, 0.9]] * 2), "labels": torch.tensor([1, 1])}])
    logits, boxes = torch.randn(2, 1, 3, 4).double(), torch.rand(2, 1, 3, 4).double()
    one = targets._replace(valid=torch.tensor([[True, False]]))
    once = SetPredictionLoss()(logits, boxes, one, Assignment(torch.tensor([[0, -1, -1]]), torch.zeros(1, 3)))
    logits, boxes = (torch.cat((rows[:, :, :1], rows), 2) for rows in (logits, boxes))
    halves, known = targets._replace(weights=torch.full((1, 2), 0.5)), torch.tensor([[0, 1, -1, -1]])
    for name, loss in SetPredictionLoss()(logits, boxes, halves, Assignment(known, torch.zeros(1, 4))).items():
        torch.testing.assert_close(loss, once[name])


def test_weights_multiply_their_losses():
    logits, boxes = predictions(layers=1)
    plain = detr_losses(logits, boxes, truth(), SIZES)
    other = detr_losses(logits, boxes, truth(), SIZES, class_weight=2.0, l1_weight=10.0, giou_weight=1.0)
    for name, factor in {"classification": 2, "l1": 2, "giou": 0.5}.items():
        torch.testing.assert_close(other[name], plain[name] * factor)
    silent = detr_losses(logits, boxes, truth((0, 0, 0)), SIZES, background_weight=0.0)
    assert silent["classification"] == 0


def test_half_precision_is_promoted():
    logits, boxes = predictions()
    exact = detr_losses(logits, boxes, truth(), SIZES)
    half = detr_losses(logits.bfloat16(), boxes.half(), truth(), SIZES)
    for name, loss in exact.items():
        assert torch.isfinite(half[name])
        assert half[name].item() == pytest.approx(loss.item(), rel=0.2)


def test_scores_leave_no_object_out():
    logits = torch.tensor([[0.0, math.log(3), math.log(4)]])
    torch.testing.assert_close(SetPredictionLoss().scores(logits), torch.tensor([[0.125, 0.375]]))
    assert SetPredictionLoss().num_classes(logits) == 2


def test_wrong_arguments_are_named():
    logits, boxes = predictions()
    with pytest.raises(ValueError, match="SetPredictionLoss: giou_weight=-1 "):
        SetPredictionLoss(giou_weight=-1)
    with pytest.raises(ValueError, match="SetPredictionLoss: background_weight=nan "):
        SetPredictionLoss(background_weight=math.nan)
    assert repr(SetPredictionLoss()) == (
        "SetPredictionLoss(class_weight=1.0, l1_weight=5.0, giou_weight=2.0, background_weight=0.1, "
        "label_smoothing=0.0)"
    )
    plain, one = unhooked(SetPredictionLoss.forward), torch.zeros(3, 6, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"SetPredictionLoss: .*boxes \(3, 3, 5, 4\)"):
        plain(SetPredictionLoss(), logits, boxes[:, :, 1:], truth(), Assignment(one, one))
    with pytest.raises(ValueError, match=r"SetPredictionLoss: .*targets of 2 images"):
        plain(SetPredictionLoss(), logits, boxes, truth((1, 1)), Assignment(one, one))
    for shape in ((3, 5), (6, 6), (2, 6)):
        other = torch.zeros(shape, dtype=torch.int64)
        with pytest.raises(ValueError, match=rf"SetPredictionLoss: .*assignment \({shape[0]}, {shape[1]}\)"):
            plain(SetPredictionLoss(), logits, boxes, truth(), Assignment(other, other))


def learn(logits: Tensor, boxes: Tensor, targets: Targets, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Losses of a batch, and the gradient of a parameter that all queries share."""
    scale = torch.ones(4, dtype=torch.float64, requires_grad=True)
    losses = detr_losses(logits * scale, boxes * scale, targets, sizes)
    sum(losses.values()).backward()
    return torch.stack(list(losses.values())).detach(), scale.grad


def test_two_processes_one_without_objects_equal_one(monkeypatch):
    """Each half runs twice: what it hands to the mean over processes is kept, then answered with that mean."""
    expected = learn(*predictions(), truth((3, 2, 0)), SIZES)
    handed: list[list[Tensor]] = [[], []]
    results = []
    for means in (None, handed):
        for rank, rows in enumerate((slice(0, 2), slice(2, 3))):
            answers = None if means is None else iter([(one + other) / 2 for one, other in zip(*means, strict=True)])

            def mean(value: Tensor, rank=rank, answers=answers) -> Tensor:
                if answers is not None:
                    return next(answers)
                handed[rank].append(value.detach())
                return value

            monkeypatch.setattr(set_prediction, "all_reduce_mean", mean)
            logits, boxes = predictions()
            targets = Targets._make(None if part is None else part[rows] for part in truth((3, 2, 0)))
            results.append(learn(logits[:, rows], boxes[:, rows], targets, SIZES[rows]))
    assert len(handed[0]) == 2  # the objects, and the weights of the cross-entropy
    for one, other, whole in zip(results[2], results[3], expected, strict=True):
        torch.testing.assert_close((one + other) / 2, whole, rtol=1e-9, atol=1e-12)
    assert not torch.allclose((results[0][0] + results[1][0]) / 2, expected[0])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_query_that_is_not_finite_takes_no_part_under_a_given_assignment_either(bad):
    logits, boxes = (rows.clone() for rows in predictions(layers=2, images=1))
    matched, targets, one = torch.tensor([[0, 1, -1, 2, -1, -1]]), fractions(truth((3,))), torch.zeros(1, 6)
    left_out = Assignment(torch.tensor([[0, IGNORED, -1, 2, -1, -1]]), one)
    expected = SetPredictionLoss()(logits, boxes, targets, left_out)
    logits[:, 0, 1, 0] = bad
    boxes[:, 0, 1] = bad
    logits.requires_grad_(), boxes.requires_grad_()
    losses = SetPredictionLoss()(logits, boxes, targets, Assignment(matched, one))
    torch.testing.assert_close(losses["classification"], expected["classification"])
    sum(losses.values()).backward()
    for rows in (logits, boxes):
        assert torch.isfinite(rows.grad).all()
        assert not rows.grad[:, 0, 1].any()


def scored(matched: list[int], **settings: float) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """The varifocal losses of one image with two objects, its logits and boxes."""
    torch.manual_seed(0)
    logits = torch.randn(1, 1, 4, 3, dtype=torch.float64)
    boxes = torch.rand(1, 1, 4, 4, dtype=torch.float64) * 0.3 + 0.3
    boxes[..., 3, :] = torch.tensor([0.95, 0.95, 0.05, 0.05])  # touches nothing
    given = Assignment(torch.tensor([matched]), torch.zeros(1, 4))
    return VarifocalSetLoss(**settings)(logits, boxes, two_objects(), given), logits[0, 0], boxes[0, 0]


def two_objects() -> Targets:
    boxes = torch.tensor([[0.2, 0.2, 0.5, 0.6], [0.4, 0.3, 0.8, 0.7]], dtype=torch.float64)
    return pad_targets([{"boxes": boxes, "labels": torch.tensor([2, 0])}])


@pytest.mark.parametrize("matched", [[0, -1, 1, -1], [-1, -1, -2, 0], [-1] * 4])
def test_varifocal_loss_of_a_set_is_that_of_the_paper(matched):
    losses, logits, boxes = scored(matched, alpha=0.6, gamma=1.5)
    total = 0.0
    for query, object_ in enumerate(matched):
        for column in range(3):
            x, score = logits[query, column], logits[query, column].sigmoid().item()
            hit = object_ >= 0 and two_objects().labels[0, object_] == column
            wanted = 0.0
            if hit:
                wanted = paired_box_iou(cxcywh_to_xyxy(boxes[query]), two_objects().boxes[0, object_]).item()
            weight = 0.0 if object_ == IGNORED else wanted if hit else 0.6 * score**1.5
            total += weight * nn.functional.binary_cross_entropy_with_logits(x, torch.tensor(wanted).double()).item()
    assert losses["classification"].item() == pytest.approx(total / 2)


def test_box_losses_of_another_assignment_are_divided_by_its_matches():
    torch.manual_seed(0)
    logits, boxes = torch.randn(2, 1, 4, 3), torch.rand(2, 1, 4, 4)
    own = Assignment(torch.tensor([[0, -1, 1, -1]] * 2), torch.zeros(2, 4))
    other = Assignment(torch.tensor([[0, 1, 1, -1]]), torch.zeros(1, 4))
    criterion = VarifocalSetLoss()
    both = criterion.costs(logits, boxes, two_objects(), own, boxes_from=other)
    classes = criterion.costs(logits, boxes, two_objects(), own)
    where = criterion.costs(logits, boxes, two_objects(), other, count=torch.tensor(3.0))
    assert torch.equal(both["classification"], classes["classification"])
    for name in ("l1", "giou"):
        torch.testing.assert_close(both[name], where[name])


def test_a_query_with_an_infinite_logit_counts_nothing_in_the_varifocal_loss():
    torch.manual_seed(0)
    logits, boxes = torch.randn(1, 1, 4, 3), torch.rand(1, 1, 4, 4)
    for bad in (torch.nan, torch.inf, -torch.inf):
        broken = logits.clone()
        broken[..., 1, 0] = bad
        broken.requires_grad_()
        given = Assignment(torch.tensor([[0, -1, 1, -1]]), torch.zeros(1, 4))
        loss = VarifocalSetLoss()(broken, boxes, two_objects(), given)["classification"]
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(broken.grad).all()


def test_varifocal_scores_are_sigmoids_of_all_columns():
    criterion = VarifocalSetLoss()
    logits = torch.randn(2, 3)
    assert torch.equal(criterion.scores(logits), logits.sigmoid())
    assert criterion.num_classes(logits) == 3
    assert "giou_weight=2.0, alpha=0.75, gamma=2.0" in repr(criterion)
