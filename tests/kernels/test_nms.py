"""Suppression on a GPU."""

import pytest
import torch
from suppression_cases import *  # noqa: F403
from suppression_cases import batch

from detkit.boxes import multiclass_nms_padded, nms, nms_padded

pytestmark = pytest.mark.cuda


@pytest.mark.parametrize("count", [100, 3000])
def test_padded_suppression_never_waits_for_the_device(no_wait, count):
    rows, scores = (values.cuda() for values in batch(2, count))
    groups = torch.arange(count, device="cuda").expand(2, -1) % 7

    def suppress() -> None:
        nms_padded(rows, scores[..., 0], 0.5, groups=groups, max_detections=50)
        multiclass_nms_padded(rows, scores, 0.5, score_threshold=0.2, candidates_per_class=40, max_detections=50)
        multiclass_nms_padded(rows, scores, 0.5, score_threshold=0.2, max_detections=50)

    suppress()  # compiles
    with no_wait:
        suppress()


def test_the_same_call_gives_the_same_again(device):
    generator = torch.Generator(device).manual_seed(0)
    low = torch.rand(30_000, 2, generator=generator, device=device) * 900
    rows = torch.cat((low, low + 10 + torch.rand(30_000, 2, generator=generator, device=device) * 90), dim=1)
    scores = torch.rand(30_000, generator=generator, device=device)
    first = nms(rows, scores, 0.5)
    assert all(torch.equal(nms(rows, scores, 0.5), first) for _ in range(20))
