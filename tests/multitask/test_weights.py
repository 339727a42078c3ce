"""Weights of tasks: the numbers of the sources, states in checkpoints, and several processes that are one."""

import copy
import io
import math
from datetime import timedelta
from pathlib import Path

import processes
import pytest
import torch
import torch.distributed as torch_dist
from hypothesis import given
from hypothesis import strategies as st
from strategies import assert_refused

from detkit.multitask import DynamicWeightAverage, FixedWeights, LossWeights, UncertaintyWeights

TASKS = ["segmentation", "boxes", "classification"]
GOLDEN = {2.0: (1.0302273, 0.8867248, 1.0830481), 1.0: (1.0541151, 0.7809076, 1.1649773)}
RATIOS = 0.8, 0.5, 0.9


def losses(*values):
    return {f"{task}.loss": torch.tensor(float(value)) for task, value in zip(TASKS, values, strict=True)}


def epochs(weights, *each):
    """Run epochs of a few calls each."""
    for calls in each:
        for values in calls:
            weights(losses(*values))
        weights.end_epoch()


@pytest.mark.parametrize("temperature", GOLDEN)
def test_the_weights_of_the_sources_formula(temperature):
    weights = DynamicWeightAverage(TASKS, temperature=temperature)
    first = 2.0, 4.0, 0.3
    epochs(weights, [first], [tuple(ratio * loss for ratio, loss in zip(RATIOS, first, strict=True))])
    torch.testing.assert_close(weights.factors, torch.tensor(GOLDEN[temperature]), rtol=0, atol=1e-6)


def test_the_first_two_epochs_are_weighed_by_1():
    weights = DynamicWeightAverage(TASKS)
    for _ in range(2):
        assert torch.equal(torch.stack([*weights(losses(1, 2, 3)).values()]), torch.tensor([1.0, 2, 3]))
        weights(losses(5, 2, 1))
        if not weights.means.any():
            weights.end_epoch()
    assert torch.equal(weights.factors, torch.ones(3))


@given(st.lists(st.tuples(*[st.floats(0, 1e6, width=32)] * 3), min_size=2, max_size=4), st.floats(0.1, 10))
def test_weights_are_positive_and_sum_to_the_number_of_tasks(each, temperature):
    weights = DynamicWeightAverage(TASKS, temperature=temperature)
    epochs(weights, *[[values] for values in each])
    assert torch.isfinite(weights.factors).all()
    assert (weights.factors >= 0).all()
    assert weights.factors.sum().item() == pytest.approx(3, abs=1e-4)


def test_the_mean_over_an_epochs_calls_counts():
    weights, means = DynamicWeightAverage(TASKS), DynamicWeightAverage(TASKS)
    epochs(weights, [(1, 5, 2), (3, 1, 2)], [(1, 1, 1), (2, 2, 2), (3, 3, 3)])
    epochs(means, [(2, 3, 2)], [(2, 2, 2)])
    assert torch.equal(weights.factors, means.factors)


def test_a_loss_that_was_0_has_the_ratio_1():
    weights = DynamicWeightAverage(TASKS)
    epochs(weights, [(0, 2, 0)], [(3, 1, 0)])
    expected = 3 * torch.softmax(torch.tensor([1, 0.5, 1]) / 2, 0)
    torch.testing.assert_close(weights.factors, expected)


def test_losses_that_are_not_finite_are_left_out():
    weights, clean = DynamicWeightAverage(TASKS), DynamicWeightAverage(TASKS)
    epochs(weights, [(1, 2, 3), (math.nan, 4, math.inf)], [(1, 1, 1)])
    epochs(clean, [(1, 3, 3)], [(1, 1, 1)])
    assert torch.equal(weights.factors, clean.factors)


def test_only_training_counts_and_an_epoch_without_it_is_refused():
    weights = DynamicWeightAverage(TASKS).eval()
    weights(losses(9, 9, 9))
    assert_refused("DynamicWeightAverage.end_epoch: no finite loss of ['segmentation',", weights.end_epoch)
    assert torch.equal(weights.factors, torch.ones(3))


def test_weights_have_no_gradient_and_all_losses_of_a_task_share_one():
    weights = DynamicWeightAverage(["boxes", "tasks.faces"])
    for values in ((2.0, 2.0, 1.0), (1.0, 1.0, 1.0)):
        weights(dict(zip(("boxes.box", "boxes.l1", "tasks.faces"), map(torch.tensor, values), strict=True)))
        weights.end_epoch()
    given = {name: torch.tensor(2.0, requires_grad=True) for name in ("boxes.box", "boxes.l1", "tasks.faces.box")}
    found = weights(given)
    sum(found.values()).backward()
    grads = [float(loss.grad) for loss in given.values()]
    assert grads[0] == grads[1] < 1 < grads[2]
    assert [float(loss.detach()) for loss in found.values()] == [2 * grad for grad in grads]
    assert not any(part.requires_grad for part in weights.state_dict(keep_vars=True).values() if torch.is_tensor(part))


@pytest.mark.parametrize("after", [1, 3, 4])
def test_a_run_that_is_resumed_is_the_same_run(after):
    """Also in the middle of an epoch, from a file that only holds weights."""
    random = torch.Generator().manual_seed(0)
    calls = torch.rand(9, 3, generator=random).tolist()
    whole, first, second = (DynamicWeightAverage(TASKS) for _ in range(3))

    def run(weights, begin, end):
        for i in range(begin, end):
            weights(losses(*calls[i]))
            if i % 3 == 2:
                weights.end_epoch()

    run(whole, 0, 9)
    run(first, 0, after)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    run(second, after, 9)
    assert torch.equal(second.factors, whole.factors)


