"""A pretend device: its tensors lie in the host's memory, and it tells what a GPU would refuse and wait for.

Tensors on it are plain ones whose device is "pretend": what branches on the device goes the way of a GPU. Every
operation runs on the CPU, in place of the kernel that a GPU would have. Refused is what a GPU refuses: tensors of two
devices, a generator of the host, operations without a kernel for CUDA (where torch knows those); and an index of the
host, which CUDA would copy. Counted is every :class:`Wait`.
"""

import ctypes
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._library.custom_ops import OPDEFS
from torch.utils import backend_registration
from torch.utils._pytree import tree_map

NAME = "pretend"
LIBRARY = Path(__file__).resolve().parent.parent / "detkit"
SETUP = "_setup_privateuseone_for_python_backend"  # older torch does not have it
_HOST, _EXTENSION = 1, 12  # DLPack's numbers of the kinds of devices; torch reads the second as its spare one
_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype, _pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]

# What has a size that only the device knows, or hands a number to the host.
WAITING = {
    "aten::_local_scalar_dense": "item",
    "aten::nonzero": "nonzero",
    "aten::masked_select": "boolean index",
    "aten::equal": "equal",
    "aten::bincount": "bincount",
    "aten::multinomial": "multinomial",
    "aten::repeat_interleave": "repeat_interleave",
    **dict.fromkeys(("aten::_unique2", "aten::unique_dim", "aten::unique_consecutive", "aten::_unique"), "unique"),
    "torchvision::nms": "nms",
}
INDEXING = ("aten::index", "aten::_index_put_impl_", "aten::index_put")
VIEWS = ("aten::as_strided", "aten::view", "aten::unfold", "aten::_reshape_alias")
# These have a general form that asks the device for a kernel of another name, or resizes what it was given.
OWN = (
    *("aten::convolution", "aten::convolution_backward", "aten::index_put"),
    *("aten::arange", "aten::arange.start", "aten::arange.start_step", "aten::linspace", "aten::randperm"),
)
STAGED = 1 << 16  # bytes that a GPU takes from the host at once; of more, in memory not pinned, it may take what it can


class Wait(NamedTuple):
    """The host waits for the device: for what, at which line of the library ("backward" outside of it), and in which
    operator that has a kernel."""

    what: str
    place: str
    inside: str | None


_CPU = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
_waits: list[Wait] = []
_inside: list[str] = []  # the operators that have a kernel and are running now
_libraries: list[torch.library.Library] = []


def available() -> bool:
    """Whether this torch lets a device be registered from Python."""
    return hasattr(backend_registration, SETUP)


def start(kernels: Iterable[str] = ()) -> None:
    """Register the device, for the rest of the process; it must not have taken a gradient yet.

    ``kernels`` name the operators that a kernel may stand for: what they wait for is marked as theirs.
    """
    module = backend_registration._DummyBackendModule()  # what torch asks a device
    module.get_amp_supported_dtype = lambda: [torch.float16, torch.bfloat16]
    getattr(backend_registration, SETUP)(NAME, backend_module=module)
    _libraries.append(torch.library.Library("_", "IMPL"))
    _libraries[0].fallback(_run, "PrivateUse1")
    names = torch._C._dispatch_get_registrations_for_dispatch_key("CompositeExplicitAutogradNonFunctional")
    for name in (*OWN, *(name for name in names if name.startswith("aten::"))):
        _register(name, partial(_run, _overload(name)))
    _register("aten::copy_", _copy)
    for name in VIEWS:
        _register(name, partial(_view, _overload(name)))
    for name in kernels:
        _register(name, partial(_launched, name))


@contextmanager
def counted() -> Iterator[list[Wait]]:
    """The waits within the context: the list is filled at its end."""
    _waits.clear()
    found: list[Wait] = []
    try:
        yield found
    finally:
        found += _waits


def on_device(values: Any) -> Any:
    """``values``, a module or whatever holds tensors, with all tensors on the device; nobody counts this."""
    if not isinstance(values, nn.Module):
        return tree_map(_moved(_EXTENSION), values)
    torch.__future__.set_swap_module_params_on_conversion(True)  # else weights that two modules share would part
    before = len(_waits)
    values.to(NAME)
    del _waits[before:]
    return values


def on_host(values: Any) -> Any:
    """``values`` with all tensors, detached, on the CPU; nobody counts this either."""
    return tree_map(_moved(_HOST), values)


def _moved(kind: int) -> Callable[[Any], Any]:
    """What makes of a tensor one of the other device in the same memory, and leaves the rest."""

    def move(values: Any) -> Any:
        if not isinstance(values, Tensor) or (values.device.type == NAME) == (kind == _EXTENSION):
            return values
        capsule = torch._C._to_dlpack(values.detach() if values.requires_grad else values)
        ctypes.c_int32.from_address(_pointer(capsule, b"dltensor") + 8).value = kind
        return torch._C._from_dlpack(capsule)

    return move


def _is_there(values: Any) -> bool:
    return isinstance(values, Tensor | torch.Generator) and values.device.type == NAME


