"""Runs the files of tests/compiled in processes of their own: what is traced must not carry the shape checks."""

import sys
from pathlib import Path

import processes
import pytest

FILES = sorted((Path(__file__).parent / "compiled").glob("test_*.py"))
# Seconds of one core; a file that is not here takes fewer.
SECONDS = {
    "test_compiled_dense": 100,
    "test_compiled_detectors": 70,
    "test_compiled_detr": 50,
    "test_compiled_set_matching": 40,
    "test_compiled_records": 30,
    "test_compiled_losses": 30,
    "test_compiled_backbones": 25,
    "test_compiled_anchors": 25,
    "test_compiled_roi": 20,
}
EVERY_FILE = [pytest.param(file, id=file.stem, marks=pytest.mark.slow(SECONDS.get(file.stem, 15))) for file in FILES]


def run_file(file: Path) -> None:
    import torch._inductor.config

    torch._inductor.config.compile_threads = 1  # no file compiles enough to pay for a pool
    sys.exit(pytest.main([str(file), "-q", "-x", "-o", "addopts=--import-mode=importlib"]))


@pytest.mark.parametrize("file", EVERY_FILE)
def test_everything_compiles_and_exports(file: Path, tmp_path: Path):
    started = processes.start(run_file, file, printed=tmp_path / "printed.txt", DETKIT_COMPILED_TESTS="1")
    (printed,) = processes.end(started)
    assert " passed" in printed


def test_there_are_files_to_run():
    assert len(FILES) > 5
