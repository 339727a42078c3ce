"""detkit: object-detection parts for PyTorch, to compose into detectors of your own.

From the bottom up: :mod:`~detkit.structures` defines the data that flows between parts; :mod:`~detkit.boxes` and
:mod:`~detkit.anchors` are the geometry; :mod:`~detkit.layers`, :mod:`~detkit.backbones` and :mod:`~detkit.necks`
extract features; :mod:`~detkit.heads` predict; :mod:`~detkit.losses` train them; :mod:`~detkit.proposals` are external
region proposals; :mod:`~detkit.data` reads data sets and :mod:`~detkit.metrics` evaluates; :mod:`~detkit.detectors`
puts the parts together; :mod:`~detkit.tricks` help training, :mod:`~detkit.multitask` lets several tasks share a
network, :mod:`~detkit.retrieval` learns distances and searches by them, :mod:`~detkit.viz` draws,
:mod:`~detkit.fitting` fits linear SVMs and regressions, :mod:`~detkit.weights` saves and loads,
:mod:`~detkit.export` hands detectors to other runtimes. ``python -m detkit.demo`` shows all of it at work.
``import detkit`` alone imports none of them: a unit is imported when it is first named.
"""

import importlib
from pathlib import Path
from types import ModuleType

__version__ = "0.2.0"
__all__ = ["__version__", "show_env"]


def __getattr__(name: str) -> ModuleType:
    if name in _units():
        return importlib.import_module(f"detkit.{name}")
    raise AttributeError(f"module 'detkit' has no attribute {name!r}; its units are {', '.join(_units())}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_units()})


def _units() -> list[str]:
    return sorted(part.parent.name for part in Path(__file__).parent.glob("[a-z]*/__init__.py"))


def show_env() -> str:
    """Print and return the versions and devices that a bug report needs.

    Warns if another distribution owns the import name: PyPI's ``detkit`` computes matrix determinants; this library is
    distributed as ``torch-detkit``.

    >>> "torch-detkit" in show_env()
    torch-detkit...
    True
    """
    import platform
    import warnings
    from importlib import metadata

    import torch

    owners = set(metadata.packages_distributions().get("detkit", ()))
    foreign = sorted(owners - {"torch-detkit"})
    if foreign:
        warnings.warn(
            f"the import name detkit also belongs to {', '.join(foreign)}; uninstall it, then reinstall torch-detkit",
            stacklevel=2,
        )
    lines = [f"torch-detkit {__version__} ({__file__})", f"python {platform.python_version()} on {platform.platform()}"]
    for name in ("torch", "torchvision", "numpy", "scipy", "scikit-learn", "pycocotools", "hotcoco", "timm", "triton"):
        try:
            lines.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            lines.append(f"{name} not installed")
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    lines.append(f"devices: cpu ({torch.get_num_threads()} threads){''.join(', ' + gpu for gpu in gpus)}")
    report = "\n".join(lines)
    print(report)
    return report
