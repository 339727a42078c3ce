"""Files and classes of which nothing can be learned are warned of, once."""

import numpy as np
import pytest

from detkit._coco.crowds import warn_of_crowds


def test_classes_of_crowds_only_stand_in_one_warning_with_their_counts():
    labels, crowd = np.array([0, 0, 1, 2, 2]), np.array([1, 1, 0, 1, 0], bool)
    with pytest.warns(UserWarning, match=r"^a.json: all objects of 1 class are crowds .*: 'cat' \(2\)") as seen:
        warn_of_crowds(labels, crowd, ["cat", "dog", "cow", "hen"], source="a.json")
    assert len(seen) == 1
    with pytest.warns(UserWarning, match=r"of 2 classes are crowds .*: 'cat' \(2\), 'cow' \(2\)"):
        warn_of_crowds(labels, labels != 1, ["cat", "dog", "cow", "hen"], source="a.json")


def test_a_file_without_objects_is_warned_of():
    with pytest.warns(UserWarning, match="a.json: holds no object"):
        warn_of_crowds(np.zeros(0, np.int64), np.zeros(0, bool), ["cat"], source="a.json")


def test_crowds_beside_objects_are_no_matter(recwarn):
    warn_of_crowds(np.array([0, 0]), np.array([True, False]), ["cat", "dog"], source="a.json")
    assert not recwarn
