"""Deformable attention in Triton's interpreter."""

from deformable_cases import *  # noqa: F403
