"""Anchor generators, samplers and coders compile whole and export, and follow grids and counts without recompiling."""

import pytest
import torch
from strategies import in_cells
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.export import Dim

from detkit.anchors import DefaultBoxes, HardNegativeSampler
from detkit.anchors.cluster import shape_iou
from detkit.anchors.generate import GridAnchors, multibox_anchors
from detkit.anchors.sample import BalancedSampler
from detkit.boxes import DeltaCoder
from detkit.boxes.coding import DistanceCoder, GridCoder
from detkit.structures import Images

COUNTS = (0, 1, 2, 7, 1000, 1001)
GENERATORS = {
    "default boxes": DefaultBoxes([(8, 16), (16, 32)], aspect_ratios=[(2,), ()]),
    "grid anchors": GridAnchors([(8,), (16,)], clip=True),
    "torchvision's": GridAnchors([(8,), (16,)], ratio_is="h/w", centered=False, whole_pixels=True),
    "given strides": GridAnchors(shapes=[[(3, 4)], [(5, 6)]], strides=(8, 16)),
}


class Laid(nn.Module):
    """A generator that takes plain tensors, and gives boxes and strides."""

    def __init__(self, anchors: nn.Module) -> None:
        super().__init__()
        self.anchors = anchors

    def forward(self, fine: Tensor, coarse: Tensor, tensors: Tensor) -> tuple[Tensor, Tensor]:
        images = Images(tensors, torch.ones(1, 2))
        return tuple(self.anchors([fine, coarse], images)[:2])


