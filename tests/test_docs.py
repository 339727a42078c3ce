"""What pages under docs/ show works: the Python of those that need nothing but the library runs, in order."""

from pathlib import Path

import pytest
from fenced import run_python

DOCS = Path(__file__).parent.parent / "docs"
PAGES = (
    *("adding_a_part", "anchors_and_matching", "dense_detectors", "elementary_losses", "overlap", "suppression"),
    *("augmentation", "darknet_files", "dozen_detectors", "half_precision", "hourglass", "inference", "kernels"),
    *("localizers", "metric_learning", "predicting", "several_tasks", "training"),
)


@pytest.mark.slow(3)
@pytest.mark.parametrize("name", PAGES)
def test_the_python_of_a_page_runs(name: str, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = DOCS / f"{name}.md"
    assert run_python(page.read_text(encoding="utf-8"), str(page))
