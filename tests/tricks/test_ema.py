"""The averaged model: its arithmetic against a slow float64 reference, its buffers, and resuming bit for bit."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from detkit.tricks import ExponentialMovingAverage
from detkit.weights import load_checkpoint, save_checkpoint


class Masked(nn.Module):
    """A model with every sort of buffer: running statistics, a counter, flags, an infinite mask, an unsaved one."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
        self.register_buffer("lowest", torch.tensor(torch.inf))
        self.register_buffer("flags", torch.tensor([True, False]))
        self.register_buffer("scale", torch.ones(2), persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        return self.norm(self.linear(features))


def train_step(model: nn.Module, generator: torch.Generator) -> None:
    """Anything that moves parameters and buffers."""
    model.train()
    model(torch.randn(8, 3, generator=generator))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)


def assert_same_state(first: nn.Module, second: nn.Module) -> None:
    one, two = first.state_dict(), second.state_dict()
    assert one.keys() == two.keys()
    for key, value in one.items():
        assert torch.equal(value, two[key]), key


@pytest.mark.parametrize("warmup", [True, False])
def test_parameters_and_running_statistics_follow_the_recursion(warmup, generator):
    model = Masked()
    average = ExponentialMovingAverage(model, decay=0.6, warmup=warmup)
    expected: dict[str, Tensor] = {}
    keys = [*dict(model.named_parameters()), "norm.running_mean", "norm.running_var"]
    for updates in range(12):
        train_step(model, generator)
        average.update_parameters(model)
        decay = min(0.6, (1 + updates) / (10 + updates)) if warmup else 0.6
        for key in keys:
            value = model.state_dict()[key].double()
            expected[key] = decay * expected[key] + (1 - decay) * value if updates else value
    for key in keys:
        torch.testing.assert_close(average.module.state_dict()[key].double(), expected[key], rtol=1e-5, atol=1e-6)
        assert not torch.allclose(average.module.state_dict()[key], model.state_dict()[key], atol=1e-3), key


def test_warmup_decay_rises_to_its_limit():
    average = ExponentialMovingAverage(nn.Linear(1, 1), decay=0.9)
    assert [average.decay_at(t) for t in (0, 8, 80, 81)] == pytest.approx([0.1, 0.5, 0.9, 0.9])
    assert ExponentialMovingAverage(nn.Linear(1, 1), decay=0.9, warmup=False).decay_at(0) == 0.9


def test_counters_and_flags_are_copied_not_averaged(generator):
    model = Masked()
    average = ExponentialMovingAverage(model, decay=0.99, warmup=False)
    for step in range(1, 6):
        train_step(model, generator)
        model.flags.logical_not_()
        average.update_parameters(model)
        assert int(average.module.norm.num_batches_tracked) == step == int(average.n_averaged)
        assert torch.equal(average.module.flags, model.flags)


def test_infinite_buffers_stay_what_they_are_instead_of_becoming_nan(generator):
    model = Masked()
    average = ExponentialMovingAverage(model, decay=0.5, warmup=False)
    for _ in range(3):
        train_step(model, generator)
        average.update_parameters(model)
    assert average.module.mask.tolist() == [0.0, -torch.inf]
    model.lowest.fill_(2.0)
    average.update_parameters(model)
    assert average.module.lowest == 2.0
    model.lowest.fill_(4.0)
    average.update_parameters(model)
    assert average.module.lowest == 3.0


def test_unsaved_buffers_are_averaged_too():
    model = Masked()
    average = ExponentialMovingAverage(model, decay=0.5, warmup=False)
    for value in (1.0, 3.0):
        model.scale.fill_(value)
        average.update_parameters(model)
    assert average.module.scale.tolist() == [2.0, 2.0]


def test_forward_calls_the_averaged_module_in_eval_mode_without_gradients(generator):
    model = Masked()
    average = ExponentialMovingAverage(model, decay=0.5)
    for _ in range(3):
        train_step(model, generator)
        average.update_parameters(model)
    features = torch.randn(5, 3, generator=generator)
    reference = copy.deepcopy(model).eval()
    reference.load_state_dict(average.module.state_dict())
    found = average(features)
    assert torch.equal(found, reference(features))
    assert not found.requires_grad
    assert not torch.allclose(found, model.eval()(features), atol=1e-3)


def test_updating_leaves_the_model_alone(generator):
    model = Masked()
    average = ExponentialMovingAverage(model)
    train_step(model, generator)
    before = copy.deepcopy(model)
    average.update_parameters(model)
    average.update_parameters(model)
    assert_same_state(before, model)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("stop", [0, 1, 3])
def test_a_resumed_average_is_bit_identical_to_an_uninterrupted_one(stop, tmp_path):
    def run(model, average, generator, steps):
        for _ in range(steps):
            train_step(model, generator)
            average.update_parameters(model)

    torch.manual_seed(3)
    first = Masked()
    model, generator = copy.deepcopy(first), torch.Generator().manual_seed(1)
    whole = ExponentialMovingAverage(model)
    run(model, whole, generator, 6)

    model, generator = copy.deepcopy(first), torch.Generator().manual_seed(1)
    average = ExponentialMovingAverage(model)
    run(model, average, generator, stop)
    state = {"model": model.state_dict(), "average": average.state_dict(), "random": generator.get_state()}
    save_checkpoint(state, tmp_path / "last.pt")

    state = load_checkpoint(tmp_path / "last.pt")
    model, generator = Masked(), torch.Generator()
    resumed = ExponentialMovingAverage(model)
    model.load_state_dict(state["model"])
    resumed.load_state_dict(state["average"])
    generator.set_state(state["random"])
    assert int(resumed.n_averaged) == stop
    run(model, resumed, generator, 6 - stop)
    assert_same_state(resumed, whole)


