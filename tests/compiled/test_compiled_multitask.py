"""Stitched branches of several tasks compile without a graph break, train alike, and export with dynamic sizes."""

import torch
from exported import FromTensors, images
from several_tasks import small_tasks
from torch._dynamo.testing import CompileCounterWithBackend
from torch.export import Dim

from detkit.structures import pad_targets


def detector():
    torch.manual_seed(0)
    torch.compiler.reset()
    return small_tasks(2).eval()


def counted(model):
    counter = CompileCounterWithBackend("eager")  # what is behind it: see test_compiled_detectors
    return torch.compile(model, backend=counter, fullgraph=True), counter


def truth(count, length):
    """A batch of targets, whose pixels are drawn from masks."""
    generator = torch.Generator().manual_seed(0)
    targets = []
    for _ in range(count):
        corners = torch.rand(2, length, 2, generator=generator) * 80
        boxes, labels = torch.cat((corners.amin(0), corners.amax(0)), 1), torch.arange(length) % 2
        masks = torch.randint(0, 2, (length, 96, 128), generator=generator).to(torch.uint8)
        targets.append({"boxes": boxes, "labels": labels, "masks": masks})
    return pad_targets(targets)


def test_inference_finds_what_it_finds_eagerly():
    model = detector()
    compiled, counter = counted(model)
    with torch.no_grad():
        for count, size in ((2, (96, 128)), (3, (130, 90))):
            batch = images(count, size)
            found, expected = compiled(batch), model(batch)
            assert expected.segmentation.shape == (count, *size)
            assert expected.image_scores is not None
            for one, other in zip(found, expected, strict=True):
                assert one is other is None or torch.allclose(one, other, rtol=1e-4, atol=1e-4)
    assert counter.frame_count <= 2


def test_training_learns_what_it_learns_eagerly():
    model = detector()
    compiled, counter = counted(model)
    for count, length in ((2, 3), (3, 4)):
        batch, targets = images(count), truth(count, length)
        results = []
        for run in (model, compiled):
            model.zero_grad()
            losses = run(batch, targets)
            sum(losses.values()).backward()
            results.append([*losses.values(), *(parameter.grad.clone() for parameter in model.parameters())])
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert counter.frame_count <= 2


def test_it_exports_with_dynamic_batch_height_and_width():
    model = FromTensors(detector())
    dynamic = ({0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}, {0: Dim.DYNAMIC})
    program = torch.export.export(model, tuple(images(2)[:2]), dynamic_shapes=dynamic).module()
    for count, size in ((1, (96, 128)), (3, (150, 101))):
        batch = images(count, size)
        found, expected = program(*batch[:2]), model(*batch[:2])
        assert (
            len(found) == len(expected) == len(("boxes", "scores", "labels", "valid", "segmentation", "image_scores"))
        )
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
