"""The Hungarian matcher against that of transformers, and the solver of torch-linear-assignment against scipy's."""

import pytest
import torch
from thorough import sweep
from torch import Tensor

from detkit.anchors import hungarian
from detkit.anchors.hungarian import HungarianMatcher, solve_on_device
from detkit.boxes import cxcywh_to_xyxy
from detkit.structures import IGNORED, NEGATIVE, Predictions, Targets, pad_targets

CLASSES = 4


def batch(seed: int) -> tuple[Tensor, Tensor, list[dict[str, Tensor]]]:
    """One to three images of one to seven queries and up to nine objects, often none; the first has one at least."""
    generator = torch.Generator().manual_seed(seed)
    images, queries = 1 + seed % 3, 1 + seed % 7
    logits = torch.randn(images, queries, CLASSES + 1, generator=generator, dtype=torch.float64) * 2
    predicted = torch.rand(images, queries, 4, generator=generator, dtype=torch.float64) * 0.5 + 0.05
    targets = []
    for image in range(images):
        count = int(torch.randint(0, 10, (), generator=generator)) * int(torch.rand((), generator=generator) < 0.7)
        count = max(count, int(image == 0))
        rows = torch.rand(count, 4, generator=generator, dtype=torch.float64) * 0.5 + 0.05
        targets.append({"boxes": rows, "class_labels": torch.randint(0, CLASSES, (count,), generator=generator)})
    return logits, predicted, targets


def padded(targets: list[dict[str, Tensor]]) -> Targets:
    return pad_targets([{"boxes": cxcywh_to_xyxy(one["boxes"]), "labels": one["class_labels"]} for one in targets])


def of_detr(logits: Tensor, predicted: Tensor) -> Predictions:
    """What a network predicts as DETR does, cx, cy, w, h, in the form that matchers take."""
    return Predictions(cxcywh_to_xyxy(predicted), logits=logits)


def matched_of(pairs, queries: int) -> list[list[int]]:
    """transformers' pairs of each image, in our form."""
    rows = torch.full((len(pairs), queries), NEGATIVE)
    for row, (chosen, objects) in zip(rows, pairs, strict=True):
        row[chosen] = objects
    return rows.tolist()


@pytest.fixture
def peer():
    module = pytest.importorskip(
        "transformers.loss.loss_for_object_detection",
        reason="transformers is not installed: the matcher was NOT compared with its matcher",
    )
    return module.HungarianMatcher(class_cost=1, bbox_cost=5, giou_cost=2)


@pytest.mark.slow(4)
def test_hundreds_of_batches_are_matched_as_transformers_matches_them(peer):
    empty = crowded = 0
    for seed in range(sweep(1000)):
        logits, predicted, targets = batch(seed)
        expected = matched_of(peer({"logits": logits, "pred_boxes": predicted}, targets), logits.shape[1])
        assert HungarianMatcher()(None, padded(targets), of_detr(logits, predicted)).matched.tolist() == expected, seed
        empty += sum(len(one["boxes"]) == 0 for one in targets)
        crowded += sum(len(one["boxes"]) > logits.shape[1] for one in targets)
    assert empty > 0.3 * sweep(1000)
    assert crowded > 0.5 * sweep(1000)


@pytest.mark.slow
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_bad_query_moves_no_other_and_where_queries_are_left_transformers_agrees(peer, bad):
    agreed = 0
    for seed in range(sweep(100)):
        logits, predicted, targets = batch(seed)
        queries = logits.shape[1]
        row = seed % queries
        others = [query for query in range(queries) if query != row]
        expected = HungarianMatcher()(None, padded(targets), of_detr(logits[:, others], predicted[:, others])).matched
        logits[:, row] = bad
        matched = HungarianMatcher()(None, padded(targets), of_detr(logits, predicted)).matched
        assert torch.equal(matched[:, others], expected)
        assert (matched[:, row] == IGNORED).all()
        if max(len(one["boxes"]) for one in targets) < queries:
            theirs = torch.tensor(matched_of(peer({"logits": logits, "pred_boxes": predicted}, targets), queries))
            assert torch.equal(matched[:, others], theirs[:, others])
            agreed += 1
    assert agreed > 0.05 * sweep(100)


@pytest.fixture
def solver():
    return pytest.importorskip(
        "torch_linear_assignment",
        reason="torch-linear-assignment is not installed: solving on the device was NOT tested",
    )


