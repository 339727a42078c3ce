"""The range of every number that a part is built with: it stands in the annotation, and the door refuses the rest.

``score_threshold: Fraction`` says to the reader, the type checker and the constructor that a float in [0, 1] is meant.
Lists of names are looked at as well: one text is none, though Python would go through its letters.
"""

import math
import types
from collections.abc import Sequence
from itertools import pairwise
from numbers import Integral, Real
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin, get_type_hints

import numpy as np
from torch import Tensor


class Range(NamedTuple):
    """The numbers from ``low`` to ``high``, never NaN; with ``open`` without the ends, with ``infinite`` also infinity.

    >>> Range(0, 1).says(whole=False), Range(1).says(whole=True), Range(0, open=True).says(whole=False)
    ('lie in [0, 1]', 'be at least 1 and whole', 'be above 0 and finite')
    """

    low: float = -math.inf
    high: float = math.inf
    open: bool = False
    infinite: bool = False

    def holds(self, value: Any) -> bool:
        """Whether ``value`` lies in the range.

        >>> Range(0, open=True).holds(0.0), Range(0).holds(0.0), Range(0).holds(math.nan)
        (False, True, False)
        """
        inside = self.low < value < self.high if self.open else self.low <= value <= self.high
        return bool((inside and abs(value) != math.inf) or (self.infinite and value == math.inf))

    def says(self, *, whole: bool) -> str:
        """What a number must do to lie in the range."""
        left, right = "()" if self.open else "[]"
        if self.high < math.inf:
            return f"lie in {left}{self.low:g}, {self.high:g}{right}" + (" and be whole" if whole else "")
        if self.infinite:
            return f"be {'above' if self.open else 'at least'} {self.low:g}"
        kind = "whole" if whole else "finite"
        return (
            f"be {kind}"
            if self.low == -math.inf
            else f"be {'above' if self.open else 'at least'} {self.low:g} and {kind}"
        )


class Ascending(NamedTuple):
    """Of several numbers none is below the one before it; ``strictly``: each is above it."""

    strictly: bool = False


Count = Annotated[int, Range(1)]
Whole = Annotated[int, Range(0)]
Integer = Annotated[int, Range()]
Fraction = Annotated[float, Range(0, 1)]
Probability = Annotated[float, Range(0, 1, open=True)]
Positive = Annotated[float, Range(0, open=True)]
NotNegative = Annotated[float, Range(0)]
Finite = Annotated[float, Range()]
Size = tuple[Count, Count]


class Rule(NamedTuple):
    """What an annotation says of numbers: how one is bound, how a sequence of them, and what may come instead."""

    single: tuple[Range, bool] | None = None  # the range, and whether whole numbers only
    several: "Rule | None" = None
    length: int | None = None
    order: Ascending | None = None
    other: tuple[type, ...] = ()  # what else may come: None, or a module
    names: bool = False  # several texts, so not one: its letters would be taken for names


def rule_of(annotation: Any) -> Rule | None:
    """The rule in an annotation; None where it bounds no number and asks for no list of names.

    >>> rule_of(Fraction | None).single
    (Range(low=0, high=1, open=False, infinite=False), False)
    >>> rule_of(Size).length, rule_of(str)
    (2, None)
    """
    if get_origin(annotation) is Annotated:
        kind, *facts = get_args(annotation)
        ranges = [fact for fact in facts if isinstance(fact, Range)]
        if ranges:
            return Rule(single=(ranges[0], kind is int))
        inner = rule_of(kind)
        return inner and inner._replace(order=next(fact for fact in facts if isinstance(fact, Ascending)))
    if get_origin(annotation) in (Union, types.UnionType):
        return _union([(part, rule_of(part)) for part in get_args(annotation)])
    parts = [part for part in get_args(annotation) if part is not Ellipsis]
    if get_origin(annotation) in (list, Sequence) and parts == [str]:
        return Rule(names=True)
    if get_origin(annotation) in (tuple, list, Sequence) and (inner := rule_of(parts[0])):
        fixed = get_origin(annotation) is tuple and Ellipsis not in get_args(annotation)
        return Rule(several=inner, length=len(parts) if fixed else None)
    return None


def check(value: Any, rule: Rule, where: str) -> None:
    """Raise ValueError unless the numbers in ``value`` follow the rule; TypeError for what holds no numbers.

    >>> check([4, 0], rule_of(Size), "pool: output_size")
    Traceback (most recent call last):
    ValueError: pool: output_size[1]=0 must be at least 1 and whole
    """
    if isinstance(value, Tensor) and isinstance(value, rule.other):
        return  # a tensor among other things is looked at where it is read: here that could wait for a device
    if rule.names:
        if isinstance(value, str):
            raise ValueError(f"{where}={value!r:.60} is one text; allowed is a list of names")
        return
    given, value = value, value.tolist() if isinstance(value, Tensor | np.ndarray) else value
    if isinstance(value, Real) and not isinstance(value, bool):
        if rule.single is None and not isinstance(given, rule.other):
            raise ValueError(f"{where}={value} must {_says(rule)}")
        if rule.single and not (rule.single[0].holds(value) and (isinstance(value, Integral) or not rule.single[1])):
            raise ValueError(f"{where}={value} must {_says(rule)}")
    elif rule.several and isinstance(value, Sequence) and not isinstance(value, str | bytes):
        if rule.length not in (None, len(value)):
            raise ValueError(f"{where}={value} must {_says(rule)}")
        for place, part in enumerate(value):
            check(part, rule.several, f"{where}[{place}]")
        if rule.order and not _ascends(value, strictly=rule.order.strictly):
            raise ValueError(f"{where}={value} must {_says(rule)}")
    elif not isinstance(given, rule.other):
        raise TypeError(f"{where}={given!r:.60} must {_says(rule)}")


def check_fields(record: Any, where: str) -> None:
    """:func:`check` every field of a NamedTuple of settings.

    >>> class Level(NamedTuple):
    ...     stride: Count = 1
    >>> check_fields(Level(0), "neck: levels[2]")
    Traceback (most recent call last):
    ValueError: neck: levels[2].stride=0 must be at least 1 and whole
    """
    for name, annotation in get_type_hints(type(record), include_extras=True).items():
        if rule := rule_of(annotation):
            check(getattr(record, name), rule, f"{where}.{name}")


def _union(parts: list[tuple[Any, Rule | None]]) -> Rule | None:
    rules = [rule for _, rule in parts if rule]
    if not rules:
        return None
    single = next((rule.single for rule in rules if rule.single), None)
    several = [rule for rule in rules if rule.several]
    merged = several[0] if several else Rule()
    if len(several) > 1:  # numbers, or sequences of them
        inner = [rule.several for rule in several]
        merged = Rule(several=_union([(None, rule) for rule in inner]))
    other = tuple(part if isinstance(part, type) else object for part, rule in parts if rule is None)
    if all(rule.names for rule in rules):
        return None if str in other else Rule(names=True)
    return merged._replace(single=single, other=other)


def _ascends(values: Sequence[Any], *, strictly: bool) -> bool:
    return all(before < after or (before == after and not strictly) for before, after in pairwise(values))


def _says(rule: Rule) -> str:
    """What a value must be, in words."""
    words = [] if rule.single is None else [rule.single[0].says(whole=rule.single[1])]
    if rule.several:
        number = "several numbers" if rule.length is None else f"{rule.length} numbers"
        words.append(f"be {number}{', the lower first' if rule.order else ''}: each must {_says(rule.several)}")
    return ", or ".join(words) + (", or be None" if types.NoneType in rule.other else "")
