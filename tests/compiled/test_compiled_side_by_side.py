"""Two box tasks on one trunk compile without a graph break, in inference and in training."""

import torch
from exported import images
from torch._dynamo.testing import CompileCounterWithBackend

from detkit.detectors import Detector, SideBySide, fpn_ssd
from detkit.structures import Target, Targets, pad_targets

SIZE = (96, 128)
CLASSES = {"one": 2, "other": 5}


def tasks() -> Detector:
    torch.manual_seed(0)
    torch.compiler.reset()
    made = {name: fpn_ssd(count, size=SIZE, channels=8) for name, count in CLASSES.items()}
    stages = {name: model.dense for name, model in made.items()}
    return Detector(made["one"].trunk, preprocess=made["one"].preprocess, tasks=SideBySide(**stages)).eval()


def truth(count: int, *lengths: int) -> dict[str, Targets]:
    """For each task ``count`` images of as many objects as its length."""

    def objects(length: int, classes: int, seed: int) -> Target:
        generator = torch.Generator().manual_seed(seed)
        corners = torch.rand(2, length, 2, generator=generator) * 96
        labels = torch.randint(0, classes, (length,), generator=generator)
        return Target(boxes=torch.cat((corners.amin(0), corners.amax(0)), 1), labels=labels)

    return {
        name: pad_targets([objects(length, classes, i) for i in range(count)])
        for length, (name, classes) in zip(lengths, CLASSES.items(), strict=True)
    }


def counted(model: Detector):
    counter = CompileCounterWithBackend("eager")  # what is behind it: see test_compiled_detectors
    return torch.compile(model, backend=counter, fullgraph=True), counter


def test_inference_finds_by_name_what_it_finds_eagerly():
    model = tasks()
    compiled, counter = counted(model)
    with torch.no_grad():
        for count, size in ((2, SIZE), (3, (130, 90))):
            batch = images(count, size)
            found, expected = compiled(batch), model(batch)
            assert list(found) == list(CLASSES)
            for name in CLASSES:
                assert expected[name].valid.any()
                for one, other in zip(found[name], expected[name], strict=True):
                    assert one is other is None or torch.allclose(one, other, rtol=1e-4, atol=1e-4)
    assert counter.frame_count <= 2


def test_training_learns_what_it_learns_eagerly():
    model = tasks()
    compiled, counter = counted(model)
    for count, lengths in ((2, (3, 4)), (3, (4, 2))):
        batch, targets = images(count), truth(count, *lengths)
        results = []
        for run in (model, compiled):
            model.zero_grad()
            losses = run(batch, targets)
            sum(losses.values()).backward()
            results.append([*losses.values(), *(parameter.grad.clone() for parameter in model.parameters())])
        assert {key.split(".")[1] for key in losses} == {*CLASSES}
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert counter.frame_count <= 2
