"""The range of every number: what a range holds and says, and that every public constructor and function has its own.

What is tried is derived from the annotations: a new argument that is a plain int or float fails here until it has one.
"""

import inspect
import math
import re
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import pytest
import torch
from strategies import unhooked
from test_public_api import THINGS, functions_of

from detkit import boxes, losses
from detkit._ranges import (
    Ascending,
    Count,
    Finite,
    Fraction,
    NotNegative,
    Positive,
    Probability,
    Range,
    Rule,
    Size,
    check,
    rule_of,
)

NAN, INF = math.nan, math.inf

# Numbers of functions that say which of several, checked against what they count, and not by a range.
PLACES = {
    "index", "position", "at", "updates", "epoch", "length", "images", "queries", "shape", "shapes", "image_ids",
    "labels_per_image", "skeleton", "new", "old", "recall", "precision", "curves", "values", "channels", "strides",
    "outputs", "metric", "max_norms",
}  # fmt: skip
ONE, TWO, FEATURES = torch.tensor([[0.0, 0, 4, 4]]), torch.tensor([[[0.0, 0, 4, 4]]]), torch.ones(1, 2, 8, 8)
SCORE, MASKS, MATCHED = torch.ones(1), torch.ones(1, 1, 8, 8), torch.zeros(1, 1, dtype=torch.int64)
LOGITS = torch.zeros(1, 2)
# Functions on tensors check their numbers themselves, so that it also holds while torch.compile traces: a good call,
# and the senseless values of each number.
HOT: dict[str, tuple[Any, tuple[Any, ...], dict[str, Any], dict[str, list[Any]]]] = {
    "boxes.nms": (boxes.nms, (ONE, SCORE), {"iou_threshold": 0.5}, {"iou_threshold": [-0.1, 1.5, NAN]}),
    "boxes.batched_nms": (boxes.batched_nms, (ONE, SCORE, torch.zeros(1).long()), {"iou_threshold": 0.5},
                          {"iou_threshold": [-0.1, 1.5, NAN]}),
    "boxes.nms_padded": (boxes.nms_padded, (TWO, SCORE[None]), {"iou_threshold": 0.5, "max_detections": 1},
                         {"iou_threshold": [-0.1, NAN], "max_detections": [0, -1, 1.5]}),
    "boxes.multiclass_nms_padded": (
        boxes.multiclass_nms_padded, (TWO, torch.ones(1, 1, 2)),
        {"iou_threshold": 0.5, "score_threshold": 0.1, "max_detections": 1, "candidates_per_class": 1},
        {"iou_threshold": [-0.1, NAN], "score_threshold": [NAN], "max_detections": [0, 1.5],
         "candidates_per_class": [0, 1.5]}),
    "boxes.soft_nms": (boxes.soft_nms, (ONE, SCORE), {},
                       {"sigma": [0, -1, NAN, INF], "iou_threshold": [2, NAN], "score_threshold": [-1, NAN],
                        "max_detections": [0, 1.5]}),
    "boxes.soft_nms_padded": (boxes.soft_nms_padded, (TWO, SCORE[None]), {"max_detections": 1},
                              {"sigma": [0, NAN], "iou_threshold": [2, NAN], "score_threshold": [-1, NAN],
                               "max_detections": [0, 1.5]}),
    "boxes.matrix_nms": (boxes.matrix_nms, (ONE, SCORE), {}, {"sigma": [0, -1, NAN, INF]}),
    "boxes.weighted_boxes_fusion": (
        boxes.weighted_boxes_fusion, ([ONE], [SCORE], [torch.zeros(1).long()]), {},
        {"weights": [[-1.0], [NAN], [0.0]], "iou_threshold": [2, NAN], "score_threshold": [-1, NAN]}),
    "losses.label_smoothed_cross_entropy": (losses.label_smoothed_cross_entropy, (LOGITS, MATCHED[0]), {},
                                            {"smoothing": [-0.1, 1.1, NAN]}),
    "losses.quality_focal_loss": (losses.quality_focal_loss, (LOGITS, LOGITS), {}, {"beta": [-1, NAN, INF]}),
    "losses.sigmoid_focal_loss": (losses.sigmoid_focal_loss, (LOGITS, LOGITS), {},
                                  {"alpha": [-0.1, 2, NAN], "gamma": [-1, NAN, INF]}),
    "losses.varifocal_loss": (losses.varifocal_loss, (LOGITS, LOGITS), {},
                              {"alpha": [-0.1, NAN, INF], "gamma": [-1, NAN, INF]}),
    "losses.smooth_l1_loss": (losses.smooth_l1_loss, (LOGITS, LOGITS), {}, {"beta": [-1, NAN, INF]}),
    "losses.smooth_l1_cost": (losses.smooth_l1_cost, (ONE, ONE, ONE, boxes.DeltaCoder()), {}, {"beta": [-1, NAN, INF]}),
}  # fmt: skip


