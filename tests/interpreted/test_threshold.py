"""Matching by threshold in Triton's interpreter."""

from matching_cases import *  # noqa: F403
