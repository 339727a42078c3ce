"""What every function does to what it is given: promote it, read it as boxes, check it, and say what is wrong with it.

Two doors take what users hand over. Parts (IoU, suppression, coders) take tensors only, through :func:`as_tensor` and
:func:`as_boxes`. The border (targets, proposals, metrics, drawing) also takes NumPy arrays and nested lists of numbers,
through :func:`read_tensor`. Both take the subclass off a tensor, and turn torchvision's BoundingBoxes of another format
into the one that is wanted.

Shapes, dtypes and options are always checked where they are used: that needs no device sync. *Values* (NaN, inverted
boxes, label ranges) cost a sync on an accelerator, so device ops check them only with ``DETKIT_CHECKS=full``.
"""

import inspect
import math
import os
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch._C._functorch import TransformType
from torch._functorch.pyfunctorch import retrieve_all_functorch_interpreters
from torch.autograd import forward_ad
from torch.utils._python_dispatch import _get_current_dispatch_mode

Form = Literal["XYXY", "XYWH", "CXCYWH"]
"""How four numbers mean a box, in the words of torchvision's BoundingBoxFormat."""
_PROMOTED = {
    torch.float64: torch.float64,
    torch.int32: torch.float64,  # float32 holds integers only up to 2**24: an area of 50,000 x 50,000 would be rounded
    torch.int64: torch.float64,
    torch.uint32: torch.float64,
    torch.uint64: torch.float64,
}

_WHITE = {torch.bool: 1.0, torch.uint8: 255.0, torch.uint16: 65535.0}


def promote(values: Tensor) -> Tensor:
    """``values`` in a type that box arithmetic is safe in: float64 for float64 and wide integers, else float32.

    Differences and products of half-precision or integer coordinates overflow or wrap around; so every box function
    promotes before its first operation, and returns the promoted type.

    >>> promote(torch.tensor([1, 2], dtype=torch.uint8)).dtype, promote(torch.tensor([1, 2])).dtype
    (torch.float32, torch.float64)
    """
    if values.dtype.is_complex:
        raise TypeError(f"boxes and scores are real numbers, not {values.dtype}")  # the door names the argument
    return values.to(_PROMOTED.get(values.dtype, torch.float32))


def white_of(dtype: torch.dtype, *, where: str) -> float:
    """The number of a white pixel in images of this type: 1 for floats and bool, 255 for uint8, 65535 for uint16.

    Raises ValueError for other types: what number is white in them nobody can tell.

    >>> white_of(torch.uint8, where="demo: image"), white_of(torch.float16, where="demo: image")
    (255.0, 1.0)
    """
    if dtype.is_floating_point:
        return 1.0
    if dtype not in _WHITE:
        raise ValueError(f"{where} has type {dtype}; allowed are floats in [0, 1], uint8, uint16 and bool")
    return _WHITE[dtype]


def finite_logits(logits: Tensor) -> Tensor:
    """``logits`` with NaN as the lowest number and infinities as the farthest whose difference is finite.

    >>> finite_logits(torch.tensor([float("nan"), 2.0, float("inf")])).argsort()
    tensor([0, 1, 2])
    """
    limit = torch.finfo(logits.dtype).max / 4
    return logits.nan_to_num(nan=-limit, posinf=limit, neginf=-limit).clamp(-limit, limit)


def as_tensor(values: Any, *, function: str, name: str, form: Form | None = None) -> Tensor:
    """``values`` as a plain tensor: what a part takes. BoundingBoxes come in ``form`` (None: as they are).

    Raises TypeError for anything but a tensor, and ValueError for rotated BoundingBoxes. While ``torch.compile`` or
    ``torch.export`` traces, tensors have a subclass of their own, and nothing is looked at.

    >>> as_tensor([1.0], function="nms", name="scores")
    Traceback (most recent call last):
    TypeError: nms: scores is a list; give a tensor: torch.tensor(...)
    """
    if type(values) is Tensor or torch.compiler.is_compiling():
        return values
    if not isinstance(values, Tensor):
        raise TypeError(f"{function}: {name} is a {type(values).__name__}; give a tensor: torch.tensor(...)")
    return _plain(values, form, f"{function}: {name}")


def as_boxes(boxes: Any, *, function: str, name: str = "boxes", form: Form | None = "XYXY") -> Tensor:
    """``boxes`` (..., 4) as a plain tensor of a promoted type; the shape (0,) of an empty list is read as (0, 4).

    ``form`` is what the numbers mean: None where they are no box, as deltas are. Raises TypeError and ValueError as
    :func:`as_tensor` does, and ValueError where the last dimension is not 4; with ``DETKIT_CHECKS=full`` also for
    numbers that are not finite and, in the form XYXY, for inverted boxes (x2 < x1), naming the first.

    >>> as_boxes(torch.tensor([]), function="example").shape
    torch.Size([0, 4])
    """
    if type(boxes) is not Tensor:
        boxes = as_tensor(boxes, function=function, name=name, form=form)
    if boxes.ndim == 1 and boxes.shape[0] == 0:
        boxes = boxes.reshape(0, 4)
    if boxes.ndim == 0 or boxes.shape[-1] != 4:
        raise ValueError(f"{function}: {name} has shape {tuple(boxes.shape)}; allowed is (..., 4)")
    boxes = promote(boxes)
    if full_checks():
        (check_box_values if form == "XYXY" else check_finite)(boxes, function=function, name=name)
    return boxes


