"""Losses that bring their gradient: pieces against the whole, repeated backward passes, graphs of gradients."""

import pytest
import torch

from detkit import _gradient as module
from detkit._gradient import evaluate, with_gradient


def defined(x, factors, *, power=2):
    """sum(x**power) * factor of each row."""
    return (x**power).sum(1) * factors


def power_of_rows(x, factors, needs):
    """The same, and its derivatives."""
    squares = x.square().sum(1)
    by_x = 2 * x * factors[:, None] if needs[0] else None
    return squares * factors, (by_x, squares if needs[1] else None)


def inputs(rows=11, columns=3):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, columns, generator=generator).double(), torch.rand(rows, generator=generator).double()


def test_value_and_gradients_equal_finite_differences():
    x, factors = (rows.requires_grad_() for rows in inputs())
    assert torch.autograd.gradcheck(lambda *rows: with_gradient(defined, power_of_rows, *rows), (x, factors))


@pytest.mark.parametrize(("chunk", "rows"), [(1, 1), (3, 1), (7, 2), (32, 10), (33, 11)])
def test_pieces_give_what_the_whole_gives(monkeypatch, chunk, rows):
    x, factors = inputs()
    whole = power_of_rows(x, factors, (True, True))
    seen = []

    def formula(x, factors, needs):
        seen.append(len(x))
        assert len(factors) == len(x)
        return power_of_rows(x, factors, needs)

    monkeypatch.setattr(module, "CHUNK", chunk)
    losses, derivatives = evaluate(formula, (x, factors), (True, True))
    assert max(seen) == rows
    assert sum(seen) == 11
    assert torch.equal(losses, whole[0])
    assert all(torch.equal(one, other) for one, other in zip(derivatives, whole[1], strict=True))


def test_what_needs_no_gradient_is_not_asked_for(monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 4)
    x, factors = inputs()
    _, derivatives = evaluate(power_of_rows, (x, factors), (False, True))
    assert derivatives[0] is None
    assert torch.equal(derivatives[1], x.square().sum(1))
    asked = []

    def formula(x, factors, needs):
        asked.append(needs)
        return power_of_rows(x, factors, needs)

    with_gradient(defined, formula, x, factors.requires_grad_())
    with torch.no_grad():
        assert not with_gradient(defined, formula, x, factors).requires_grad
    assert asked[0] == (False, True)


def test_a_second_backward_pass_through_a_retained_graph_equals_the_first():
    x, factors = (rows.requires_grad_() for rows in inputs())
    losses = with_gradient(defined, power_of_rows, x, factors)
    upstream = torch.rand(11).double()
    results = [torch.autograd.grad(losses, (x, factors), upstream * k, retain_graph=True) for k in (1, 1, 3)]
    for once, twice, thrice in zip(*results, strict=True):
        assert torch.equal(once, twice)
        torch.testing.assert_close(thrice, 3 * once)
    assert torch.equal(results[0][1], x.detach().square().sum(1) * upstream)


def test_differentiated_gradients_are_those_of_the_definition():
    x, factors = (rows.requires_grad_() for rows in inputs(3))
    assert torch.autograd.gradgradcheck(lambda *rows: with_gradient(defined, power_of_rows, *rows), (x, factors))
    (by_x,) = torch.autograd.grad(with_gradient(defined, power_of_rows, x, factors).sum(), x, create_graph=True)
    assert torch.equal(torch.autograd.grad(by_x.sum(), x)[0], (2 * factors[:, None]).expand_as(x))


def test_only_what_asks_for_a_graph_of_its_gradient_is_computed_by_the_definition():
    calls = []

    def counted(x, factors):
        calls.append(x.dtype)
        return defined(x, factors)

    x, factors = (rows.half().requires_grad_() for rows in inputs(3))
    losses = with_gradient(counted, power_of_rows, x, factors).sum()
    losses.backward(retain_graph=True)
    assert calls == []
    torch.autograd.grad(losses, x, create_graph=True)
    assert calls == [torch.float32]  # promoted


def test_settings_reach_both_forms():
    x, factors = inputs(3)

    def fused(x, factors, needs, *, power):
        return defined(x, factors, power=power), (power * x ** (power - 1) * factors[:, None], None)

    x.requires_grad_()
    losses = with_gradient(defined, fused, x, factors, power=3)
    assert torch.equal(losses, defined(x, factors, power=3))
    plain = torch.autograd.grad(losses.sum(), x, retain_graph=True)[0]
    torch.testing.assert_close(torch.autograd.grad(losses.sum(), x, create_graph=True)[0], plain)


def test_an_input_changed_after_the_forward_pass_is_noticed():
    x, factors = inputs()
    middle = x.requires_grad_() * 1
    losses = with_gradient(defined, power_of_rows, middle, factors)
    losses.sum().backward(retain_graph=True)
    middle.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        losses.sum().backward()


def test_gradients_come_in_the_type_of_the_input():
    x = torch.ones(3, dtype=torch.float16, requires_grad=True)
    losses = with_gradient(lambda x: x, lambda x, needs: (x.float(), (torch.full((3,), 1e-8),)), x)
    losses.mul(2.0**16).sum().backward()
    assert x.grad.dtype == torch.float16
    torch.testing.assert_close(x.grad.float(), torch.full((3,), 1e-8 * 2**16), rtol=1e-2, atol=0)
