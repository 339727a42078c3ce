"""Tables of objects in csv files: one row for each object, or, as Kaggle has them, for each image."""

from collections.abc import Sequence
from pathlib import Path

from detkit._door import door
from detkit._faults import Degenerate, Faults, check_degenerate
from detkit.data.csv_file import read_rows
from detkit.data.csv_rows import find_columns, object_records
from detkit.data.kaggle import COLUMNS, kaggle_records
from detkit.data.named_objects import NamedDataset
from detkit.data.truth import Transforms


class CsvDataset(NamedDataset):
    """Images with the objects of a csv file, one row for each object, or Kaggle's table with one for each image.

    Rows of objects have the columns image, class, xmin, ymin, xmax and ymax in pixels, taken as they are, and perhaps
    the picture's width and height. A header names them, in any order and with the usual other names (filename, label,
    x1 ...), and others, which are not read; without one, six columns are told by their numbers: ``image, xmin, ymin,
    xmax, ymax, class`` or with the class second; ``columns`` names those of any other file without a header. An image
    whose row has nothing else is without objects. The columns of Kaggle's localization challenge are
    ``ImageId,PredictionString``, five words for each object: ``n01_7,n01 115 49 448 294 n02 ...``.

    The picture of ``one`` is the file one.jpg, one.JPEG, ... of the folder ``images``, for Kaggle's also in its folder
    of that class, as in ImageNet's training set; sizes are read from the pictures' headers, if not given. An item is
    (image, target) as in :class:`~detkit.data.CocoDataset`; image_id is the position. ``classes`` fixes the labels;
    without it they are the sorted names found in this file, so give it if files must agree.

    Objects with a box that is no number, not finite, inverted, without width or height or outside its picture are
    dropped with one warning (``degenerate="drop"``) or refused (``"raise"``). Raises ValueError telling every kind of
    fault with its first line: columns that cannot be told, rows of another length, cells of Kaggle's that are not in
    fives, coordinates that are all fractions, names not in ``classes``, two sizes of an image, an image in two of
    Kaggle's rows, a picture of two names, a file that is no csv in UTF-8 or over 1 GiB, and file names and images as
    :class:`~detkit.data.CocoDataset` does; FileNotFoundError naming all pictures that are missing.

    >>> import tempfile
    >>> from PIL import Image
    >>> with tempfile.TemporaryDirectory() as root:
    ...     Image.new("RGB", (6, 4)).save(Path(root, "a.jpg"))
    ...     written = Path(root, "train.csv").write_text("a.jpg,1,0,5,4,cat\\na.jpg,0,0,2,2,dog\\n")
    ...     dataset = CsvDataset(root, Path(root, "train.csv"))
    >>> dataset.categories, dataset.target(0)["boxes"].tolist()
    (['cat', 'dog'], [[1.0, 0.0, 5.0, 4.0], [0.0, 0.0, 2.0, 2.0]])
    """

    @door
    def __init__(
        self,
        images: str | Path,
        file: str | Path,
        *,
        transforms: Transforms | None = None,
        classes: Sequence[str] | None = None,
        columns: Sequence[str] | None = None,
        degenerate: Degenerate = "drop",
    ) -> None:
        check_degenerate(degenerate, owner="CsvDataset")
        faults = Faults("CsvDataset", policy=degenerate)
        rows = read_rows(file)
        first = next(iter(rows), 0)
        if columns is None and [name.strip() for name in rows.get(first, [])] == COLUMNS:
            del rows[first]
            names, records = kaggle_records(rows, file, faults)
            places = [f"{file}: line {line}" for line in rows]
        else:
            order, has_header = find_columns(rows, columns, file)
            rows = {line: row for line, row in rows.items() if not (has_header and line == first)}
            names, places, records = object_records(rows, order, file, faults)
        super().__init__(Path(images), names, records, places, classes=classes, transforms=transforms, faults=faults)
        self._warn_of_nothing(f"CsvDataset: {file}")
