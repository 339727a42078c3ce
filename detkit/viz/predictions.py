"""Drawings of predictions: each file with what was found in it."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image
from torchvision.transforms.v2.functional import to_pil_image

from detkit._door import door
from detkit._ranges import Count
from detkit.data import read_image
from detkit.detectors import Prediction
from detkit.detectors.prediction import listed
from detkit.viz.draw import draw_detections, save_picture
from detkit.viz.plates import Plates


@door
def draw_prediction(
    prediction: Prediction, *, image: Any = None, plates: Plates = "clear", enlarge: Count | None = None
) -> Image.Image:
    """The file of a prediction, or ``image``, with the boxes, names and scores, masks and keypoints found in it.

    ``image`` is for what was no file: a Pillow image, or a tensor as :func:`draw_detections` takes it, whose ``plates``
    and ``enlarge`` are those here. Raises ValueError for a prediction of no file without an image, and as
    :func:`~detkit.data.read_image` and :func:`draw_detections` do.

    >>> import torch
    >>> from detkit.structures import Detection
    >>> found = Detection(boxes=torch.tensor([[8.0, 8, 60, 40]]), scores=torch.ones(1), labels=torch.tensor([0]))
    >>> draw_prediction(Prediction("picture 0", (64, 96), found, ("cat",)), image=torch.zeros(3, 64, 96)).size
    (480, 320)
    """
    (prediction,) = listed([prediction], function="draw_prediction", name="prediction")
    if image is None and not os.path.isfile(prediction.name):
        raise ValueError(f"draw_prediction: {prediction.name!r} is no file; give its picture, image=...")
    return draw_detections(
        to_pil_image(read_image(prediction.name)) if image is None else image,
        prediction.detection,
        categories=prediction.categories or None,
        score_threshold=0.0,
        plates=plates,
        enlarge=enlarge,
    )


@door
def save_drawings(
    predictions: Prediction | Iterable[Prediction],
    folder: str | os.PathLike[str],
    *,
    suffix: str = ".jpg",
    plates: Plates = "clear",
    enlarge: Count | None = None,
) -> list[Path]:
    """Draw predictions of files into ``folder``, which is made, one file for each; their paths, in order.

    ``suffix`` chooses the format: .png, .jpg or .pdf. A drawing has the name of its picture, with a number behind it
    where another has that name. One picture is held at a time. Raises as :func:`draw_prediction` and
    :func:`save_picture` do.

    >>> import tempfile, torch
    >>> from detkit.detectors import predict, tiny_ssd
    >>> picture = Path(tempfile.mkdtemp(), "cat.png")
    >>> Image.new("RGB", (64, 64)).save(picture)
    >>> [path.name for path in save_drawings(predict(tiny_ssd(2), [picture, picture]), picture.parent / "found")]
    ['cat.jpg', 'cat-2.jpg']
    """
    folder, paths, times = Path(folder), [], dict[str, int]()
    folder.mkdir(parents=True, exist_ok=True)
    for prediction in listed(predictions, function="save_drawings"):
        stem = Path(prediction.name).stem
        times[stem] = times.get(stem, 0) + 1
        paths.append(folder / f"{stem}{f'-{times[stem]}' if times[stem] > 1 else ''}{suffix}")
        save_picture(paths[-1], draw_prediction(prediction, plates=plates, enlarge=enlarge))
    return paths
