"""Kaggle's rows as records; test_table.py has what becomes of them."""

import pytest

from detkit._faults import Faults
from detkit.data.kaggle import kaggle_records


def test_five_words_are_an_object_and_the_first_class_may_be_a_folder():
    names, records = kaggle_records({2: ["a", "cat 1 2 5 4 dog 0 0 1 1"], 3: ["b", ""]}, "t.csv", Faults("t.csv"))
    assert names == ["a", "b"]
    assert [record.file_name for record in records] == ["cat/a", ""]
    assert records[0].names == ["cat", "dog"]


def test_an_image_in_two_rows_is_refused_with_both_lines():
    faults = Faults("t.csv")
    kaggle_records({2: ["a", ""], 7: ["a", ""]}, "t.csv", faults)
    with pytest.raises(ValueError, match=r"line 2: 'a' occurs twice; all objects of an image stand in one row .2 such"):
        faults.settle()
