"""Imports point down: a unit may import only units of lower floors, and nobody inside imports a leaf."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "detkit"
GROUND = (
    "_inputs",
    "_gradient",
    "_ranges",
    "_noise",
    "_ranking",
    "_rle",
    "_regular_file",
    "_disk",
    "_faults",
    "_constants",
    "_wrappers",
    "_door",
    "_command",
    "_sent",
    "_threads",
    "dist",
)
"""Under all floors; each may import those before it."""
FLOORS = [
    {"structures", "_coco"},
    {"kernels"},
    {"boxes"},
    {"anchors", "layers"},
    {"backbones", "necks", "heads", "losses", "proposals", "metrics", "data"},
    {"detectors"},
]
LEAVES = {"tricks", "multitask", "retrieval", "viz"}
ABOVE = {"demo", "evaluate", "export", "fitting", "inspect", "train", "weights", "__init__", "__main__"}
LEAF_FLOOR, VIZ_FLOOR = 3, 5  # viz draws what detectors find
FLOOR_OF = {unit: floor for floor, units in enumerate(FLOORS) for unit in units}


def unit_of(module: str) -> str:
    """The unit of a module's dotted name: "boxes" of "detkit.boxes.overlap", "__init__" of "detkit"."""
    return module.split(".")[1] if "." in module else "__init__"


def imported_modules(source: str, package: str, known: set[str]) -> set[str]:
    """Dotted names under detkit that the source of a module in ``package`` imports, relative imports resolved."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            start = parents[: len(parents) - node.level + 1] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            names = {f"{base}.{alias.name}" for alias in node.names}
            # "from detkit import boxes" imports the unit; a name that is no unit comes from the root itself.
            found |= {name if unit_of(name) in known else base for name in names} if base == "detkit" else {base}
    return {name for name in found if name.split(".")[0] == "detkit"}


def broken_rules(source: str, module: str, *, is_package: bool = False) -> list[str]:
    """What the source of ``module`` imports against the rules, as sentences."""
    unit = unit_of(module)
    if unit in ABOVE:
        return []
    package = module if is_package else module.rpartition(".")[0]
    known = set(FLOOR_OF) | set(GROUND) | LEAVES | ABOVE
    return [
        f"{module} imports {name}: {reason}"
        for name in sorted(imported_modules(source, package, known))
        if (reason := broken_rule(unit, unit_of(name)))
    ]


def broken_rule(unit: str, other: str) -> str | None:
    if other == unit or (other in GROUND and unit not in GROUND):
        return None
    if unit in GROUND:
        below = other in GROUND[: GROUND.index(unit)]
        return None if below else f"{unit} lies under all floors and may import nothing above it"
    if other in LEAVES:
        return f"{other} is a leaf, which only users import"
    if other not in FLOOR_OF:
        return f"{other} lies above everything"
    highest = (VIZ_FLOOR if unit == "viz" else LEAF_FLOOR) if unit in LEAVES else FLOOR_OF[unit] - 1
    if FLOOR_OF[other] > highest:
        return f"floor {FLOOR_OF[other]}; {unit} may import floors 0 to {highest}"
    return None


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    return {dotted_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def dotted_name(path: Path) -> str:
    parts = ("detkit", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_every_unit_has_a_floor():
    units = {unit_of(module) for module in modules()}
    assert units <= set(FLOOR_OF) | set(GROUND) | LEAVES | ABOVE
    assert {"structures", "boxes", "detectors"} <= units


@pytest.mark.slow
@pytest.mark.parametrize("module", modules())
def test_imports_point_down(module):
    path = modules()[module]
    broken = broken_rules(path.read_text(encoding="utf-8"), module, is_package=path.name == "__init__.py")
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize(
    ("source", "module", "complaint"),
    [
        ("from detkit.detectors import Detector", "detkit.boxes.overlap", "floor 5; boxes may import floors 0 to 1"),
        ("import detkit.losses", "detkit.heads.multibox", "floor 4; heads may import floors 0 to 3"),
        ("from detkit import losses", "detkit.heads.multibox", "floor 4; heads may import floors 0 to 3"),
        ("from ..losses import MultiBoxLoss", "detkit.heads.multibox", "floor 4; heads may import floors 0 to 3"),
        ("from .. import losses", "detkit.heads.multibox", "floor 4; heads may import floors 0 to 3"),
        ("from ...heads import x", "detkit.detectors.recipes.ssd", None),
        ("from detkit.viz import draw", "detkit.detectors.dense", "viz is a leaf"),
        ("from detkit.detectors import Detector", "detkit.tricks.ema", "tricks may import floors 0 to 3"),
        ("from detkit.weights import load_weights", "detkit.backbones.vgg", "weights lies above everything"),
        ("import detkit", "detkit.metrics.coco", "__init__ lies above everything"),
        ("from detkit import __version__", "detkit.metrics.coco", "__init__ lies above everything"),
        ("def f():\n    from detkit.viz import draw", "detkit.data.coco", "viz is a leaf"),
        ("from detkit.structures import Images", "detkit.dist", "dist lies under all floors"),
        ("from detkit.boxes.overlap import box_iou\nimport torch", "detkit.anchors.bipartite", None),
        ("from detkit.viz import draw", "detkit.demo", None),
        ("from detkit.detectors import Prediction", "detkit.viz.predictions", None),
        ("from .overlap import box_iou", "detkit.boxes.nms", None),
        ("import detkitten.viz", "detkit.boxes.nms", None),
    ],
)
def test_the_check_finds_what_it_should(source, module, complaint):
    broken = broken_rules(source, module)
    if complaint is None:
        assert broken == []
    else:
        assert len(broken) == 1
        assert complaint in broken[0]


def test_a_relative_import_in_an_init_starts_at_its_own_package():
    assert broken_rules("from .overlap import x", "detkit.boxes", is_package=True) == []
    assert broken_rules("from ..losses import x", "detkit.boxes", is_package=True)
