"""Try an installed detkit, outside of its checkout and without its tests: the README's Python, and a small run.

Run: cd ELSEWHERE && ENVIRONMENT/bin/python CHECKOUT/tests/smoke.py CHECKOUT/README.md
"""

import sys
from pathlib import Path

from fenced import run_python  # beside this file; needs nothing


def main() -> None:
    """Fail, or print what was tried."""
    import detkit

    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    readme, installed = Path(sys.argv[1]).resolve(), Path(detkit.__file__).resolve()
    if installed.is_relative_to(readme.parent):
        raise SystemExit(f"this tries the checkout, {installed}, not an installed detkit: run it from elsewhere")
    if not (installed.parent / "py.typed").exists():
        raise SystemExit("the archive lacks py.typed: type checkers would not see detkit's types")
    shown = run_python(readme.read_text(encoding="utf-8"), readme.name)

    import torch

    from detkit.data import DigitScenes
    from detkit.detectors import tiny_ssd
    from detkit.weights import load_detector, save_detector

    scenes = DigitScenes(2)
    detector = tiny_ssd(10).eval()
    save_detector(detector, "smoke.safetensors")
    images = [scenes[i][0] for i in range(2)]
    with torch.no_grad():
        before, after = detector(images), load_detector("smoke.safetensors").eval()(images)
    if not all(torch.equal(one["boxes"], other["boxes"]) for one, other in zip(before, after, strict=True)):
        raise SystemExit("a detector that was saved and loaded finds other boxes")
    print(f"{shown} blocks of {readme.name} ran with detkit {detkit.__version__} of {installed.parent}")


if __name__ == "__main__":
    main()
