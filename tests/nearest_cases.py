"""The nearest points by a kernel are those of the torch form: in the interpreter and on a GPU."""

from collections.abc import Iterator

import pytest
import torch
from matching_cases import assert_matches_as_torch, crowded
from strategies import random_boxes

from detkit.anchors.atss import ATSSMatcher
from detkit.kernels import disabled
from detkit.kernels import nearest as kernel
from detkit.structures import Anchors


@pytest.fixture(autouse=True, scope="module")
def few_programs(device) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        if device == "cpu":
            patch.setattr(kernel, "POINTS", 512)
        yield


@pytest.mark.parametrize("counts", [[1], [0, 3, 0], [5, 1, 700], [1025, 600, 40, 9, 8]], ids=str)
@pytest.mark.parametrize("candidates", [1, 9])
@pytest.mark.parametrize("shared", [True, False])
def test_the_nearest_points_are_those_of_torch(device, counts, candidates, shared):
    generator = torch.Generator().manual_seed(0)
    points = torch.randint(0, 30, (2, sum(counts), 2), generator=generator).float()  # so many tie
    points = points[0] if shared else points
    points[..., 3::40, 1], points[..., 4::50, 0] = torch.nan, torch.inf
    goals = torch.rand(2, 11, 2, generator=generator) * 30
    goals[0, 3], goals[1, 5] = torch.nan, -torch.inf
    with disabled():
        expected = torch.ops.detkit.nearest_points(points, goals, counts, candidates)
    found = torch.ops.detkit.nearest_points(points.to(device), goals.to(device), counts, candidates)
    assert torch.equal(found.cpu(), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_atss_matches_as_in_torch(device, dtype):
    boxes = random_boxes(300, seed=9).to(dtype)
    anchors = Anchors.of(boxes)._replace(counts=(200, 80, 20))
    targets = crowded(2, 9)
    matched = assert_matches_as_torch(device, ATSSMatcher(), anchors, targets)
    assert (matched >= 0).any()


def test_without_rows_nothing_is_near(device):
    for shape, points in (((0, 4, 2), 5), ((2, 0, 2), 5), ((2, 3, 2), 0)):
        found = torch.ops.detkit.nearest_points(
            torch.zeros(points, 2, device=device), torch.zeros(shape, device=device), [points], 3
        )
        assert found.shape == (*shape[:2], min(points, 3))
