"""Runs the files of tests/compiled in processes of their own: what is traced must not carry the shape checks."""

import sys
from pathlib import Path

import processes
import pytest
from thorough import EVERY_TEST

FOLDER = Path(__file__).parent / "compiled"
# The files that share a process, and so what torch loads at its first compilation; the seconds of each on one core.
RUNS = {
    ("compiled_detectors", "compiled_side_by_side"): 95,
    ("compiled_anchors", "compiled_matching", "compiled_set_matching"): 45,
    ("compiled_detr", "compiled_sets", "onnx_detr"): 75,
    ("compiled_dense", "compiled_retrieval"): 80,
    ("compiled_losses", "compiled_ranking", "compiled_roi"): 60,
    ("compiled_records", "compiled_suppression"): 60,
    ("compiled_backbones", "compiled_multitask"): 45,
    ("exported_programs",): 90,
}
ON_REQUEST = {"compiled_anchors", "compiled_dense", "compiled_losses", "compiled_records", "compiled_backbones"}
"""First files of runs whose parts whole detectors contain, which are compiled in the others."""


def marks(names: tuple[str, ...], seconds: int) -> list[pytest.MarkDecorator]:
    left_out = names[0] in ON_REQUEST and not EVERY_TEST
    words = "parts were NOT compiled one by one, only whole detectors: DETKIT_EVERY_TEST=1 compiles them, in minutes"
    return [pytest.mark.slow(1 if left_out else seconds), pytest.mark.skipif(left_out, reason=words)]


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
