"""A user's project in pyright's strict mode: what detkit returns is typed, in the README and where a call decides."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fenced import blocks
from thorough import EVERY_TEST

ROOT = Path(__file__).parent.parent
USE = """
from typing import assert_type

import torch
from torch import Tensor

from detkit.boxes import box_iou, nms
from detkit.detectors import Detector, Prediction, fpn_ssd
from detkit.structures import Detection, Detections, Images, Target, Targets, batch_images, pad_targets
from detkit.weights import load_detector

detector = fpn_ssd(3, size=(64, 96))
assert_type(detector, Detector)
assert_type(load_detector("cells.safetensors"), Detector)
images, targets = [torch.rand(3, 64, 96)], [Target(boxes=torch.zeros(0, 4), labels=torch.zeros(0))]
assert_type(detector(images), list[Detection])
assert_type(detector(images, targets), dict[str, Tensor])
batch, padded = batch_images(images), pad_targets(targets)
assert_type(batch, Images)
assert_type(padded, Targets)
assert_type(detector(batch), Detections)
assert_type(detector(batch, padded), dict[str, Tensor])
assert_type(detector(images)[0]["boxes"], Tensor)
assert_type(detector.predict(["a.png"]), list[Prediction])
assert_type(box_iou(torch.zeros(1, 4), torch.zeros(2, 4)), Tensor)
assert_type(nms(torch.zeros(1, 4), torch.zeros(1), 0.5), Tensor)
"""
WRONG = """
from detkit.boxes import nms
from detkit.detectors import fpn_ssd

fpn_ssd("three")
nms([[0, 0, 1, 1]], [1.0], 0.5)
fpn_ssd(3)(["a.png"])
fpn_ssd(3).predict("a.png", threshold=0.5)
"""
# torch's own are partly unknown: every optimizer.step() and tensor.backward() would be reported.
SETTINGS: dict[str, Any] = {"typeCheckingMode": "strict", "reportUnknownMemberType": False, "extraPaths": [str(ROOT)]}


def reported(folder: Path) -> dict[str, list[str]]:
    """What pyright says of each file of the project, which is written into a folder."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    files = {"readme.py": "\n".join(code for _, code in blocks(readme, "python")), "use.py": USE, "wrong.py": WRONG}
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    told = checked(folder, SETTINGS)
    assert told["summary"]["filesAnalyzed"] == len(files)
    found: dict[str, list[str]] = {name: [] for name in files}
    for entry in told["generalDiagnostics"]:
        found[Path(entry["file"]).name].append(f"{entry['range']['start']['line'] + 1}: {entry['message']}")
    return found


def checked(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """What pyright says of a folder's files."""
    (folder / "pyrightconfig.json").write_text(json.dumps(settings), encoding="utf-8")
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, "-p", str(folder)]
    return json.loads(subprocess.run(command, capture_output=True, text=True).stdout)


@pytest.mark.slow(10)
def test_strict_mode_finds_what_is_wrong_and_nothing_else(tmp_path):
    found = reported(tmp_path)
    assert found["readme.py"] == []
    assert found["use.py"] == []
    assert {message.partition(":")[0] for message in found["wrong.py"]} == {"5", "6", "7", "8"}


@pytest.mark.skipif(
    not EVERY_TEST,
    reason="the examples were NOT type-checked, only README: half a minute; DETKIT_EVERY_TEST=1 runs it",
)
def test_the_examples_use_detkit_as_it_is_typed(tmp_path):
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    unknown = ("VariableType", "ArgumentType", "ParameterType", "LambdaType")  # of packages without types
    settings = SETTINGS | {f"reportUnknown{name}": False for name in unknown} | {"reportMissingTypeStubs": False}
    told = checked(tmp_path, settings)
    assert told["summary"]["filesAnalyzed"] > 50
    assert told["generalDiagnostics"] == []
