"""Early stopping against a slow reading of its rule, on all processes alike, and resumed."""

import math
import tempfile
from datetime import timedelta
from pathlib import Path

import processes
import pytest
import torch
import torch.distributed as torch_dist
from hypothesis import given
from hypothesis import strategies as st
from strategies import assert_refused, unhooked

from detkit.tricks import EarlyStopping
from detkit.weights import load_checkpoint, save_checkpoint

METRICS = st.lists(st.sampled_from([0.0, 0.1, 0.15, 0.3, -1.0, math.inf, -math.inf, math.nan]) | st.floats(-1, 1))


def slow(metrics: list[float], patience: int, mode: str, min_delta: float) -> list[bool]:
    """Whether to stop after each metric: none of the last ``patience`` was an improvement."""
    improved, best = [], None
    for metric in metrics:
        better = not math.isnan(metric) and (
            best is None or (metric - best > min_delta if mode == "max" else best - metric > min_delta)
        )
        best = metric if better else best
        improved.append(better)
    return [i + 1 >= patience and not any(improved[i + 1 - patience : i + 1]) for i in range(len(metrics))]


@given(
    metrics=METRICS, patience=st.integers(1, 4), mode=st.sampled_from(["max", "min"]), delta=st.sampled_from([0, 0.1])
)
def test_it_stops_where_the_last_metrics_are_no_better(metrics, patience, mode, delta):
    stopping = EarlyStopping(patience, mode=mode, min_delta=delta)
    assert [stopping.update(metric) for metric in metrics] == slow(metrics, patience, mode, delta)


@pytest.mark.parametrize("mode", ["max", "min"])
def test_the_best_is_kept_and_a_nan_never_is(mode):
    sign = 1 if mode == "max" else -1
    stopping = EarlyStopping(3, mode=mode)
    assert (stopping.best, stopping.improved, stopping.stopped) == (None, False, False)
    seen = []
    for metric in (math.nan, 0.2, 0.1, math.nan, 0.4, 0.4):
        stopping.update(sign * metric)
        seen.append((stopping.best, stopping.improved))
    assert seen == [(None, False), (sign * 0.2, True), (sign * 0.2, False), (sign * 0.2, False), (sign * 0.4, True),
                    (sign * 0.4, False)]  # fmt: skip


def test_small_gains_do_not_count_and_do_not_creep():
    stopping = EarlyStopping(3, min_delta=0.1)
    assert [stopping.update(0.5 + 0.04 * i) for i in range(4)] == [False, False, False, False]
    assert stopping.best == 0.62  # the first that is 0.1 above the best, not above the one before it


@pytest.mark.parametrize("stop", range(7))
def test_a_resumed_one_goes_on(stop, tmp_path):
    metrics = [0.1, math.nan, 0.3, 0.2, 0.3, 0.1, 0.2]
    whole, first, second = (EarlyStopping(3) for _ in range(3))
    before = [first.update(metric) for metric in metrics[:stop]]
    save_checkpoint({"stopping": first.state_dict()}, tmp_path / "state.pt")
    second.load_state_dict(load_checkpoint(tmp_path / "state.pt")["stopping"])
    assert before + [second.update(metric) for metric in metrics[stop:]] == [whole.update(metric) for metric in metrics]
    assert second.state_dict() == whole.state_dict()


def test_senseless_settings_are_refused():
    assert_refused("EarlyStopping: patience=0 must be at least 1", EarlyStopping, 0)
    assert_refused("EarlyStopping: min_delta=-1 must be at least 0", EarlyStopping, 1, min_delta=-1)
    assert_refused("EarlyStopping: mode='best' 'max' 'min'", EarlyStopping, 1, mode="best")
    assert_refused("EarlyStopping.load_state_dict: no 'waited' best", EarlyStopping(1).load_state_dict, {"best": 0.5})
    with pytest.raises(TypeError, match=r"EarlyStopping\.update: metric is a NoneType"):
        EarlyStopping(1).update(None)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("metric", [{"bbox/AP": 0.5}, None, [0.5], "best"])
def test_what_is_no_number_is_refused_by_name(metric):
    stopping = EarlyStopping(1)
    with pytest.raises(TypeError, match=rf"EarlyStopping.update: metric is a {type(metric).__name__}; give a number"):
        unhooked(stopping.update)(metric)
    assert not stopping.stopped


def process(rank: int, folder: str) -> None:
    torch_dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    stopping = EarlyStopping(2)
    metrics = [0.1, 0.3, 0.3, 0.2] if rank == 0 else [0.1, 0.3, 0.4, math.nan]
    torch.save([stopping.update(metric) for metric in metrics] + [stopping.best], f"{folder}/{rank}.pt")
    torch_dist.destroy_process_group()


@pytest.mark.slow(1)
def test_all_processes_stop_together_by_the_metric_of_the_first():
    with tempfile.TemporaryDirectory() as folder:
        processes.end(*(processes.start(process, r, folder, printed=Path(folder) / f"{r}.txt") for r in range(2)))
        seen = [torch.load(f"{folder}/{rank}.pt") for rank in range(2)]
    assert seen[0] == seen[1] == [False, False, False, True, 0.3]
