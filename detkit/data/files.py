"""Reading files named by an annotation file: only inside the given root, of bounded size, and never over a network.

Names come from JSON and XML that anyone may have written. They are checked as text, resolved through every link, and
opened without following a link created in the meantime; sizes are checked before memory is allocated.
"""

import os
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path, PureWindowsPath
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torchvision import tv_tensors

from detkit._faults import shown
from detkit._regular_file import open_regular

MAX_IMAGE_PIXELS = 89_478_485
"""Larger images are refused before they are decoded: this many take 256 MiB as RGB (Pillow's own bound)."""
MAX_NAME_BYTES = 1024
"""Longer file names are refused."""
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
"""What may be decoded: plain rasters. Pillow also knows formats that start other programs (EPS)."""
_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"}

MISSING = "is not there"
"""The problem of a name that is safe, but of no file."""
_LEADS_OUT = (
    "leads out of the root by a link, and nothing was opened; copy the file there, or name the folder it lies in"
)


def name_problem(name: object) -> str:
    """What is wrong with a file name as text, or "".

    >>> name_problem("a/1.jpg"), name_problem("../1.jpg")
    ('', "has a part '..'")
    """
    if not isinstance(name, str) or not name:
        return "is not a text of at least one character"
    if "\0" in name:
        return "holds a NUL"
    if "://" in name:
        return "is a URL, and nothing is ever fetched (download the file, and write its name)"
    encoded = name.encode("utf-8", "replace")
    if len(encoded) > MAX_NAME_BYTES or any(len(part) > 255 for part in encoded.split(b"/")):
        return f"has more than {MAX_NAME_BYTES} bytes, or than 255 in a part"
    # Windows' rules are a superset: drives, both slashes.
    path = PureWindowsPath(name)
    if path.anchor:
        return "is absolute (cut it down to what follows the folder of images)"
    if ".." in path.parts:
        return "has a part '..'"
    return "is no file name" if not path.parts or "\ufffd" in name or not _encodable(name) else ""


def check_name(name: object, *, owner: str) -> str:
    """Return the relative file name if it is safe, without touching the disk; errors begin with ``owner``.

    Raises ValueError for anything but text, an empty, absolute or overlong name, a part ``..``, a NUL or a URL.

    >>> check_name("train/1.jpg", owner="image id=1")
    'train/1.jpg'
    """
    problem = name_problem(name)
    if problem:
        raise ValueError(f"{owner}: file_name={shown(name)} {problem}; allowed is a relative path inside the root")
    assert isinstance(name, str)
    return name


def resolve_inside(root: str | Path, name: object, *, owner: str) -> Path:
    """The path of ``name`` below ``root`` with every link followed; it need not exist.

    Raises ValueError as :func:`check_name` does, and if a link leads out of the root.

    >>> resolve_inside("/data", "a/1.jpg", owner="image id=1") == Path(os.path.realpath("/data")) / "a" / "1.jpg"
    True
    """
    top = os.path.realpath(root)
    path = os.path.realpath(os.path.join(top, check_name(name, owner=owner)))
    if not path.startswith(os.path.join(top, "")):
        raise ValueError(f"{owner}: file_name={shown(name)} {_LEADS_OUT}")
    return Path(path)


def find_name(root: str | Path, names: Sequence[Any]) -> tuple[Any, str]:
    """The first of ``names`` that is a file below ``root``, and ""; else the first of all, and what is wrong with it.

    Of safe names that are no files :data:`MISSING` is said. Nothing is opened.

    >>> find_name("/", ["no such file", "../etc/passwd"])
    ('no such file', 'is not there')
    """
    found = [(name, _problem_inside(root, name)) for name in names]
    return next((pair for pair in found if not pair[1]), found[0])


def open_inside(root: str | Path, name: object, *, owner: str) -> BinaryIO:
    """Open ``name`` below ``root`` for binary reading.

    Raises ValueError as :func:`resolve_inside` does and for anything but a regular file (a pipe would block forever),
    FileNotFoundError if there is none.

    >>> open_inside("/", "../etc/passwd", owner="image id=1")
    Traceback (most recent call last):
    ValueError: image id=1: file_name='../etc/passwd' has a part '..'; allowed is a relative path inside the root
    """
    path = resolve_inside(root, name, owner=owner)
    try:
        return open_regular(path, owner=owner, links=False)
    except FileNotFoundError:
        raise FileNotFoundError(f"{owner}: there is no file {path}") from None


def check_pixels(height: int, width: int, *, owner: str) -> None:
    """Raise ValueError unless the size is positive and within :data:`MAX_IMAGE_PIXELS`.

    >>> check_pixels(480, 640, owner="image id=1")
    """
    if height < 1 or width < 1 or height * width > MAX_IMAGE_PIXELS:
        raise ValueError(
            f"{owner}: height={height}, width={width}; allowed is at least one pixel and at most "
            f"MAX_IMAGE_PIXELS={MAX_IMAGE_PIXELS}"
        )