def maps(height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Features of two levels, and the image that they may come from."""
    return (
        torch.zeros(1, 1, height, width),
        torch.zeros(1, 1, -(-height // 2), -(-width // 2)),
        torch.zeros(1, 3, 8 * height + 3, 8 * width),
    )


def assert_same(found, expected, *, exact: bool = False) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0 if exact else 1e-5, atol=0 if exact else 1e-5)


def assert_follows(function, all_arguments, *, exact: bool = False, backend: str = "eager") -> None:
    """Compiled whole, the function gives what it gives eagerly, with at most 2 recompilations.

    What is exported as well is traced by torch's operators there, and needs no other backend here.
    """
    torch.compiler.reset()
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(function, backend=counter, fullgraph=True)
    for arguments in all_arguments:
        assert_same(compiled(*arguments), function(*arguments), exact=exact)
    assert counter.frame_count <= 3


@pytest.mark.parametrize("name", GENERATORS)
def test_a_generator_follows_the_number_of_rows_and_the_size_of_the_grid(name):
    sizes = (2, 5), (7, 5), (100, 5), (101, 5), (8, 10), (25, 40), (5, 9)
    assert_follows(Laid(GENERATORS[name]), [maps(*size) for size in sizes])


@pytest.mark.parametrize("name", GENERATORS)
def test_a_generator_exports_with_dynamic_grids(name):
    model = Laid(GENERATORS[name])
    dynamic = tuple({2: Dim.DYNAMIC, 3: Dim.DYNAMIC} for _ in range(3))
    program = torch.export.export(model, maps(6, 10), dynamic_shapes=dynamic).module()
    for size in ((4, 6), (9, 15), (32, 40)):
        assert_same(program(*maps(*size)), model(*maps(*size)))


def test_multibox_anchors_follow_the_size_of_the_map():
    def lay(features: Tensor) -> tuple[Tensor]:
        return (multibox_anchors(features.shape[0], features.shape[1], [0.5, 0.25], [1, 2]),)

    sizes = (4, 6), (8, 10), (12, 7), (5, 9)
    assert_follows(lay, [(torch.zeros(size),) for size in sizes], backend="aot_eager")


def boxes(count: int, seed: int = 0) -> Tensor:
    corners = torch.rand(count, 2, 2, generator=torch.Generator().manual_seed(seed)) * 100
    return torch.cat((corners.amin(1), corners.amax(1) + 1), dim=1)


CODERS = {
    "delta": DeltaCoder(),
    "grid": GridCoder(),
    "root": GridCoder(form="root"),
    "distance": DistanceCoder(unit=1.0),
}


@pytest.mark.parametrize("name", CODERS)
def test_a_coder_follows_the_number_of_boxes_there_and_back(name):
    coder = CODERS[name]

    def code(rows: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor]:
        deltas = coder.encode(rows, in_cells(anchors, 16))
        return deltas, coder.decode(deltas, in_cells(anchors, 16))

    assert_follows(code, [(boxes(count), boxes(count, 1)) for count in COUNTS])


@pytest.mark.parametrize("name", CODERS)
def test_a_coder_exports_with_a_dynamic_number_of_boxes(name):
    coder = CODERS[name]

    class Both(nn.Module):
        def forward(self, rows: Tensor, deltas: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor]:
            cells = in_cells(anchors, 16)
            return coder.encode(rows, cells), coder.decode(deltas, cells)

    dynamic = ({0: Dim.DYNAMIC},) * 3
    program = torch.export.export(Both(), (boxes(6, 1), torch.rand(6, 4), boxes(6)), dynamic_shapes=dynamic).module()
    for count in (2, 7, 1001):
        arguments = boxes(count, 1), torch.rand(count, 4), boxes(count)
        assert_same(program(*arguments), Both()(*arguments))


def test_grid_coding_follows_strides_of_each_anchor():
    def code(rows: Tensor, anchors: Tensor, strides: Tensor) -> tuple[Tensor]:
        return (GridCoder().decode(GridCoder().encode(rows, in_cells(anchors, strides)), in_cells(anchors, strides)),)

    assert_follows(code, [(boxes(count), boxes(count, 1), torch.full((count, 2), 8.0)) for count in COUNTS])


def labels(count: int) -> Tensor:
    return torch.randint(-2, 3, (2, count), generator=torch.Generator().manual_seed(count))


def test_random_samples_follow_the_number_of_anchors():
    """The numbers drawn differ in compiled code; how many of each are taken does not."""
    sampler = BalancedSampler(20, positive_fraction=0.25)

    def sample(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        chosen = sampler(rows)
        return (chosen & (rows >= 0)).sum(1), (chosen & (rows == -1)).sum(1), (chosen & (rows == -2)).sum(1)

    assert_follows(sample, [(labels(count),) for count in COUNTS], exact=True)


def test_a_compiled_sampler_takes_the_global_seed():
    torch.compiler.reset()
    compiled = torch.compile(BalancedSampler(20), backend="aot_eager", fullgraph=True)
    rows, choices = labels(1000), []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        choices.append(compiled(rows))
    assert torch.equal(choices[0], choices[1])
    assert not torch.equal(choices[0], choices[2])


@pytest.mark.parametrize("scope", ["image", "batch"])
def test_hard_negatives_follow_the_number_of_anchors(scope):
    sampler = HardNegativeSampler(2.0, scope=scope, minimum=3)

    def sample(losses: Tensor, rows: Tensor) -> tuple[Tensor]:
        return (sampler(losses, rows),)

    assert_follows(sample, [(torch.rand(2, count), labels(count)) for count in COUNTS], exact=True)


def test_samplers_export_with_a_dynamic_number_of_anchors():
    class Both(nn.Module):
        def forward(self, losses: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
            return HardNegativeSampler(2.0)(losses, rows), BalancedSampler(20)(rows).sum(1)

    dynamic = ({1: Dim.DYNAMIC}, {1: Dim.DYNAMIC})
    program = torch.export.export(Both(), (torch.rand(2, 50), labels(50)), dynamic_shapes=dynamic).module()
    for count in (7, 50, 1001):
        arguments = torch.rand(2, count), labels(count)
        assert_same(program(*arguments), Both()(*arguments), exact=True)


def test_overlap_of_shapes_follows_the_number_of_sizes():
    def overlaps(sizes: Tensor) -> tuple[Tensor]:
        return (shape_iou(sizes, torch.tensor([[10.0, 13], [62, 45]])),)

    assert_follows(overlaps, [(torch.rand(count, 2) * 50,) for count in COUNTS], backend="aot_eager")
