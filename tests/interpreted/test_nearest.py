"""The nearest points in Triton's interpreter."""

from nearest_cases import *  # noqa: F403