def read_tensor(values: Any, *, where: str, form: Form | None = None) -> Tensor:
    """A tensor, NumPy array or nested list of numbers as a plain tensor without gradient: what the border takes.

    Fractions in lists become float32; arrays keep their type. BoundingBoxes come in ``form`` (None: as they are).
    Raises TypeError for anything that is no array of numbers, and ValueError for complex and sparse tensors and
    rotated BoundingBoxes, naming ``where``.

    >>> read_tensor([[0, 0, 4, 2.5]], where="boxes")
    tensor([[0.0000, 0.0000, 4.0000, 2.5000]])
    >>> read_tensor(["cat"], where="targets[0]['labels']")
    Traceback (most recent call last):
    TypeError: targets[0]['labels']: a list that holds no numbers; allowed is a tensor, a NumPy array or a nested list
    of numbers
    """
    if isinstance(values, Tensor):
        if values.is_complex() or values.layout != torch.strided:
            raise ValueError(f"{where} has {unfit(values)}")
        return (values if type(values) is Tensor else _plain(values, form, where)).detach()
    try:
        array = np.asarray(values)
        if array.dtype.kind not in "biuf":
            raise TypeError
        if not isinstance(values, np.ndarray) and array.dtype == np.float64:
            array = array.astype(np.float32)
        native = array.astype(array.dtype.newbyteorder("="), copy=False)
        return torch.from_numpy(np.require(native, requirements=["C", "W"]))
    except (TypeError, ValueError, RuntimeError):  # ragged lists, tensors of another device, 128 bits
        raise TypeError(
            f"{where}: a {type(values).__name__} that holds no numbers; allowed is a tensor, a NumPy array or a nested "
            "list of numbers"
        ) from None


def _plain(values: Tensor, form: Form | None, where: str) -> Tensor:
    """``values`` without its subclass; BoundingBoxes, which say what their numbers mean, in ``form``."""
    given = getattr(getattr(values, "format", None), "value", None)
    values = values.as_subclass(Tensor)
    if form is None or given is None or given == form:
        return values
    if given not in ("XYXY", "XYWH", "CXCYWH"):
        raise ValueError(f"{where}: BoundingBoxes of format {given}; allowed are XYXY, XYWH and CXCYWH, none rotated")
    first, second = promote(values).split(2, dim=-1)
    if given == "CXCYWH":
        first = first - second / 2
    low, high = first, second if given == "XYXY" else first + second
    if form == "XYXY":
        return torch.cat((low, high), dim=-1)
    return torch.cat((low if form == "XYWH" else (low + high) / 2, high - low), dim=-1)


def check_broadcast(function: str, allowed: str, **shapes: torch.Size) -> None:
    """Raise ValueError unless ``shapes`` broadcast, in words that say what is ``allowed``.

    >>> check_broadcast("f", "one for each", boxes=torch.Size([3]), anchors=torch.Size([2]))
    Traceback (most recent call last):
    ValueError: f: boxes (3,) and anchors (2,) do not broadcast; allowed is one for each
    """
    try:
        torch.broadcast_shapes(*shapes.values())
    except RuntimeError:
        named = " and ".join(f"{name} {tuple(shape)}" for name, shape in shapes.items())
        raise ValueError(f"{function}: {named} do not broadcast; allowed is {allowed}") from None


def check_box_values(boxes: Tensor, *, function: str, name: str = "boxes") -> None:
    """Raise ValueError for the first box that is NaN, infinite or inverted; looks at values, so it syncs a device.

    >>> check_box_values(torch.tensor([[10.0, 0, 0, 5]]), function="example")
    Traceback (most recent call last):
    ValueError: example: boxes[0]: x2 < x1 (0 < 10); 1 box is inverted
    """
    check_finite(boxes, function=function, name=name)
    if (boxes[..., :2] <= boxes[..., 2:]).all():
        return
    for low, high, axis in ((0, 2, "x"), (1, 3, "y")):
        inverted = boxes[..., high] < boxes[..., low]
        if inverted.any():
            index, count = first_bad(inverted)
            x1, x2 = boxes[index][low].item(), boxes[index][high].item()
            place, boxes_are = ", ".join(map(str, index)), "box is" if count == 1 else "boxes are"
            raise ValueError(
                f"{function}: {name}[{place}]: {axis}2 < {axis}1 ({x2:g} < {x1:g}); {count} {boxes_are} inverted"
            )


