"""Runs the files of tests/compiled in processes of their own: what is traced must not carry the shape checks."""

import sys
from pathlib import Path

import processes
import pytest

FILES = sorted((Path(__file__).parent / "compiled").glob("test_*.py"))


def run_file(file: Path) -> None:
    sys.exit(pytest.main([str(file), "-q", "-x", "-o", "addopts=--import-mode=importlib"]))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_everything_compiles_and_exports(file: Path, tmp_path: Path):
    settings = {"DETKIT_COMPILED_TESTS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}  # none of them pays for a pool
    started = processes.start(run_file, file, printed=tmp_path / "printed.txt", **settings)
    (printed,) = processes.end(started)
    assert " passed" in printed


def test_there_are_files_to_run():
    assert len(FILES) > 5
