"""Classes may be counted, named, or given as COCO writes them."""

import pytest

from detkit.metrics.categories import category_names, frequency_groups


def test_numbers_names_and_category_dicts_name_the_labels():
    assert category_names(3, function="demo") == ["0", "1", "2"]
    assert category_names(["cat", "dog"], function="demo") == ["cat", "dog"]
    assert category_names([{"id": 4, "name": "cat"}, {"id": 9}], function="demo") == ["cat", "1"]


@pytest.mark.parametrize("categories", [0, -3, True, [], "cat"])
def test_no_class_at_all_is_refused(categories):
    with pytest.raises(ValueError, match=r"demo: categories=.*>= 1, names"):
        category_names(categories, function="demo")


def test_frequencies_group_labels_and_are_empty_without_them():
    rows = [{"frequency": "f"}, {"frequency": "r"}, {"frequency": "f"}]
    assert frequency_groups(rows) == {"r": [1], "c": [], "f": [0, 2]}
    assert frequency_groups([{"name": "cat"}]) == frequency_groups(["cat"]) == frequency_groups(3) == {}
