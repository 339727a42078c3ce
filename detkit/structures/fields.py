"""The one table of what a target and a detection may hold, and how each of it travels.

Padding (:func:`pad_targets`), resizing and the way back (``Preprocess``), augmentation (``detkit.data``) and the fold
of a ``Detector`` all read :data:`FIELDS`: a field that is added there goes everywhere.
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, NotRequired, TypedDict

import torch
from torch import Tensor

VOID = 255
"""In a segmentation: this pixel has no class and teaches nothing, as in VOC and Cityscapes; padding holds it too."""


class Target(TypedDict):
    """Ground truth of one image, as torchvision's detection models take it; only boxes and labels are required.

    boxes (T, 4) xyxy pixels; labels (T,) int64 in 0..C-1; masks (T, H, W); keypoints (T, P, 3) as x, y, visibility;
    iscrowd (T,): nonzero marks a region in which nothing is learned or judged; weights (T,): how many objects each one
    counts as, 0 for none; identities (T,) int64: which individual it is, -1 unknown; label_sets (T, C): all classes of
    an object, one row of zeros and ones for each; segmentation (H, W): the class of each pixel, or VOID; image_labels:
    what the whole image is labeled with, of one shape in all images. Values may be tensors, NumPy arrays or nested
    lists of numbers.
    """

    boxes: Tensor
    labels: Tensor
    masks: NotRequired[Tensor]
    keypoints: NotRequired[Tensor]
    iscrowd: NotRequired[Tensor]
    area: NotRequired[Tensor]
    weights: NotRequired[Tensor]
    identities: NotRequired[Tensor]
    label_sets: NotRequired[Tensor]
    segmentation: NotRequired[Tensor]
    image_labels: NotRequired[Tensor]
    image_id: NotRequired[int]


class Detection(TypedDict):
    """What a detector found in one image, best first: boxes (K, 4) xyxy pixels, scores (K,), labels (K,).

    As far as its stages find them: masks (K, H, W) in the image; keypoints (K, P, 3) as x, y, 1 and keypoints_scores
    (K, P); class_scores (K, C) of all classes; embeddings (K, D); segmentation (H, W) of classes, or (C, H, W) of their
    scores; image_scores of the whole image.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: NotRequired[Tensor]
    keypoints: NotRequired[Tensor]
    keypoints_scores: NotRequired[Tensor]
    class_scores: NotRequired[Tensor]
    embeddings: NotRequired[Tensor]
    segmentation: NotRequired[Tensor]
    image_scores: NotRequired[Tensor]


class Field(NamedTuple):
    """How one entry of a target or a detection travels.

    ``of``: it has a row for each object, and is filtered with them; or it is the image's, or has a value for each of
    its pixels: then it stays when a later stage finds other objects. ``shape``: letters of the legend, or numbers; any
    for "...". ``holds``: what it is padded as; reals become float32 (float64 stays), integers int64, flags bool.
    ``padding`` fills rows and pixels beyond an image's own. ``missing`` stands for the entry of an image without it
    where another has it; None: an image with objects needs its own. ``inside``: its name in :class:`Targets` or
    :class:`Detections`; None: it stays in the dict. ``moves`` says what becomes of it when the pixels move:

    ======  =============  ===============================  ======================  ================================
    moves   resized        flipped and cropped              comes back              placed on a canvas
    ======  =============  ===============================  ======================  ================================
    no      unchanged      unchanged                        unchanged               unchanged
    boxes   scaled         with the image; small ones go    scaled, clipped         scaled, clipped; small ones go
    points  scaled         refused                          scaled                  scaled; 0, 0, 0 where not in view
    masks   nearest pixel  with the image                   pasted into the image   nearest pixel, cut
    map     nearest pixel  with the image                   resized to the image    nearest pixel, cut
    areas   unchanged      unchanged                        unchanged               of the mask, else as the box's
    ======  =============  ===============================  ======================  ================================

    ``joins`` says what becomes of it where several images become one, as in a mosaic: the "rows" of all; of each pixel
    that of the image in "view" there; what the "first" image has; or "no": it speaks of a whole image, and is refused.
    """

    of: Literal["object", "image", "pixel"]
    shape: tuple[str | int, ...]
    holds: Literal["reals", "integers", "flags", "anything"]
    padding: float
    missing: float | None
    moves: Literal["no", "boxes", "points", "masks", "map", "areas"]
    joins: Literal["rows", "view", "first", "no"]
    inside: str | None


