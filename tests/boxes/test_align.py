"""RoIAlign's operator against torchvision's kernel: both memory orders, in blocks, with few boxes, compiled."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from detkit.boxes import align as module
from detkit.boxes import roi_align
from detkit.boxes.align import align

SIZES = ((24, 32), (12, 16))
SCALES = [0.25, 0.125]
ORDERS = {"channels first": torch.contiguous_format, "channels last": torch.channels_last}


def maps(order: torch.memory_format, images: int = 2, channels: int = 5) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    found = [torch.randn(images, channels, *size, generator=generator, dtype=torch.float64) for size in SIZES]
    return [level.to(memory_format=order).requires_grad_() for level in found]


def rois(count: int, seed: int, images: int = 2) -> tuple[Tensor, Tensor]:
    """Boxes of all kinds, some of them outside or inverted, and the level of each; -1: none."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.randn(count, 4, generator=generator, dtype=torch.float64) * 80 + 40
    image = torch.randint(images, (count, 1), generator=generator)
    return torch.cat((image, corners), dim=1), torch.randint(-1, 2, (count,), generator=generator)


def kernel(features: list[Tensor], boxes: Tensor, levels: Tensor, **options) -> Tensor:
    """torchvision's, level by level."""
    size = options.pop("size")
    pooled = [
        torch.ops.torchvision.roi_align(f, boxes, s, *size, *options.values())
        for f, s in zip(features, SCALES, strict=False)
    ]
    picked = torch.stack(pooled)[levels.clamp(min=0), torch.arange(len(boxes))]
    return torch.where((levels >= 0)[:, None, None, None], picked, 0)


def assert_equal_with_gradients(found: Tensor, expected: Tensor, features: list[Tensor]) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-11)
    upstream = torch.randn(found.shape, generator=torch.Generator().manual_seed(1), dtype=found.dtype)
    ours, theirs = (torch.autograd.grad(own, features, upstream) for own in (found, expected))
    for one, other, feature in zip(ours, theirs, features, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)
        assert one.stride() == feature.stride()


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
@given(
    count=st.integers(0, 60),
    seed=st.integers(0, 2**31),
    ratio=st.integers(-1, 3),
    height=st.integers(1, 5),
    width=st.integers(1, 5),
)
def test_values_and_gradients_are_those_of_the_kernel(order, count, seed, ratio, height, width):
    features, (boxes, levels) = maps(order), rois(count, seed)
    options = {"size": (height, width), "sampling_ratio": ratio, "aligned": False}
    found = align(features, boxes, levels, SCALES, **options)
    assert_equal_with_gradients(found, kernel(features, boxes, levels, **options), features)


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_aligned_boxes_are_moved_by_half_a_cell(order):
    features, (boxes, levels) = maps(order), rois(40, seed=3)
    low, high = boxes[:, 1:3].minimum(boxes[:, 3:]), boxes[:, 1:3].maximum(boxes[:, 3:])
    boxes = torch.cat((boxes[:, :1], low, high), dim=1)  # the kernel refuses inverted ones
    options = {"size": (3, 4), "sampling_ratio": 2, "aligned": True}
    found = align(features, boxes, levels, SCALES, **options)
    assert_equal_with_gradients(found, kernel(features, boxes, levels, **options), features)


def test_blocks_give_what_one_matrix_gives(monkeypatch):
    features, (boxes, levels) = maps(torch.channels_last), rois(50, seed=4)
    options = {"size": (3, 3), "sampling_ratio": 2, "aligned": False}
    whole = align(features, boxes, levels, SCALES, **options)
    monkeypatch.setattr(module, "_MOST_BINS", 20)  # two boxes a block
    monkeypatch.setattr(module, "_MOST_CELLS", 200)  # one image of each level
    assert_equal_with_gradients(align(features, boxes, levels, SCALES, **options), whole, features)


def test_a_map_is_turned_around_only_if_more_cells_are_read_than_it_has(monkeypatch):
    built: list[int] = []

    class Counted(module.Bins):
        def __init__(self, boxes: Tensor, *arguments, **options) -> None:
            built.append(len(boxes))
            super().__init__(boxes, *arguments, **options)

    monkeypatch.setattr(module, "Bins", Counted)
    boxes = torch.tensor([[0.0, 0, 0, 40, 50]], dtype=torch.float64)
    for order, count, expected in ((torch.contiguous_format, 5, []), (torch.contiguous_format, 6, [6])):
        align(
            maps(order, images=1)[:1],
            boxes.expand(count, 5),
            torch.zeros(count).long(),
            [1.0],
            size=(3, 3),
            sampling_ratio=2,
        )
        assert built == expected
    align(maps(torch.channels_last, images=1)[:1], boxes, torch.zeros(1).long(), [1.0], size=(3, 3), sampling_ratio=2)
    assert built == [6, 1]


def test_no_images_and_no_boxes_are_read_as_nothing():
    features = [torch.zeros(0, 3, 4, 4, requires_grad=True)]
    found = align(features, torch.zeros(0, 5), torch.zeros(0).long(), [1.0], size=(2, 2), sampling_ratio=2)
    assert found.shape == (0, 3, 2, 2)
    (gradient,) = torch.autograd.grad(found.sum(), features)
    assert gradient.shape == features[0].shape


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_the_operator_compiles_with_its_gradient(order):
    features, boxes = maps(order)[:1], [torch.tensor([[0.0, 0, 20, 20]]), torch.tensor([[3.0, 3, 30, 30]])]

    def mean(level: Tensor) -> Tensor:
        return (roi_align(level * 2, boxes, (2, 3), 0.5, 2, True) ** 2).mean()

    compiled = torch.compile(mean, fullgraph=True)
    for level in (features[0], maps(order, channels=4)[0]):
        found, expected = (torch.autograd.grad(function(level), level)[0] for function in (compiled, mean))
        torch.testing.assert_close(found, expected)
