"""Overlap of every detection with every object, whatever its class."""

import pytest
from judged_scenes import iou, judged_scenes

from detkit.metrics.overlaps import overlaps
from detkit.metrics.records import corners


@pytest.mark.parametrize("seed", range(3))
def test_it_is_that_of_each_pair(seed):
    for image in judged_scenes(seed).images:
        found, truth = corners(image.detections.boxes), corners(image.truth.boxes)
        matrix = overlaps(image, "bbox")
        assert matrix.shape == (len(found), len(truth))
        for row, box in zip(matrix, found, strict=True):
            assert row == pytest.approx([iou(box, other) for other in truth])
