"""A recipe of each kind becomes a program of plain operators that finds what it finds here, and leaves for runtimes.

``tests/runtimes.py`` tries every recipe on every runtime, which takes too long for every day: docs/runtimes.md.
"""

from pathlib import Path

import pytest
import torch
from runtimes import RECIPES, Made, aot_inductor, batches, difference, eager, exported, onnxruntime
from strategies import assert_refused
from test_readme import blocks
from thorough import mostly, on_request
from torch import nn

from detkit.boxes import nms_padded, soft_nms_padded
from detkit.export import plain

PAGE = Path(__file__).parent.parent.parent / "docs" / "runtimes.md"
FIXED = {"batch": 1, "multiple_of": None}


@pytest.fixture
def onnx() -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason=f"{name} is not installed: export to ONNX was NOT tested")


def made(name: str, folder: Path, **settings) -> Made:
    recipe = RECIPES[name]
    return Made(recipe._replace(settings={**recipe.settings, **settings}), folder)


def assert_found_alike(one: Made, run) -> None:
    for inputs in batches(one.recipe, one.recipe.settings.get("batch")):
        pixels, scores = difference(one.names, run(inputs), eager(one.detector, inputs))
        assert pixels < 1e-3, (pixels, inputs[0].shape)
        assert scores < 1e-4, (scores, inputs[0].shape)


@pytest.mark.parametrize(
    "name", mostly(("FCOS", "Mask R-CNN"), ("Mask R-CNN",), "no program of Mask R-CNN was made, only of FCOS and SSD")
)
def test_no_operator_of_this_library_is_left_and_onnxruntime_finds_the_same(name, onnx, tmp_path):
    one = made(name, tmp_path, **FIXED)
    operators = {str(node.target).split(".")[0] for node in one.program.graph.nodes if node.op == "call_function"}
    assert "while_loop" in operators
    assert not operators & {"detkit", "torchvision"}
    assert_found_alike(one, exported(one))
    assert_found_alike(one, onnxruntime(one))


@on_request("AOTInductor was NOT tried: a C++ compiler works for most of a minute")
def test_a_package_of_aot_inductor_runs_where_nobody_knows_this_library(tmp_path):
    one = made("SSD", tmp_path, **FIXED)
    assert_found_alike(one, aot_inductor(one))


def test_the_page_runs_with_any_batch_height_and_width(onnx, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {}
    for line, block in blocks(PAGE.read_text(encoding="utf-8"), "python"):
        exec(compile("\n" * (line - 1) + block, str(PAGE), "exec"), namespace)
    detector, session, names = namespace["detector"], namespace["session"], namespace["names"]
    for inputs in batches(RECIPES["SSD"]):
        expected, images = eager(detector, inputs), {"images": inputs[0].numpy(), "sizes": inputs[1].numpy()}
        found = [torch.from_numpy(part) for part in session.run(names, images)]
        assert max(difference(names, found, expected)) < 1e-3
        assert max(difference(names, list(namespace["exported"].module()(*inputs).values()), expected)) < 1e-3


def test_a_program_of_a_users_own_becomes_plain():
    class Best(nn.Module):
        def forward(self, boxes, scores):
            return nms_padded(boxes, scores, 0.5, max_detections=3)

    given = torch.tensor([[[0.0, 0, 10, 10], [1, 1, 10, 10], [20, 20, 30, 30]]]), torch.tensor([[0.8, 0.9, 0.7]])
    whole = torch.export.export(Best(), given)
    assert "detkit.nms_padded.default" in {str(node.target) for node in whole.graph.nodes}
    indices, valid = plain(whole).module()(*given)
    assert (indices.tolist(), valid.tolist()) == ([[1, 2, 0]], [[True, True, False]])


def test_what_has_no_plain_form_is_refused_by_name():
    class Softer(nn.Module):
        def forward(self, boxes, scores):
            return soft_nms_padded(boxes, scores, max_detections=2)

    whole = torch.export.export(Softer(), (torch.rand(2, 3, 4), torch.rand(2, 3)))
    assert_refused("plain detkit.soft_nms_padded.default allowed are operators that have a plain form", plain, whole)
