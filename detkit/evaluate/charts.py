"""Charts as SVG text that stands in an HTML page: curves over two axes, and bars."""

from collections.abc import Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np

WIDTH, HEIGHT, MARGIN = 440, 320, 44
_TICKS = np.linspace(0, 1, 6)


class Line(NamedTuple):
    """A named line: x and y (N,), a CSS color, and whether it is drawn thick."""

    name: str
    x: np.ndarray
    y: np.ndarray
    color: str
    thick: bool = False


def line_chart(
    lines: Sequence[Line], *, axes: tuple[str, str], span: tuple[float, float] = (0.0, 1.0), at: float | None = None
) -> str:
    """Lines over x from ``span`` and y from 0 to 1, ``axes`` their names, with a dashed upright line ``at`` an x.

    A line is thinned to the pixels that it passes.

    >>> chart = line_chart([Line("cat & dog", np.array([0.0, 1]), np.array([0.5, 1]), "red")], axes=("score", "F1"))
    >>> chart.count("<polyline"), "cat &amp; dog" in chart
    (1, True)
    """
    parts = [_frame(axes, span)]
    parts += [_polyline(line, span) for line in lines]
    if at is not None:
        parts.append(_straight("mark", (_across(at, span),) * 2, (_up(0), _up(1))))
    names = "".join(f'<li><i style="background:{line.color}"></i>{escape(line.name)}</li>' for line in lines)
    return f'<figure><svg viewBox="0 0 {WIDTH} {HEIGHT}">{"".join(parts)}</svg><ul class="key">{names}</ul></figure>'


def bar_chart(bars: Sequence[tuple[str, float, str, str]]) -> str:
    """A row per bar: its name, length, the text beside it, its CSS color. The longest fills the width.

    >>> bar_chart([("missed", 0.25, "25 points", "red")]).count("<rect")
    1
    """
    longest = max((length for _, length, _, _ in bars), default=0) or 1
    rows = []
    for place, (name, length, text, color) in enumerate(bars):
        y, width = 6 + 26 * place, 240 * length / longest
        rows.append(
            f'<text x="112" y="{y + 14}" class="end">{escape(name)}</text>'
            f'<rect x="120" y="{y}" width="{width:.1f}" height="18" fill="{color}"/>'
            f'<text x="{126 + width:.1f}" y="{y + 14}">{escape(text)}</text>'
        )
    return f'<figure><svg viewBox="0 0 540 {10 + 26 * len(bars)}" class="bars">{"".join(rows)}</svg></figure>'


def reliability_chart(precision: np.ndarray, counts: np.ndarray) -> str:
    """The precision of each bin of scores as a bar, and the line at which bars of probabilities end.

    >>> reliability_chart(np.array([0.5, np.nan]), np.array([3, 0])).count("<rect")
    1
    """
    parts = [_frame(("score", "precision"), (0.0, 1.0))]
    for place in np.flatnonzero(counts).tolist():
        left, right = (_across(end / len(counts), (0, 1)) for end in (place, place + 1))
        share, title = float(precision[place]), f"precision {precision[place]:.2f} of {counts[place]} detections"
        parts.append(
            f'<rect class="bin" x="{left + 1:.1f}" y="{_up(share):.1f}" width="{right - left - 2:.1f}" '
            f'height="{_up(0) - _up(share):.1f}"><title>{title}</title></rect>'
        )
    ends = np.array([0.0, 1.0])
    parts.append(_polyline(Line("", ends, ends, "#222"), (0.0, 1.0)))
    return f'<figure><svg viewBox="0 0 {WIDTH} {HEIGHT}">{"".join(parts)}</svg></figure>'


def _frame(axes: tuple[str, str], span: tuple[float, float]) -> str:
    parts = []
    for tick in _TICKS.tolist():
        x, y, value = _across(tick, (0, 1)), _up(tick), span[0] + tick * (span[1] - span[0])
        parts += [
            _straight("grid", (x, x), (_up(0), _up(1))),
            _straight("grid", (_across(0, (0, 1)), _across(1, (0, 1))), (y, y)),
            f'<text x="{x:.1f}" y="{HEIGHT - 26}" class="middle">{value:.2g}</text>',
            f'<text x="{MARGIN - 6}" y="{y + 4:.1f}" class="end">{tick:.1f}</text>',
        ]
    across, up = map(escape, axes)
    parts.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 6}" class="middle axis">{across}</text>')
    parts.append(f'<text transform="translate(12 {HEIGHT / 2}) rotate(-90)" class="middle axis">{up}</text>')
    return "".join(parts)


def _straight(kind: str, x: tuple[float, float], y: tuple[float, float]) -> str:
    return f'<line class="{kind}" x1="{x[0]:.1f}" x2="{x[1]:.1f}" y1="{y[0]:.1f}" y2="{y[1]:.1f}"/>'


def _polyline(line: Line, span: tuple[float, float]) -> str:
    pixels = np.stack([_across(line.x, span), _up(line.y)], axis=1)
    moved = np.ones(len(pixels), bool)  # of points on the same pixel the first is enough
    moved[1:] = (np.diff(pixels.round(), axis=0) != 0).any(axis=1)
    moved[-1:] = True
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in pixels[moved].tolist())
    return f'<polyline points="{points}" stroke="{line.color}" stroke-width="{3 if line.thick else 1.5}"/>'


def _across(value: Any, span: tuple[float, float]) -> Any:
    share = (value - span[0]) / (span[1] - span[0])
    return MARGIN + share * (WIDTH - MARGIN - 10)


def _up(value: Any) -> Any:
    return HEIGHT - MARGIN - value * (HEIGHT - MARGIN - 10)
