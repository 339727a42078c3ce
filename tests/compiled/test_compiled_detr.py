"""DETR and its parts compile whole, in inference and in training; equal to eager."""

from collections.abc import Callable

import pytest
import torch
from exported import FromTensors, images
from thorough import mostly, on_request
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from detkit.backbones import SmallBackbone
from detkit.detectors import Preprocess
from detkit.detectors.detector import Detector
from detkit.detectors.recipes.d_fine import small_d_fine
from detkit.detectors.recipes.deformable_detr import small_deformable_detr
from detkit.detectors.recipes.detr import detr_stage, small_detr
from detkit.detectors.recipes.rt_detr import small_rt_detr
from detkit.layers.deformable import DeformableAttention
from detkit.layers.transformer import DecoderLayer, TransformerDecoder
from detkit.structures import Target, Targets, pad_targets

SIZES = ((2, (96, 128)), (3, (130, 90)), (5, (64, 200)))


def plain(layers: int) -> Detector:
    """The paper's stage on a small trunk."""
    stage = detr_stage(3, 32, channels=32, hidden=128, depth=layers, queries=9, dropout=0.0, norm_first=True)
    return Detector(SmallBackbone((8, 16, 32), levels=(2,)), preprocess=Preprocess((96, 128)), objects=stage)


def boxed(layers: int) -> Detector:
    return small_detr(3, size=(96, 128), channels=32, depth=layers, queries=9)


def selected(layers: int) -> Detector:
    """Deformable attention over levels, and queries chosen from cells."""
    return small_deformable_detr(3, size=(96, 128), channels=32, depth=layers, queries=9)


def encoded(layers: int) -> Detector:
    """RT-DETR: a neck with attention, chosen queries and contrastive noise."""
    return small_rt_detr(3, size=(96, 128), channels=32, depth=layers, queries=9)


def fine(layers: int) -> Detector:
    """All of RT-DETR but its criterion, and distributions of edges."""
    return small_d_fine(3, size=(96, 128), channels=32, depth=layers, queries=9)


OTHERS = "of detectors by queries only Deformable DETR was compiled, to train, and D-FINE and Pix2Seq exported"


def build(recipe: Callable[[int], Detector], layers: int = 1) -> Detector:
    torch.manual_seed(0)
    torch.compiler.reset()
    detector = recipe(layers).eval()
    for key, parameter in detector.objects.named_parameters():
        if parameter.ndim == 2 and key != "queries.boxes.weight":
            nn.init.normal_(parameter, std=0.3)  # queries must differ, or ties hide what is wrong
    return detector


def targets(count: int, length: int) -> Targets:
    corners = torch.rand(2, count, length, 2) * 60
    boxes = torch.cat((corners.amin(0), corners.amax(0) + 1), -1)
    return pad_targets([Target(boxes=rows, labels=torch.arange(length) % 3) for rows in boxes])


def assert_all_close(found, expected) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def counted(function, backend: str = "eager"):
    counter = CompileCounterWithBackend(backend)
    return torch.compile(function, backend=counter, fullgraph=True), counter


@on_request(OTHERS)
@pytest.mark.parametrize("recipe", [plain, selected, encoded, fine])
def test_inference_compiles_whole_and_finds_what_it_finds_eagerly(recipe: Callable[[int], Detector]):
    model = FromTensors(build(recipe))
    compiled, counter = counted(model)
    with torch.no_grad():
        for count, size in SIZES[:2]:
            batch = images(count, size)
            expected = model(*batch[:2])
            assert expected[1].std() > 1e-3
            assert_all_close(compiled(*batch[:2]), expected)
    assert counter.frame_count <= 3


@pytest.mark.parametrize(
    "recipe", mostly((plain, boxed, selected, encoded, fine), (plain, boxed, encoded, fine), OTHERS)
)
def test_training_compiles_whole_and_learns_what_it_learns_eagerly(recipe: Callable[[int], Detector]):
    detector = build(recipe).double()  # gradients of float32 differ by rounding
    compiled, counter = counted(detector, "aot_eager" if recipe is plain else "eager")
    for count, length in ((2, 3), (3, 6)):
        batch, truth = images(count, (96, 128)), targets(count, length)
        batch = batch._replace(tensors=batch.tensors.double())
        results = []
        for run in (detector, compiled):
            detector.zero_grad()
            torch.manual_seed(1)  # of the noised queries
            losses = run(batch, truth)
            sum(losses.values()).backward()
            results.append([*losses.values(), *(parameter.grad.clone() for parameter in detector.parameters())])
        assert results[0][0] > 0
        assert_all_close(results[1], results[0])
    assert counter.frame_count <= 3


def test_a_step_of_decoding_compiles_whole():
    torch.compiler.reset()
    torch.manual_seed(0)
    layers = [DecoderLayer(12, 3, hidden=20, norm_first=True) for _ in range(2)]
    decoder = TransformerDecoder(layers, norm=nn.LayerNorm(12)).eval()
    tokens, memory = torch.rand(2, 6, 12), torch.rand(2, 7, 12)
    with torch.no_grad():
        whole = decoder(tokens, memory, causal=True)[-1]
        caches = decoder.start(memory, length=6)
        compiled, counter = counted(decoder.step)
        steps = [compiled(tokens[:, i : i + 1], caches, at=i) for i in range(6)]
    assert_all_close([torch.cat(steps, 1)], [whole])
    assert counter.frame_count <= 3


@on_request(OTHERS)
def test_deformable_attention_compiles_whole_with_gradients():
    torch.compiler.reset()
    torch.manual_seed(0)
    attention = DeformableAttention(8, 2, levels=2)
    compiled, counter = counted(attention, "aot_eager")
    shapes = [(4, 5), (2, 3)]
    for count in (1, 2, 3, 5):
        queries, memory = torch.rand(count, 2 * count + 1, 8), torch.rand(count, 26, 8)
        results = []
        for run in (attention, compiled):
            attention.zero_grad()
            found = run(queries, torch.full((count, 2 * count + 1, 2, 2), 0.4), memory, shapes)
            found.square().sum().backward()
            results.append([found.detach(), *(parameter.grad.clone() for parameter in attention.parameters())])
        assert_all_close(results[1], results[0])
    assert counter.frame_count <= 3
