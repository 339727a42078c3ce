"""What is published: a wheel of the package alone, the same from the source archive, that works once installed."""

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder

import detkit

ROOT = Path(__file__).parent.parent


def built(builder: type, root: Path, folder: Path) -> Path:
    return Path(next(builder(str(root)).build(directory=str(folder), versions=["standard"])))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(WheelBuilder, ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    with tarfile.open(built(SdistBuilder, ROOT, folder)) as archive:
        archive.extractall(folder, filter="data")
    return folder / f"torch_detkit-{detkit.__version__}"


def contents(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    information = f"torch_detkit-{detkit.__version__}.dist-info/"
    inside = {name for name in contents(wheel) if not name.startswith(information)}
    package = (path.relative_to(ROOT).as_posix() for path in (ROOT / "detkit").rglob("*") if path.is_file())
    assert inside == {name for name in package if "__pycache__" not in name}
    assert information + "licenses/LICENSE" in contents(wheel)


@pytest.mark.slow
def test_the_source_archive_builds_the_same_wheel(wheel, source, tmp_path):
    assert contents(built(WheelBuilder, source, tmp_path)) == contents(wheel)


@pytest.mark.slow
def test_the_source_archive_holds_what_a_reader_needs(source):
    top = {path.name for path in source.iterdir()}
    assert {"README.md", "LICENSE", "CITATION.cff", "detkit", "tests", "docs", "examples"} <= top
    assert not top & {".ci", ".github", ".venv", "runs", "dist", "uv.lock", ".pytest_cache"}


def test_the_version_is_one():
    assert f"version: {detkit.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    changelog = (ROOT / "docs" / "changelog.md").read_text(encoding="utf-8")
    assert re.search(rf"^## {re.escape(detkit.__version__)}\b", changelog, flags=re.MULTILINE)


@pytest.mark.slow(12)
def test_an_installed_wheel_runs_what_the_readme_shows(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    ran = subprocess.run(
        [sys.executable, ROOT / "tests" / "smoke.py", ROOT / "README.md"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "installed")},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    assert f"README.md ran with detkit {detkit.__version__}" in ran.stdout
