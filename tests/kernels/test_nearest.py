"""The nearest points on a GPU."""

import pytest
from matching_cases import crowded, moved
from nearest_cases import *  # noqa: F403
from strategies import random_boxes

from detkit.anchors.atss import ATSSMatcher

pytestmark = pytest.mark.cuda


def test_atss_never_waits_for_the_device(no_wait):
    anchors, targets = random_boxes(5000).cuda(), moved(crowded(2, 30), "cuda")
    ATSSMatcher()(anchors, targets)  # compiles
    with no_wait:
        ATSSMatcher()(anchors, targets)
