"""The learning rate's course: goldens, torch's own cosine as second oracle, and resuming bit for bit."""

import pickle

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR

from detkit.tricks import warmup_cosine
from detkit.weights import load_checkpoint, save_checkpoint

ETA = 0.1


def optimizer_of(*rates: float) -> torch.optim.Optimizer:
    groups = [{"params": [torch.nn.Parameter(torch.ones(2))], "lr": rate} for rate in rates]
    return torch.optim.SGD(groups, lr=1.0, momentum=0.9)


def rates_over(steps: int, *, etas: tuple[float, ...] = (ETA,), **arguments: float) -> list[list[float]]:
    """The rates in force at steps 0 .. steps, all groups."""
    optimizer = optimizer_of(*etas)
    schedule = warmup_cosine(optimizer, **arguments)
    rates = []
    for _ in range(steps + 1):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    return rates


@pytest.mark.parametrize(("step", "rate"), [(0, 0.1), (25, 0.0853553), (50, 0.05), (75, 0.0146447), (100, 0.0)])
def test_cosine_of_100_steps_has_the_published_values(step, rate):
    rates = rates_over(100, warmup_steps=0, total_steps=100)
    assert rates[step][0] == pytest.approx(rate, abs=5e-8)


def test_warmup_rises_linearly_from_zero_and_the_cosine_counts_only_the_steps_after_it():
    rates = [rate for (rate,) in rates_over(110, warmup_steps=10, total_steps=110)]
    assert rates[:11] == pytest.approx([ETA * i / 10 for i in range(11)])
    plain = [rate for (rate,) in rates_over(100, warmup_steps=0, total_steps=100)]
    assert rates[10:] == plain


def test_first_step_at_rate_zero_changes_nothing_and_start_factor_does_not_waste_it():
    for start, moved in [(0.0, False), (0.25, True)]:
        optimizer = optimizer_of(ETA)
        warmup_cosine(optimizer, warmup_steps=4, total_steps=8, start_factor=start)
        (parameter,) = optimizer.param_groups[0]["params"]
        parameter.grad = torch.ones(2)
        optimizer.step()
        assert bool((parameter != 1).all()) is moved


def test_start_factor_of_one_over_m_starts_at_eta_over_m():
    rates = [rate for (rate,) in rates_over(4, warmup_steps=4, total_steps=9, start_factor=0.25)]
    assert rates == pytest.approx([0.025, 0.04375, 0.0625, 0.08125, 0.1])


@pytest.mark.parametrize("final", [0.0, 0.1])
def test_cosine_equals_torchs_cosine_annealing(final):
    optimizer = optimizer_of(ETA)
    peer = CosineAnnealingLR(optimizer, T_max=37, eta_min=ETA * final)
    for (rate,) in rates_over(37, warmup_steps=0, total_steps=37, final_factor=final):
        assert rate == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)
        optimizer.step()
        peer.step()


def test_rate_stays_at_its_end_after_the_last_step():
    rates = rates_over(30, warmup_steps=2, total_steps=10, final_factor=0.2)
    assert rates[10:] == [[pytest.approx(0.02)]] * 21
    assert rates[9][0] > 0.02


def test_every_group_follows_from_its_own_rate():
    rates = torch.tensor(rates_over(20, etas=(0.1, 0.001), warmup_steps=5, total_steps=20), dtype=torch.float64)
    torch.testing.assert_close(rates[:, 0], rates[:, 1] * 100)


@pytest.mark.parametrize("stop", [0, 1, 3, 4, 7, 12])
def test_a_resumed_run_is_bit_identical_to_an_uninterrupted_one(stop, tmp_path):
    def start():
        optimizer = optimizer_of(0.1, 0.03)
        return optimizer, warmup_cosine(optimizer, warmup_steps=4, total_steps=12, start_factor=0.1)

    def run(optimizer, schedule, steps):
        seen = []
        for _ in range(steps):
            seen.append(([group["lr"] for group in optimizer.param_groups], schedule.get_last_lr()))
            optimizer.step()
            schedule.step()
        return seen

    whole = run(*start(), 14)
    optimizer, schedule = start()
    before = run(optimizer, schedule, stop)
    save_checkpoint({"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}, tmp_path / "last.pt")
    optimizer, schedule = start()
    state = load_checkpoint(tmp_path / "last.pt")
    optimizer.load_state_dict(state["optimizer"])
    schedule.load_state_dict(state["schedule"])
    assert before + run(optimizer, schedule, 14 - stop) == whole


def test_the_state_restores_the_arguments_of_the_first_run():
    first = warmup_cosine(optimizer_of(ETA), warmup_steps=4, total_steps=12)
    other = warmup_cosine(optimizer_of(ETA), warmup_steps=1, total_steps=3, final_factor=0.5)
    other.load_state_dict(first.state_dict())
    other.optimizer.step()
    other.step()
    assert other.get_last_lr() == [ETA * 1 / 4]


@pytest.mark.filterwarnings("ignore:Seems like `optimizer.step")  # torch's mark on step() does not pickle
def test_the_schedule_pickles():
    schedule = pickle.loads(pickle.dumps(warmup_cosine(optimizer_of(ETA), warmup_steps=2, total_steps=12)))
    schedule.optimizer.step()
    schedule.step()
    assert schedule.get_last_lr() == [0.05]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"warmup_steps": -1, "total_steps": 10}, r"warmup_cosine: warmup_steps=-1"),
        ({"warmup_steps": 10, "total_steps": 10}, r"warmup_steps=10 and total_steps=10 must satisfy"),
        ({"warmup_steps": 0, "total_steps": 0}, r"total_steps=0"),
        ({"warmup_steps": 1, "total_steps": 10, "start_factor": -0.1}, r"start_factor=-0.1 must lie in \[0, 1\]"),
        ({"warmup_steps": 1, "total_steps": 10, "final_factor": 1.5}, r"final_factor=1.5 must lie in \[0, 1\]"),
        ({"warmup_steps": 1, "total_steps": 10, "final_factor": float("nan")}, r"final_factor=nan"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        warmup_cosine(optimizer_of(ETA), **arguments)
