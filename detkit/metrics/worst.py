"""The images with most errors, to be looked at."""

from typing import NamedTuple

import numpy as np

from detkit._door import door
from detkit._ranges import Finite
from detkit.metrics.judged import Judged


class ImageErrors(NamedTuple):
    """What went wrong in an image: ``place`` in ``judged.images``, hits, false alarms, missed objects.

    image_id is the target's, or None if it has none.
    """

    place: int
    image_id: int | None
    hits: int
    alarms: int
    missed: int


@door
def worst_images(judged: Judged, *, score_threshold: Finite) -> list[ImageErrors]:
    """All images, those with most errors first: false alarms that score at least so much, and objects not found so.

    Of equally many errors the image with fewer hits comes first, then the earlier one.

    >>> from detkit.metrics import CocoMetrics
    >>> worst_images(CocoMetrics(["cat"]).judged(), score_threshold=0.5)
    []
    """
    rows = []
    for place, image in enumerate(judged.above(score_threshold).images):
        hits = int(np.count_nonzero(image.objects >= 0))
        image_id = image.key[1] if image.key[0] == 0 else None
        rows.append(ImageErrors(place, image_id, hits, len(image.objects) - hits, len(image.truth.labels) - hits))
    return sorted(rows, key=lambda row: (-row.alarms - row.missed, row.hits))
