"""Keypoints in plain operators lie where the operator finds them."""

import torch
from strategies import assert_refused

from detkit.detectors import decode_heatmaps
from detkit.export.keypoints import plain_decode_heatmaps

BOXES = {
    "small": [3.0, 5, 9.5, 11],
    "a strip and more": [10.0, 10, 110.3, 30],
    "tall": [10.0, 10, 12, 70],
    "no area": [7.0, 7, 7, 7],
    "inverted": [40.0, 50, 3, 5],
    "not finite": [0.0, torch.nan, 5, 5],
    "far": [-1e6, 1e6, -1e6 + 20, 1e6 + 8],
}


def test_the_plain_form_is_the_operator():
    boxes = torch.tensor([*BOXES.values(), [3.0, 5, 40, 50]])
    valid = torch.arange(len(boxes)) < len(BOXES)
    logits = torch.randn(len(boxes), 3, 7, 7, generator=torch.Generator().manual_seed(0))
    for found, expected in zip(
        plain_decode_heatmaps(logits, boxes, valid), decode_heatmaps(logits, boxes, valid), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        assert expected[:5].any(-1).all()


def test_of_equal_cells_the_first_in_row_order_is_taken():
    boxes, valid = torch.tensor([[0.0, 0, 130, 4]]), torch.tensor([True])
    found, _ = plain_decode_heatmaps(torch.zeros(1, 1, 2, 2), boxes, valid)
    assert found[0, 0].tolist() == [0.5, 0.5, 1]


def test_an_unrolled_program_has_no_keypoints():
    given = torch.zeros(1, 1, 2, 2), torch.zeros(1, 4), torch.tensor([True])
    assert_refused(
        "plain detkit.decode_heatmaps loops=False allowed is loops=True", plain_decode_heatmaps, *given, loops=False
    )
