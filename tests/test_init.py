"""The package itself: its version, and what it reports about its surroundings."""

import importlib
import re
import subprocess
import sys
import warnings
from importlib import metadata

import pytest

import detkit


def test_the_version_is_that_of_the_distribution():
    assert detkit.__version__ == metadata.version("torch-detkit")


def test_the_map_in_the_docstring_names_units_that_exist():
    names = re.findall(r":mod:`~(detkit\.\w+)`", detkit.__doc__)
    assert len(names) > 8
    for name in names:
        assert importlib.import_module(name).__doc__


@pytest.mark.slow
def test_show_env_prints_versions_and_devices_and_hands_them_back(capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = detkit.show_env()
    assert capsys.readouterr().out == report + "\n"
    assert f"torch-detkit {detkit.__version__}" in report
    assert f"torch {metadata.version('torch')}" in report
    for word in ("python 3.", "torchvision ", "numpy ", "devices: cpu ("):
        assert word in report


def test_show_env_warns_where_another_distribution_owns_the_import(monkeypatch, capsys):
    monkeypatch.setattr(metadata, "packages_distributions", lambda: {"detkit": ["detkit", "torch-detkit"]})
    with pytest.warns(UserWarning, match="detkit also belongs to detkit; uninstall it, then reinstall torch-detkit"):
        detkit.show_env()


def test_show_env_says_what_is_not_installed(monkeypatch, capsys):
    def version(name: str) -> str:
        if name == "timm":
            raise metadata.PackageNotFoundError(name)
        return "1.2.3"

    monkeypatch.setattr(metadata, "version", version)
    report = detkit.show_env()
    assert "timm not installed" in report
    assert "numpy 1.2.3" in report


IMPORTS_NOTHING = """
import sys
import torch, torchvision
before = set(sys.modules)
import detkit
assert not [name for name in sys.modules if name.startswith("detkit.")]
for unit in dir(detkit):
    getattr(detkit, unit)
import detkit.weights.torchvision
heavy = {"scipy", "sklearn", "pycocotools", "matplotlib", "transformers", "timm", "skimage", "hotcoco", "triton"}
new = {name.split(".")[0] for name in set(sys.modules) - before}
print(sorted(heavy & new), len([name for name in sys.modules if name.startswith("detkit.")]) > 100)
"""


@pytest.mark.slow
def test_units_are_attributes_and_importing_all_of_them_imports_no_library_that_only_some_use():
    found = subprocess.run([sys.executable, "-c", IMPORTS_NOTHING], capture_output=True, text=True, check=True)
    assert found.stdout.split("\n")[0] == "[] True"


def test_an_attribute_that_is_no_unit_is_refused_with_the_list_of_those_that_are():
    with pytest.raises(AttributeError, match=r"'detkit' has no attribute 'box'; its units are anchors, backbones"):
        detkit.box  # noqa: B018
