"""Pascal VOC's format: one XML file per image, and one text file of image names per split."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from detkit._door import door
from detkit._faults import Degenerate, Faults, check_degenerate, shown
from detkit.data.named_objects import NamedDataset
from detkit.data.truth import Transforms
from detkit.data.voc_split import list_files
from detkit.data.voc_xml import read_voc


class VocFolders(NamedTuple):
    """Folders of a data set in VOC's format, relative to its root; the defaults are VOC's own."""

    annotations: str = "Annotations"
    images: str = "JPEGImages"
    splits: str = "ImageSets/Main"

    @classmethod
    def find(cls, root: str | Path) -> "VocFolders | None":
        """Those that ``root`` has: PASCAL's, annotations beside images, or XML beside the pictures; None without any.

        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as root:
        ...     Path(root, "one.xml").touch()
        ...     VocFolders.find(root)
        VocFolders(annotations='.', images='.', splits='.')
        """
        for folders in (cls(), cls("annotations", "images", "."), cls(".", ".", ".")):
            inside = Path(root, folders.annotations)
            files = inside.iterdir() if folders.annotations == "." else inside.rglob("*")  # VOC's may have folders
            if inside.is_dir() and any(file.suffix.lower() == ".xml" for file in files):
                return folders
        return None


class VocDataset(NamedDataset):
    """Images and targets in Pascal VOC's format; all XML files are read and checked when it is built.

    ``split`` is the name of a list of names, one a line; None takes every XML file, sorted by name, for the many tools
    that write no lists; where they and the pictures lie is found out (:meth:`VocFolders.find`) or said by ``folders``.
    An item is (image, target) as in :class:`~detkit.data.CocoDataset`; image_id is the position.
    The picture of ``one`` is the file one.jpg, one.png, ... of the image folder; what ``<filename>`` says counts only
    where there is none. A size that is missing or 0 is read from the picture. ``unlabeled=True`` takes names without an
    XML file as images without objects.

    ``classes`` fixes the labels; without it they are the sorted names found in this split, so give it if splits must
    agree. Objects marked *difficult* stay with iscrowd 1, so that they count in neither training nor evaluation, or are
    dropped with ``keep_difficult=False``; false, Unspecified or nothing is not difficult. VOC's own files count pixels
    from 1 and include the last one: ``minus_one=True`` subtracts 1 from xmin and ymin, so that boxes are continuous.
    The page on annotation tools says for which tools to set it.

    Objects without a name, with a flag *difficult* that means nothing, or with a box that is missing, not finite,
    inverted, without width or height or outside its picture are dropped with one warning (``degenerate="drop"``) or
    refused (``"raise"``). Tags are read in any case and without their namespace. Raises ValueError telling every kind
    of fault with its first file and object: XML that is broken, over 4 MiB, not of one image or has a DOCTYPE (entities
    could grow without bound), sizes that are none, names not in ``classes``, a name or picture that occurs twice, and
    file names and images as :class:`~detkit.data.CocoDataset` does; FileNotFoundError naming all XML files or pictures
    that are missing.

    >>> import os, tempfile
    >>> with tempfile.TemporaryDirectory() as root:
    ...     for folder in VocFolders():
    ...         os.makedirs(f"{root}/{folder}")
    ...     written = Path(root, "ImageSets/Main/train.txt").write_text("one")
    ...     Path(root, "JPEGImages/one.jpg").touch()
    ...     written = Path(root, "Annotations/one.xml").write_text(
    ...         "<annotation><filename>one.jpg</filename><size><width>6</width><height>4</height></size><object>"
    ...         "<name>cat</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>3</xmax><ymax>4</ymax></bndbox></object>"
    ...         "</annotation>")
    ...     dataset = VocDataset(root, "train")
    >>> dataset.categories, dataset.target(0)["boxes"].tolist()
    (['cat'], [[1.0, 1.0, 3.0, 4.0]])
    """

    @door
    def __init__(
        self,
        root: str | Path,
        split: str | None,
        *,
        transforms: Transforms | None = None,
        classes: Sequence[str] | None = None,
        keep_difficult: bool = True,
        minus_one: bool = False,
        degenerate: Degenerate = "drop",
        unlabeled: bool = False,
        folders: VocFolders | None = None,
    ) -> None:
        check_degenerate(degenerate, owner="VocDataset")
        folders = VocFolders.find(root) or VocFolders() if folders is None else folders
        if not isinstance(folders, VocFolders):
            words = "allowed is VocFolders(annotations=, images=, splits=)"
            raise ValueError(f"VocDataset: folders={shown(folders)}; {words}")
        annotations = Path(root, folders.annotations)
        faults = Faults("VocDataset", policy=degenerate)
        files = list_files(annotations, Path(root, folders.splits), split, unlabeled=unlabeled, faults=faults)
        super().__init__(
            Path(root, folders.images),
            list(files),
            read_voc(annotations, list(files.values()), faults, minus_one=minus_one),
            [str(annotations / (file or "")) for file in files.values()],
            classes=classes,
            transforms=transforms,
            faults=faults,
        )
        if not keep_difficult:
            self._hold([record.take(record.difficult == 0) for record in self._records])
        self._warn_of_nothing(f"VocDataset: {root}, split={split!r}")
