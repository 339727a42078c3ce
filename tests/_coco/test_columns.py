"""Numbers, integers and flags of JSON: what can only mean one thing is read, the rest is marked."""

import numpy as np
import pytest

from detkit._coco.columns import read_flags, read_integers, read_lists, read_numbers

NAN = float("nan")
NUMBERS = [(3, 3), (2.5, 2.5), ("4", 4), (" -1.5e1 ", -15), (".5", 0.5), (np.float32(2), 2), (np.int64(7), 7)]
NO_NUMBERS = [None, True, "", "x", "1_0", "nan", "inf", "٣", "1,5", [1], {}, NAN, float("inf"), 10**400, "9" * 500]


@pytest.mark.parametrize(("value", "number"), NUMBERS, ids=str)
def test_numbers_and_text_of_numbers_are_read(value, number):
    assert read_numbers([value]).tolist() == read_numbers([value, 1, None])[:1].tolist() == [number]


@pytest.mark.parametrize("value", NO_NUMBERS, ids=lambda value: str(value)[:9])
def test_what_is_no_number_is_nan_and_leaves_the_others(value):
    read = read_numbers([1, value, 2])
    assert np.isnan(read).tolist() == [False, True, False]


def test_numbers_beyond_the_limit_are_none_in_either_way_of_reading():
    for column in ([5, -11, 11.0, 10], [5, -11, 11.0, "10"]):
        assert np.isnan(read_numbers(column, 10)).tolist() == [False, True, True, False]


@pytest.mark.parametrize("value", [[1], [1, 2, 3], None, 5, "12", {"a": 1}, [[1, 2]], b"12"], ids=str)
def test_rows_of_another_length_or_form_are_nan(value):
    read = read_lists([[3, 4], value, ("5", 6.0), np.array([7, 8])], 2)
    assert read[[0, 2, 3]].tolist() == [[3, 4], [5, 6], [7, 8]]
    assert np.isnan(read[1]).all()


def test_of_no_entries_there_are_no_rows():
    assert read_lists([], 4).shape == (0, 4)
    assert read_numbers([]).shape == (0,)
    assert read_integers([])[0].dtype == np.int64


@pytest.mark.parametrize(("value", "integer"), [(5, 5), (-(2**63), -(2**63)), (5.0, 5), (np.int64(5), 5)], ids=str)
def test_integers_and_whole_floats_are_read(value, integer):
    values, bad = read_integers([value, None])
    assert (values[0], bad.tolist()) == (integer, [False, True])


@pytest.mark.parametrize("value", [2**63, 1.5, 1e300, NAN, True, None, "x", "1.0", [5], "9" * 30], ids=str)
def test_what_is_no_integer_of_64_bits_is_marked(value):
    for column in ([value], [3, value]):
        assert read_integers(column, text=True)[1][-1]


def test_text_is_an_integer_only_where_that_is_asked_for():
    assert read_integers([" 07 "], text=True)[0].tolist() == [7]
    assert read_integers(["7"])[1].tolist() == [True]


@pytest.mark.parametrize(
    "value", [0, 0.0, False, None, "", "0", "false", "False", " FALSE ", "no", "Unspecified"], ids=repr
)
def test_what_says_no_is_a_flag_that_is_not_set(value):
    flags, bad = read_flags([value])
    assert (flags.tolist(), bad.tolist()) == ([False], [False])


@pytest.mark.parametrize("value", [1, 1.0, True, "1", "true", "yes"], ids=repr)
def test_what_says_yes_is_a_flag_that_is_set(value):
    flags, bad = read_flags([value])
    assert (flags.tolist(), bad.tolist()) == ([True], [False])


@pytest.mark.parametrize("value", [2, -1, 0.5, NAN, "2", "perhaps", [], [1], {}], ids=repr)
def test_what_says_neither_is_marked(value):
    assert read_flags([value])[1].tolist() == [True]
