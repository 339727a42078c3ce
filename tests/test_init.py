"""The package itself: its version, and what it reports about its surroundings."""

import importlib
import re
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