def test_a_copy_of_the_average_goes_on_by_itself(generator):
    model = Masked()
    average = ExponentialMovingAverage(model, decay=0.5, warmup=False)
    average.update_parameters(model)
    twin, frozen = copy.deepcopy(average), copy.deepcopy(average)
    for _ in range(2):
        train_step(model, generator)
        twin.update_parameters(model)
    assert int(twin.n_averaged) == 3
    assert_same_state(average, frozen)


@pytest.mark.parametrize(
    "wrap",
    [
        nn.DataParallel,
        DistributedDataParallel,
        pytest.param(lambda model: torch.compile(model, backend="eager"), marks=pytest.mark.slow(3)),
    ],
    ids=["DataParallel", "DistributedDataParallel", "compiled"],
)
def test_a_wrapped_model_is_averaged_as_what_it_wraps(wrap, tmp_path, generator):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        model = Masked()
        average, direct = ExponentialMovingAverage(wrap(model), decay=0.5), ExponentialMovingAverage(model, decay=0.5)
        for _ in range(2):
            train_step(model, generator)
            average.update_parameters(wrap(model))
            direct.update_parameters(model)
        assert_same_state(average, direct)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("key", ["linear.weight", "norm.bias", "norm.running_mean", "scale"])
@pytest.mark.parametrize("first", [True, False])
def test_a_step_to_values_that_are_not_finite_is_named_and_never_averaged(key, first, generator):
    model = Masked()
    average = ExponentialMovingAverage(model, decay=0.9)
    if not first:
        train_step(model, generator)
        average.update_parameters(model)
    before, good = copy.deepcopy(average), copy.deepcopy(model.state_dict())
    train_step(model, generator)
    value = dict([*model.named_parameters(), *model.named_buffers()])[key]
    value.detach().view(-1)[1] = torch.nan
    with pytest.warns(UserWarning, match=rf"an update was left out: {key} holds 1 of {value.numel()} values"):
        average.update_parameters(model)
    assert_same_state(average, before)
    assert torch.equal(average.module.scale, before.module.scale)
    model.load_state_dict(good)
    model.scale.fill_(1)
    for one in (average, before):
        one.update_parameters(model)
    assert_same_state(average, before)


def test_an_infinite_parameter_is_left_out_and_a_buffer_that_is_nan_from_the_start_is_not(generator):
    model = Masked()
    model.lowest.fill_(torch.nan)
    average = ExponentialMovingAverage(model, decay=0.5, warmup=False)
    train_step(model, generator)
    average.update_parameters(model)
    assert int(average.n_averaged) == 1
    model.linear.bias.detach()[0] = torch.inf
    with pytest.warns(UserWarning, match=r"linear\.bias holds 1 of 4"):
        average.update_parameters(model)
    assert int(average.n_averaged) == 1


def test_what_is_left_out_on_an_accelerator_changes_no_value_without_a_look_at_the_host(monkeypatch, generator):
    """The form for accelerators, on the CPU: the answer of :meth:`_is_finite` says that it lies elsewhere."""

    class Elsewhere(torch.Tensor):
        device = property(lambda self: torch.device("cuda"))

        def __bool__(self):
            raise AssertionError("the host waits for the accelerator")

        def to(self, device):
            return self.as_subclass(Tensor)

    model = Masked()
    average = ExponentialMovingAverage(model, decay=0.5)
    train_step(model, generator)
    average.update_parameters(model)
    answer = average._is_finite
    monkeypatch.setattr(average, "_is_finite", lambda model: answer(model).as_subclass(Elsewhere))
    before, good = copy.deepcopy(average.module), copy.deepcopy(model.state_dict())
    model.linear.weight.detach()[0] = torch.nan
    average.update_parameters(model)
    assert_same_state(average.module, before)
    model.load_state_dict(good)
    train_step(model, generator)
    average.update_parameters(model)
    assert not torch.equal(average.module.linear.weight, before.linear.weight)
    assert average.module.linear.weight.isfinite().all()


def test_another_model_is_refused_and_changes_nothing():
    average = ExponentialMovingAverage(nn.Linear(2, 3))
    before = copy.deepcopy(average)
    with pytest.raises(ValueError, match=r"weight.*\(3, 4\).*model.*\(3, 2\).*average"):
        average.update_parameters(nn.Linear(4, 3))
    with pytest.raises(ValueError, match=r"bias has shape None in the model"):
        average.update_parameters(nn.Linear(2, 3, bias=False))
    assert_same_state(average, before)


@pytest.mark.parametrize("decay", [-0.1, 1.1, float("nan")])
def test_a_decay_outside_its_range_is_named(decay):
    with pytest.raises(ValueError, match=rf"ExponentialMovingAverage: decay={decay}.*\[0, 1\]"):
        ExponentialMovingAverage(nn.Linear(1, 1), decay)
