"""Categories that only group others, and names given more than once: one warning, or one label."""

import numpy as np
import pytest

from detkit._coco.tables import Table
from detkit.data.coco_categories import group_categories

ROBOFLOW = [("cells", "none"), ("RBC", "cells"), ("WBC", "cells")]


def group(rows, owners=(), *, tidy=False):
    table = Table(
        "category", [{"id": i, "name": name, "supercategory": parent} for i, (name, parent) in enumerate(rows)]
    )
    return group_categories(table, np.array(owners, np.int64), tidy=tidy, source="a.json").tolist()


def test_categories_that_are_distinct_are_their_own_labels(recwarn):
    assert group([("person", "person"), ("car", "vehicle")]) == [0, 1]
    assert group([]) == group([], tidy=True) == []
    assert not recwarn


def test_a_row_that_only_groups_others_is_warned_of_or_left_out(recwarn):
    assert group(ROBOFLOW, [1, 2], tidy=True) == [-1, 0, 1]
    assert not recwarn
    with pytest.warns(
        UserWarning, match=r"a.json: category id=0 \('cells'\) only groups others; .*tidy_categories=True"
    ):
        assert group(ROBOFLOW, [1, 2]) == [0, 1, 2]


def test_a_row_that_owns_annotations_is_a_class_though_others_stand_under_it(recwarn):
    assert group(ROBOFLOW, [0, 1]) == group(ROBOFLOW, [0, 1], tidy=True) == [0, 1, 2]
    assert not recwarn


def test_names_given_twice_or_thrice_are_warned_of_at_once_or_merged():
    rows = [("cat", ""), ("dog", ""), ("cat", ""), ("cat", ""), ("dog", "")]
    assert group(rows, [0, 1, 2], tidy=True) == [0, 1, 0, 0, 1]
    with pytest.warns(UserWarning, match="category id=4 is named 'dog' like category id=1") as seen:
        assert group(rows) == [0, 1, 2, 3, 4]
    assert len(seen) == 1
    assert str(seen[0].message).count("is named") == 3


def test_a_class_named_like_its_group_is_merged_with_neither():
    assert group([("cat", "none"), ("cat", "cat"), ("dog", "cat")], [1, 2], tidy=True) == [-1, 0, 1]
