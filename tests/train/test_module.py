"""A file of the user's own: a data set, a detector, or both."""

import re
import sys

import pytest

from detkit.data import DigitScenes
from detkit.train.building import build
from detkit.train.identity import identity
from detkit.train.module import function_of, load_module
from detkit.train.options import arguments
from detkit.train.sets import datasets

BOTH = """
from detkit.data import DigitScenes
from detkit.detectors import tiny_ssd

def datasets():
    return DigitScenes(6), DigitScenes(2, split="val")

def detector(num_classes):
    return tiny_ssd(num_classes)
"""

PICTURES = """
from PIL import Image
from detkit.data import DigitScenes

class Pictures(list):
    categories = ["a"]

    def __init__(self):
        self.append((Image.new("L", (4, 4)), {}))
"""


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Write a module, and forget it at the end of the test."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    names = []

    def write(text, name="mine_for_a_test"):
        (path := tmp_path / f"{name}.py").write_text(text)
        names.append(name)
        return path

    yield write
    for name in names:
        sys.modules.pop(name, None)


def given(path, *options):
    return arguments(["--module", str(path), *options, "--output", "out"])


def test_data_and_detector_come_from_the_module_and_belong_to_the_identity_of_the_run(written):
    args = given(written(BOTH))
    assert (args.data, args.recipe) == ("module", "module")
    train, val, test, names = datasets(args)
    assert (len(train), len(val), test) == (6, 2, val)
    assert names == DigitScenes(1).categories
    assert build(args, 10).recipe.name == "tiny_ssd"
    before = identity(args, names, {"train": train})
    args.module.write_text(BOTH + "# another")
    assert identity(args, names, {"train": train})["module"] != before["module"]


def test_one_of_both_leaves_the_other_to_the_options(written):
    path = written("from detkit.data import DigitScenes\ndef datasets():\n    return DigitScenes(10)")
    args = given(path, "--val-fraction", "0.2", "--recipe", "tiny_ssd")
    train, val, *_ = datasets(args)
    assert (len(train), len(val)) == (8, 2)
    assert function_of(path, "detector") is None
    assert function_of(None, "datasets") is None


@pytest.mark.parametrize(
    ("text", "options", "complaint"),
    [
        (BOTH, ("--recipe", "fcos"), "--recipe fcos: --module .* defines detector"),
        (BOTH, ("--data", "scenes"), "--data scenes: --module .* defines datasets"),
        ("x = 1", (), "defines neither datasets"),
    ],
)
def test_a_module_that_does_not_fit_the_options_is_refused(text, options, complaint, written, capsys):
    with pytest.raises(SystemExit):
        given(written(text), *options)
    assert re.search(complaint, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("returned", "complaint"),
    [
        ("DigitScenes(3)", "returns 1 sets; allowed are train, val"),
        ("[1], [2]", "a list of datasets.. has no categories"),
        ("Pictures(), Pictures()", "the image of item 0 of datasets.. is a Image; allowed is a tensor"),
    ],
)
def test_sets_that_cannot_be_trained_on_are_refused_before_training(returned, complaint, written):
    text = f"{PICTURES}\ndef datasets():\n    return {returned}"
    with pytest.raises(ValueError, match=complaint):
        datasets(given(written(text)))


def test_a_detector_that_is_none_is_refused(written):
    args = given(written("from torch import nn\ndef detector(num_classes):\n    return nn.Identity()"))
    with pytest.raises(ValueError, match=r"detector.. returns a Identity; allowed is a detkit Detector"):
        build(args, 10)


def test_a_module_with_the_name_of_another_is_refused(written):
    with pytest.raises(ValueError, match="has the name of a module that is imported already"):
        load_module(written(BOTH, name="json"))
