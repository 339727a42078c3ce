"""Modules around a module, which give its values other names: torch.compile, DataParallel, DistributedDataParallel."""

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside all its wrappers; itself where it has none.

    >>> module = nn.Linear(1, 1)
    >>> unwrapped(DataParallel(module)) is module
    True
    """
    while name := _name_of_inner(module):
        module = module.get_submodule(name)
    return module


def plain_keys(module: nn.Module) -> dict[str, str]:
    """For every key of the module's ``state_dict`` the one that it has where no part, at any depth, is wrapped.

    >>> plain_keys(nn.Sequential(DataParallel(nn.Linear(1, 1, bias=False))))
    {'0.module.weight': '0.weight'}
    """
    keys = {key: key for key in module.state_dict()}
    for name, part in reversed([*module.named_modules(remove_duplicate=False)]):  # a part before what it is in
        if inner := _name_of_inner(part):
            prefix = f"{name}." if name else ""
            wrapped = f"{prefix}{inner}."
            keys = {
                key: prefix + plain.removeprefix(wrapped) if plain.startswith(wrapped) else plain
                for key, plain in keys.items()
            }
    return keys


def _name_of_inner(module: nn.Module) -> str | None:
    if isinstance(module, (DataParallel, DistributedDataParallel)):
        return "module"
    return "_orig_mod" if "_orig_mod" in module._modules else None  # compiled
