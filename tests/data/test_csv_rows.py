"""Tables with a row for each object, in every order and under every usual name."""

import random
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from detkit.data import CsvDataset
from detkit.data.csv_rows import CLASS_LAST, CLASS_SECOND, NAMES, NEEDED, find_columns


def read(root, text, **options):
    """A table beside the pictures a.png and b.jpg of 80 x 60 pixels (width x height)."""
    for name in ("a.png", "b.jpg"):
        Image.new("RGB", (80, 60)).save(root / name)
    (root / "t.csv").write_text(text, encoding="utf-8")
    return CsvDataset(root, root / "t.csv", **options)


TABLES = {
    "keras-retinanet": "a.png,10,20,50,40,cat\nb.jpg,,,,,\na.png,0,0,8,6,red dog\n",
    "class second": "a.png,cat,10,20,50,40\nb.jpg,,,,,\na.png,red dog,0,0,8,6\n",
    "TensorFlow and Roboflow": (
        "filename,width,height,class,xmin,ymin,xmax,ymax\na.png,80,60,cat,10,20,50,40\nb.jpg,80,60,,,,,\n"
        "a.png,80,60,red dog,0,0,8,6"
    ),
    "other names, columns that say nothing, and spaces": (
        "id,x1,y1,x2,y2,Label,Image_Path,score\n1,10, 20 ,50,40,cat,a.png,.5\n2,,,,,,b.jpg,\n3,0,0,8,6,red dog, a.png ,"
    ),
}


@pytest.mark.parametrize("name", TABLES)
def test_rows_of_every_tool_are_the_same_objects(name, tmp_path):
    dataset = read(tmp_path, TABLES[name])
    assert dataset.names == ["a.png", "b.jpg"]
    assert dataset.categories == ["cat", "red dog"]
    assert dataset.target(0)["boxes"].tolist() == [[10, 20, 50, 40], [0, 0, 8, 6]]
    assert dataset.target(0)["labels"].tolist() == [0, 1]
    assert len(dataset.target(1)["boxes"]) == 0
    assert dataset[1][0].shape == (3, 60, 80)


def test_given_columns_are_those_of_a_file_without_header(tmp_path):
    columns = ["set", "image", "class", "xmax", "ymax", "xmin", "ymin"]
    dataset = read(tmp_path, "train,a.png,7,50,40,10,20", columns=columns)
    assert dataset.target(0)["boxes"].tolist() == [[10, 20, 50, 40]]
    for bad in (columns[:-1], [*columns, "image"]):
        with pytest.raises(ValueError, match=r"columns=.* allowed is a list with image, class, xmin"):
            read(tmp_path, "a.png,1,1,1,1,1", columns=bad)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a.png,1,2,3,4,5", "may be of either order, since its classes are numbers"),
        (
            "a.png,cat,1,2",
            "is neither a header nor six columns, set off by commas; allowed are",
        ),
        ("image,label,x,y,w,h\na.png,cat,1,2,3,4", "is neither a header"),
        ("", "is empty; allowed are rows of image,xmin,ymin,xmax,ymax,class"),
        ("image,label,class,x1,y1,x2,y2", "its header names class twice"),
        ("a.png,1,2,30,40,cat\nb.jpg,1,2,30,40", "is neither"),
        ("image,class,x1,y1,x2,y2\na.png,cat,1,2,3", "line 2 has 5 columns; allowed are 6"),
        ("a.png,.1,.2,.3,.4,cat\nb.jpg,0,0,1,1,cat", r"all coordinates lie in 0\.\.1; .*multiply fractions"),
        (
            "image,class,x1,y1,x2,y2,width,height\na.png,c,1,2,3,4,8,6\na.png,c,1,2,3,4,9,6",
            "its size is another",
        ),
        ("/home/me/a.png,1,2,30,40,cat", "is absolute .cut it down"),
    ],
)
def test_what_cannot_be_told_is_refused(text, reason, tmp_path):
    with pytest.raises(ValueError, match=reason):
        read(tmp_path, text)


def test_objects_that_are_none_are_dropped_with_one_warning_or_refused(tmp_path):
    text = "image,class,x1,y1,x2,y2\na.png,cat,1,two,30,40\na.png,,1,2,30,40\na.png,cat,9,9,9,9\na.png,cat,1,2,30,40"
    with pytest.warns(UserWarning, match=r"(?s)ymin='two'.*line 3: its class is empty.*3 of 4 boxes were dropped"):
        dataset = read(tmp_path, text)
    assert dataset.target(0)["boxes"].tolist() == [[1, 2, 30, 40]]
    with pytest.raises(ValueError, match="3 kinds of faults"):
        read(tmp_path, text, degenerate="raise")


def test_a_declared_size_that_is_not_the_pictures_is_an_error_when_it_is_read(tmp_path):
    dataset = read(tmp_path, "filename,width,height,class,xmin,ymin,xmax,ymax\na.png,800,600,cat,100,200,500,400")
    with pytest.raises(ValueError, match=r"is 60 x 80 .height x width., but declared as 600 x 800"):
        dataset[0]


@settings(max_examples=50, deadline=None)
@given(st.randoms(use_true_random=False), st.lists(st.integers(0, 90), min_size=4, max_size=4))
def test_a_header_in_any_order_and_case_is_told(random: random.Random, numbers):
    columns = list(NEEDED)
    random.shuffle(columns)
    header = [random.choice(NAMES[column]).upper() for column in columns]
    rows = {1: header, 2: ["x"] * 6}
    assert find_columns(rows, None, "t.csv") == (columns, True)


@pytest.mark.parametrize("order", [CLASS_LAST, CLASS_SECOND])
def test_an_order_without_header_is_told_by_all_rows_not_the_first(order):
    cells = {"image": "a", "class": "7", "xmin": "1", "ymin": "2", "xmax": "3", "ymax": "4"}
    rows = {1: [cells[name] for name in order], 2: [{**cells, "class": "cat"}[name] for name in order]}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert find_columns(rows, None, "t.csv") == (list(order), False)