def check_finite(values: Tensor, *, function: str, name: str) -> None:
    """Raise ValueError for the first NaN or infinite number in ``values``, with its index and how many there are.

    >>> check_finite(torch.tensor([1.0, float("nan")]), function="nms", name="scores")
    Traceback (most recent call last):
    ValueError: nms: scores[1]=nan must be finite; 1 of 2 values is not
    """
    if math.isfinite(values.sum().item()):  # one fast pass; an overflow only costs the slow one
        return
    bad = ~torch.isfinite(values)
    if bad.any():
        index, count = first_bad(bad)
        place, verb = ", ".join(map(str, index)), "is" if count == 1 else "are"
        raise ValueError(
            f"{function}: {name}[{place}]={values[index].item():g} must be finite; "
            f"{count} of {values.numel()} values {verb} not"
        )


def full_checks() -> bool:
    """True when ``DETKIT_CHECKS=full`` is set: device ops then check values too, at the price of a host sync.

    Always False where values are hidden, as :func:`is_hidden` says.

    >>> full_checks()
    False
    """
    return os.environ.get("DETKIT_CHECKS", "") == "full" and not is_hidden()


def looked_at(values: Tensor) -> bool:
    """Whether the values of a tensor may be looked at: on the host, or anywhere with ``DETKIT_CHECKS=full``.

    Never where they are hidden, as :func:`is_hidden` says.

    >>> looked_at(torch.ones(1)), looked_at(torch.ones(1, device="meta"))
    (True, False)
    """
    return not is_hidden() and (values.device.type == "cpu" or full_checks())


def is_hidden() -> bool:
    """True where no value can be looked at: in ``torch.compile``, ``torch.export``, ``torch.func.vmap``, fake tensors.

    >>> torch.func.vmap(lambda values: values + is_hidden())(torch.zeros(2))
    tensor([1., 1.])
    """
    if torch.compiler.is_compiling() or _get_current_dispatch_mode() is not None:
        return True
    if not torch._C._are_functorch_transforms_active():
        return False
    return any(level.key() == TransformType.Vmap for level in retrieve_all_functorch_interpreters())


def is_transformed() -> bool:
    """True inside a transform of ``torch.func``, forward differentiation or a dispatch mode: what sees each operation.

    A fast form that works in place or brings its own gradient would hide operations from it.

    >>> is_transformed()
    False
    """
    return (
        torch._C._are_functorch_transforms_active()
        or _get_current_dispatch_mode() is not None
        or forward_ad._current_level >= 0
    )


def on_host(values: Tensor) -> bool:
    """True for a plain tensor on the CPU that nothing traces or transforms: a look at its values costs nothing.

    False under a default device, too, where tensors that a function makes would lie elsewhere; operators do not see it.

    >>> on_host(torch.zeros(2))
    True
    """
    plain = type(values) is Tensor and values.device.type == "cpu"
    if not plain or torch.compiler.is_compiling() or is_transformed():
        return False
    return not torch._C._len_torch_function_stack()


def unfit(tensor: Tensor) -> str:
    """What a complex or a sparse tensor has that the library cannot read, in words, and what it can.

    >>> unfit(torch.zeros(2).to_sparse())
    'layout torch.sparse_coo; give a dense tensor: tensor.to_dense()'
    """
    if tensor.is_complex():
        return f"type {tensor.dtype}; allowed are real numbers"
    return f"layout {tensor.layout}; give a dense tensor: tensor.to_dense()"


def check_fraction(value: float, *, name: str, function: str) -> None:
    """Raise ValueError unless ``value`` is a number in [0, 1]; NaN is refused.

    >>> check_fraction(0.5, name="iou_threshold", function="nms")
    """
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{function}: {name}={value} must lie in [0, 1]")


def check_not_negative(function: str, **settings: float) -> None:
    """Raise ValueError for the first of ``settings`` that is below 0 or not finite.

    >>> check_not_negative("smooth_l1_cost", beta=0.0)
    """
    for name, value in settings.items():
        if not 0 <= value < math.inf:
            raise ValueError(f"{function}: {name}={value} must be at least 0 and finite")


def first_bad(bad: Tensor) -> tuple[tuple[int, ...], int]:
    """The first index where the mask ``bad`` is True, and how many are: what an error message names.

    >>> first_bad(torch.tensor([False, True, True]))
    ((1,), 2)
    """
    indices = bad.nonzero()
    return tuple(indices[0].tolist()), len(indices)


def takes(call: Any, *arguments: str) -> bool:
    """Whether ``call`` is a function, or another thing to call, that takes these ``arguments`` by position.

    >>> takes(first_bad, "bad"), takes(first_bad, "bad", "more"), takes("first_bad", "bad")
    (True, False, False)
    """
    try:
        inspect.signature(call).bind(*arguments)
    except TypeError:
        return False
    return True


def check_image_size(size: Sequence[int], smallest: int, *, function: str) -> None:
    """Raise ValueError for a ``size`` (height, width) that a trunk leaves no cells of.

    >>> check_image_size((63, 64), 64, function="ssd7")
    Traceback (most recent call last):
    ValueError: ssd7: size=(63, 64) leaves the last level no cells; allowed are sides of at least 64 pixels
    """
    if min(size) < smallest:
        raise ValueError(
            f"{function}: size={tuple(size)} leaves the last level no cells; allowed are sides of at least {smallest} "
            "pixels"
        )
