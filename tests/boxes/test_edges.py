"""EdgeCoder: the steps of the paper, what a distribution moves, and that encoding inverts decoding."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import box, random_boxes

from detkit.boxes import EdgeCoder


def weighting(bins: int, reach: float, scale: float) -> list[float]:
    """The paper's W(n), equation 5, with a = ``reach`` and c = 1 / ``scale``, bin by bin."""
    a, c, values = reach, 1 / scale, []
    for n in range(bins + 1):
        power = abs(n - bins / 2) * 2 / (bins - 2)
        size = 2 * a if n in (0, bins) else c * ((a / c + 1) ** power - 1)
        values.append(math.copysign(size, n - bins / 2) if n != bins / 2 else 0.0)
    return values


@pytest.mark.parametrize(("bins", "reach", "scale"), [(32, 0.5, 4.0), (32, 0.5, 8.0), (4, 0.5, 1.0), (6, 2.0, 0.3)])
def test_steps_are_those_of_the_paper(bins, reach, scale):
    expected = torch.tensor(weighting(bins, reach, scale), dtype=torch.float64)
    torch.testing.assert_close(EdgeCoder(bins=bins, reach=reach, scale=scale).steps, expected, rtol=1e-12, atol=1e-12)


def test_a_certain_distribution_moves_its_edge_by_its_step_outwards():
    coder, reference = EdgeCoder(bins=8), torch.tensor([[10.0, 20.0, 14.0, 28.0]])
    for edge, side in enumerate((4.0, 8.0, 4.0, 8.0)):
        for place in range(9):
            logits = torch.full((1, 4, 9), -1e4)
            logits[:, :, 4] = 0
            logits[:, edge] = -1e4
            logits[:, edge, place] = 0
            moved = (coder.decode(logits.flatten(1), reference) - reference)[0]
            expected = torch.zeros(4)
            expected[edge] = coder.steps[place] * side * (-1 if edge < 2 else 1)
            torch.testing.assert_close(moved, expected, rtol=1e-5, atol=1e-5)


def test_the_distribution_that_is_learned_decodes_to_the_box():
    """Mass on the two bins around what ``encode`` says has the box as its mean, within reach."""
    coder = EdgeCoder()
    references = random_boxes(50, dtype=torch.float64)
    sides = (references[:, 2:] - references[:, :2]).repeat(1, 2)
    boxes = references + sides * (torch.rand(50, 4, dtype=torch.float64) - 0.5) * 0.9
    bins = coder.encode(boxes, references)
    left = bins.floor().clamp(max=31)
    shares = torch.zeros(50, 4, 33, dtype=torch.float64)
    shares.scatter_(2, left.long()[..., None], (1 - bins + left)[..., None])
    shares.scatter_(2, left.long()[..., None] + 1, (bins - left)[..., None])
    torch.testing.assert_close(coder.decode(shares.log().clamp(min=-1e4).flatten(1), references), boxes)


@given(st.lists(box(inverted=False), min_size=1, max_size=4), box(inverted=False))
def test_bins_are_finite_and_within_for_any_boxes(boxes, reference):
    found = EdgeCoder().encode(torch.tensor(boxes), torch.tensor(reference))
    assert torch.isfinite(found).all()
    assert found.min() >= 0
    assert found.max() <= 32


def test_leading_dimensions_broadcast_and_half_is_promoted():
    coder = EdgeCoder(bins=4)
    boxes, references = torch.rand(2, 3, 4), torch.rand(3, 4)
    assert coder.encode(boxes, references).shape == (2, 3, 4)
    assert coder.decode(torch.rand(2, 3, 20).half(), references.half()).dtype == torch.float32


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="EdgeCoder: bins=5 must be even"):
        EdgeCoder(bins=5)
    with pytest.raises(ValueError, match="EdgeCoder: bins=2 must be even, and at least 4"):
        EdgeCoder(bins=2)
    with pytest.raises(ValueError, match=r"EdgeCoder.decode: logits have shape \(1, 16\); allowed is \(..., 20\)"):
        EdgeCoder(bins=4).decode(torch.zeros(1, 16), torch.zeros(1, 4))
    assert repr(EdgeCoder()) == "EdgeCoder(bins=32, reach=0.5, scale=4.0)"
