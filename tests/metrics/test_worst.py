"""The worst images: counted again, and in their order."""

import pytest
from judged_scenes import judged_scenes

from detkit.metrics import worst_images


@pytest.mark.parametrize("score_threshold", [0.0, 0.5])
def test_errors_are_counted_and_most_come_first(score_threshold):
    judged = judged_scenes(0, count=20, crowds=True)
    rows = worst_images(judged, score_threshold=score_threshold)
    assert sorted(row.place for row in rows) == list(range(20))
    for row in rows:
        image = judged.images[row.place]
        found = image.objects[image.detections.scores >= score_threshold].tolist()
        assert row.hits == sum(place >= 0 for place in found)
        assert row.alarms == found.count(-1)
        assert row.missed == len(set(range(len(image.truth.labels))) - set(found))
        assert row.image_id is None
    order = [(row.alarms + row.missed, -row.hits, -row.place) for row in rows]
    assert order == sorted(order, reverse=True)