def numbers() -> dict[tuple[str, str], tuple[Any, Any, Rule | None]]:
    """Every argument of a public function, constructor or method that is annotated as numbers."""
    found = {}
    for full, thing in THINGS.items():
        for name, function in functions_of(thing).items():
            short = full.removeprefix("detkit.") + ("" if name in ("__init__", thing.__name__) else f".{name}")
            for argument, parameter in inspect.signature(function).parameters.items():
                annotation = parameter.annotation
                shown = annotation.__name__ if inspect.isclass(annotation) else str(annotation)
                rule = rule_of(annotation)
                if rule or (re.search(r"\b(int|float)\b", shown) and "Callable" not in shown):
                    found[short, argument] = (thing, function, rule)
    return found


NUMBERS = numbers()
RULED = {key: entry for key, entry in NUMBERS.items() if entry[2]}


def blank(thing: type) -> Any:
    """An object of the class, or of one that is no longer abstract, before its constructor ran."""
    if inspect.isabstract(thing):
        thing = type(thing.__name__, (thing,), dict.fromkeys(thing.__abstractmethods__))
    return thing.__new__(thing) if not issubclass(thing, tuple) else thing(*[SCORE] * len(thing._fields))


def outside(rule: Rule) -> list[Any]:
    """Senseless values: beyond each end of the range, no number, a fraction of a count, a pair the wrong way round; of
    names, one text.
    """
    if rule.names:
        return ["ab"]
    wrong: list[Any] = [] if str in rule.other or object in rule.other else ["a", True]
    if type(None) not in rule.other and object not in rule.other:
        wrong.append(None)
    if rule.single:
        (low, high, is_open, infinite), whole = rule.single
        wrong += [NAN, -INF, *([] if infinite else [INF]), *([1.5] if whole else [])]
        wrong += [] if low == -INF else [low if is_open else low - 1]
        wrong += [] if high == INF else [high if is_open else high + 1]
    if rule.several:
        count = rule.length or 1
        wrong += [[part] * count for part in outside(rule.several) if part is not None]
        wrong += [[1] * (count + 1)] * (rule.length is not None) + [[2.0, 1.0]] * (rule.order is not None)
    return wrong


def test_every_number_of_a_public_function_has_its_range():
    unbound = {
        (name, argument)
        for (name, argument), (_, function, rule) in NUMBERS.items()
        if not rule and (argument not in PLACES or (function.__name__ == "__init__" and argument != "labels_per_image"))
    }
    tested = {(name, argument) for name, (*_, values) in HOT.items() for argument in values}
    assert unbound == tested, "annotate it with a range of detkit/_ranges.py, below @door"