def test_the_state_of_other_tasks_is_refused():
    state = DynamicWeightAverage(TASKS).state_dict()
    said = "DynamicWeightAverage: the state is that of tasks ['segmentation', 'boxes', 'classification']; allowed"
    assert_refused(said, DynamicWeightAverage([*reversed(TASKS)]).load_state_dict, state)


def test_uncertainty_has_the_gradient_of_the_sources_formula():
    weights = UncertaintyWeights(TASKS).double()
    weights.log_variances.data = torch.tensor([0.3, -1.0, 0.0], dtype=torch.float64)
    given = {key: value.double().requires_grad_() for key, value in losses(2, 0.5, 0).items()}
    found = weights(given)
    s, values = weights.log_variances.detach(), torch.stack([*given.values()]).detach()
    total = sum(found.values())
    torch.testing.assert_close(total.detach(), (torch.exp(-s) * values + s / 2).sum())
    total.backward()
    torch.testing.assert_close(weights.log_variances.grad, 0.5 - torch.exp(-s) * values)
    torch.testing.assert_close(torch.stack([one.grad for one in given.values()]), torch.exp(-s))
    assert list(found) == [*given, *(f"{task}.uncertainty" for task in TASKS)]


def test_uncertainty_settles_where_the_source_says():
    """At s = log 2 L the price and the loss are in balance."""
    weights = UncertaintyWeights(["a", "b"])
    optimizer = torch.optim.SGD(weights.parameters(), 0.5)
    for _ in range(200):
        optimizer.zero_grad()
        sum(weights({"a": torch.tensor(2.0), "b": torch.tensor(0.1)}).values()).backward()
        optimizer.step()
    torch.testing.assert_close(weights.log_variances.detach().exp(), torch.tensor([4.0, 0.2]), rtol=1e-3, atol=1e-3)


def test_fixed_weights_multiply():
    weights = FixedWeights(["boxes", "segmentation"], [0.5, 2])
    found = weights({"segmentation.x": torch.tensor(3.0), "boxes.a": torch.tensor(1.0), "boxes.b": torch.tensor(4.0)})
    assert {key: float(value) for key, value in found.items()} == {"segmentation.x": 6, "boxes.a": 0.5, "boxes.b": 2}
    assert_refused(
        "FixedWeights: weights=[1.0]; allowed is one for each of ['a', 'b']", FixedWeights, ["a", "b"], [1.0]
    )


@pytest.mark.parametrize("kind", [DynamicWeightAverage, UncertaintyWeights])
def test_tasks_and_losses_belong_to_each_other(kind):
    name = kind.__name__
    for tasks in ([], ["a", "a"], ["a", "a.b"], ["a.b", "a"]):
        assert_refused(f"{name}: tasks={tasks!r}; allowed", kind, tasks)
    weights = kind(["boxes", "masks"])
    one = torch.tensor(1.0)
    assert_refused(f"{name}: no loss of ['masks']; there are ['boxes.a']", weights, {"boxes.a": one})
    said = f"{name}: loss 'boxes2.a' belongs to none of the tasks ['boxes', 'masks']"
    assert_refused(said, weights, {"boxes": one, "masks": one, "boxes2.a": one})


def test_the_interface_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        LossWeights(["a"])


SHARES = {2: [[0, 1, 2, 3], [4]], 3: [[0, 1], [], [2, 3, 4]]}
"""The calls of an epoch that each process makes: uneven, one without any."""


def calls(seed=0):
    return torch.rand(2, 5, 3, generator=torch.Generator().manual_seed(seed)).tolist()


def weighed(shares):
    weights = DynamicWeightAverage(TASKS)
    for epoch in calls():
        for i in shares:
            weights(losses(*epoch[i]))
        weights.end_epoch()
    return weights.factors


def run_rank(rank, world, folder):
    torch_dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world, timeout=timedelta(seconds=120)
    )
    weights = UncertaintyWeights(TASKS)
    sum(weights(losses(rank, 1, 2)).values()).backward()
    torch.save((weighed(SHARES[world][rank]), weights.log_variances.grad), Path(folder, f"{rank}.pt"))
    torch_dist.destroy_process_group()


@pytest.mark.slow(8)
@pytest.mark.parametrize("world", SHARES)
def test_processes_are_one(world, tmp_path):
    started = [
        processes.start(run_rank, rank, world, tmp_path, printed=tmp_path / f"{rank}.txt") for rank in range(world)
    ]
    processes.end(*started)
    expected = weighed(range(5))
    for rank in range(world):
        factors, gradient = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(factors, expected)
        torch.testing.assert_close(gradient, 0.5 - torch.tensor([(world - 1) / 2, 1.0, 2.0]))


def test_a_copy_goes_on_by_itself():
    weights = DynamicWeightAverage(TASKS)
    epochs(weights, [(1, 2, 3)])
    other = copy.deepcopy(weights)
    epochs(other, [(1, 1, 1)])
    assert torch.equal(weights.factors, torch.ones(3))
    assert not torch.equal(other.factors, torch.ones(3))


def test_a_loss_is_one_number():
    """A loss of one element, not yet reduced, would give each task the weights of all."""
    weights, one = FixedWeights(["boxes", "masks"], [0.5, 2]), torch.ones(1)
    said = "FixedWeights: losses have shapes {'boxes.a': (1,)}; allowed is one number each"
    assert_refused(said, weights, {"boxes.a": one, "masks": one[0]})
