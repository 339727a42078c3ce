"""Curves: what is plotted, what is refused, and that they need no display and no global state."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from detkit.viz import plot_bars, plot_curves, plot_precision_recall


def test_precision_recall_curves_hold_their_points_and_names():
    recall = torch.linspace(0, 1, 11)
    figure = plot_precision_recall({"a": (recall, 1 - recall), "b": ([0.0, 1.0], np.array([1.0, 0.5]))}, title="t")
    (axes,) = figure.axes
    assert [line.get_label() for line in axes.lines] == ["a", "b"]
    np.testing.assert_allclose(axes.lines[0].get_ydata(), (1 - recall).numpy())
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "b"]
    assert axes.get_title() == "t"


@pytest.mark.parametrize(
    "curve", [([0.0, 1.0], [1.0]), ([0.0], [-1.0]), ([0.0], [float("nan")]), ([[0.0]], [[0.0]]), ([1.5], [0.5])]
)
def test_bad_precision_recall_curves_are_named(curve):
    with pytest.raises(
        ValueError, match=r"plot_precision_recall: curves\['car'\] has shapes .* allowed are recall and"
    ):
        plot_precision_recall({"car": (np.array(curve[0]), np.array(curve[1]))})


def test_training_curves_skip_the_epochs_without_a_value():
    records = [
        {"epoch": 1, "loss": 2.0, "rpn_loss": 1.0, "lr": 0.1, "AP": None},
        {"epoch": 2, "loss": 1.5, "rpn_loss": 0.5, "lr": 0.1, "AP": 0.25, "AP50": 0.5},
        {"epoch": 3, "loss": 1.0, "rpn_loss": 0.4, "lr": 0.1},
    ]
    left, right = plot_curves(records).axes
    found = {line.get_label(): list(map(tuple, line.get_xydata().tolist())) for line in [*left.lines, *right.lines]}
    assert found == {
        "loss": [(1, 2.0), (2, 1.5), (3, 1.0)],
        "rpn_loss": [(1, 1.0), (2, 0.5), (3, 0.4)],
        "AP": [(2, 0.25)],
        "AP50": [(2, 0.5)],
    }
    assert left.get_ylim()[0] == 0
    assert right.get_ylim() == (0, 1)


def test_values_outside_the_usual_range_are_not_cut_off():
    records = [{"epoch": 1, "loss": -2.0, "AP": 37.5}, {"epoch": 2, "loss": 1.0, "AP": -1.0}]
    left, right = plot_curves(records).axes
    assert left.get_ylim()[0] <= -2
    assert right.get_ylim() == (-1, 37.5)


def test_keys_and_the_axis_can_be_chosen():
    records = [{"step": i, "lr": 0.1 / i, "recall": 0.1 * i} for i in (1, 2, 3)]
    left, right = plot_curves(records, losses=["lr"], metrics=["recall"], over="step").axes
    assert [left.lines[0].get_label(), right.lines[0].get_label(), left.get_xlabel()] == ["lr", "recall", "step"]


@pytest.mark.parametrize(
    ("records", "arguments", "message"),
    [
        ([], {}, r"no record has \['epoch'\]"),
        ([{"epoch": 1, "lr": 0.1}], {}, r"no record has a loss or AP; the records have \['epoch', 'lr'\]"),
        ([{"epoch": 1, "loss": 0.1}], {"metrics": ["mIoU"]}, r"no record has \['mIoU'\]"),
    ],
)
def test_records_without_the_keys_are_named(records, arguments, message):
    with pytest.raises(ValueError, match="plot_curves: " + message):
        plot_curves(records, **arguments)


def test_curves_without_matplotlib_tell_how_to_install_it(monkeypatch):
    for name in ("matplotlib", "matplotlib.figure", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r'pip install "torch-detkit\[viz\]"'):
        plot_curves([{"epoch": 1, "loss": 1.0}])


@pytest.mark.slow(6)
def test_drawing_needs_no_matplotlib_and_curves_no_pyplot():
    code = """
import sys, torch, detkit.viz as viz
viz.draw_boxes(torch.zeros(3, 96, 96), torch.zeros(1, 4))
assert "matplotlib" not in sys.modules
viz.plot_curves([{"epoch": 1, "loss": 1.0}])
assert "matplotlib" in sys.modules and "matplotlib.pyplot" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_bars_hold_means_and_extents_the_first_on_top():
    (axes,) = plot_bars({"ours": [0.5, 0.7, 0.9], "theirs": (0.55,)}, label="AP", title="t").figure.axes
    assert [round(bar.get_width(), 3) for bar in axes.patches] == [0.7, 0.55]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["ours", "theirs"]
    assert axes.yaxis_inverted()
    (lines,) = axes.containers[0].lines[2]
    np.testing.assert_allclose([segment[:, 0] for segment in lines.get_segments()], [[0.5, 0.9], [0.55, 0.55]])
    assert (axes.get_xlabel(), axes.get_title()) == ("AP", "t")


def test_names_that_look_like_numbers_are_names_each_with_its_own_bar():
    (axes,) = plot_bars({10: [2.0], "1": [3.0], 1: [4.0]}).axes
    assert [text.get_text() for text in axes.get_yticklabels()] == ["10", "1", "1"]
    assert [bar.get_width() for bar in axes.patches] == [2.0, 3.0, 4.0]


@pytest.mark.parametrize("values", [{}, {"a": []}, {"a": [1.0], "b": [float("nan")]}])
def test_bars_without_numbers_are_refused(values):
    with pytest.raises(ValueError, match="plot_bars: values of"):
        plot_bars(values)
