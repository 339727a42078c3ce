"""Runs the files of tests/compiled in processes of their own: what is traced must not carry the shape checks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "tests" / "compiled").glob("test_*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_everything_compiles_and_exports(file: Path):
    command = [sys.executable, "-m", "pytest", str(file), "-q", "-x", "-o", "addopts=--import-mode=importlib"]
    environment = {**os.environ, "DETKIT_COMPILED_TESTS": "1"}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stdout[-20_000:] + run.stderr[-2_000:]
    assert " passed" in run.stdout


def test_there_are_files_to_run():
    assert len(FILES) > 5
