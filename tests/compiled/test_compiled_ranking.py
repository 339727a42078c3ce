"""Ranking under the real compiler, which may drop what changes no value but the bits."""

import torch

from detkit._ranking import rising_bits, stable_topk


def test_signed_zeros_tie_under_inductor_too():
    torch.compiler.reset()
    values = torch.tensor([-0.0, 0.0, -0.0, 0.0, -1.0, 0.0])
    assert stable_topk(values, 3).tolist() == [0, 1, 2]
    assert torch.compile(lambda rows: stable_topk(rows, 3), fullgraph=True)(values).tolist() == [0, 1, 2]
    assert torch.equal(torch.compile(rising_bits, fullgraph=True)(values), rising_bits(values))
