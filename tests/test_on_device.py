"""Runs the files of tests/on_device in processes of their own: a device is registered before the first gradient.

And holds docs/devices.md to the table of host syncs that they count.
"""

import sys
import tomllib
from pathlib import Path

import pretend
import processes
import pytest
import torch

from detkit.boxes import padded

TESTS = Path(__file__).parent
FOLDER = TESTS / "on_device"
TABLE = tomllib.loads((TESTS / "host_syncs.toml").read_text(encoding="utf-8"))
# The files that share a process, and the seconds of each on one core.
RUNS = {("pretend", "device_records", "device_parts"): 25, ("device_detectors", "device_checks"): 25}
EVERY_RUN = [pytest.param(names, id=", ".join(names), marks=pytest.mark.slow(took)) for names, took in RUNS.items()]
SOME = "refused or counted or ssd7 or (test_device_records and 7 and (box_iou or nms_padded or sigmoid_focal))"
COUNTED = ("train", "detect in a batch", "detect in images")
needs_device = pytest.mark.skipif(
    not pretend.available(),
    reason="this torch registers no device from Python: NOTHING was tested on a device",
)


def run_files(files: list[Path], more: list[str]) -> None:
    sys.exit(pytest.main([*map(str, files), "-q", "-x", "-rs", "-o", "addopts=--import-mode=importlib", *more]))


def passed(names: tuple[str, ...], printed: Path, *more: str) -> str:
    files = [FOLDER / f"test_{name}.py" for name in names]
    (text,) = processes.end(processes.start(run_files, files, list(more), printed=printed, DETKIT_DEVICE_TESTS="1"))
    return text


@needs_device
@pytest.mark.slow
def test_some_operations_and_a_detector_run_on_a_device(tmp_path: Path):
    assert " passed" in passed(("pretend", "device_records", "device_detectors"), tmp_path / "printed.txt", "-k", SOME)


@needs_device
@pytest.mark.parametrize("names", EVERY_RUN)
def test_everything_runs_on_a_device(names: tuple[str, ...], tmp_path: Path):
    assert " passed" in passed(names, tmp_path / "printed.txt")


def test_every_file_is_run_once():
    run = [f"test_{name}.py" for names in RUNS for name in names]
    assert sorted(run) == sorted(file.name for file in FOLDER.glob("test_*.py"))


def test_what_the_table_takes_for_one_launch_has_a_kernel():
    assert padded  # has the operators
    assert all(torch._C._dispatch_has_kernel_for_dispatch_key(name, "CUDA") for name in TABLE["kernels"])


def row(name: str) -> str:
    """A detector's line of the page: with kernels, and in brackets without them where that differs."""
    pairs = (TABLE["detectors"][name].get(column) for column in COUNTED)
    cells = ("" if pair is None else f"{pair[0]}" if pair[0] == pair[1] else f"{pair[0]} ({pair[1]})" for pair in pairs)
    recipes = ", ".join(f"`{recipe}`" for recipe in TABLE["detectors"][name]["recipes"])
    return f"| {name} | {recipes} | {' | '.join(cells)} |"


def test_the_page_of_devices_has_the_table():
    page = (TESTS.parent / "docs" / "devices.md").read_text(encoding="utf-8")
    rows = [row(name) for name in TABLE["detectors"]]
    found = [
        line for line in page.splitlines() if line.startswith("| ") and line.split(" |")[0][2:] in TABLE["detectors"]
    ]
    assert found == rows, "docs/devices.md: the table must be\n" + "\n".join(rows)
