"""One pass over the training set, also one with losses that are not finite."""

from pathlib import Path

import pytest
import torch
from training import begun

from detkit.data import Augmented, DigitScenes
from detkit.train.epoch import train_epoch


def train_with_bad_losses(output: Path, monkeypatch: pytest.MonkeyPatch, *options: str, steps: set[int]):
    """One epoch of six steps, of which ``steps`` have a loss that is NaN and a BatchNorm that saw it."""
    run = begun(output, *options)
    calls, forward = [], run.model.forward

    def spoilt(images, targets):
        calls.append(None)
        bad = len(calls) in steps
        with pytest.MonkeyPatch.context() as once:
            if bad:
                trunk = run.model.trunk.forward
                once.setattr(run.model.trunk, "forward", lambda pixels: trunk(pixels * float("nan")))
            losses = forward(images, targets)
        return {name: loss * (float("nan") if bad else 1) for name, loss in losses.items()}

    monkeypatch.setattr(run.model, "forward", spoilt)
    data = Augmented(DigitScenes(24, size=(64, 64)), lambda image, target: (image.float() / 255, target))
    return run, lambda: train_epoch(run, run.model, data, 0)


def state_of(run) -> list[torch.Tensor]:
    return [*run.model.state_dict().values(), *run.average.module.state_dict().values()]


@pytest.mark.slow(2)
@pytest.mark.parametrize(("options", "steps"), [((), {2, 5}), (("--accumulate", "3"), {2})])
def test_steps_that_are_not_finite_are_left_out_of_model_average_and_means(
    options, steps, tmp_path, monkeypatch, capsys
):
    run, epoch = train_with_bad_losses(tmp_path, monkeypatch, "--nonfinite", "skip", *options, steps=steps)
    means = epoch()
    assert means.pop("skipped") == 2 + (len(options) > 0)
    assert all(value == value for value in means.values())
    assert all(value.isfinite().all() for value in state_of(run) if value.is_floating_point())
    assert all(value.isfinite().all() for slot in run.optimizer.state.values() for value in slot.values())
    printed = capsys.readouterr()
    assert "step left out: epoch 0, batch 2: loss dense." in printed.out + printed.err or options
    assert run.schedule.last_epoch == 6 // (3 if options else 1)


def test_a_loss_that_is_not_finite_stops_the_run_and_is_named(tmp_path, monkeypatch):
    run, epoch = train_with_bad_losses(tmp_path, monkeypatch, steps={1})
    before = [value.clone() for value in state_of(run)]
    with pytest.raises(FloatingPointError, match=r"^epoch 0, batch 1: loss dense\.\w+ is nan, .* --nonfinite skip"):
        epoch()
    assert all(torch.equal(value, old) for value, old in zip(state_of(run), before, strict=True))


@pytest.mark.slow(2)
def test_an_epoch_in_which_no_step_was_finite_ends_the_run(tmp_path, monkeypatch):
    run, epoch = train_with_bad_losses(tmp_path, monkeypatch, "--nonfinite", "skip", steps=set(range(1, 7)))
    with pytest.raises(FloatingPointError, match="epoch 0: no loss was finite"):
        epoch()
    assert all(value.isfinite().all() for value in state_of(run))