@pytest.mark.parametrize(("name", "argument"), RULED, ids=".".join)
def test_a_senseless_number_is_refused_with_function_argument_and_range(name, argument):
    thing, function, rule = RULED[name, argument]
    called = name.split(".", 1)[1].removesuffix(".forward")
    first = next(iter(inspect.signature(function).parameters))
    own = (blank(thing),) if first == "self" else (thing,) if first == "cls" else ()
    refused = "is one text" if rule.names else "must "
    for value in outside(rule):
        with pytest.raises((ValueError, TypeError), match=rf"^{called}: {argument}(\[\d+\])*=.* {refused}") as caught:
            function(*own, **{argument: value})
        assert isinstance(caught.value, ValueError) or not isinstance(value, int | float) or isinstance(value, bool)


@pytest.mark.parametrize(
    ("name", "argument", "value"),
    [
        (name, argument, value)
        for name, (*_, values) in HOT.items()
        for argument in values
        for value in values[argument]
    ],
    ids=str,
)
def test_a_function_on_tensors_refuses_senseless_numbers(name, argument, value):
    function, arguments, settings, _ = HOT[name]
    with pytest.raises((ValueError, TypeError), match=rf"^{function.__qualname__}: .*\b{argument}\b"):
        unhooked(function)(*arguments, **{**settings, argument: value})


@pytest.mark.parametrize(
    ("annotation", "good", "bad", "said"),
    [
        (Fraction, [0, 0.5, 1, np.float32(1)], [-0.1, 1.1], "lie in [0, 1]"),
        (Probability, [0.1, 0.9], [0, 1], "lie in (0, 1)"),
        (Positive, [1e-9, 7], [0, -1], "be above 0 and finite"),
        (NotNegative, [0, 3.5], [-1e-9], "be at least 0 and finite"),
        (Finite, [-9, 1e30], [], "be finite"),
        (Count, [1, np.int64(3), torch.tensor(2)], [0, 1.5, 2.0], "be at least 1 and whole"),
        (Annotated[int, Range(2, 4)], [2, 4], [1, 5], "lie in [2, 4] and be whole"),
    ],
    ids=str,
)
def test_a_range_holds_its_numbers_and_no_others(annotation, good, bad, said):
    for value in good:
        check(value, rule_of(annotation), "f: x")
    for value in [*bad, NAN, INF, -INF]:
        with pytest.raises(ValueError, match=rf"^f: x={re.escape(str(value))} must {re.escape(said)}$"):
            check(value, rule_of(annotation), "f: x")


def test_numbers_in_a_sequence_are_named_by_their_place():
    for value in ([4, 0], torch.tensor([4, 0]), np.array([4, 0])):
        with pytest.raises(ValueError, match=r"^f: size\[1\]=0 must be at least 1"):
            check(value, rule_of(Count | Size | None), "f: size")
    for value in (4, (4, 4), None):
        check(value, rule_of(Count | Size | None), "f: size")


@pytest.mark.parametrize(("strictly", "equal"), [(False, True), (True, False)])
def test_a_pair_the_wrong_way_round_is_refused(strictly, equal):
    rule = rule_of(Annotated[tuple[Positive, Positive], Ascending(strictly=strictly)])
    check((1.0, 2.0), rule, "f: reach")
    for pair, taken in (((2.0, 1.0), False), ((1.0, 1.0), equal)):
        if taken:
            check(pair, rule, "f: reach")
        else:
            with pytest.raises(ValueError, match=r"^f: reach=\(.*the lower first"):
                check(pair, rule, "f: reach")


def test_annotations_without_numbers_have_no_rule():
    kinds = (str, int, Any, torch.Tensor | None, str | list[str], tuple[str, str])
    assert [rule_of(kind) for kind in kinds] == [None] * 6


def test_one_text_is_no_list_of_names():
    for kind in (list[str], Sequence[str] | None):
        check(["ab"], rule_of(kind), "f: names")
        with pytest.raises(ValueError, match=r"^f: names='ab' is one text; allowed is a list of names$"):
            check("ab", rule_of(kind), "f: names")
