"""DETR leaves by ONNX, for any batch, height and width, and onnxruntime finds what it finds here."""

import pytest
import torch
from exported import FromTensors, images
from thorough import on_request
from torch import Tensor, nn
from torch.export import Dim

from detkit._ranking import stable_topk
from detkit.backbones import SmallBackbone
from detkit.detectors import Detector, Preprocess
from detkit.detectors.recipes.detr import detr_stage

SIZES = ((2, (96, 128)), (3, (130, 90)), (1, (64, 200)))


def build() -> Detector:
    torch.manual_seed(0)
    stage = detr_stage(3, 32, channels=32, hidden=64, depth=1, queries=9)
    for parameter in stage.parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.3)  # queries must differ, or ties hide what is wrong
    backbone = SmallBackbone((8, 16, 32), levels=(2,))
    return Detector(backbone, preprocess=Preprocess((96, 128)), objects=stage).eval()


@pytest.fixture
def onnx() -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason=f"{name} is not installed: export to ONNX was NOT tested")


def session_of(model: nn.Module, example, shapes, path):
    """The model as onnxruntime runs it, from the file that it was saved to."""
    import onnxruntime

    program = torch.onnx.export(model.eval(), example, dynamo=True, dynamic_shapes=shapes, verbose=False)
    program.save(str(path))
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def run(session, *tensors) -> list[Tensor]:
    names = [entry.name for entry in session.get_inputs()]
    results = session.run(None, {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)})
    return [torch.from_numpy(result) for result in results]


def test_detr_at_inference_holds_no_operation_that_only_this_library_knows():
    free = Dim.DYNAMIC
    shapes = ({0: free, 2: free, 3: free}, {0: free})
    program = torch.export.export(FromTensors(build()), tuple(images(2)[:2]), dynamic_shapes=shapes)
    operations = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert "aten.scaled_dot_product_attention.default" in operations
    assert not [name for name in operations if name.startswith("detkit")]


@on_request("DETR was NOT run in onnxruntime, other detectors were")
def test_detr_finds_the_same_in_onnxruntime_at_other_batches_heights_and_widths(onnx, tmp_path):
    model, free = FromTensors(build()), Dim.DYNAMIC
    shapes = ({0: free, 2: free, 3: free}, {0: free})
    session = session_of(model, tuple(images(2)[:2]), shapes, tmp_path / "detr.onnx")
    for count, size in SIZES:
        batch = images(count, size)[:2]
        with torch.no_grad():
            expected = model(*batch)
        assert expected[1].std() > 1e-3
        for found, own in zip(run(session, *batch), expected, strict=True):
            torch.testing.assert_close(found, own, rtol=1e-4, atol=1e-4)


class Best(nn.Module):
    def forward(self, values: Tensor) -> Tensor:
        return stable_topk(values, 4)


def test_equal_scores_keep_their_order_in_onnxruntime(onnx, tmp_path):
    example = torch.rand(2, 9)
    session = session_of(Best(), (example,), ({0: Dim.DYNAMIC, 1: Dim.DYNAMIC},), tmp_path / "best.onnx")
    generator = torch.Generator().manual_seed(0)
    for rows, length in ((1, 4), (3, 300), (40, 17), (2, 3)):
        values = torch.randint(-2, 3, (rows, length), generator=generator).float()
        values = torch.where((values == 0) & (torch.rand(values.shape, generator=generator) < 0.5), -0.0, values)
        (found,) = run(session, values)
        assert torch.equal(found, stable_topk(values, 4))
