"""Faults of a file: each kind once, with its first place and its count, as an error or as one warning."""

import warnings

import numpy as np
import pytest

from detkit._faults import Faults, check_degenerate, judge_boxes, shown


def faults_of(policy, *, refused=(), dropped=(), parts=()):
    faults = Faults("a.json", policy=policy)
    for bad in refused:
        faults.refuse(bad, "refused {}".format)
    for bad in dropped:
        faults.drop(bad, "dropped {}".format)
    for bad in parts:
        faults.leave_out(bad, "part {}".format)
    return faults


def test_nothing_at_fault_is_silent(recwarn):
    for policy in ("drop", "raise"):
        faults_of(policy, refused=[[False], []], dropped=[[False]], parts=[[]]).settle(np.ones(1, bool))
    assert not recwarn


def test_one_kind_is_one_line_with_its_first_place_and_count():
    with pytest.raises(ValueError, match=r"^a\.json: refused 1 \(2 such\)$"):
        faults_of("drop", refused=[[False, True, True]]).settle()
    with pytest.raises(ValueError, match=r"^a\.json: refused 0$"):
        faults_of("drop", refused=[[True, False]]).settle()


def test_all_kinds_are_told_with_those_that_only_the_policy_forgives():
    faults = faults_of("drop", refused=[[True], [False, True]], dropped=[[True, True]], parts=[[True]])
    with pytest.raises(ValueError, match=r"^a\.json: 4 kinds of faults:") as error:
        faults.settle(np.ones(2, bool))
    assert str(error.value).splitlines()[1:] == ["  refused 0", "  refused 1", "  dropped 0 (2 such)", "  part 0"]


def test_objects_that_are_none_are_an_error_with_the_way_out_or_one_warning_with_counts():
    given = {"dropped": [[True, False, True], [False, True, False]]}
    with pytest.raises(ValueError, match=r"2 kinds of faults:\s+dropped 0 \(2 such\)\s+dropped 1; .*degenerate='drop'"):
        faults_of("raise", **given).settle(np.zeros(3, bool))
    with pytest.warns(UserWarning, match=r"dropped 0 \(2 such\)\s+dropped 1\s+3 of 4 boxes were dropped") as seen:
        faults_of("drop", **given).settle(np.array([False, False, False, True]))
    assert len(seen) == 1


def test_parts_that_are_left_out_drop_no_box():
    with pytest.warns(UserWarning, match="part 0; left out of a mask that has others$"):
        faults_of("drop", parts=[[True]]).settle(np.ones(3, bool))


def test_an_error_is_of_the_class_that_all_kinds_share():
    for others, error in ([], FileNotFoundError), ([[True]], ValueError):
        faults = faults_of("drop", refused=others)
        faults.refuse([True], "missing {}".format, error=FileNotFoundError)
        with pytest.raises(error, match="missing 0") as raised:
            faults.settle()
        assert type(raised.value) is error


BOXES = [
    ([1, 1, 3, 3], None),
    ([np.nan, 0, 1, 1], "is not finite"),
    ([0, 0, np.inf, 1], "is not finite"),
    ([3, 0, 1, 1], "is inverted"),
    ([2, 2, 2, 4], "has no width or no height"),
    ([8, 0, 9, 3], "lies outside its picture of 6 x 8"),
    ([-3, 0, 0, 3], "lies outside"),
    ([0, 6, 3, 9], "lies outside"),
    ([7.5, 5.5, 99, 99], None),
]


@pytest.mark.parametrize(("box", "problem"), BOXES, ids=str)
def test_a_box_is_an_object_if_it_is_finite_has_sides_and_meets_its_picture(box, problem):
    faults = Faults("a.json")
    kept = judge_boxes(np.array([box], np.float32), np.array([[6, 8]]), "box {}".format, faults)
    assert kept.tolist() == [problem is None]
    if problem:
        with pytest.raises(ValueError, match=rf"a\.json: box 0: the box .* \(xyxy\) {problem}"):
            faults.settle(kept)


def test_where_a_size_is_not_known_a_box_is_nowhere_outside_and_others_are_not_looked_at():
    boxes, sizes = np.array([[8, 0, 9, 3], [np.nan] * 4], np.float32), np.array([[0, 8], [6, 8]])
    faults = Faults("a.json")
    kept = judge_boxes(boxes, sizes, str, faults, among=np.array([True, False]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        faults.settle(kept)
    assert kept.tolist() == [True, False]


FRACTIONS, BEYOND = [[0.1, 0.2, 0.5, 1.0]], [[4, 2, 12, 8], [1, 1, 9, 9]]


@pytest.mark.parametrize(
    ("boxes", "sizes", "words"),
    [
        (FRACTIONS * 2, (6, 8), "a.json: all 2 boxes lie in the first pixel, as fractions"),
        ([*BEYOND, [1, 1, 2, 2]], (4, 6), "a.json: 2 of 3 boxes reach beyond their pictures: are they corners"),
        ([*BEYOND, [1, 1, 2, 2], [2, 2, 3, 3]], (4, 6), None),
        (BEYOND, (0, 0), None),
        ([*FRACTIONS, [0, 0, 2, 2]], (6, 8), None),
    ],
    ids=["fractions", "corners", "half of them", "sizes not known", "one of many"],
)
def test_boxes_that_seem_of_another_unit_are_told_once(boxes, sizes, words):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        kept = judge_boxes(np.array(boxes, np.float32), np.array([sizes] * len(boxes)), str, Faults("a.json"))
    assert kept.all()
    assert [str(warning.message)[: len(words or "")] for warning in told] == ([words] if words else [])


def test_a_policy_other_than_the_two_is_refused():
    with pytest.raises(ValueError, match=r"CocoDataset: degenerate='keep'.*'drop'.*'raise'"):
        check_degenerate("keep", owner="CocoDataset")


def test_long_values_are_shown_short():
    assert len(shown("x" * 5000)) < 130
