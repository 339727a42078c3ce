"""Triton kernels: what operators run on a GPU, where Triton is installed; one file for each.

Nothing here is called by users: an operator of another unit (suppression, matching, losses, deformable attention) has
its definition in torch, which runs on every device, and hands over here by :func:`~detkit.kernels.switch.takes_over`.
The same call works on CPU, CUDA and MPS, compiled and exported. ``with detkit.kernels.disabled():`` runs the torch form
everywhere, to compare the two. Importing detkit needs neither Triton nor a GPU.
"""

from detkit.kernels.switch import available, disabled

__all__ = ["available", "disabled"]
