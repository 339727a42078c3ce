"""``python -m benchmarks [words] [--busy N] [--write]``: run the cases whose file, name or size contains all words.

``--busy`` measures beside N processes that compute without end, as data-loading workers do; ``--write`` keeps the table
under benchmarks/results/, named by date and device. ``--device cuda`` runs the cases that a file has for a GPU instead:
``device_cases(device)``. ``memory``, ``growth``, ``crowd`` and ``floor``, as the first word, are studies with tables
of their own.
"""

import argparse
import datetime
import importlib
import platform
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torchvision
from tqdm import tqdm

from benchmarks import gpu
from benchmarks.harness import Case, measure, table, table_of_device

HERE = Path(__file__).parent
_STUDIES = ("memory", "growth", "crowd", "floor")


def main() -> None:
    """Measure what was asked for, print the table, and write it where asked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("words", nargs="*", help="run only cases whose file, name or size contains all of these")
    parser.add_argument("--budget", type=float, default=8.0, help="seconds for each case")
    parser.add_argument("--write", action="store_true", help="keep the table under benchmarks/results/")
    parser.add_argument("--busy", type=int, default=0, metavar="N", help="measure beside N processes that compute")
    parser.add_argument("--device", default="cpu", help="where the tensors lie: cpu, or a GPU as cuda or cuda:1")
    options = parser.parse_args()
    if options.device != "cpu" and not torch.cuda.is_available():
        parser.error(f"--device {options.device}: there is no GPU here")
    if options.words and options.words[0] in _STUDIES:
        print(importlib.import_module(f"benchmarks.{options.words[0]}").study(options.words[1:]))
        return
    measured = []
    with _beside(options.busy):
        for file in tqdm(_files(options.words), unit="file"):
            for case in _cases(file.stem, options.device):
                if all(word in f"{file.stem} {case.name} {case.size}" for word in options.words):
                    measured.append(measure(case, budget=options.budget, device=options.device))
                    tqdm.write(f"{case.name}, {case.size}: {measured[-1].ratio:.2f}x")
    beside = f" Beside {options.busy} busy processes." if options.busy else ""
    text = f"{_setting()}{beside}\n\n{table(measured)}\n"
    if options.device != "cpu":
        text += f"\n{table_of_device(measured, gpu.copy_bandwidth(options.device))}\n"
    print(text)
    if options.write:
        path = HERE / "results" / f"{datetime.date.today()}-{_device().split(',')[0].replace(' ', '-')}.md"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"# `python -m benchmarks`\n\n{text}")


@contextmanager
def _beside(count: int) -> Iterator[None]:
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()


def _files(words: list[str]) -> list[Path]:
    """All files of cases, or the one that the first word names."""
    one = HERE / f"bench_{words[0]}.py" if words else HERE
    return [one] if one.is_file() else sorted(HERE.glob("bench_*.py"))


def _cases(name: str, device: str) -> Iterable[Case]:
    module = importlib.import_module(f"benchmarks.{name}")
    if device == "cpu":
        return module.cases()
    return module.device_cases(device) if hasattr(module, "device_cases") else ()


def _device() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return f"CPU, {models[0].split(': ')[1] if models else platform.processor()}"


def _driver() -> str:
    if not torch.cuda.is_available():
        return ""
    ask = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = subprocess.run(ask, capture_output=True, text=True).stdout.split()
    return f" (CUDA {torch.version.cuda}, driver {driver[0] if driver else 'unknown'})"


def _setting() -> str:
    return (
        f"{datetime.date.today()}, {_device()}, {torch.get_num_threads()} threads, Python {platform.python_version()}, "
        f"torch {torch.__version__}{_driver()}, torchvision {torchvision.__version__}. "
        "Ratio: the peer's median time over ours."
    )


if __name__ == "__main__":
    main()
