"""What torch wraps around a module is looked through, at any depth."""

import pytest
from torch import nn

from detkit._wrappers import plain_keys, unwrapped


def test_a_module_inside_several_wrappers_is_found_and_one_without_is_itself():
    module = nn.Sequential(nn.DataParallel(nn.Linear(1, 1)))
    assert unwrapped(nn.DataParallel(nn.DataParallel(module))) is module
    assert unwrapped(module) is module


def test_keys_are_those_of_the_parts_without_wrappers_at_any_depth():
    def build(wrap):
        head = nn.ModuleDict({"module": wrap(nn.Linear(1, 1)), "b": nn.ModuleDict({"c": wrap(nn.BatchNorm1d(1))})})
        return wrap(nn.Sequential(wrap(wrap(head)), nn.Linear(1, 1)))

    wrapped, plain = build(nn.DataParallel), build(lambda module: module)
    assert plain_keys(plain) == {key: key for key in plain.state_dict()}
    assert [*plain_keys(wrapped)] == [*wrapped.state_dict()]
    assert [*plain_keys(wrapped).values()] == [*plain.state_dict()]


def test_a_wrapped_part_that_occurs_twice_is_renamed_twice():
    part = nn.DataParallel(nn.Linear(1, 1, bias=False))
    assert [*plain_keys(nn.ModuleList([part, part])).values()] == ["0.weight", "1.weight"]


@pytest.mark.slow(3)
def test_compiled_modules_are_looked_through():
    import torch

    module = nn.Linear(1, 1, bias=False)
    compiled = torch.compile(module, backend="eager")
    assert unwrapped(compiled) is module
    assert plain_keys(nn.Sequential(compiled)) == {"0._orig_mod.weight": "0.weight"}
