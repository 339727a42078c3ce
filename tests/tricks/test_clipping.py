"""Clipping by parts: each as torch clips it alone, and none by another one's bad gradient."""

import copy

import pytest
import torch
from strategies import assert_refused
from torch import nn
from torch.nn.parallel import DataParallel

from detkit.tricks import clip_gradients, nonfinite


def model_with_gradients() -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    model = nn.ModuleDict({
        "trunk": nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), "dense": nn.Linear(2, 2), "trunk2": nn.Linear(2, 1)
    })  # fmt: skip
    for value in model.parameters():
        value.grad = 5 * torch.randn(value.shape, generator=generator)
    return model


def gradients(model: nn.Module) -> list[torch.Tensor]:
    return [value.grad for value in model.parameters()]


def test_each_part_is_clipped_as_torch_clips_it_alone():
    model = model_with_gradients()
    peer = copy.deepcopy(model)
    for value, other in zip(model.parameters(), peer.parameters(), strict=True):
        other.grad = value.grad.clone()
    norms = clip_gradients(model, {"trunk": 1.0, "trunk.1": 2.0, "": 1e3})
    expected = {
        "trunk": nn.utils.clip_grad_norm_(peer["trunk"][0].parameters(), 1.0),
        "trunk.1": nn.utils.clip_grad_norm_(peer["trunk"][1].parameters(), 2.0),
        "": nn.utils.clip_grad_norm_([*peer["dense"].parameters(), *peer["trunk2"].parameters()], 1e3),
    }
    assert list(norms) == ["trunk", "trunk.1", ""]
    for name, norm in expected.items():
        torch.testing.assert_close(norms[name], norm)
    assert all(torch.equal(one, other) for one, other in zip(gradients(model), gradients(peer), strict=True))
    assert nn.utils.get_total_norm(gradients(model["trunk"][0])) == pytest.approx(1.0, rel=1e-5)


def test_what_no_part_names_stays():
    model = model_with_gradients()
    before = [value.clone() for value in gradients(model["dense"])]
    clip_gradients(model, {"trunk": 1.0})
    assert all(torch.equal(one, other) for one, other in zip(gradients(model["dense"]), before, strict=True))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_part_that_is_not_finite_is_left_as_it_is_and_the_others_are_clipped(bad):
    model = model_with_gradients()
    model["trunk"][0].weight.grad[0, 0] = bad
    before = [value.clone() for value in gradients(model["trunk"])]
    norms = clip_gradients(model, {"trunk": 1.0, "dense": 1.0})
    assert not norms["trunk"].isfinite()
    torch.testing.assert_close(gradients(model["trunk"]), before, rtol=0, atol=0, equal_nan=True)
    assert nn.utils.get_total_norm(gradients(model["dense"])) == pytest.approx(1.0, rel=1e-5)
    assert nonfinite({}, model) == ["the gradient of trunk.0.weight holds 1 of 12 values"]


def test_parts_without_gradients_have_norm_0_and_wrapped_models_their_own_names():
    model = model_with_gradients()
    for value in model["dense"].parameters():
        value.grad = None
    assert clip_gradients(DataParallel(model), {"dense": 1.0})["dense"] == 0


def test_unknown_parts_and_senseless_norms_are_refused():
    model = model_with_gradients()
    assert_refused("clip_gradients: max_norms ['trun', 'head'] trunk, dense, trunk2", clip_gradients, model,
                   {"trun": 1.0, "trunk": 1.0, "head": 1.0})  # fmt: skip
    for norm in (0, -1.0, float("nan"), float("inf")):
        assert_refused(
            f"clip_gradients: max_norms['trunk']={norm} must be above 0", clip_gradients, model, {"trunk": norm}
        )
