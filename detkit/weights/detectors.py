"""Weights that say what they are the weights of: a file from which the whole detector comes back, running no code."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

import detkit
from detkit._door import door
from detkit._faults import shown
from detkit._wrappers import unwrapped
from detkit.detectors import Detector
from detkit.detectors.recipe import Recipe, recipe_named
from detkit.weights.files import load_metadata, load_weights, save_weights

_MOST = 1 << 14  # characters: a recipe builds a layer or an anchor for each of its values
_LARGEST = 65_536  # of sizes, classes, channels and layers in a file
_SHOWN = 500


@door
def save_detector(
    detector: nn.Module, path: str | os.PathLike[str], *, categories: Sequence[str] | None = None
) -> None:
    """:func:`save_weights`, with what :func:`load_detector` needs in the metadata of the file.

    That is the recipe's name and arguments, the names of the classes (``categories``; by default those that the
    detector has) and detkit's version. What was changed after the recipe built the detector is not written: change it
    again after loading. Wrappers are looked through.

    Raises ValueError for a detector that no recipe of ``detkit.detectors`` built, or from arguments that no file can
    hold, such as a backbone: keep such a one with :func:`save_weights`, build it again by your own code, and load it
    with :func:`load_weights`.

    >>> import tempfile
    >>> from detkit.detectors import fpn_ssd
    >>> path = os.path.join(tempfile.mkdtemp(), "cells.safetensors")
    >>> save_detector(fpn_ssd(2, size=(64, 96), channels=8), path, categories=["red", "white"])
    >>> load_detector(path).categories
    ('red', 'white')
    """
    inner: Any = unwrapped(detector)
    made = getattr(inner, "recipe", None)
    way_out = "keep it with save_weights(), and load_weights() into what your own code builds"
    if not isinstance(made, Recipe):
        raise ValueError(
            f"save_detector: detector was not built by a recipe of detkit.detectors; {way_out}; of an "
            "inference form save the detector that it was made of, and make it again after loading"
        )
    if made.unwritable:
        given = ", ".join(made.unwritable)
        raise ValueError(f"save_detector: {made.name} was given {given}: no plain value; {way_out}")
    names = [str(name) for name in (inner.categories if categories is None else categories)]
    count = made.arguments.get("num_classes", len(names))
    if names and len(names) != count:
        raise ValueError(
            f"save_detector: categories has {len(names)} names; allowed is one for each of {count} classes"
        )
    about = {"detkit": detkit.__version__, "recipe": made.name}
    about |= {"arguments": json.dumps(made.arguments), "categories": json.dumps(names)}
    save_weights(detector, path, metadata=about)


@door
def load_detector(path: str | os.PathLike[str]) -> Detector:
    """The detector that :func:`save_detector` wrote, in ``eval()``, with its ``categories``.

    The file names one of detkit's own recipes and its arguments, which the recipe checks as it does any others. Raises
    ValueError with the path for a file without a recipe, with one that this version does not know or whose arguments it
    refuses, for weights that do not fit, and for a training run's folder or other files, naming the weights there.

    >>> import tempfile
    >>> from detkit.detectors import tiny_ssd
    >>> path = os.path.join(tempfile.mkdtemp(), "digits.safetensors")
    >>> save_detector(tiny_ssd(10), path, categories=list("0123456789"))
    >>> load_detector(path).recipe.name
    'tiny_ssd'
    """
    folder = Path(path) if os.path.isdir(path) else Path(path).parent
    if Path(path).suffix != ".safetensors" and (kept := folder / "weights.safetensors").is_file():
        raise ValueError(f"load_detector: {os.fspath(path)} is no file of weights; those of this run are in {kept}")
    about = load_metadata(path)
    if "recipe" not in about:
        raise ValueError(
            f"load_detector: {os.fspath(path)} does not say what it is; build the detector, and load_weights() into it"
        )
    build = recipe_named(about["recipe"])
    if build is None:
        version = str(about.get("detkit"))[:40]
        raise ValueError(
            f"load_detector: {os.fspath(path)} asks for {shown(about['recipe'])}, a recipe of detkit {version} "
            f"that this version, {detkit.__version__}, does not have"
        )
    if len(about.get("arguments", "")) > _MOST:
        raise ValueError(f"load_detector: {os.fspath(path)} has arguments of more than {_MOST} characters")
    try:
        arguments, categories = json.loads(about["arguments"]), json.loads(about["categories"])
        if not isinstance(categories, list) or not all(isinstance(name, str) for name in categories):
            raise ValueError(f"categories={shown(categories)}; allowed is a list of texts")
        _check_counts(arguments)
        with torch.device("meta"):  # no memory is taken before the file is known to hold as much
            detector = build(**{name: _tupled(value) for name, value in arguments.items()})
    except (TypeError, ValueError, KeyError, AttributeError, RuntimeError, OverflowError) as error:
        raise ValueError(
            f"load_detector: {os.fspath(path)}: {about['recipe']} cannot be built: {str(error)[:_SHOWN]}"
        ) from error
    numbers = sum(value.numel() for value in detector.state_dict().values())
    if numbers > os.path.getsize(path):
        raise ValueError(
            f"load_detector: {os.fspath(path)} is too short for the {numbers} numbers of {about['recipe']}"
        )
    load_weights(detector.to_empty(device="cpu"), path)
    detector.categories = tuple(categories)
    return detector.eval()


def _check_counts(value: Any) -> None:
    """Refuse numbers that no detector has: a recipe would make its layers one by one until memory ends."""
    if isinstance(value, (list, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            _check_counts(part)
    elif isinstance(value, int) and abs(value) > _LARGEST:
        raise ValueError(f"{str(value)[:_SHOWN]} is too large; allowed are integers up to {_LARGEST}")


def _tupled(value: Any) -> Any:
    return tuple(map(_tupled, value)) if isinstance(value, list) else value
