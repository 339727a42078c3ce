"""Runs the files of tests/interpreted in one process: kernels in Triton's interpreter, which needs no GPU."""

import os
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
from packaging.version import Version

FOLDER = Path(__file__).parent / "interpreted"


@pytest.mark.slow(45)
def test_every_kernel_gives_what_the_torch_form_gives():
    triton = pytest.importorskip("triton")
    if Version(triton.__version__) < Version("3.7") and Version(numpy.__version__) >= Version("2.4"):
        pytest.skip("beside NumPy 2.4 the interpreter of Triton 3.6 runs no loop: kernels were only compiled")
    files = sorted(map(str, FOLDER.glob("test_*.py")))
    # Triton reads this when it is imported, as torchvision does: no process that has torch loaded can be used.
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-m",
        "pytest",
        *files,
        "-q",
        "-x",
        "-p",
        "no:xdist",
        "-o",
        "addopts=--import-mode=importlib",
    ]
    done = subprocess.run(
        command, cwd=FOLDER.parent.parent, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-5_000:]
    assert " passed" in done.stdout


def test_no_kernel_runs_interpreted_elsewhere():
    assert "TRITON_INTERPRET" not in os.environ
