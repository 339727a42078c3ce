"""Every module of the library has its test file."""

from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PACKAGE = TESTS.parent / "detkit"
MODULES = sorted(
    path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py") if path.name not in ("__init__.py", "__main__.py")
)


def candidates(module: Path) -> list[Path]:
    """Files that may test ``module``: tests/<unit>/test_<file>.py, or with a word before the file's name."""
    folder = TESTS / module.parts[0] if len(module.parts) > 1 else TESTS
    stem = module.stem.lstrip("_")
    found = [*folder.rglob(f"test_{stem}.py"), *folder.rglob(f"test_*_{stem}.py"), *TESTS.glob(f"test_{stem}.py")]
    # A leaf of one file may be tested by a folder of its name.
    return found + (list((TESTS / stem).glob("test_*.py")) if len(module.parts) == 1 else [])


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_a_module_has_its_test_file(module: Path):
    found = candidates(module)
    assert found, f"detkit/{module} needs tests/{module.parent}/test_{module.stem}.py"
    assert any("def test_" in path.read_text(encoding="utf-8") for path in found)


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_a_module_is_covered_by_the_quick_selection(module: Path, request: pytest.FixtureRequest):
    files = candidates(module)
    slow = [item.get_closest_marker("slow") for item in request.session.items if item.path in files]
    assert not slow or not all(slow), f"detkit/{module}: every test is slow, so -m 'not slow' leaves it out"


def test_a_module_without_tests_would_be_noticed():
    assert len(MODULES) > 20
    assert candidates(Path("boxes/no_such_module.py")) == []