FIELDS: dict[str, Field] = {
    # key in the dict          of        shape            holds       padding missing moves     joins    name inside
    "boxes":            Field("object", ("T", 4),        "reals",        0, None, "boxes",  "rows",  "boxes"),
    "scores":           Field("object", ("T",),          "reals",        0, None, "no",     "rows",  "scores"),
    "labels":           Field("object", ("T",),          "integers",     0, None, "no",     "rows",  "labels"),
    "masks":            Field("object", ("T", "H", "W"), "anything",     0, None, "masks",  "rows",  "masks"),
    "keypoints":        Field("object", ("T", "P", 3),   "reals",        0, None, "points", "rows",  "keypoints"),
    "keypoints_scores": Field("object", ("T", "P"),      "reals",        0, None, "no",     "rows",  "keypoint_scores"),
    "class_scores":     Field("object", ("T", "C"),      "reals",        0, None, "no",     "rows",  "class_scores"),
    "embeddings":       Field("object", ("T", "D"),      "reals",        0, None, "no",     "rows",  "embeddings"),
    "weights":          Field("object", ("T",),          "reals",        0, 1,    "no",     "rows",  "weights"),
    "identities":       Field("object", ("T",),          "integers",    -1, -1,   "no",     "rows",  "identities"),
    "label_sets":       Field("object", ("T", "C"),      "anything",     0, None, "no",     "rows",  "label_sets"),
    "iscrowd":          Field("object", ("T",),          "flags",        0, 0,    "no",     "rows",  "ignore"),
    "ignore":           Field("object", ("T",),          "flags",        0, 0,    "no",     "rows",  None),
    "area":             Field("object", ("T",),          "reals",        0, None, "areas",  "rows",  None),
    "segmentation":     Field("pixel",  ("H", "W"),      "integers", VOID, VOID,  "map",    "view",  "segmentation"),
    "image_labels":     Field("image",  ("...",),        "anything",     0, None, "no",     "no",    "image_labels"),
    "image_scores":     Field("image",  ("...",),        "reals",        0, None, "no",     "no",    "image_scores"),
    "image_id":         Field("image",  ("...",),        "anything",     0, None, "no",     "first", None),
    "size":             Field("image",  ("...",),        "anything",     0, None, "no",     "first", None),
    "orig_size":        Field("image",  ("...",),        "anything",     0, None, "no",     "first", None),
}  # fmt: skip
"""Every key that the library knows in a :class:`Target` or a :class:`Detection`; others are the user's own."""


def read_entries(entries: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """The entries of a target or detection as a new dict, those that are None left out.

    Keys that are not in :data:`FIELDS` pass, unless they are nearly one that is. Raises ValueError for these, and
    TypeError for what is no dict, naming ``where``.

    >>> read_entries({"labels": [1], "masks": None, "file_name": "a.png"}, where="targets[0]")
    {'labels': [1], 'file_name': 'a.png'}
    >>> read_entries({"labels": [1], "mask": None}, where="targets[0]")
    Traceback (most recent call last):
    ValueError: targets[0]: unknown key 'mask'; did you mean 'masks'?
    """
    if not isinstance(entries, Mapping):
        raise TypeError(f"{where}: a {type(entries).__name__}; allowed is a dict with boxes, labels and the like")
    for key in entries.keys() - FIELDS.keys():
        known = _NEAR.get(_stem(key)) if isinstance(key, str) else None
        if known is not None:
            raise ValueError(f"{where}: unknown key {key!r}; did you mean {known!r}?")
    return {key: value for key, value in entries.items() if value is not None}


def read_truth(target: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """:func:`read_entries` of a target; one that says nothing of objects gets boxes (0, 4) and labels (0,).

    So torchvision's wrapper says of an image without annotations nothing but its ``image_id``. A list or an array that
    is none of :data:`FIELDS` might be the boxes under another name: then nothing is added.

    >>> read_truth({"image_id": 7}, where="targets[0]")["labels"]
    tensor([], dtype=torch.int64)
    """
    entries = read_entries(target, where=where)
    if all(
        FIELDS[key].of != "object" if key in FIELDS else isinstance(value, str) or not hasattr(value, "__len__")
        for key, value in entries.items()
    ):
        entries |= {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    return entries


def _stem(key: str) -> str:
    """What "is_crowd" shares with "iscrowd", and "box" with "boxes"."""
    return key.lower().replace("_", "").replace("-", "").removesuffix("s").removesuffix("e")


_NEAR = {_stem(key): key for key, field in FIELDS.items() if field.of == "object" or field.inside}
_NEAR |= {_stem(word): "boxes" for word in ("bbox", "bboxes")}
_NEAR |= {_stem(word): "labels" for word in ("class", "classes", "class_labels")}
_NEAR |= {_stem("identity"): "identities", _stem("keypoint_scores"): "keypoints_scores"}
