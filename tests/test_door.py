"""The one door: what every public function says of an argument that is no tensor, complex, or on another device.

The calls are derived from the annotations: tests/door_calls.py makes a good value of every argument, and here one of
them is bad. Functions run as users have them, without the hook that checks shapes in tests.
"""

import functools
import inspect
import re
import types
from typing import Any

import numpy as np
import pytest
import torch
from door_calls import GIVEN, KINDS, PARTS, is_of_tensors, made
from strategies import unhooked
from test_public_api import THINGS, functions_of
from torch import Tensor

from detkit._door import alternatives, door
from detkit.boxes import box_iou, nms
from detkit.detectors import Preprocess, tiny_ssd

# Stages, and what goes round in them, are called by a Detector.
INSIDE = {name.rsplit(".", 1)[1] for name in THINGS if name.endswith("Stage")} | {"SideBySide", "Stage"}
ABSTRACT = {"Backbone", "Neck", "DenseCriterion", "BoxCoder", "Distance", "MetricLoss", "Index", "TableIndex"}
ABSTRACT |= {"BatchAugmentation", "LossWeights", "Encoder", "SetCriterion"}
WRAPPERS = {"SSDVGGBackbone", "TimmBackbone", "TorchvisionBackbone", "MapEncoder", "BoxDecoder", "TokenDecoder"}
WRAPPERS |= {"EdgeDecoder", "GatedResidual", "QuerySelection", "QueryLosses", "EdgeQueryLosses", "LevelProjection"}
WRAPPERS |= {"LevelEncoder"}
WRAPPERS |= {"fit_rcnn"}  # a run of its own
# Not every matcher looks at predictions, nor every criterion at its logits; drawing and
# predicting take pictures, arrays and lists.
UNREAD = {("forward", "predictions"), ("num_classes", "predictions")}
UNREAD |= {("predict", "pictures")}
UNREAD |= {("draw_boxes", name) for name in ("image", "boxes", "labels")} | {("draw_detections", "image")}


def calls() -> dict[str, tuple[Any, str, list[inspect.Parameter]]]:
    """Every public function and method, the class or function it belongs to, and its arguments of tensors."""
    found = {}
    for full, thing in THINGS.items():
        owner = full.rsplit(".", 1)[1]
        for name, function in functions_of(thing).items():
            arguments = [
                parameter
                for parameter in inspect.signature(function).parameters.values()
                if is_of_tensors(parameter.annotation) and (name, parameter.name) not in UNREAD
            ]
            if name != "__init__" and arguments and owner not in INSIDE | ABSTRACT | WRAPPERS:
                found[f"{full.removeprefix('detkit.')}" + f".{name}" * (name != owner)] = (function, owner, arguments)
    return found


CALLS = calls()
every_call = pytest.mark.parametrize("call", CALLS)


@functools.cache
def part(owner: str) -> Any:
    return PARTS[owner]()


def outcome(call: str, parameter: inspect.Parameter, value: Any) -> Exception | None:
    """What is raised, if anything, where all arguments are good but one."""
    function, owner, _ = CALLS[call]
    parameters = inspect.signature(function).parameters
    needed = [name for name, wanted in parameters.items() if name != "self" and wanted.default is wanted.empty]
    given = {name: made(parameters[name].annotation) for name in needed}
    given |= {name: known for name, known in GIVEN.get(owner, {}).items() if name in parameters}
    if "self" in parameters:
        function = types.MethodType(function, part(owner))
    try:
        unhooked(function)(**{**given, parameter.name: value})
    except Exception as error:
        return error
    return None


def bad_values(parameter: inspect.Parameter) -> dict[str, Any]:
    """What is no tensor, and none of what else the argument may be."""
    optional = not {None, types.NoneType}.isdisjoint(alternatives(parameter.annotation))
    value = made(parameter.annotation)
    array = {"array": value.numpy()} if isinstance(value, Tensor) else {}
    return {name: bad for name, bad in (KINDS | array).items() if not (bad is None and optional)}


@every_call
def test_what_is_no_tensor_is_refused_by_function_and_argument(call):
    for parameter in CALLS[call][2]:
        for kind, value in bad_values(parameter).items():
            error = outcome(call, parameter, value)
            assert isinstance(error, TypeError | ValueError), (parameter.name, kind, error)
            assert re.match(rf"[\w.]+: .*\b{parameter.name.rstrip('s')}s?\b", str(error)), (parameter.name, kind, error)


@every_call
def test_complex_numbers_are_refused_by_function_and_argument(call):
    function, owner, parameters = CALLS[call]
    name = owner if function.__name__ in ("forward", owner) else f"{owner}.{function.__name__}"
    for parameter in parameters:
        value = made(parameter.annotation)
        if isinstance(value, Tensor):
            error = outcome(call, parameter, value.to(torch.complex64))
            assert isinstance(error, ValueError), (parameter.name, error)
            assert str(error).startswith(f"{name}: {parameter.name} has type torch.complex64"), error


