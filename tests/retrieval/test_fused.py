"""Every fused form against autograd of its definition: values, gradients, and gradients of gradients."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from detkit._gradient import with_gradient
from detkit.retrieval import distances, fused, losses

CHOICES = {
    "some": lambda shape: torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.4,
    "all": lambda shape: torch.ones(shape, dtype=torch.bool),
    "none": lambda shape: torch.zeros(shape, dtype=torch.bool),
}
SCALES = {"near": 1.0, "far": 200.0, "tiny": 1e-6}


class Form(NamedTuple):
    """A definition, its fused form, settings, how many masks it takes, and which values it is defined for."""

    definition: Callable[..., Tensor]
    fused: Callable[..., tuple[Tensor, tuple[Tensor | None, ...]]]
    settings: dict
    masks: int
    positive: bool = False


FORMS = {
    "root": Form(distances._root, fused.root, {"least": 1e-19}, 0, positive=True),
    "contrasted": Form(losses._contrasted, fused.contrasted, {"margin": 1.0, "squared": False}, 1, positive=True),
    "contrasted, squared": Form(losses._contrasted, fused.contrasted, {"margin": 0.7, "squared": True}, 1, True),
    "entropies": Form(losses._mean_entropies, fused.mean_entropies, {"temperature": 0.1}, 2),
    "soft maxima": Form(losses._soft_extremes, fused.soft_extremes, {"steepness": 3.0, "base": 0.2}, 1),
    "soft minima": Form(losses._soft_extremes, fused.soft_extremes, {"steepness": -2.0, "base": -0.1}, 1),
}


def inputs(form: Form, choice: str, scale: float, *, rows: int = 9, columns: int = 7) -> tuple[Tensor, list[Tensor]]:
    values = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)).double() * scale
    values = values.abs() if form.positive else values
    mask = CHOICES[choice]((rows, columns))
    return values, [mask, ~mask][: form.masks]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("name", FORMS)
def test_a_form_is_its_definition_and_its_gradient(name, choice, scale):
    form = FORMS[name]
    values, masks = inputs(form, choice, SCALES[scale])
    one, other = values.clone().requires_grad_(), values.clone().requires_grad_()
    expected = form.definition(one, *masks, **form.settings)
    found = with_gradient(form.definition, form.fused, other, *masks, **form.settings)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    upstream = torch.linspace(0.5, 2.0, found.numel()).double().reshape(found.shape)
    expected.backward(upstream)
    found.backward(upstream)
    torch.testing.assert_close(other.grad, one.grad, rtol=1e-12, atol=1e-12)
    assert torch.isfinite(other.grad).all()


@pytest.mark.parametrize("name", FORMS)
def test_gradients_are_differentiated_as_those_of_the_definition(name):
    form = FORMS[name]
    values, masks = inputs(form, "some", 1.0)
    found = []
    for loss in (form.definition, partial(with_gradient, form.definition, form.fused)):
        rows = values.clone().requires_grad_()
        (slope,) = torch.autograd.grad(loss(rows, *masks, **form.settings).pow(3).sum(), rows, create_graph=True)
        found.append(torch.autograd.grad(slope.square().sum(), rows)[0])
    assert found[0].any()
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (0, 0)])
@pytest.mark.parametrize("name", FORMS)
def test_no_pairs_at_all_have_a_value_and_a_gradient(name, shape):
    form = FORMS[name]
    values, masks = torch.zeros(shape).double().requires_grad_(), [torch.zeros(shape, dtype=torch.bool)] * form.masks
    found = with_gradient(form.definition, form.fused, values, *masks, **form.settings)
    torch.testing.assert_close(found, form.definition(values, *masks, **form.settings))
    found.sum().backward()
    assert values.grad.shape == shape


@pytest.mark.parametrize("name", FORMS)
def test_inputs_stay_as_they_were(name):
    form = FORMS[name]
    values, masks = inputs(form, "some", 1.0)
    before = [rows.clone() for rows in (values, *masks)]
    form.fused(values, *masks, (True, *[False] * form.masks), **form.settings)
    assert all(torch.equal(one, other) for one, other in zip((values, *masks), before, strict=True))


@pytest.mark.parametrize("own", [True, False])
def test_squared_distances_have_the_gradient_of_differences(own):
    rows = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)).double().requires_grad_()
    others = rows if own else torch.randn(4, 3).double().requires_grad_()
    factors = torch.linspace(-1, 2, len(rows) * len(others)).double().reshape(len(rows), len(others))
    found = (distances.squared_distances(rows, others) * factors).sum()
    expected = ((rows[:, None] - others).square().sum(2) * factors).sum()
    parts = [rows] if own else [rows, others]
    for one, other in zip(torch.autograd.grad(found, parts), torch.autograd.grad(expected, parts), strict=True):
        torch.testing.assert_close(one, other)
    assert torch.autograd.gradgradcheck(lambda *parts: distances.squared_distances(parts[0], parts[-1]), parts)
