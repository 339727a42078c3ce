"""A dense stage compiles without a graph break, training and inference, and exports, whatever its parts."""

import os
from itertools import chain, cycle, product

import pytest
import torch
from dense_parts import CODERS, COMBINATIONS, CRITERIA, MATCHERS, STRIDES, Find, Step, dense_stage, seen, truth
from torch.export import Dim

# A trace takes a second or two, so that all 152 are traced with this setting only. What a matcher hands to a criterion
# is the same of all, and at inference no matcher is asked: each part learns once with its gradient and is exported.
# The pairs of coder and criterion that are left are traced without, behind matchers that read what both make of
# predictions; YOLO's criteria meet YOLO's coder only.
EVERY = os.environ.get("DETKIT_COMPILED_TESTS") == "all"
CHOSEN = [
    ("threshold", "delta", "multibox"),
    ("bipartite", "grid", "multibox"),
    ("atss", "distance", "quality + distribution focal"),
    ("task aligned", "distance", "focal + giou"),
    ("simota", "grid", "objectness"),
    ("center", "distance", "fcos"),
    ("shape", "grid", "yolo + giou"),
    ("responsible", "grid", "yolo v1"),
]
TAUGHT = COMBINATIONS if EVERY else CHOSEN
PREDICTING = sorted({names[1:] for names in TAUGHT})
PAIRS = product(CODERS, ("multibox", "focal + giou", "fcos", "objectness"))
LEFT = [pair for pair in PAIRS if pair not in PREDICTING]
TRACED = [(matcher, *pair) for matcher, pair in zip(cycle(("task aligned", "simota")), LEFT, strict=False)]


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


def test_every_part_is_among_them():
    assert set(chain.from_iterable(TAUGHT)) == {*MATCHERS, *CODERS, *CRITERIA}


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
