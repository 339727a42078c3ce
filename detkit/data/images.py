"""Pictures of any kind as what detectors take: RGB uint8, upright."""

import os
from collections.abc import Iterable, Iterator
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torchvision import tv_tensors

from detkit._faults import shown
from detkit._regular_file import open_regular
from detkit.data.files import check_pixels, open_picture
from detkit.data.pictures import EXTENSIONS, pictures_below

_DEEP = ("I;16", "I;16B", "I;16L", "I;16N", "I")


class StoredPicture(NamedTuple):
    """The file of a picture: its bytes, its name, and whether its target is that of the pixels turned upright."""

    data: bytes
    name: str
    upright: bool


def read_image(path: str | os.PathLike[str], *, upright: bool = True) -> tv_tensors.Image:
    """The picture in a file as RGB uint8 (3, H, W), turned as its EXIF orientation says.

    Gray values are repeated; an alpha channel is dropped, as data sets do; 16-bit values are divided by 257; of several
    frames the first is taken. ``upright=False`` leaves the pixels as they are stored, which is what annotations of a
    data set refer to. Formats: JPEG, PNG, BMP, GIF, PPM, TIFF, WebP.

    Raises FileNotFoundError, and ValueError with the path for what is no regular file, no picture, broken, of float
    pixels or larger than :data:`detkit.data.files.MAX_IMAGE_PIXELS`.

    >>> import tempfile
    >>> path = os.path.join(tempfile.mkdtemp(), "gray.png")
    >>> Image.new("L", (6, 4), 7).save(path)
    >>> read_image(path).shape
    torch.Size([3, 4, 6])
    """
    with open_regular(Path(path), owner="read_image") as file:
        return decode_image(file, upright=upright, owner=f"read_image: {shown(os.fspath(path))}")


def decode_image(file: BinaryIO | BytesIO, *, upright: bool, owner: str) -> tv_tensors.Image:
    """The picture in an open file, by the rules of :func:`read_image`; errors begin with ``owner``."""
    picture = open_picture(file, owner=owner)
    check_pixels(picture.height, picture.width, owner=owner)
    try:
        picture.load()
        picture = ImageOps.exif_transpose(picture) if upright else picture
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise ValueError(f"{owner} cannot be decoded: {error}") from error
    return rgb_of(picture, owner=owner)


def rgb_of(picture: Image.Image, *, owner: str) -> tv_tensors.Image:
    """A Pillow image as RGB uint8 (3, H, W), by the rules of :func:`read_image`; errors begin with ``owner``.

    >>> rgb_of(Image.new("I;16", (1, 1), 65535), owner="example").flatten().tolist()
    [255, 255, 255]
    """
    if picture.mode in _DEEP:
        gray = np.asarray(picture).astype(np.int64)
        if gray.min() < 0 or gray.max() > 65535:
            raise ValueError(f"{owner} has values of {gray.min()} to {gray.max()}; allowed are 8 or 16 bits a channel")
        picture = Image.fromarray(((gray + 128) // 257).astype(np.uint8))
    if picture.mode == "F":
        raise ValueError(f"{owner} has pixels of mode 'F'; allowed are 8 or 16 bits a channel: scale the floats first")
    if "transparency" in picture.info:
        picture = picture.convert("RGBA")  # Pillow warns of a palette's where it is dropped at once
    pixels = np.array(picture.convert("RGB"))
    return tv_tensors.Image(torch.from_numpy(pixels).permute(2, 0, 1).contiguous())


def image_paths(source: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> Iterator[Path]:
    """The pictures that ``source`` names: a file, a folder (with all folders in it, sorted), or several of either.

    Files and folders of a folder whose names begin with a dot, as the desktops write them, are left out.

    Raises FileNotFoundError for what is not there, ValueError for an empty name and for a folder without a picture.

    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> for name in ("b.png", "a.jpg", "notes.txt"): _ = Path(folder, name).write_text("")
    >>> [path.name for path in image_paths(folder)]
    ['a.jpg', 'b.png']
    """
    for entry in (source,) if isinstance(source, (str, os.PathLike)) else source:
        if not os.fspath(entry):
            raise ValueError("image_paths: a path is empty; allowed are files and folders")
        path = Path(entry)
        if not path.is_dir():
            if not path.exists():
                raise FileNotFoundError(f"image_paths: there is no file or folder {path}")
            yield path
            continue
        found = pictures_below(path)
        if not found:
            raise ValueError(f"image_paths: {path} holds no picture; looked for {', '.join(sorted(EXTENSIONS))}")
        yield from found
