"""Figures of training and evaluation, drawn with matplotlib: precision over recall, losses and AP over epochs, bars.

matplotlib (``pip install "torch-detkit[viz]"``) is imported when a figure is drawn. The functions return a figure of
their own, without a display or any global state.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from detkit._door import door
from detkit.viz.draw import PALETTE

if TYPE_CHECKING:
    import matplotlib.figure


@door
def plot_precision_recall(
    curves: Mapping[str, tuple[Sequence[float] | Tensor | np.ndarray, Sequence[float] | Tensor | np.ndarray]],
    *,
    title: str = "",
) -> "matplotlib.figure.Figure":
    """A matplotlib figure of precision over recall; curves: name -> (recall, precision), each (R,) in [0, 1].

    Precision is drawn as a step function: the value at a recall extends back to the previous recall. A name may contain
    a number ("cell, AP 0.81"). Raises ValueError for other shapes or ranges, ImportError without matplotlib.

    >>> figure = plot_precision_recall({"cell": ([0.0, 0.5, 1.0], [1.0, 0.9, 0.6])})
    >>> figure.axes[0].get_xlabel()
    'recall'
    """
    figure, (axes,) = _figure(1)
    for i, (name, pair) in enumerate(curves.items()):
        recall, precision = (np.asarray(torch.as_tensor(values).detach().cpu(), dtype=float) for values in pair)
        outside = [value for value in (*recall.flat, *precision.flat) if not 0 <= value <= 1]
        if recall.ndim != 1 or recall.shape != precision.shape or outside:
            raise ValueError(
                f"plot_precision_recall: curves[{name!r}] has shapes {recall.shape}, {precision.shape} and "
                f"{outside[:3]} outside [0, 1]; allowed are recall and precision of one shape (R,), all in [0, 1]"
            )
        axes.plot(recall, precision, label=name, drawstyle="steps-pre", **_line(i))
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02), title=title)
    _legend(axes)
    return figure


@door
def plot_curves(
    records: Sequence[Mapping[str, Any]],
    *,
    losses: Sequence[str] | None = None,
    metrics: Sequence[str] | None = None,
    over: str = "epoch",
    title: str = "",
) -> "matplotlib.figure.Figure":
    """A matplotlib figure of a training's records (lines of a ``metrics.jsonl``): losses left, metrics right.

    Each record is a dict of numbers with ``over`` among its keys; a key may be missing or None in some of them.
    By default losses are the keys that contain "loss", metrics those that begin with "AP", "AR" or "mAP".
    Raises ValueError if there is nothing to draw or a key is in no record, ImportError without matplotlib.

    >>> records = [{"epoch": 1, "loss": 2.0}, {"epoch": 2, "loss": 1.5, "AP": 0.2}]
    >>> [axes.get_ylabel() for axes in plot_curves(records).axes]
    ['loss', 'AP']
    """
    keys = list(dict.fromkeys(key for record in records for key in record))
    left = [key for key in keys if "loss" in key.lower()] if losses is None else list(losses)
    right = [key for key in keys if key.startswith(("AP", "AR", "mAP"))] if metrics is None else list(metrics)
    unknown = [key for key in [over, *left, *right] if key not in keys]
    if unknown or not left + right:
        raise ValueError(f"plot_curves: no record has {unknown or 'a loss or AP'}; the records have {keys}")
    panels = [(label, names) for label, names in (("loss", left), ("AP", right)) if names]
    figure, all_axes = _figure(len(panels))
    for axes, (label, names) in zip(all_axes, panels, strict=True):
        for i, name in enumerate(names):
            points = [(record[over], record[name]) for record in records if record.get(name) is not None]
            axes.plot(*zip(*points, strict=True), label=name, marker="o" if len(points) < 40 else "", **_line(i))
        axes.set(xlabel=over, ylabel=label)
        low, high = axes.dataLim.intervaly
        axes.set_ylim(bottom=min(0, low), top=max(1, high) if label == "AP" else None)
        _legend(axes)
    figure.suptitle(title)
    return figure


@door
def plot_bars(values: Mapping[Any, Sequence[float]], *, label: str = "", title: str = "") -> "matplotlib.figure.Figure":
    """A matplotlib figure of horizontal bars: the mean of each name's values, and a line from the least to the most.

    ``values`` maps a name to one or more finite numbers, as runs with several seeds give; the first is drawn on top.
    A name may be anything that has a text, such as a number.
    Raises ValueError where there is nothing to draw or a number is not finite, ImportError without matplotlib.

    >>> figure = plot_bars({"ours": [0.5, 0.7], "theirs": [0.55]}, label="AP")
    >>> [round(float(bar.get_width()), 2) for bar in figure.axes[0].patches]
    [0.6, 0.55]
    """
    rows = {name: np.asarray(numbers, dtype=float) for name, numbers in values.items()}
    bad = [name for name, numbers in rows.items() if numbers.size == 0 or not np.isfinite(numbers).all()]
    if bad or not rows:
        raise ValueError(f"plot_bars: values of {bad or 'no name'}; each name needs at least one number, all finite")
    figure, (axes,) = _figure(1)
    figure.set_figheight(1 + 0.3 * len(rows))
    means = [numbers.mean() for numbers in rows.values()]
    spread = [(numbers.mean() - numbers.min(), numbers.max() - numbers.mean()) for numbers in rows.values()]
    names, color = [str(name) for name in rows], _line(0)["color"]
    xerr = np.transpose(spread)
    axes.barh(range(len(rows)), means, tick_label=names, xerr=xerr, height=0.7, capsize=3, color=color, alpha=0.8)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_axisbelow(True)
    axes.set(xlabel=label, title=title)
    return figure


def _figure(panels: int) -> tuple[Any, list[Any]]:
    """A figure with its own canvas that draws to memory."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('detkit.viz draws curves with matplotlib: pip install "torch-detkit[viz]"') from error
    figure = Figure(figsize=(6.4 * panels, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    all_axes = [figure.add_subplot(1, panels, i + 1) for i in range(panels)]
    for axes in all_axes:
        axes.grid(color="0.9")
        axes.spines[["top", "right"]].set_visible(False)
    return figure, all_axes


def _line(i: int) -> dict[str, Any]:
    """Color and dashes of the i-th curve, distinct in gray too. Yellow is too pale for a line on white."""
    colors = [color for color in PALETTE if color != (240, 228, 66)]
    color = tuple(value / 255 for value in colors[i % len(colors)])
    return {"color": color, "linestyle": ("-", "--", "-.", ":")[i // len(colors) % 4], "linewidth": 1.8}


def _legend(axes: Any) -> None:
    if axes.lines:
        many = len(axes.lines) > 6
        axes.legend(frameon=False, **({"loc": "upper left", "bbox_to_anchor": (1, 1)} if many else {}))
