"""Positions of cells: sines against the formula and transformers', padding, learned rows and columns."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from detkit.layers.position import GridPositions, LearnedPositions, SinePositions, cells_inside


def sine(row: int, column: int, height: int, width: int, channels: int) -> list[float]:
    """DETR's formula, cell by cell; ``height`` and ``width`` of the image in cells."""
    values = []
    for place, count in ((row, height), (column, width)):
        angle = (place + 1) / (count + 1e-6) * 2 * math.pi
        for i in range(channels // 2):
            wave = angle / 10000 ** (2 * (i // 2) / (channels // 2))
            values.append(math.cos(wave) if i % 2 else math.sin(wave))
    return values


def test_sines_are_those_of_the_formula_rows_first_and_end_where_the_image_ends():
    inside = torch.zeros(2, 3, 5, dtype=torch.bool)
    inside[0], inside[1, :2, :4] = True, True
    found = SinePositions(8)(inside, dtype=torch.float64)
    assert found.shape == (2, 8, 3, 5)
    for image, (height, width) in enumerate([(3, 5), (2, 4)]):
        for row in range(height):
            for column in range(width):
                expected = torch.tensor(sine(row, column, height, width, 8), dtype=torch.float64)
                torch.testing.assert_close(found[image, :, row, column], expected)


def test_sines_equal_transformers():
    detr = pytest.importorskip(
        "transformers.models.detr.modeling_detr",
        reason="transformers is not installed: sine positions were NOT compared with its DETR",
    )
    inside = torch.arange(7)[:, None] + torch.arange(9) < 100
    inside = torch.stack((inside, inside & (torch.arange(7) < 5)[:, None] & (torch.arange(9) < 6)))
    peer = detr.DetrSinePositionEmbedding(16, normalize=True)
    expected = peer(torch.Size((2, 32, 7, 9)), "cpu", torch.float64, inside)
    torch.testing.assert_close(SinePositions(32)(inside, dtype=torch.float64), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_rounds_positions_not_angles(dtype):
    """In bfloat16 an angle of ten turns is off by an eighth of a radian."""
    positions, inside = SinePositions(32, temperature=20.0, turns=10.0), torch.ones(1, 20, 300, dtype=torch.bool)
    assert torch.equal(positions(inside, dtype=dtype), positions(inside).to(dtype))


def test_a_padded_image_has_the_positions_it_has_alone():
    inside = torch.zeros(1, 6, 8, dtype=torch.bool)
    inside[:, :4, :3] = True
    positions = SinePositions(12)
    assert torch.equal(positions(inside)[..., :4, :3], positions(inside[:, :4, :3]))


def test_other_temperatures_give_other_waves():
    inside = torch.ones(1, 1, 4, dtype=torch.bool)
    quick = SinePositions(8, temperature=20.0)
    angle = torch.tensor(2 * math.pi / (4 + 1e-6) / 20 ** (2 / 4))
    torch.testing.assert_close(quick(inside)[0, 6, 0, 0], angle.sin())
    assert "temperature=20.0" in repr(quick)


def test_waves_may_turn_more_than_once_over_the_image():
    inside = torch.ones(1, 1, 4, dtype=torch.bool)
    positions = SinePositions(8, temperature=4.0, turns=2.0)(inside)[0, :, 0]
    steps = 4 * math.pi * torch.arange(1, 5) / (4 + 1e-6)
    waves = [steps.sin(), steps.cos(), (steps / 2).sin(), (steps / 2).cos()]
    torch.testing.assert_close(positions[4:], torch.stack(waves))
    assert "turns=2.0" in repr(SinePositions(8, turns=2.0))


def test_learned_positions_are_columns_then_rows():
    learned = LearnedPositions(6, size=(4, 5))
    found = learned(torch.ones(2, 3, 5, dtype=torch.bool))
    assert found.shape == (2, 6, 3, 5)
    for row in range(3):
        for column in range(5):
            expected = torch.cat((learned.columns.weight[column], learned.rows.weight[row]))
            assert torch.equal(found[1, :, row, column], expected)
    assert 0 <= learned.rows.weight.min() < learned.rows.weight.max() < 1
    found.sum().backward()
    assert learned.rows.weight.grad[:, 0].tolist() == [10, 10, 10, 0]


@given(
    frame=st.tuples(st.integers(1, 200), st.integers(1, 200)),
    stride=st.sampled_from([1, 4, 16, 32]),
    seed=st.integers(0, 1000),
)
def test_cells_inside_are_the_mask_of_pixels_resized_by_nearest(frame, stride, seed):
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.stack([torch.randint(1, side + 1, (2,), generator=generator) for side in frame], 1)
    cells = tuple(-(-side // stride) for side in frame)
    found = cells_inside(sizes, frame, cells)
    for image, (height, width) in enumerate(sizes.tolist()):
        pixels = torch.zeros(1, 1, *frame, dtype=torch.float64)
        pixels[..., :height, :width] = 1
        assert torch.equal(found[image], F.interpolate(pixels, size=cells, mode="nearest")[0, 0] > 0.5)
    assert found[:, 0, 0].all()


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"channels=6.*multiple.*4"):
        SinePositions(6)
    with pytest.raises(ValueError, match="channels=5 must be even"):
        LearnedPositions(5)
    with pytest.raises(ValueError, match=r"3 x 6.*4 x 5"):
        LearnedPositions(4, size=(4, 5))(torch.ones(1, 3, 6, dtype=torch.bool))


def test_grid_positions_are_those_of_the_formula_and_know_no_padding():
    inside = torch.zeros(2, 3, 5, dtype=torch.bool)
    found = GridPositions(8, temperature=100.0)(inside, dtype=torch.float64)
    assert found.shape == (2, 8, 3, 5)
    for row in range(3):
        for column in range(5):
            waves = [(place / 100 ** (i / 2)) for place in (row, column) for i in range(2)]
            expected = [f(w) for part in (waves[:2], waves[2:]) for f in (math.sin, math.cos) for w in part]
            torch.testing.assert_close(found[1, :, row, column], torch.tensor(expected, dtype=torch.float64))


def test_grid_positions_need_a_multiple_of_4_channels():
    with pytest.raises(ValueError, match="GridPositions: channels=6 must be a multiple of 4"):
        GridPositions(6)