@every_call
def test_a_tensor_of_another_device_is_taken_or_refused_by_name(call):
    for parameter in CALLS[call][2]:
        value = made(parameter.annotation)
        if isinstance(value, Tensor):
            error = outcome(call, parameter, value.to("meta"))
            assert error is None or (isinstance(error, ValueError) and re.match(r"[\w.]+: ", str(error))), error


def test_every_class_with_methods_on_tensors_has_a_part_to_call():
    owners = {owner for function, owner, _ in CALLS.values() if "self" in inspect.signature(function).parameters}
    assert owners <= PARTS.keys()


def has_door(function: Any) -> bool:
    """Whether one of the wrappers around a function is the door's."""
    while function.__code__ is not door(function).__code__ and hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    return function.__code__ is door(function).__code__


def test_every_public_function_on_tensors_has_the_door():
    without = {call for call, (function, *_) in CALLS.items() if not has_door(function)}
    assert without == set()


def test_the_message_names_both_devices():
    boxes = torch.zeros(2, 4)
    with pytest.raises(ValueError, match=r"^box_iou: boxes2 is on device meta, boxes1 on cpu; allowed is one device$"):
        unhooked(box_iou)(boxes, boxes.to("meta"))


def test_a_module_is_named_where_it_lies_on_another_device():
    with pytest.raises(ValueError, match=r"^SmallBackbone: images is on device meta, the module on cpu"):
        unhooked(part("SmallBackbone"))(torch.zeros(1, 3, 64, 64, device="meta"))


@pytest.mark.parametrize(
    "images",
    [(image for image in [torch.zeros(3, 8, 8)]), "ab", None, [None], [np.zeros((3, 8, 8))], {"image": 1}],
    ids=lambda images: type(images).__name__,
)
def test_what_is_no_list_of_images_is_refused_by_every_way_in(images):
    for entry in (Preprocess(None), part("Detector")):
        with pytest.raises((TypeError, ValueError), match=r"^(Preprocess|Detector): images"):
            unhooked(entry)(images)


@pytest.mark.parametrize(
    ("target", "named"),
    [
        ({"boxes": torch.ones(1, 4)}, "targets[0]: no 'labels'"),
        ({"boxes": torch.ones(1, 4), "labels": None}, "targets[0]: no 'labels'"),
        ([1], "targets[0]"),
        (None, "targets[0]"),
        ({"boxes": torch.tensor([[0.0, 0, 4, torch.inf]]), "labels": [0]}, "targets[0]: boxes[0]"),
        ({"boxes": torch.tensor([[0.0, 0, 4, 4]]), "labels": [0.5]}, "targets[0]: labels[0]=0.5"),
        ({"boxes": torch.tensor([[0.0, 0, 4, 4]]), "labels": [0], "weights": [-1.0]}, "targets[0]: weights[0]=-1.0"),
        (
            {"boxes": torch.tensor([[0.0, 0, 4, 4]]), "labels": [0], "weights": [torch.nan]},
            "targets[0]: weights[0]=nan",
        ),
    ],
    ids=lambda value: None,
)
def test_a_target_that_cannot_be_is_refused_by_name(target, named):
    for entry in (Preprocess(None), part("Detector")):
        with pytest.raises((TypeError, ValueError), match=re.escape(named)):
            unhooked(entry)([torch.zeros(3, 8, 8)], [target])


def test_errors_that_no_argument_explains_stay_as_they_are():
    @door
    def broken(boxes: Tensor) -> Tensor:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match=r"^out of memory$"):
        broken(torch.zeros(1))


def test_a_call_with_other_arguments_keeps_its_error():
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'boxes2'"):
        unhooked(box_iou)(torch.zeros(1, 4))


def test_what_goes_wrong_inside_keeps_its_error_wherever_the_images_lie():
    class Full(torch.nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            raise self.error

    detector = tiny_ssd(2).eval()
    detector.trunk = Full()
    detector.to("meta")
    for error in (torch.OutOfMemoryError("out of memory"), RuntimeError("mat1 and mat2 shapes cannot be multiplied")):
        detector.trunk.error = error
        with pytest.raises(type(error), match=str(error)):
            unhooked(detector)([torch.zeros(3, 64, 64)])


def test_arrays_stand_for_numbers():
    assert unhooked(Preprocess)(np.int64(64), mean=np.full(3, 0.5), max_size=100)([torch.zeros(3, 64, 70)])[
        0
    ].sizes.tolist()
    assert unhooked(nms)(torch.zeros(1, 4), torch.ones(1), np.array(0.5)).tolist() == [0]
