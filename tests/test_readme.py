"""What README.md shows works: its Python runs, and its commands are those that set up and check the project."""

import importlib.util
import re
from pathlib import Path

import pytest
from fenced import blocks, run_python

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = ("uv run python -m detkit.demo", "uv run pytest")


def test_the_python_of_the_readme_runs_in_order_in_one_namespace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_python(README, "README.md"), "README.md shows no Python"


def test_a_block_is_found_with_its_line():
    assert blocks("a\n```python\nx = 1\ny = 2\n```\n```\nno\n```\n", "python") == [(3, "x = 1\ny = 2\n")]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_readme_shows_how_to_run_demo_and_tests(command):
    assert any(command in block for _, block in blocks(README, "(?:|sh|bash|console)")), f"README.md lacks {command}"
    assert importlib.util.find_spec("detkit.demo")


def test_the_set_up_and_tests_of_the_readme_are_those_of_ci():
    shown = [block.splitlines() for _, block in blocks(README, "(?:|sh|bash|console)") if "uv run pytest" in block]
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert any(lines == script[-len(lines) :] for lines in shown), ".ci/run must end with the README's lines"


def test_links_to_files_lead_somewhere():
    links = re.findall(r"\]\((?!https?://|#)([^)#\s]+)", README)
    assert [link for link in links if not (ROOT / link).exists()] == []
