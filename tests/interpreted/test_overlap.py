"""IoU and DIoU of a kernel in Triton's interpreter."""

from overlap_cases import *  # noqa: F403
