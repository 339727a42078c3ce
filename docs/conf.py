"""Sphinx's settings: MyST pages, programs that run, API pages from docstrings; nothing is fetched from the network."""

import importlib.metadata
from typing import Any

project = "detkit"
author = "The detkit authors"
project_copyright = "The detkit authors"
release = version = importlib.metadata.version("torch-detkit")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_gallery.gen_gallery"]
exclude_patterns = ["_build", "ladder/GALLERY_HEADER.rst"]
myst_heading_anchors = 3

sphinx_gallery_conf = {
    "examples_dirs": "../examples/ladder",
    "gallery_dirs": "ladder",  # written by the build
    "filename_pattern": r"\.py$",  # all of them run
    "within_subsection_order": "FileNameSortKey",
    "copyfile_regex": r".*\.rst",
    "download_all_examples": False,
    "remove_config_comments": True,
    "show_signature": False,
    "capture_repr": (),
    "abort_on_example_error": True,
}

html_theme = "furo"
html_extra_path = ["llms.txt"]
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
