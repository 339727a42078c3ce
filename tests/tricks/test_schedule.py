"""The learning rate's course: goldens, torch's own schedulers as second oracle, and resuming bit for bit."""

import pickle

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR

from detkit.tricks import warmup_cosine, warmup_steps_down
from detkit.weights import load_checkpoint, save_checkpoint

ETA = 0.1


def optimizer_of(*rates: float) -> torch.optim.Optimizer:
    groups = [{"params": [torch.nn.Parameter(torch.ones(2))], "lr": rate} for rate in rates]
    return torch.optim.SGD(groups, lr=1.0, momentum=0.9)


def rates_over(steps: int, *, etas: tuple[float, ...] = (ETA,), **arguments: float) -> list[list[float]]:
    """The rates in force at steps 0 .. steps, all groups."""
    optimizer = optimizer_of(*etas)
    return rates_of(warmup_cosine(optimizer, **arguments), steps + 1)


def rates_of(schedule: LRScheduler, steps: int) -> list[list[float]]:
    """The rates in force in the next steps, all groups, which the schedule says too."""
    rates = []
    for _ in range(steps):
        rates.append([float(group["lr"]) for group in schedule.optimizer.param_groups])
        assert rates[-1] == [float(rate) for rate in schedule.get_last_lr()]
        schedule.optimizer.step()
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


KINDS = {
    "cosine": lambda optimizer: warmup_cosine(optimizer, warmup_steps=4, total_steps=12, start_factor=0.1),
    "steps": lambda optimizer: warmup_steps_down(optimizer, milestones=[3, 7, 9], factor=0.5, warmup_steps=5),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stop", [0, 1, 3, 4, 7, 12])
def test_a_resumed_run_is_bit_identical_to_an_uninterrupted_one(stop, kind, tmp_path):
    def start():
        optimizer = optimizer_of(0.1, 0.03)
        return optimizer, KINDS[kind](optimizer)

    whole = rates_of(start()[1], 14)
    optimizer, schedule = start()
    before = rates_of(schedule, stop)
    save_checkpoint({"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}, tmp_path / "last.pt")
    optimizer, schedule = start()
    state = load_checkpoint(tmp_path / "last.pt")
    optimizer.load_state_dict(state["optimizer"])
    schedule.load_state_dict(state["schedule"])
    assert before + rates_of(schedule, 14 - stop) == whole


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("as_tensor", [False, True])
def test_the_rates_of_a_run_resumed_without_its_optimizer_are_right_from_the_first_step(kind, as_tensor):
    def start():
        optimizer = optimizer_of(0.1, 0.03)
        if as_tensor:  # as compiled and captured optimizers have them
            for group in optimizer.param_groups:
                group["lr"] = torch.tensor(group["lr"], dtype=torch.float64)
        return KINDS[kind](optimizer)

    whole, first, second = rates_of(start(), 14), start(), start()
    before = rates_of(first, 6)
    own = [group["lr"] for group in second.optimizer.param_groups]
    second.load_state_dict(first.state_dict())
    assert before + rates_of(second, 8) == whole
    if as_tensor:  # in place: a captured graph reads them where they lie
        assert all(group["lr"] is rate for group, rate in zip(second.optimizer.param_groups, own, strict=True))


def test_torchs_own_cosine_resumed_without_its_optimizer_is_wrong_which_ours_is_not():
    def start():
        return CosineAnnealingLR(optimizer_of(ETA), T_max=12)

    first, second = start(), start()
    step_through = [first.optimizer.step() or first.step() for _ in range(6)]
    assert len(step_through) == 6
    second.load_state_dict(first.state_dict())
    assert second.optimizer.param_groups[0]["lr"] != first.optimizer.param_groups[0]["lr"]


def test_a_state_of_other_groups_or_of_another_schedule_is_refused():
    two, one = KINDS["cosine"](optimizer_of(0.1, 0.03)), KINDS["cosine"](optimizer_of(ETA))
    with pytest.raises(ValueError, match=r"2 parameter groups; this optimizer has 1"):
        one.load_state_dict(two.state_dict())
    with pytest.raises(ValueError, match=r"'milestones'.*not warmup_steps, start_factor, total_steps.*another kind"):
        one.load_state_dict(KINDS["steps"](optimizer_of(ETA)).state_dict())
    with pytest.raises(ValueError, match=r"0 parameter groups"):
        one.load_state_dict(CosineAnnealingLR(optimizer_of(ETA), T_max=3).state_dict())
    assert rates_of(one, 14) == rates_of(KINDS["cosine"](optimizer_of(ETA)), 14)


@pytest.mark.parametrize(("step", "rate"), [(0, 1e-4), (6999, 1e-4), (7000, 5e-5), (13_999, 5e-5), (14_000, 2.5e-5)])
def test_halving_every_7000_steps_as_the_hourglass_proposals_were_trained(step, rate):
    schedule = warmup_steps_down(optimizer_of(1e-4), milestones=range(7000, 200_000, 7000), factor=0.5)
    schedule.last_epoch = step - 1
    schedule.optimizer.step()
    schedule.step()
    assert schedule.get_last_lr() == [rate]


def test_steps_down_equal_torchs_and_the_warmup_multiplies_them():
    peer = MultiStepLR(optimizer_of(ETA), milestones=[3, 5, 6], gamma=0.3)
    ours = rates_of(warmup_steps_down(optimizer_of(ETA), milestones=[3, 5, 6], factor=0.3), 9)
    assert ours == [pytest.approx(rates) for rates in rates_of(peer, 9)]
    warm = rates_of(
        warmup_steps_down(optimizer_of(ETA), milestones=[3, 5, 6], factor=0.3, warmup_steps=4, start_factor=0.2), 9
    )
    shares = [0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1, 1]
    assert [rate for (rate,) in warm] == pytest.approx(
        [rate * share for (rate,), share in zip(ours, shares, strict=True)]
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"milestones": [3, 3]}, r"warmup_steps_down: milestones=\[3, 3\]"),
        ({"milestones": [0]}, r"warmup_steps_down: milestones\[0\]=0 must be at least 1"),
        ({"milestones": [3], "factor": 1.5}, r"factor=1.5 must lie in \[0, 1\]"),
    ],
)
def test_senseless_steps_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        warmup_steps_down(optimizer_of(ETA), **arguments)


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