def picture_size(root: str | Path, name: object, *, owner: str) -> tuple[int, int]:
    """(height, width) from the header of an image below ``root``; no pixel is decoded.

    Raises ValueError as :func:`decode_inside` does.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as root:
    ...     Image.new("L", (6, 4), 7).save(os.path.join(root, "gray.png"))
    ...     picture_size(root, "gray.png", owner="image id=1")
    (4, 6)
    """
    with open_inside(root, name, owner=owner) as file:
        width, height = open_picture(file, owner=f"{owner}: {shown(name)}").size
    check_pixels(height, width, owner=f"{owner}: {shown(name)}")
    return height, width


def decode_inside(root: str | Path, name: object, *, size: tuple[int, int], owner: str) -> tv_tensors.Image:
    """Decode an image below ``root`` to RGB uint8 (3, H, W); ``size`` is the declared (height, width).

    Gray values are repeated, an alpha channel is dropped, EXIF orientation is ignored (boxes refer to the stored
    pixels). Raises ValueError as :func:`open_inside` does, and for a size other than the declared one, more than
    :data:`MAX_IMAGE_PIXELS`, 16-bit or float pixels, and a file that is broken or not an image.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as root:
    ...     Image.new("L", (6, 4), 7).save(os.path.join(root, "gray.png"))
    ...     image = decode_inside(root, "gray.png", size=(4, 6), owner="image id=1")
    >>> image.shape, image.unique().tolist()
    (torch.Size([3, 4, 6]), [7])
    """
    with open_inside(root, name, owner=owner) as file:
        picture = open_picture(file, owner=f"{owner}: {shown(name)}")
        _check_picture(picture, size, owner=f"{owner}: {shown(name)}")
        try:
            pixels = np.array(picture.convert("RGB"))
        except (OSError, ValueError, SyntaxError) as error:
            raise ValueError(f"{owner}: {shown(name)} cannot be decoded: {error}") from error
    return tv_tensors.Image(torch.from_numpy(pixels).permute(2, 0, 1).contiguous())


def read_class_map(root: str | Path, name: object, *, size: tuple[int, int], owner: str) -> torch.Tensor:
    """The numbers of an indexed or gray image below ``root``, uint8 (H, W); ``size`` is (height, width).

    Raises ValueError as :func:`decode_inside` does, and for an image of colors, which has no number for each pixel.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as root:
    ...     Image.new("L", (6, 4), 7).save(os.path.join(root, "classes.png"))
    ...     read_class_map(root, "classes.png", size=(4, 6), owner="image id=1").unique().tolist()
    [7]
    """
    with open_inside(root, name, owner=owner) as file:
        picture = open_picture(file, owner=f"{owner}: {shown(name)}")
        _check_picture(picture, size, owner=f"{owner}: {shown(name)}")
        if picture.mode not in ("L", "P"):
            raise ValueError(f"{owner}: {shown(name)} has pixels of mode {picture.mode!r}; allowed is gray or indexed")
        try:
            return torch.from_numpy(np.array(picture))
        except (OSError, ValueError, SyntaxError) as error:
            raise ValueError(f"{owner}: {shown(name)} cannot be decoded: {error}") from error


def _encodable(name: str) -> bool:
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return False
    return True


def _problem_inside(root: str | Path, name: object) -> str:
    problem = name_problem(name)
    if problem:
        return problem
    try:
        path = resolve_inside(root, name, owner="")
    except ValueError:
        return _LEADS_OUT
    return "" if path.is_file() else MISSING


def open_picture(file: BinaryIO | BytesIO, *, owner: str) -> Image.Image:
    """The picture in an open file, of one of :data:`FORMATS`; nothing is decoded yet. ValueError for anything else."""
    try:
        return Image.open(file, formats=FORMATS)
    except UnidentifiedImageError as error:  # which names the open file's memory address
        raise ValueError(f"{owner} cannot be read as an image: it is none of {', '.join(FORMATS)}") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{owner} cannot be read as an image: {error}") from error


def _check_picture(picture: Image.Image, size: tuple[int, int], *, owner: str) -> None:
    width, height = picture.size
    check_pixels(height, width, owner=owner)
    if (height, width) != tuple(size):
        raise ValueError(f"{owner} is {height} x {width} (height x width), but declared as {size[0]} x {size[1]}")
    if picture.mode not in _MODES:
        raise ValueError(f"{owner} has pixels of mode {picture.mode!r}; allowed are 8 bits a channel: {sorted(_MODES)}")
