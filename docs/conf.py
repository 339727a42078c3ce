"""Sphinx's settings: MyST pages, API pages from docstrings, the furo theme; nothing is fetched from the network."""

import importlib.metadata
from typing import Any

project = "detkit"
author = "The detkit authors"
project_copyright = "The detkit authors"
release = version = importlib.metadata.version("torch-detkit")

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"detkit {release}"

autodoc_default_options = {"members": True, "show-inheritance": True, "member-order": "bysource"}
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
maximum_signature_line_length = 100
python_use_unqualified_type_names = True


def skip_noise(app: Any, kind: str, name: str, thing: Any, skip: bool, options: Any) -> bool | None:
    """Leave out what ``print`` calls, and fields of NamedTuples, documented as "Alias for field number 0" only."""
    return True if name == "extra_repr" or type(thing).__name__ == "_tuplegetter" else None


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-skip-member", skip_noise)
