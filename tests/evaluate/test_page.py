"""The page: well-formed, self-contained, and its figures those of the report."""

import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from judged_scenes import NAMES, scenes
from PIL import Image

from detkit.evaluate.page import Drawing, write_page
from detkit.evaluate.report import make_report
from detkit.metrics import CocoMetrics

HOSTILE = '<script>alert("x")</script>'
VOID = {"meta", "img"}


class Reader(HTMLParser):
    """Checks that elements nest, and gathers their names and attributes."""

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def report_of(names=NAMES, seed=0, **options):
    metrics = CocoMetrics(names)
    metrics.update(*scenes(seed, count=12, **options))
    return make_report(metrics)


def read(page):
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    return reader


def test_elements_nest_nothing_is_loaded_and_nothing_runs():
    drawing = Drawing(HOSTILE, HOSTILE, "data:image/jpeg;base64,AAAA", "data:image/jpeg;base64,AAAA")
    page = write_page(report_of((HOSTILE, "a & b", "ü", "'\"")), title=HOSTILE, drawings=[drawing])
    reader = read(page)
    assert "script" not in {tag for tag, _ in reader.seen}
    addresses = [
        value for _, attributes in reader.seen for name, value in attributes.items() if name in ("src", "href")
    ]
    assert addresses == ["data:image/jpeg;base64,AAAA"] * 2
    assert not re.search(r"url\(|@import|http", page)
    assert "".join(reader.text).count(HOSTILE) >= 5


def test_the_counts_of_the_matrix_stand_on_the_page():
    report = report_of(crowds=True)
    page = write_page(report, title="x")
    cells = re.findall(r'<td style="[^"]*">(\d*)</td>', page)
    assert [int(cell or 0) for cell in cells] == report.matrix.counts.flatten().tolist()
    for kind, count in report.errors.counts.items():
        assert f"{100 * report.errors.costs[kind]:.1f} points, {count} errors" in page
    assert "Crowds, ignored objects" in page


def test_many_classes_are_listed_by_their_confusions():
    report = report_of([*NAMES, *(f"class {number}" for number in range(40))])
    page = write_page(report, title="x")
    read(page)
    assert "40 classes have no objects here" in page
    others = report.matrix.counts.copy()
    np.fill_diagonal(others, 0)
    row, column = np.unravel_index(others.argmax(), others.shape)
    first = [[*report.matrix.names, "nothing"][row], [*report.matrix.names, "missed"][column], str(others.max())]
    assert "".join(f"<td>{text}</td>" for text in first) in page


@pytest.mark.parametrize("names", [("only",), NAMES])
def test_a_page_of_nothing_is_a_page(names):
    assert "none to tell" in "".join(read(write_page(make_report(CocoMetrics(names)), title="nothing")).text)


@pytest.mark.slow(8)
def test_a_browser_shows_it(tmp_path):
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium is installed: the page was NOT looked at by a browser")
    page, shot = tmp_path / "index.html", tmp_path / "page.png"
    page.write_text(write_page(report_of(), title="scenes"), encoding="utf-8")
    quiet = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    more = f"--disable-component-update --disable-sync --user-data-dir={tmp_path}/profile --window-size=1000,2000"
    command = [browser, *quiet.split(), *more.split(), f"--screenshot={shot}", page.as_uri()]
    subprocess.run(command, check=True, timeout=120, capture_output=True)
    pixels = np.array(Image.open(shot).convert("RGB"))
    assert pixels.shape == (2000, 1000, 3)
    assert (pixels[-1000:] != 255).any()
    for color in ((213, 94, 0), (86, 180, 233)):  # of the errors, and of calibration
        assert (np.abs(pixels.astype(int) - color).sum(axis=2) < 12).sum() > 100