def _register(name: str, function: Callable[..., Any]) -> None:
    space, own = name.split("::")
    _libraries.append(torch.library.Library(space, "IMPL"))
    _libraries[-1].impl(own, function, "PrivateUse1")


def _overload(name: str) -> torch._ops.OpOverload:
    space, own = name.split("::")
    packet, _, overload = own.partition(".")
    return getattr(getattr(getattr(torch.ops, space), packet), overload or "default")


def _run(op: torch._ops.OpOverload, *arguments: Any, **settings: Any) -> Any:
    """An operation on the CPU, in the memory of the device."""
    name = op._schema.name
    if knows_cuda() and not _on_cuda(op.name()):
        raise NotImplementedError(f"{op.name()} has no kernel for CUDA")
    if name in WAITING and settings.get("output_size") is None:
        _wait(WAITING[name])
    elif name in INDEXING:
        _check_index(*arguments[:3])
    lonely = torch.Tag.pointwise in op.tags or "fill" in name or name in INDEXING
    lent: dict[int, Tensor] = {}

    def lend(value: Any) -> Any:
        if isinstance(value, torch.device):
            return torch.device("cpu")
        if not isinstance(value, Tensor | torch.Generator):
            return value
        if value.device.type != NAME:
            if lonely and isinstance(value, Tensor) and value.ndim == 0 and value is not arguments[0]:
                return value  # stands for a number
            raise RuntimeError(f"Expected all tensors to be on the same device, but found {NAME} and cpu: {name}")
        own = torch.empty(0, dtype=value.dtype) if value is out and value.shape == (0,) else _moved(_HOST)(value)
        lent[id(own)] = value
        return own

    out = settings.get("out")
    call = op.overloadpacket if _has_number(op, arguments) else op
    ours = _each(lend, settings)
    found = call(*_each(lend, arguments), **ours)
    if isinstance(out, Tensor) and ours["out"].shape != out.shape:  # was empty, and is as large as it must be
        _set(out, _moved(_EXTENSION)(ours["out"]))
    if name == "aten::_local_scalar_dense":
        return found
    return _each(lambda value: lent[id(value)] if id(value) in lent else _moved(_EXTENSION)(value), found)


def knows_cuda() -> bool:
    """Whether torch and torchvision say which operations CUDA has."""
    return _on_cuda("aten::nonzero") and _on_cuda("torchvision::nms")


@cache
def _on_cuda(name: str) -> bool:
    keys = ("CUDA", "CompositeImplicitAutograd", "CompositeExplicitAutograd", "CompositeExplicitAutogradNonFunctional")
    return any(torch._C._dispatch_has_kernel_for_dispatch_key(name, key) for key in keys)


def _each(function: Callable[[Any], Any], values: Any) -> Any:
    """As tree_map, for what operators take and return."""
    if isinstance(values, dict):
        return {key: _each(function, value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return type(values)([_each(function, value) for value in values])
    return function(values)


def _has_number(op: torch._ops.OpOverload, arguments: Any) -> bool:
    """Whether a number came where a tensor is declared: then another overload takes it."""
    declared = op._schema.arguments
    return any(
        type(value) in (bool, int, float) and isinstance(own.type, torch.TensorType)
        for value, own in zip(arguments, declared, strict=False)
    )


def _copy(to: Tensor, values: Tensor, non_blocking: bool = False) -> Tensor:
    staged = non_blocking and _is_there(to) and values.nbytes <= STAGED
    if _is_there(to) != _is_there(values) and not staged:
        _wait("copy to the device" if _is_there(to) else "copy to the host")
    _moved(_HOST)(to).copy_(_moved(_HOST)(values))
    return to


def _view(op: torch._ops.OpOverload, values: Tensor, *arguments: Any) -> Tensor:
    """The CPU's kernel, which makes a tensor of the same device and storage."""
    return op.redispatch(_CPU, values, *arguments)


def _set(out: Tensor, values: Tensor) -> None:
    op = torch.ops.aten.set_.source_Storage_storage_offset
    op.redispatch(_CPU, out, values.untyped_storage(), 0, values.shape, values.stride())


def _launched(name: str, *arguments: Any) -> Any:
    """The body of an operator of the library, on this device."""
    _inside.append(name)
    try:
        return OPDEFS[name]._init_fn(*arguments)
    finally:
        _inside.pop()


def _check_index(values: Tensor, indices: Any, put: Any = None) -> None:
    masks = [index for index in indices if index is not None and index.dtype in (torch.bool, torch.uint8)]
    one = put is not None and put.numel() == 1 and not _is_there(put)  # is filled in without a list of places
    if masks and not one:
        _wait("boolean index")


def _wait(what: str) -> None:
    frame, place = sys._getframe(1), "backward"
    while frame is not None:
        file = Path(frame.f_code.co_filename)
        if file.is_relative_to(LIBRARY):
            place = f"{file.relative_to(LIBRARY)}:{frame.f_lineno}"
            break
        frame = frame.f_back
    _waits.append(Wait(what, place, _inside[-1] if _inside else None))
