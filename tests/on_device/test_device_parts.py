"""Parts alone on a device: every matcher, coder and criterion in a step, and the good call of every public function."""

import copy
import inspect
import types
from typing import Any

import dense_parts as parts
import pretend
import pytest
import test_door as door
import torch
from strategies import unhooked
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

ON_THE_HOST = {"proposals.selective_search", "retrieval.cluster_agreement", "retrieval.class_distances"}
"""Whose work is done on the host, wherever their arguments lie."""
LEAST_CALLS = 140
STEPS = [
    *((matcher, "distance", "focal + giou") for matcher in parts.MATCHERS),
    *(("center", coder, "fcos") for coder in parts.CODERS),
    *(("threshold", "distance", criterion) for criterion in parts.CRITERIA),
]


@pytest.mark.parametrize("objects", [True, False], ids=["objects", "none"])
@pytest.mark.parametrize("names", dict.fromkeys(STEPS), ids=", ".join)
def test_a_step_of_every_dense_part_waits_for_nothing(names: tuple[str, str, str], objects: bool):
    stage, there = parts.dense_stage(*names), pretend.on_device(parts.dense_stage(*names))
    features, images = parts.seen()
    targets = parts.truth(objects=objects)
    wanted = parts.Step(stage)(features, images, targets)
    arguments = pretend.on_device((features, images, targets))
    with pretend.counted() as waits:
        found = parts.Step(there)(*arguments)
        sum(found.values()).backward()
    assert not waits
    sum(wanted.values()).backward()
    torch.testing.assert_close(pretend.on_host(found), {name: loss.detach() for name, loss in wanted.items()})
    gradients = [[parameter.grad for parameter in one.parameters()] for one in (there, stage)]
    torch.testing.assert_close(pretend.on_host(gradients[0]), gradients[1], rtol=1e-4, atol=1e-6)


def called(call: str, *, optional: bool, device: bool) -> list[Tensor]:
    """The tensors that a good call returns; its arguments of tensors, ``optional`` ones as well, and its part there."""
    torch.manual_seed(0)
    function, owner, _ = door.CALLS[call]
    parameters = {name: own for name, own in inspect.signature(function).parameters.items() if name != "self"}
    given: dict[str, Any] = {}
    for name, own in parameters.items():
        if own.default is own.empty or (optional and door.is_of_tensors(own.annotation)):
            given[name] = door.made(own.annotation)
    given |= {name: value for name, value in door.GIVEN.get(owner, {}).items() if name in parameters}
    place = pretend.on_device if device else lambda value: value
    if "self" in inspect.signature(function).parameters:
        part = copy.deepcopy(door.PARTS[owner]())
        function = types.MethodType(function, place(part) if isinstance(part, nn.Module | tuple) else part)
    given = {name: value if callable(value) else place(value) for name, value in given.items()}
    torch.manual_seed(0)
    return [value for value in tree_leaves(unhooked(function)(**given)) if isinstance(value, Tensor)]


def good_call(call: str) -> tuple[bool, list[Tensor]] | None:
    """Whether the call on the CPU takes the optional arguments, and what it gives; None where none made is good."""
    for optional in (True, False):
        try:
            return optional, called(call, optional=optional, device=False)
        except Exception:  # a call that annotations alone cannot make
            continue
    return None


def test_every_call_gives_on_a_device_what_it_gives_on_a_cpu():
    tried = 0
    for call in sorted(door.CALLS.keys() - ON_THE_HOST):
        if (good := good_call(call)) is None:
            continue
        optional, wanted = good
        found, tried = called(call, optional=optional, device=True), tried + 1
        away = [one.device.type for one in found if one.device.type != pretend.NAME]
        assert not away, f"{call}: {len(away)} of {len(found)} results lie on the host"
        torch.testing.assert_close(
            pretend.on_host(found),
            [one.detach() for one in wanted],
            rtol=1e-4,
            atol=1e-4,
            equal_nan=True,
            msg=lambda text, call=call: f"{call}: {text}",
        )
    assert tried >= LEAST_CALLS, tried