def solved_there(monkeypatch, logits: Tensor, predicted: Tensor, targets: Targets) -> Tensor:
    """What the matcher says with the op taken to be on CUDA; the solver then runs on the CPU."""

    def assign(costs, objects, usable, labels, boxes, num_classes, first) -> Tensor:
        return solve_on_device(costs, objects & ~hungarian._wrong(labels, boxes, num_classes), usable)

    with monkeypatch.context() as patch:
        patch.setattr(torch.ops.detkit, "assign", assign)
        return HungarianMatcher()(None, targets, of_detr(logits, predicted)).matched


@pytest.mark.slow
def test_the_solver_on_the_device_gives_what_scipy_gives_on_the_host(solver, monkeypatch):
    for seed in range(150):
        logits, predicted, targets = batch(seed)
        expected = HungarianMatcher()(None, padded(targets), of_detr(logits, predicted)).matched
        assert torch.equal(solved_there(monkeypatch, logits, predicted, padded(targets)), expected), seed


@pytest.mark.slow
@pytest.mark.parametrize("field", ["logits", "boxes"])
def test_on_the_device_bad_queries_and_crowds_are_left_out_as_on_the_host(solver, monkeypatch, field):
    for seed in range(sweep(100)):
        logits, predicted, targets = batch(seed)
        (logits if field == "logits" else predicted)[:, seed % logits.shape[1], 1] = torch.nan
        truth = padded(targets)
        truth = truth._replace(ignore=truth.valid & (torch.arange(truth.valid.shape[1]) % 3 == 2))
        expected = HungarianMatcher()(None, truth, of_detr(logits, predicted)).matched
        assert torch.equal(solved_there(monkeypatch, logits, predicted, truth), expected), seed


@pytest.mark.parametrize("wrong", ["label", "nan", "inverted", "pixels"])
def test_on_the_device_an_object_that_cannot_be_learned_gets_no_query_and_moves_no_other(solver, monkeypatch, wrong):
    logits, predicted, _ = batch(20)  # three images of seven queries
    targets = [{"boxes": predicted[0, :4].flip(0) + 0.01, "class_labels": torch.tensor([0, 3, 1, 2])}] * 3
    truth = padded(targets)
    without = truth._replace(valid=truth.valid & (torch.arange(4) != 1))
    expected = HungarianMatcher()(None, without, of_detr(logits, predicted)).matched
    if wrong == "label":
        truth.labels[:, 1] = CLASSES
    else:
        box = {"nan": [0.1, torch.nan, 0.4, 0.5], "inverted": [0.4, 0.1, 0.1, 0.5], "pixels": [0.0, 0, 64, 48]}[wrong]
        truth.boxes[:, 1] = torch.tensor(box, dtype=torch.float64)
    assert torch.equal(solved_there(monkeypatch, logits, predicted, truth), expected)
    assert (expected != 1).all()
    with pytest.raises(ValueError, match="HungarianMatcher: image 0, target 1: "):
        HungarianMatcher()(None, truth, of_detr(logits, predicted))  # the host looks


def test_a_query_far_away_costs_no_other_its_precision(solver, monkeypatch):
    logits, predicted, targets = batch(26)
    expected = HungarianMatcher()(None, padded(targets), of_detr(logits, predicted)).matched
    far = torch.cat((predicted, torch.full_like(predicted[:, :1], 1e14)), 1)
    more = torch.cat((logits, logits[:, :1]), 1)
    found = solved_there(monkeypatch, more, far, padded(targets))
    counts = torch.tensor([len(one["boxes"]) for one in targets])
    enough = counts <= logits.shape[1]
    assert enough.any()
    assert torch.equal(found[enough][:, :-1], expected[enough])


@pytest.mark.parametrize("shape", [(2, 1, 0), (0, 1, 3), (2, 1, 3)])
def test_nothing_to_match_is_matched_with_nothing(solver, shape):
    images, objects, queries = shape
    found = solve_on_device(torch.zeros(shape), torch.zeros(images, objects).bool(), torch.ones(images, queries).bool())
    assert found.tolist() == [[NEGATIVE] * queries] * images


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA: the matcher was NOT run on a device")
def test_on_cuda_the_result_is_that_of_the_host(solver):
    for seed in range(50):
        logits, predicted, targets = batch(seed)
        truth = padded(targets)
        expected = HungarianMatcher()(None, truth, of_detr(logits, predicted)).matched
        there = HungarianMatcher()(
            None, Targets._make(x if x is None else x.cuda() for x in truth), of_detr(logits.cuda(), predicted.cuda())
        )
        assert there.matched.is_cuda
        assert torch.equal(there.matched.cpu(), expected)
