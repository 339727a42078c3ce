"""What pages under docs/ show works: the Python of those that need nothing but the library runs, in order."""

import re
from pathlib import Path

import processes
import pytest
from fenced import run_python, run_session
from runtimes import table

DOCS = Path(__file__).parent.parent / "docs"
PAGES = (
    *("adding_a_part", "anchors_and_matching", "dense_detectors", "elementary_losses", "overlap", "suppression"),
    *("augmentation", "choosing", "darknet_files", "dozen_detectors", "half_precision", "hourglass", "inference"),
    *("kernels", "large_sets", "localizers", "metric_learning", "predicting", "several_tasks", "speed", "training"),
    *("fine_tuning", "small_objects", "understanding"),
    *(f"migrating/{name}" for name in ("detectron2", "mmdetection", "torchvision", "transformers")),
)


@pytest.mark.slow(3)
@pytest.mark.parametrize("name", PAGES)
def test_the_python_of_a_page_runs(name: str, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = DOCS / f"{name}.md"
    assert run_python(page.read_text(encoding="utf-8"), str(page))


@pytest.mark.slow
def test_the_messages_that_are_explained_are_those_that_come(tmp_path):
    page = DOCS / "troubleshooting.md"  # in a process without the hook of the shape checks, as a user's is
    processes.end(processes.start(run_session, page, printed=tmp_path / "printed.txt", cwd=tmp_path))


def test_the_table_of_runtimes_is_what_was_found():
    assert table() in (DOCS / "runtimes.md").read_text(encoding="utf-8")


def test_the_pages_of_llms_txt_exist():
    links = re.findall(r"\(_sources/(\S+)\.txt\)", (DOCS / "llms.txt").read_text(encoding="utf-8"))
    assert len(links) > 10
    assert [link for link in links if not (DOCS / link).exists()] == []
