"""Matching by threshold on a GPU."""

import pytest
from matching_cases import *  # noqa: F403
from matching_cases import crowded, moved
from strategies import random_boxes

from detkit.anchors.threshold import ThresholdMatcher

pytestmark = pytest.mark.cuda


def test_matching_never_waits_for_the_device(no_wait):
    anchors, targets = random_boxes(5000).cuda(), moved(crowded(2, 30), "cuda")
    ThresholdMatcher()(anchors, targets)  # compiles
    with no_wait:
        ThresholdMatcher()(anchors, targets)
