"""Fast forms of the elementary losses: hand-written gradients, and fewer passes over memory.

What a loss is stands in :mod:`detkit.losses.classification` and :mod:`detkit.losses.regression`; here is only what
makes it fast; on a GPU box and focal losses hand over to :mod:`detkit.kernels`. One test, tests/losses/test_fused.py,
holds every form to autograd of its definition.
"""
