"""RoIAlign's operator against torchvision's kernel: both memory orders, in blocks, with few boxes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from detkit.boxes import align as module
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


def kernel(
    features: list[Tensor], boxes: Tensor, levels: Tensor, *, size: tuple[int, int], sampling_ratio: int, aligned: bool
) -> Tensor:
    """torchvision's, level by level."""
    pooled = [
        torch.ops.torchvision.roi_align(feature, boxes, scale, *size, sampling_ratio, aligned)
        for feature, scale in zip(features, SCALES, strict=True)
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


@pytest.mark.parametrize("way", ["the kernel", "the matrix", "one level by each"])
@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
@given(
    count=st.integers(0, 60),
    seed=st.integers(0, 2**31),
    ratio=st.integers(-1, 3),
    height=st.integers(1, 5),
    width=st.integers(1, 5),
    aligned=st.booleans(),
)
def test_values_and_gradients_are_those_of_the_kernel(order, way, count, seed, ratio, height, width, aligned):
    features, (boxes, levels) = maps(order), rois(count, seed)
    aligned = aligned and ratio > 0  # the kernel counts the cells of inverted boxes, and raises
    options = {"size": (height, width), "sampling_ratio": ratio, "aligned": aligned}
    expected = kernel(features, boxes, levels, **options)
    with pytest.MonkeyPatch.context() as patch:
        ways = {"the kernel": [], "the matrix": [24, 12], "one level by each": [12]}[way]
        patch.setattr(module._Reading, "by_matrix", lambda own, shape, *_, **__: own.ratio > 0 and shape[2] in ways)
        found = align(features, boxes, levels, SCALES, **options)
        assert_equal_with_gradients(found, expected, features)


@pytest.mark.parametrize("channels", [64, 65])  # whose gradients are taken at once, and one more
@pytest.mark.parametrize("most", [1 << 19, 300], ids=["one matrix", "two boxes a matrix"])
@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_blocks_groups_and_channels_give_what_the_kernel_gives(order, most, channels, monkeypatch):
    features, (boxes, levels) = maps(order, 3, channels), rois(30, seed=4, images=3)
    options = {"size": (3, 3), "sampling_ratio": 2, "aligned": False}
    monkeypatch.setattr(module._Reading, "by_matrix", lambda *_, **__: True)
    monkeypatch.setattr(module, "_MOST_ENTRIES", most)
    monkeypatch.setattr(module, "_MOST_CELLS", 400)  # one image of the first level, two of the second
    expected = kernel(features, boxes, levels, **options)
    assert_equal_with_gradients(align(features, boxes, levels, SCALES, **options), expected, features)


@pytest.mark.parametrize(
    ("count", "channels", "order", "ratio", "expected"),
    [
        (500, 256, torch.contiguous_format, 2, True),
        (5, 256, torch.contiguous_format, 2, False),  # turning the map around would cost more than it saves
        (5, 256, torch.channels_last, 2, True),  # the kernel would turn it
        (500, 4, torch.contiguous_format, 2, False),  # a sum of few channels is mostly its calls
        (500, 256, torch.contiguous_format, 0, False),  # as many points as cells
    ],
)
def test_the_matrix_is_built_where_it_pays(count, channels, order, ratio, expected):
    last = order == torch.channels_last
    assert module._Reading(7, 7, ratio, False).by_matrix((1, channels, 100, 100), last, count) == expected


def test_each_group_of_images_costs_its_calls_and_the_gradient_of_many_boxes_turns_their_map():
    reading = module._Reading(7, 7, 2, False)
    assert not reading.by_matrix((64, 16, 130, 130), False, 128, turned=False)
    assert reading.by_matrix((1, 16, 130, 130), False, 128, turned=False)
    assert not reading.by_matrix((1, 16, 1000, 1000), False, 680, turned=True)
    assert reading.boxes_at_once() == 668


def test_levels_that_no_box_is_read_from_may_be_empty():
    features = [torch.ones(1, 3, 8, 8, requires_grad=True), torch.ones(1, 3, 0, 4, requires_grad=True)]
    boxes, levels = torch.tensor([[0.0, 0, 0, 9, 9]]), torch.tensor([0])
    found = align(features, boxes, levels, SCALES, size=(2, 2), sampling_ratio=2)
    assert torch.equal(found, torch.ones(1, 3, 2, 2))
    assert [own.shape for own in torch.autograd.grad(found.sum(), features)] == [own.shape for own in features]


def test_no_images_and_no_boxes_are_read_as_nothing():
    features = [torch.zeros(0, 3, 4, 4, requires_grad=True)]
    found = align(features, torch.zeros(0, 5), torch.zeros(0).long(), [1.0], size=(2, 2), sampling_ratio=2)
    assert found.shape == (0, 3, 2, 2)
    (gradient,) = torch.autograd.grad(found.sum(), features)
    assert gradient.shape == features[0].shape
