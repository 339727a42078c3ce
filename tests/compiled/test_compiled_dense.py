"""A dense stage compiles without a graph break, training and inference, and exports, whatever its parts."""

import os

import pytest
import torch
from dense_parts import COMBINATIONS, MATCHERS, STRIDES, Find, Step, dense_stage, seen, truth
from torch.export import Dim

# A trace takes a second and a half: each matcher meets each criterion once, coders in turn, but YOLO's meet each other
# only, and at inference YOLO's coder; all 128 with this setting.
EVERY = os.environ.get("DETKIT_COMPILED_TESTS") == "all"
YOLO = {"shape", "responsible", "yolo + giou", "yolo v1"}
PAIRS = {}
for names in COMBINATIONS:
    PAIRS.setdefault(names[::2], []).append(names)
PREDICTING = sorted(  # no matcher is asked at inference
    {names[1:] for names in COMBINATIONS if EVERY or names[1] == "grid" or names[2] not in YOLO}
)
# With its gradient, which takes twice as long: each coder and criterion once, and each matcher twice.
TAUGHT = [(list(MATCHERS)[place % len(MATCHERS)], *names) for place, names in enumerate(PREDICTING)]
SEEN = set() if EVERY else {names[::2] for names in TAUGHT}
CHOSEN = [some for pair, some in PAIRS.items() if len(YOLO.intersection(pair)) != 1 and pair not in SEEN]
TRACED = COMBINATIONS if EVERY else [some[place % len(some)] for place, some in enumerate(CHOSEN)]


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()


def assert_trains_as_one_graph(names: tuple[str, str, str], backend: str) -> None:
    plain, traced = (Step(dense_stage(*names)) for _ in range(2))
    (features, images), targets = seen(), truth()
    expected = plain(features, images, targets)
    found = torch.compile(traced, backend=backend, fullgraph=True)(features, images, targets)
    for name, loss in expected.items():
        torch.testing.assert_close(found[name], loss)
    for losses in (expected, found):
        sum(losses.values()).backward()
    for one, other in zip(traced.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.parametrize("names", TRACED, ids=", ".join)
def test_training_is_one_graph_and_costs_and_teaches_the_same(names):
    assert_trains_as_one_graph(names, "eager")


@pytest.mark.parametrize("names", TAUGHT, ids=", ".join)
def test_its_gradient_is_traced_too(names):
    assert_trains_as_one_graph(names, "aot_eager")


@pytest.mark.parametrize("names", PREDICTING, ids=", ".join)
def test_inference_exports_with_any_number_and_size_of_images(names):
    find = Find(dense_stage("threshold", *names)).eval()
    features, images = seen()
    batch, cells = Dim("batch", min=1, max=16), Dim("cells", min=1, max=32)
    levels = [{0: batch, 2: STRIDES[-1] // stride * cells, 3: STRIDES[-1] // stride * cells} for stride in STRIDES]
    shapes = (levels, {0: batch, 2: STRIDES[-1] * cells, 3: STRIDES[-1] * cells}, {0: batch})
    exported = torch.export.export(find, (features, *images[:2]), dynamic_shapes=shapes).module()
    for count, side in ((2, 64), (1, 96), (3, 32)):
        features, images = seen(count, side)
        for one, other in zip(exported(features, *images[:2]), find(features, *images[:2]), strict=True):
            torch.testing.assert_close(one, other)
