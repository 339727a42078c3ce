"""Detectors on the Hugging Face Hub, or in a folder of the same layout: weights that say what they are, and a card."""

import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from detkit._door import door
from detkit._faults import shown
from detkit.detectors import Detector
from detkit.weights.detectors import load_detector, save_detector
from detkit.weights.files import load_metadata

WEIGHTS = "model.safetensors"
"""The name of the weights in a repository or folder."""
_NAME = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
_REPOSITORY = re.compile(f"{_NAME}/{_NAME}")
_CARD = """\
---
library_name: detkit
pipeline_tag: object-detection
tags: [detkit, object-detection]
---

# {recipe}

A detector of detkit {version}, made by its recipe `{recipe}` with `{arguments}`. It finds: {categories}.

```python
from detkit.weights import from_pretrained  # pip install "torch-detkit[hub]"

detector = from_pretrained("{source}")
found = detector.predict("picture.jpg")
```
"""


@door
def save_pretrained(
    detector: nn.Module, folder: str | os.PathLike[str], *, categories: Sequence[str] | None = None, name: str = ""
) -> None:
    """:func:`save_detector` into a folder as the Hub has it: model.safetensors, and a card unless there is one.

    ``name`` is what the card calls it: by default the folder. Raises as :func:`save_detector` does.

    >>> from detkit.detectors import tiny_ssd
    >>> folder = tempfile.mkdtemp()
    >>> save_pretrained(tiny_ssd(2), folder, categories=["cat", "dog"])
    >>> sorted(os.listdir(folder)), from_pretrained(folder).categories
    (['README.md', 'model.safetensors'], ('cat', 'dog'))
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_detector(detector, folder / WEIGHTS, categories=categories)
    card = folder / "README.md"
    if not card.exists():
        about = load_metadata(folder / WEIGHTS)
        told = {"recipe": about["recipe"], "version": about["detkit"], "arguments": about["arguments"]}
        names = about["categories"].strip("[]").replace('"', "") or "classes without names"
        card.write_text(_CARD.format(**told, categories=names, source=name or folder.as_posix()), encoding="utf-8")


@door
def push_to_hub(
    detector: nn.Module,
    repo_id: str,
    *,
    categories: Sequence[str] | None = None,
    private: bool = False,
    commit_message: str = "Upload a detector of detkit",
    token: str | None = None,
) -> str:
    """Upload a detector to ``owner/name`` on the Hub, created where it is not there; the address of the commit.

    What is uploaded is what :func:`save_pretrained` writes; a card that is there is written over. Needs huggingface_hub
    (``pip install "torch-detkit[hub]"``), and a ``token``, or that of ``hf auth login``. Raises ValueError for
    another form of name, and as :func:`save_detector` and huggingface_hub do.

    >>> push_to_hub(nn.Identity(), "cells")
    Traceback (most recent call last):
    ValueError: push_to_hub: repo_id='cells'; allowed is owner/name
    """
    _check_repository(repo_id, function="push_to_hub")
    api = _hub("push_to_hub").HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(detector, folder, categories=categories, name=repo_id)  # first: nothing is made in vain
        api.create_repo(repo_id, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=commit_message))


@door
def from_pretrained(
    source: str | os.PathLike[str], *, revision: str | None = None, token: str | None = None
) -> Detector:
    """The detector in a folder that :func:`save_pretrained` wrote, or of ``owner/name`` on the Hub; no code is run.

    A folder is read without any network. From the Hub one file is downloaded, once, into huggingface_hub's cache
    (``pip install "torch-detkit[hub]"``), from which it comes offline (``HF_HUB_OFFLINE=1``) too. ``revision`` is a
    branch, a tag or a commit. Raises FileNotFoundError for what is neither a folder nor of this form, and as
    :func:`load_detector` and huggingface_hub do.

    >>> from_pretrained("./nowhere/cells")
    Traceback (most recent call last):
    FileNotFoundError: from_pretrained: './nowhere/cells' is neither a folder nor owner/name
    """
    if os.path.isdir(source):
        path = Path(source, WEIGHTS)
        if not path.is_file():
            raise FileNotFoundError(f"from_pretrained: {os.fspath(source)} has no {WEIGHTS}; save_pretrained writes it")
        return load_detector(path)
    if not _REPOSITORY.fullmatch(os.fspath(source)):
        raise FileNotFoundError(f"from_pretrained: {shown(os.fspath(source))} is neither a folder nor owner/name")
    hub = _hub("from_pretrained")
    return load_detector(hub.hf_hub_download(os.fspath(source), WEIGHTS, revision=revision, token=token))


def _check_repository(repo_id: str, *, function: str) -> None:
    if not _REPOSITORY.fullmatch(repo_id):
        raise ValueError(f"{function}: repo_id={shown(repo_id)}; allowed is owner/name")


def _hub(function: str) -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise ImportError(f'{function} needs huggingface_hub: pip install "torch-detkit[hub]"') from error
    return huggingface_hub
