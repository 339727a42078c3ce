"""Runs the files of tests/compiled in processes of their own: what is traced must not carry the shape checks."""

import sys
from pathlib import Path

import processes
import pytest
from thorough import on_request

FOLDER = Path(__file__).parent / "compiled"
# The files that share a process, and so what torch loads at its first compilation; the seconds of each on one core.
RUNS = {
    ("compiled_detectors",): 60,
    ("compiled_detr", "compiled_sets", "onnx_detr", "exported_programs"): 90,
    ("compiled_anchors", "compiled_matching", "compiled_set_matching"): 45,
    ("compiled_dense", "compiled_retrieval"): 80,
    ("compiled_losses", "compiled_ranking", "compiled_roi"): 60,
    ("compiled_records", "compiled_suppression"): 60,
    ("compiled_backbones", "compiled_multitask", "compiled_side_by_side"): 70,
}
ON_REQUEST = {"compiled_anchors", "compiled_dense", "compiled_losses", "compiled_records", "compiled_backbones"}
"""First files of runs that are left to those who ask: parts, most of which the detectors of other runs contain."""


def marks(names: tuple[str, ...], seconds: int) -> list[pytest.MarkDecorator]:
    asked = on_request("parts and detectors of several tasks were NOT compiled, only detectors of one task")
    return [pytest.mark.slow(seconds), *([asked] if names[0] in ON_REQUEST else [])]


EVERY_RUN = [pytest.param(names, id=", ".join(names), marks=marks(names, took)) for names, took in RUNS.items()]


def run_files(files: list[Path]) -> None:
    import torch._inductor.config

    torch._inductor.config.compile_threads = 1  # no run compiles enough to pay for a pool
    sys.exit(pytest.main([*map(str, files), "-q", "-x", "-o", "addopts=--import-mode=importlib"]))


@pytest.mark.parametrize("names", EVERY_RUN)
def test_everything_compiles_and_exports(names: tuple[str, ...], tmp_path: Path):
    files = [FOLDER / f"test_{name}.py" for name in names]
    started = processes.start(run_files, files, printed=tmp_path / "printed.txt", DETKIT_COMPILED_TESTS="1")
    (printed,) = processes.end(started)
    assert " passed" in printed


def test_every_file_is_run_once():
    run = [f"test_{name}.py" for names in RUNS for name in names]
    assert sorted(run) == sorted(file.name for file in FOLDER.glob("test_*.py"))
