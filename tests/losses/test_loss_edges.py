"""EdgeLoss against a plain reading of the paper's formulas; what does not count; several layers at once."""

import pytest
import torch
from torch import Tensor

from detkit.boxes import EdgeCoder, box_iou, cxcywh_to_xyxy
from detkit.losses import EdgeLoss
from detkit.structures import Assignment, Target, Targets, pad_targets

CODER = EdgeCoder(bins=8)


def truth(**more: list[float]) -> Targets:
    boxes = torch.tensor([[0.2, 0.2, 0.5, 0.6], [0.5, 0.3, 0.9, 0.7]])
    given = {name: torch.tensor(values) for name, values in more.items()}
    return pad_targets([Target(boxes=boxes, labels=torch.tensor([1, 0]), **given)])


def predictions(layers: int = 2, queries: int = 4) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    distributions = torch.randn(layers, 1, queries, CODER.numbers, dtype=torch.float64)
    references = torch.rand(1, queries, 4, dtype=torch.float64) * 0.3 + 0.3
    corners = CODER.decode(distributions, cxcywh_to_xyxy(references))
    boxes = torch.cat(((corners[..., :2] + corners[..., 2:]) / 2, corners[..., 2:] - corners[..., :2]), -1)
    return distributions, boxes, references, (torch.randn(1, queries, 2, dtype=torch.float64), distributions[-1])


def plainly(matched: list[int], layer: int, *, temperature: float = 5.0) -> tuple[float, float]:
    """Both losses of a layer, query by query and edge by edge."""
    distributions, boxes, references, (logits, taught) = predictions()
    targets, fgl, kinds = truth(), 0.0, {True: [], False: []}
    for query, object_ in enumerate(matched):
        own = distributions[layer, 0, query].reshape(4, 9)
        apart = torch.zeros(4, dtype=torch.float64)
        for edge in range(4):
            p = (taught[0, query].reshape(4, 9)[edge] / temperature).softmax(0)
            apart[edge] = temperature**2 * (p * (p.log() - (own[edge] / temperature).log_softmax(0))).sum()
        if object_ < 0:
            kinds[False] += (logits[0, query].sigmoid().max() * apart).tolist()
            continue
        box = targets.boxes[0, object_].double()
        overlap = box_iou(cxcywh_to_xyxy(boxes[layer, 0, query])[None], box[None])[0, 0]
        kinds[True] += (overlap * apart).tolist()
        bins = CODER.encode(box, cxcywh_to_xyxy(references[0, query]))
        for edge in range(4):
            left = min(int(bins[edge]), 7)
            scores = own[edge].log_softmax(0)
            share = bins[edge] - left
            fgl -= float(overlap * ((1 - share) * scores[left] + share * scores[left + 1]))
    mean = {kind: sum(rows) / len(rows) if rows else 0.0 for kind, rows in kinds.items()}
    roots = {kind: len(rows) ** 0.5 for kind, rows in kinds.items()}
    ddf = sum(mean[kind] * roots[kind] for kind in mean) / sum(roots.values())
    return fgl / max(1, sum(one >= 0 for one in matched)), ddf


@pytest.mark.parametrize("matched", [[0, 1, -1, -1], [-1, 1, -1, 1], [-1] * 4, [0, 1, 0, 1]])
def test_both_losses_are_those_of_the_paper(matched):
    assignment = Assignment(torch.tensor([matched]), torch.zeros(1, 4))
    found = EdgeLoss(CODER, fgl_weight=1.0, ddf_weight=1.0)(*predictions(), truth(), assignment)
    for layer in range(2):
        fgl, ddf = plainly(matched, layer)
        assert found["fgl"][layer].item() == pytest.approx(fgl)
        assert found["ddf"][layer].item() == pytest.approx(ddf, rel=1e-6, abs=1e-12)


def test_the_teacher_learns_nothing_from_itself_and_gets_no_gradient():
    distributions, boxes, references, (logits, _) = predictions()
    distributions.requires_grad_()
    assignment = Assignment(torch.tensor([[0, 1, -1, -1]]), torch.zeros(1, 4))
    found = EdgeLoss(CODER)(distributions, boxes, references, (logits, distributions[-1]), truth(), assignment)["ddf"]
    assert found[1].abs() < 1e-12
    found[0].backward()
    assert distributions.grad[0].abs().sum() > 0
    assert not distributions.grad[1].any()


def test_layers_may_have_matches_of_their_own():
    matched = torch.tensor([[0, 1, -1, -1], [-1, -1, 1, 0]])
    loss = EdgeLoss(CODER)
    together = loss(*predictions(), truth(), Assignment(matched, torch.zeros(2, 4)))
    for layer in range(2):
        one = loss(*predictions(), truth(), Assignment(matched[layer : layer + 1], torch.zeros(1, 4)))
        for name, values in together.items():
            torch.testing.assert_close(values[layer], one[name][layer])


def test_an_object_counts_as_often_as_it_weighs():
    assignment = Assignment(torch.tensor([[0, 1, -1, -1]]), torch.zeros(1, 4))
    found = EdgeLoss(CODER)(*predictions(), truth(weights=[1.0, 0.0]), assignment)["fgl"]
    alone = EdgeLoss(CODER)(*predictions(), truth(), Assignment(torch.tensor([[0, -1, -1, -1]]), torch.zeros(1, 4)))
    torch.testing.assert_close(found, alone["fgl"])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_does_not_count(bad):
    assignment = Assignment(torch.tensor([[0, 1, -1, -1]]), torch.zeros(1, 4))
    distributions, boxes, references, (logits, taught) = predictions()
    distributions, taught = distributions.clone().requires_grad_(), taught.clone()
    with torch.no_grad():
        distributions[0, 0, 1], taught[0, 2] = bad, bad
    found = EdgeLoss(CODER)(distributions, boxes, references, (logits, taught), truth(), assignment)
    assert all(torch.isfinite(values).all() for values in found.values())
    sum(values.sum() for values in found.values()).backward()
    assert torch.isfinite(distributions.grad).all()
    assert not distributions.grad[0, 0, 1].any()


def test_without_objects_losses_are_those_of_background():
    nothing = pad_targets([Target(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64))])
    assignment = Assignment(torch.full((1, 4), -1), torch.zeros(1, 4))
    found = EdgeLoss(CODER)(*predictions(), nothing, assignment)
    assert not found["fgl"].any()
    assert found["ddf"][0] > 0


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="EdgeLoss: fgl_weight=-1 must be at least 0"):
        EdgeLoss(CODER, fgl_weight=-1)
    assert "temperature=5.0" in repr(EdgeLoss(CODER))
