"""PyramidRoIAlign against plain loops, torchvision's MultiScaleRoIAlign with its gradients, and hostile boxes."""

import math

import pytest
import torch
from allocations import allocations
from strategies import assert_refused
from torch import Tensor
from torchvision.ops import MultiScaleRoIAlign

from detkit.boxes import PyramidRoIAlign, align

STRIDES = (4, 8, 16, 32)
FRAME = (256, 320)


def pyramid(
    *, images: int = 2, channels: int = 3, dtype: torch.dtype = torch.float64, strides: tuple[int, ...] = STRIDES
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(images, channels, FRAME[0] // stride, FRAME[1] // stride) for stride in strides]
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def all_sizes(images: int = 2, count: int = 40) -> Tensor:
    """Boxes (B, K, 4) from a pixel to twice the frame, centered in its middle half, so that every level is read."""
    generator = torch.Generator().manual_seed(3)
    draws = torch.rand(2, images, count, 2, generator=generator, dtype=torch.float64)
    centers = (0.25 + 0.5 * draws[0]) * torch.tensor(FRAME).flip(0)
    sides = torch.logspace(0, math.log10(520), count, dtype=torch.float64)[:, None] * (0.9 + 0.2 * draws[1])
    return torch.cat((centers - sides / 2, centers + sides / 2), dim=-1)


HOSTILE = torch.tensor(
    [
        [5.0, 5, 5, 5],  # no size
        [5.0, 9, 60, 9],  # no height
        [60.0, 50, 10, 5],  # inverted
        [-90.0, -80, -20, -10],  # outside
        [500.0, 500, 900, 900],  # outside too
        [-30.0, -20, 500, 400],  # larger than the frame
        [320.0, 256, 330, 270],  # behind the last cell
        [3.0, 3, 3.001, 3.002],  # much less than a pixel
    ],
    dtype=torch.float64,
)


def level_of(box: list[float], strides: tuple[int, ...], size: float = 224, level: int = 4) -> int:
    """Equation 1 of the paper, with torchvision's small addition."""
    area = max(box[2] - box[0], 0) * max(box[3] - box[1], 0)
    wanted = -math.inf if area == 0 else math.floor(level + math.log2(math.sqrt(area) / size) + 1e-6)
    own = [int(math.log2(stride)) for stride in strides]
    return own.index(int(min(max(wanted, own[0]), own[-1])))


def read(plane: list[list[float]], y: float, x: float) -> float:
    """Bilinear between cells, the border repeated for one cell, 0 beyond."""
    height, width = len(plane), len(plane[0])
    if y < -1 or y > height or x < -1 or x > width:
        return 0.0
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    upper = plane[top][left] * (1 - x + left) + plane[top][right] * (x - left)
    lower = plane[bottom][left] * (1 - x + left) + plane[bottom][right] * (x - left)
    return upper * (1 - y + top) + lower * (y - top)


def slow_align(plane: list[list[float]], box: list[float], stride: int, size: int, ratio: int) -> list[list[float]]:
    x1, y1, x2, y2 = (side / stride for side in box)
    width, height = max(x2 - x1, 1) / size, max(y2 - y1, 1) / size
    ny, nx = (ratio, ratio) if ratio else (math.ceil(height), math.ceil(width))

    def value(row: int, column: int) -> float:
        ys = [y1 + row * height + (i + 0.5) * height / ny for i in range(ny)]
        xs = [x1 + column * width + (i + 0.5) * width / nx for i in range(nx)]
        return sum(read(plane, y, x) for y in ys for x in xs) / (ny * nx)

    return [[value(row, column) for column in range(size)] for row in range(size)]


@pytest.mark.parametrize("ratio", [0, 1, 2])
def test_every_box_is_read_as_plain_loops_read_it(ratio):
    strides, features = (8, 16, 32), pyramid(channels=1, strides=(8, 16, 32))
    boxes = torch.cat((all_sizes(count=10), HOSTILE.expand(2, -1, -1)), dim=1)
    found = PyramidRoIAlign(3, strides=strides, sampling_ratio=ratio, canonical_size=100)(features, boxes)
    seen = set()
    for i, (image, box) in enumerate((b, box) for b in range(2) for box in boxes[b].tolist()):
        level = level_of(box, strides, size=100)
        seen.add(level)
        if ratio == 0:  # the number of points has no bound, so corners come no farther than a frame away
            box = [min(max(side, -limit), 2 * limit) for side, limit in zip(box, FRAME[::-1] * 2, strict=True)]
        expected = slow_align(features[level][image, 0].tolist(), box, strides[level], 3, ratio)
        torch.testing.assert_close(found[i, 0], torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-9)
    assert seen == {0, 1, 2}


@pytest.mark.parametrize("ratio", [0, 2])
def test_values_and_gradients_are_torchvisions(ratio):
    ours, theirs = ([level.requires_grad_() for level in pyramid()] for _ in range(2))
    boxes = all_sizes()
    peer = MultiScaleRoIAlign([str(i) for i in range(4)], 7, ratio)
    peer.scales, peer.map_levels = [1 / stride for stride in STRIDES], None
    wanted = peer({str(i): level for i, level in enumerate(theirs)}, list(boxes), [FRAME, FRAME])
    found = PyramidRoIAlign(7, strides=STRIDES, sampling_ratio=ratio)(ours, boxes)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (found * weights).sum().backward()
    (wanted * weights).sum().backward()
    for one, other in zip(ours, theirs, strict=True):
        assert other.grad.any()
        torch.testing.assert_close(one.grad, other.grad, rtol=0, atol=1e-10)


@pytest.mark.slow
def test_gradients_are_those_of_differences():
    features = [level.requires_grad_() for level in pyramid(images=1, channels=1, strides=(16, 32))]
    boxes = torch.tensor([[[3.0, 5, 60, 90], [-20, 10, 220, 270], [9, 9, 9, 9]]], dtype=torch.float64)
    pool = PyramidRoIAlign(2, strides=(16, 32), canonical_size=100)
    assert pool.levels_of(boxes).tolist() == [[0, 1, 0]]
    assert torch.autograd.gradcheck(lambda *levels: pool(levels, boxes), features)


@pytest.mark.parametrize("ratio", [0, 2])
def test_a_gradient_that_is_mostly_of_one_level_reaches_no_other(ratio):
    """Boxes of other levels, read where it is, are held away from that level: also the hostile ones."""
    features = [level.requires_grad_() for level in pyramid()]
    small = torch.tensor([[4.0, 8, 40, 50]], dtype=torch.float64).expand(30, 4)
    nowhere = torch.full((3, 4), math.nan, dtype=torch.float64)
    boxes = torch.cat((HOSTILE, small, all_sizes(1, 9)[0], nowhere)).expand(2, -1, -1)
    pool = PyramidRoIAlign(3, strides=STRIDES, sampling_ratio=ratio)
    pooled = pool(features, boxes)
    upstream = torch.randn(pooled.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = torch.autograd.grad(pooled, features, upstream)
    alone = [torch.autograd.grad(pool(features, boxes[:, i : i + 1]), features, own) for i, own in each(upstream)]
    for level, one in enumerate(found):
        torch.testing.assert_close(one, sum(own[level] for own in alone), rtol=0, atol=1e-10)


def test_the_gradient_of_some_boxes_holds_no_second_map():
    features = [torch.zeros(1, 256, 152, 200, requires_grad=True)]
    pooled = PyramidRoIAlign(7, strides=(4,))(features, torch.tensor([[[4.0, 8, 40, 50]]]).expand(1, 400, 4))
    upstream = torch.ones_like(pooled)
    taken = allocations(lambda: torch.autograd.grad(pooled, features, upstream))
    assert taken.peak < 1.6 * features[0].nbytes / 1e6


@pytest.mark.slow
def test_a_gradient_is_taken_in_blocks_and_never_copied_whole():
    features = [level.float().requires_grad_() for level in pyramid(channels=96)]
    boxes = torch.tensor([[4.0, 8, 40, 50]]).expand(len(features[0]), 3000, 4)
    pooled = PyramidRoIAlign(7, strides=STRIDES)(features, boxes)
    upstream = torch.ones_like(pooled)
    taken = allocations(lambda: torch.autograd.grad(pooled, features, upstream))
    assert taken.peak < upstream.nbytes / 2e6


def each(upstream: Tensor) -> list[tuple[int, Tensor]]:
    """The part of each box of two images."""
    return list(enumerate(upstream.unflatten(0, (2, -1)).unbind(1)))


def test_boxes_get_no_gradient():
    boxes = all_sizes().requires_grad_()
    pooled = PyramidRoIAlign(2, strides=STRIDES)([level.requires_grad_() for level in pyramid()], boxes)
    pooled.sum().backward()
    assert boxes.grad is None


def test_a_level_that_no_box_reads_gets_a_gradient_of_zeros():
    features = [level.requires_grad_() for level in pyramid()]
    PyramidRoIAlign(2, strides=STRIDES)(features, torch.tensor([[[0.0, 0, 9, 9]]] * 2)).sum().backward()
    assert features[0].grad.any()
    for level in features[1:]:
        assert level.grad.shape == level.shape
        assert not level.grad.any()


@pytest.mark.parametrize("extent", [1e-3, 30, 111.99, 112, 224, 447, 448, 1e6])
def test_the_level_is_that_of_the_formula(extent):
    box = [5.0, 7, 5 + extent, 7 + extent]
    for strides in (STRIDES, (16,), (8, 16)):
        pool = PyramidRoIAlign(7, strides=strides)
        assert pool.levels_of(torch.tensor(box, dtype=torch.float64)).item() == level_of(box, strides)


def test_rows_pick_boxes_and_their_order_is_kept():
    pool, features, boxes = PyramidRoIAlign(3, strides=STRIDES), pyramid(), all_sizes(count=5)
    rows = torch.tensor([9, 0, 4, 4, 6])
    assert torch.equal(pool(features, boxes, rows), pool(features, boxes)[rows])


@pytest.mark.parametrize("rows", [None, torch.zeros(0, dtype=torch.int64)])
def test_no_boxes_give_no_values_and_a_gradient_of_zeros(rows):
    features = [level.requires_grad_() for level in pyramid()]
    boxes = torch.zeros(2, 0 if rows is None else 3, 4)
    pooled = PyramidRoIAlign(7, strides=STRIDES)(features, boxes, rows)
    assert pooled.shape == (0, 3, 7, 7)
    pooled.sum().backward()
    assert all(level.grad is not None and not level.grad.any() for level in features)


@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("bad", [[math.nan] * 4, [0, 0, math.inf, 9], [-math.inf] * 4, [math.nan, 0, 9, 9]])
def test_a_box_that_is_not_finite_reads_nothing_and_leaves_the_others_alone(bad, ratio):
    pool = PyramidRoIAlign(3, strides=STRIDES, sampling_ratio=ratio)
    features, boxes = [level.requires_grad_() for level in pyramid()], all_sizes(count=6)
    expected = pool(features, boxes)
    spoilt = boxes.clone()
    spoilt[1, 2] = torch.tensor(bad)
    found = pool(features, spoilt)
    assert not found[8].any()
    others = torch.arange(12) != 8
    assert torch.equal(found[others], expected[others])
    found.sum().backward()
    assert all(torch.isfinite(level.grad).all() for level in features)


@pytest.mark.parametrize("ratio", [0, 2])
def test_huge_boxes_neither_hang_nor_crash(ratio):
    boxes = torch.tensor([[[-3e38, -3e38, 3e38, 3e38], [1e30, 0, 2e30, 9], [-1e20, 0, 9, 9], [0, 0, 1e9, 1e-9]]] * 2)
    features = pyramid(dtype=torch.float32)
    found = PyramidRoIAlign(3, strides=STRIDES, sampling_ratio=ratio)(features, boxes)
    assert torch.isfinite(found).all()
    assert found.abs().max() <= max(level.abs().max() for level in features)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_promoted_and_comes_back_as_it_came(dtype):
    pool, features, boxes = PyramidRoIAlign(3, strides=STRIDES), pyramid(dtype=dtype), all_sizes().float()
    found = pool(features, boxes)
    assert found.dtype == dtype
    assert torch.equal(found, pool([level.float() for level in features], boxes).to(dtype))
    assert torch.equal(found, pool(features, boxes.double()))


def test_half_precision_learns_in_half_precision():
    features = [level.requires_grad_() for level in pyramid(dtype=torch.bfloat16)]
    PyramidRoIAlign(3, strides=STRIDES)(features, all_sizes().float()).sum().backward()
    assert all(level.grad.dtype == torch.bfloat16 and level.grad.any() for level in features)


def test_levels_beyond_the_strides_are_not_read():
    features, boxes = pyramid(), all_sizes()
    pool = PyramidRoIAlign(3, strides=STRIDES[:2])
    nothing = [torch.full_like(level, torch.nan) for level in features[2:]]
    assert torch.equal(pool(features[:2], boxes), pool([*features[:2], *nothing], boxes))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        *(({"strides": strides}, f"strides={strides} 2") for strides in ((), (4, 16), (6, 12), (8, 4))),
        ({"strides": (0, 4)}, "strides[0]=0 1"),
        ({"output_size": 0}, "output_size=0 1"),
        ({"sampling_ratio": -1}, "sampling_ratio=-1 0"),
        ({"canonical_size": 0.0}, "canonical_size=0.0 above 0"),
        ({"canonical_size": math.nan}, "canonical_size=nan above 0"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    good = {"output_size": 7, "strides": (4, 8)}
    assert_refused(f"PyramidRoIAlign: {message}", PyramidRoIAlign, **{**good, **settings})


def test_the_smallest_settings_are_taken():
    pool = PyramidRoIAlign(1, strides=(1,), sampling_ratio=0, canonical_size=0.5)
    assert pool([torch.ones(1, 2, 4, 4)], torch.tensor([[[0.0, 0, 2, 2]]])).tolist() == [[[[1]], [[1]]]]


def test_too_few_levels_and_another_number_of_images_are_refused():
    pool = PyramidRoIAlign(7, strides=STRIDES)
    assert_refused(
        "PyramidRoIAlign: got 3 feature levels for 4 strides", PyramidRoIAlign.forward, pool, pyramid()[:3], all_sizes()
    )
    assert_refused(
        "PyramidRoIAlign: boxes 3 images 2 features",
        PyramidRoIAlign.forward,
        pool,
        pyramid(),
        all_sizes(images=3),
    )


@pytest.mark.slow(2)
@pytest.mark.parametrize("count", [0, 4])
def test_the_operators_keep_what_torch_asks_of_them(count):
    features = [level.requires_grad_() for level in pyramid(images=1, channels=1, strides=(16, 32))]
    boxes = torch.cat((torch.zeros(count, 1), HOSTILE[:count]), dim=1).double()
    levels, scales = torch.arange(count) % 3 - 1, [1 / 16, 1 / 32]
    torch.library.opcheck(torch.ops.detkit.roi_align.default, (features, boxes, levels, scales, [2, 2], 2, False))
    gradient = torch.ones(count, 1, 2, 2, dtype=torch.float64)
    shapes = [side for level in features for side in level.shape]
    given = (gradient, boxes, levels, scales, 2, False, shapes, [False, True])
    torch.library.opcheck(torch.ops.detkit.roi_align_backward.default, given)


def test_printing_shows_the_settings():
    assert repr(PyramidRoIAlign(7, strides=(4, 8))) == "PyramidRoIAlign(7, strides=(4, 8), sampling_ratio=2)"


def test_the_form_of_a_device_which_looks_at_every_box_on_every_level_is_the_same(monkeypatch):
    generator = torch.Generator().manual_seed(5)
    features = [torch.randn(2, 3, 64 // s, 80 // s, generator=generator, requires_grad=True) for s in (1, 2, 4)]
    boxes = torch.rand(2, 30, 4, generator=generator) * 300
    boxes[..., 2:] += boxes[..., :2]
    pool = PyramidRoIAlign(5, strides=(4, 8, 16))
    upstream = torch.randn(60, 3, 5, 5, generator=generator)

    def pooled_and_gradients() -> list[Tensor]:
        pooled = pool(features, boxes)
        return [pooled, *torch.autograd.grad((pooled * upstream).sum(), features)]

    expected = pooled_and_gradients()
    monkeypatch.setattr(align, "_on_processor", lambda tensor: False)
    for one, other in zip(pooled_and_gradients(), expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("dtype", [torch.float16, torch.uint8, torch.int16])
def test_levels_of_half_and_integer_boxes_are_those_of_float_ones(dtype):
    boxes = torch.tensor([[0, 0, 255, 255], [0, 0, 120, 120], [10, 10, 20, 20], [90, 90, 20, 20]]).to(dtype)
    pool = PyramidRoIAlign(7, strides=STRIDES)
    assert torch.equal(pool.levels_of(boxes), pool.levels_of(boxes.double()))
