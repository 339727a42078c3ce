"""Focal loss in Triton's interpreter."""

from focal_cases import *  # noqa: F403
