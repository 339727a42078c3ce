"""The pictures of a COCO file: each is found before training begins, and gives its size where the file doesn't."""

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from detkit._coco.tables import Entry, Table, read_sizes
from detkit._faults import Faults, enumerated, shown
from detkit.data.files import MAX_IMAGE_PIXELS, MISSING, find_name, name_problem, picture_size


def read_pictures(images: Table, folder: str | Path | None, faults: Faults) -> tuple[list[str], NDArray[np.int64]]:
    """The file name of each image, relative to ``folder``, and its (height, width), int64 (M, 2), 0 if unknown.

    What is wrong with names, sizes and headers, and all pictures that are missing, go to ``faults``. Without a folder
    nothing is looked for.

    >>> faults = Faults("a.json")
    >>> table = Table("image", [{"id": 5, "file_name": "5.jpg", "height": "4", "width": 6.0}])
    >>> read_pictures(table, None, faults)
    (['5.jpg'], array([[4, 6]]))
    """
    offered = [_offered_names(image) for image in images.entries]
    found = [(names[0], name_problem(names[0])) if folder is None else find_name(folder, names) for names in offered]
    names = [name if problem in ("", MISSING) else "" for name, problem in found]
    problems = np.array([problem for _, problem in found], object)
    for kind in dict.fromkeys(problem for problem in problems if problem not in ("", MISSING)):
        faults.refuse(problems == kind, lambda row, kind=kind: _of_name(images, row, kind))
    missing = problems == MISSING
    listed = f"missing are {enumerated([names[row] for row in np.flatnonzero(missing)])}"
    faults.refuse(
        missing,
        lambda row: (
            f"{images.name(row)}: there is no file {shown(names[row])} below {folder}, the image_folder that names "
            f"start from; {listed}"
        ),
        error=FileNotFoundError,
    )
    return names, _sizes(images, folder, names, problems, faults)


def _offered_names(image: Entry) -> list[Any]:
    """The names that may be meant, the likeliest first: Windows' separators, and LVIS's URL of COCO's picture."""
    name, url = image.get("file_name"), image.get("coco_url")
    if name is None and isinstance(url, str):
        parts = urlsplit(url).path.strip("/").split("/")
        return ["/".join(parts[-2:]), parts[-1]]
    return [name, name.replace("\\", "/")] if isinstance(name, str) and "\\" in name else [name]


def _of_name(images: Table, row: int, problem: str) -> str:
    entry = images.entries[row]
    found = f"file_name={shown(entry['file_name'])} {problem}" if "file_name" in entry else "file_name is missing"
    return f"{images.name(row)}: {found}; allowed is a relative path inside image_folder"


def _sizes(
    images: Table, folder: str | Path | None, names: list[str], problems: NDArray[Any], faults: Faults
) -> NDArray[np.int64]:
    """As the file gives them, else as the headers of the pictures do."""
    given, unread = read_sizes(images), dict[int, str]()
    sizes = given.copy()
    for row in np.flatnonzero((given == 0).any(1) & (problems == "")).tolist():
        if folder is None:
            break
        try:
            sizes[row] = picture_size(folder, names[row], owner=images.name(row))
        except ValueError as error:
            unread[row] = str(error)
    faults.refuse([row in unread for row in range(len(names))], lambda row: unread[row])
    unknown = (sizes == 0).any(1) & (folder is None)
    faults.refuse(unknown, lambda row: _of_size(images, row, "a number of pixels for each"))
    other = ((given != sizes) & (given > 0)).any(1)
    faults.refuse(other, lambda row: _of_size(images, row, f"the picture's own size: {sizes[row].tolist()}"))
    many = sizes.prod(1) > MAX_IMAGE_PIXELS
    faults.refuse(many, lambda row: _of_size(images, row, f"at most MAX_IMAGE_PIXELS={MAX_IMAGE_PIXELS} pixels"))
    return sizes


def _of_size(images: Table, row: int, allowed: str) -> str:
    entry = images.entries[row]
    found = ", ".join(f"{key}={shown(entry[key])}" if key in entry else f"no {key}" for key in ("height", "width"))
    return f"{images.name(row)}: {found}; allowed is {allowed}"
