"""Clipping gradients part by part: one part's large gradient does not shrink the steps of all others."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from detkit._door import door
from detkit._ranges import Positive, check, rule_of
from detkit._wrappers import unwrapped


@door
def clip_gradients(model: nn.Module, max_norms: Mapping[str, float]) -> dict[str, Tensor]:
    """Scale the gradients of each part of ``model`` down to the largest norm it may have, in place; the norms before.

    ``max_norms`` says the largest L2 norm of each part, by the start of its parameters' names, as
    ``{"trunk": 1.0, "dense": 10.0}`` does. Of several that fit a parameter the longest counts, ``""`` is all the rest;
    what no part names is not clipped. The norms have the same keys, 0 for a part without gradients; nothing waits for
    an accelerator. With ``{"": 10.0}`` this is ``nn.utils.clip_grad_norm_``, but for gradients that are not finite: a
    part whose norm is NaN or infinite is **left as it is**, where torch would make all its gradients NaN or 0. So call
    :func:`~detkit.tricks.nonfinite` before or after, and leave out the step. Raises ValueError for a part without
    parameters, and norms that are not positive and finite.

    >>> model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    >>> for layer in model:
    ...     layer.weight.grad = torch.tensor([[4.0]])
    >>> clip_gradients(model, {"0": 1.0, "1": 10.0})
    {'0': tensor(4.), '1': tensor(4.)}
    >>> [round(layer.weight.grad.item(), 4) for layer in model]
    [1.0, 4.0]
    """
    parts = _parts(dict(unwrapped(model).named_parameters()), max_norms)
    norms = {}
    for name, parameters in parts.items():
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        norms[name] = norm = nn.utils.get_total_norm(gradients)
        finite = torch.where(norm.isfinite(), norm, 0)  # which scales by 1
        nn.utils.clip_grads_with_norm_(parameters, float(max_norms[name]), finite)
    return norms


def _parts(named: Mapping[str, Tensor], max_norms: Mapping[str, float]) -> dict[str, list[Tensor]]:
    """The parameters of each part."""
    parts: dict[str, list[Tensor]] = {name: [] for name in max_norms}
    rule = rule_of(Positive)
    assert rule is not None
    for name, limit in max_norms.items():
        check(limit, rule, f"clip_gradients: max_norms[{name!r}]")
    for name, parameter in named.items():
        fitting = [part for part in parts if part in ("", name) or name.startswith(f"{part}.")]
        if fitting:
            parts[max(fitting, key=len)].append(parameter)
    if empty := [part for part, parameters in parts.items() if not parameters]:
        starts = ", ".join(dict.fromkeys(name.partition(".")[0] for name in named))
        raise ValueError(f"clip_gradients: max_norms names {empty}, where no parameters are; names start with {starts}")
    return parts
