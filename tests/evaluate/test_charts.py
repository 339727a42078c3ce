"""Charts are well-formed SVG, whose marks stand where the numbers say."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from detkit.evaluate.charts import HEIGHT, MARGIN, WIDTH, Line, bar_chart, line_chart, reliability_chart


def test_lines_reach_the_corners_of_their_frame():
    line = Line("<all>", np.array([-2.0, 2.0]), np.array([0.0, 1.0]), "red", thick=True)
    tree = ElementTree.fromstring(line_chart([line], axes=("score", "F1 & more"), span=(-2, 2), at=0))
    (drawn,) = tree.iter("polyline")
    assert drawn.get("points") == f"{MARGIN:.1f},{HEIGHT - MARGIN:.1f} {WIDTH - 10:.1f},10.0"
    (mark,) = (row for row in tree.iter("line") if row.get("class") == "mark")
    assert float(mark.get("x1")) == pytest.approx((MARGIN + WIDTH - 10) / 2)
    assert "<all>" in "".join(tree.itertext())


def test_long_and_empty_lines_are_drawn():
    many = np.linspace(0, 1, 50_000)
    chart = line_chart([Line("a", many, many, "red"), Line("b", many[:0], many[:0], "red")], axes=("x", "y"))
    first, second = re.findall(r'points="([^"]*)"', chart)
    assert len(first.split()) < 1000
    assert first.endswith(f"{WIDTH - 10:.1f},10.0")
    assert second == ""


def test_bars_are_as_long_as_their_values():
    tree = ElementTree.fromstring(bar_chart([("a", 0.2, "x", "red"), ("b", 0.1, "y", "red"), ("c", 0, "z", "red")]))
    assert [float(row.get("width")) for row in tree.iter("rect")] == [240, 120, 0]
    assert ElementTree.fromstring(bar_chart([("a", 0, "", "red")])) is not None


def test_bins_are_as_high_as_their_precision():
    chart = reliability_chart(np.array([0.5, np.nan, 1.0]), np.array([3, 0, 1]))
    heights = [float(row.get("height")) for row in ElementTree.fromstring(chart).iter("rect")]
    assert heights == [pytest.approx((HEIGHT - MARGIN - 10) / 2), HEIGHT - MARGIN - 10]
