"""Embedding and label-set stages compile without a graph break, in inference and training, and are exported."""

import pytest
import torch
from exported import FromTensors, images
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.export import Dim, export

from detkit.boxes import PyramidRoIAlign
from detkit.detectors import Detector, EmbeddingStage, LabelSetStage, Postprocess, fpn_ssd
from detkit.heads import EmbeddingHead, MultiBoxHead
from detkit.retrieval import (
    ContrastiveLoss,
    MultiSimilarityLoss,
    ProxyAnchorLoss,
    SupervisedContrastiveLoss,
    TripletLoss,
    hardest_pairs,
    inner_products,
)
from detkit.structures import Target, pad_targets

LOSSES = {
    "contrastive": ContrastiveLoss(),
    "triplet": TripletLoss(miner=hardest_pairs),
    "supervised contrastive": SupervisedContrastiveLoss(),
    "multi-similarity": MultiSimilarityLoss(),
    "proxy anchor": ProxyAnchorLoss(3, 6),
}


def searchable() -> Detector:
    """Detections of an SSD get label sets and codes, and these learn distances."""
    torch.manual_seed(0)
    torch.compiler.reset()
    found = fpn_ssd(3, size=(96, 128), channels=8)
    pool, head = PyramidRoIAlign(3, strides=(8, 16)), EmbeddingHead(8 * 9, 6, rectified=True)
    sets = LabelSetStage(pool, head, nn.Linear(6, 3), postprocess=Postprocess(rows=True, max_detections=20))
    learned = EmbeddingStage(EmbeddingHead(6, 4), criterion=SupervisedContrastiveLoss())
    return Detector(found.trunk, preprocess=found.preprocess, dense=found.dense, sets=sets, learned=learned).eval()


def described_anchors() -> Detector:
    """Every anchor of an SSD predicts its embedding, and these learn distances."""
    torch.manual_seed(0)
    torch.compiler.reset()
    found = fpn_ssd(3, size=(96, 128), channels=8)
    found.dense.head.embedding_head = MultiBoxHead([8] * 3, found.dense.anchors.per_cell, outputs=6)
    found.dense.postprocess = Postprocess(rows=True, max_detections=20)
    learned = EmbeddingStage(EmbeddingHead(6, 4), criterion=SupervisedContrastiveLoss())
    return Detector(found.trunk, preprocess=found.preprocess, dense=found.dense, learned=learned).eval()


DETECTORS = {searchable: {"sets.label_sets", "learned.embedding"}, described_anchors: {"learned.embedding"}}


def truth(images: int):
    boxes = torch.tensor([[5.0, 5, 60, 60], [40, 10, 100, 80], [20, 30, 50, 90]])
    one = Target(boxes=boxes, labels=torch.tensor([0, 1, 1]))
    nothing = Target(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64))
    return pad_targets([one] * (images - 1) + [nothing])


@pytest.mark.parametrize("make", DETECTORS)
def test_inference_and_training_compile_and_do_what_they_do_eagerly(make):
    model = make()
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    with torch.no_grad():
        for count in (2, 3):
            batch = images(count)
            for one, other in zip(compiled(batch), model(batch), strict=True):
                assert one is other is None or torch.allclose(one, other, rtol=1e-4, atol=1e-4)
    for count in (2, 3):
        batch, targets = images(count), truth(count)
        found, expected = compiled(batch, targets), model(batch, targets)
        assert found.keys() == expected.keys() >= DETECTORS[make]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        assert torch.isfinite(sum(found.values()))


@pytest.mark.parametrize("make", DETECTORS)
def test_a_detector_with_embeddings_is_exported_for_any_number_of_images(make):
    model = FromTensors(make())
    batch = images(2)
    program = export(model, (batch.tensors, batch.sizes), dynamic_shapes=({0: Dim("B")}, {0: Dim("B")}))
    for count in (1, 3):
        batch = images(count)
        for one, other in zip(program.module()(batch.tensors, batch.sizes), model(*batch[:2]), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_compiles_with_its_gradient(name):
    torch.compiler.reset()
    loss = LOSSES[name]
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    labels = torch.tensor([0, 1, 1, -1, 2, 0, 2, 2])
    rows = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
    ours, theirs = rows.clone().requires_grad_(), rows.clone().requires_grad_()
    found, expected = compiled(ours, labels), loss(theirs, labels)
    torch.testing.assert_close(found, expected)
    found.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_under_autocast_gradients_are_those_of_full_precision():
    """Compiled, a backward pass follows the autocast around the call, and would round to bfloat16."""
    torch.compiler.reset()
    torch.manual_seed(0)
    rows, others = torch.rand(6, 8, requires_grad=True), torch.rand(4, 8, requires_grad=True)
    expected = torch.autograd.grad(inner_products(rows, others).square().sum(), (rows, others))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = torch.compile(inner_products, fullgraph=True, backend="aot_eager")(rows, others)
    for one, other in zip(torch.autograd.grad(found.square().sum(), (rows, others)), expected, strict=True):
        torch.testing.assert_close(one, other)
