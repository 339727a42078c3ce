"""Runs tests/compiled in a process of its own: what is traced must not carry the shape checks."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_everything_compiles_and_exports():
    command = [sys.executable, "-m", "pytest", "tests/compiled", "-q", "-x", "-o", "addopts=--import-mode=importlib"]
    environment = {**os.environ, "DETKIT_COMPILED_TESTS": "1"}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400)
    assert run.returncode == 0, run.stdout[-20_000:] + run.stderr[-2_000:]
    assert " passed" in run.stdout
