"""Box losses in Triton's interpreter."""

from box_loss_cases import *  # noqa: F403
