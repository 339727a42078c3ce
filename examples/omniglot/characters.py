"""Omniglot's characters, joined over its two small sets before they are split by alphabet."""

import io
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

UNSEEN = {"Greek", "Japanese_(katakana)", "Tagalog"}


def characters(folder: Path) -> tuple[Tensor, Tensor, Tensor]:
    """Inverted 28 x 28 images (N, 1, 28, 28), the character of each, and whether its alphabet is an unseen one."""
    drawn: dict[str, Image.Image] = {}
    for path in sorted(folder.glob("images_background_small*.zip")):
        with zipfile.ZipFile(path) as file:
            names = [name for name in file.namelist() if name.endswith(".png")]
            drawn |= {name.split("/", 1)[1]: Image.open(io.BytesIO(file.read(name))).convert("L") for name in names}
    pixels = np.stack([np.asarray(image.resize((28, 28), Image.Resampling.BOX)) for image in drawn.values()])
    owners = [name.rsplit("/", 1)[0] for name in drawn]
    labels = torch.from_numpy(np.unique(owners, return_inverse=True)[1])
    unseen = torch.tensor([owner.split("/")[0] in UNSEEN for owner in owners])
    return 1 - torch.from_numpy(pixels)[:, None] / 255, labels, unseen
