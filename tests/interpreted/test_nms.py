"""Suppression in Triton's interpreter."""

from suppression_cases import *  # noqa: F403
