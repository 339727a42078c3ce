"""Tables in csv files, most of all Kaggle's: what they say, and every way in which they can be wrong."""

import csv
import warnings

import pytest
from PIL import Image

from detkit.data import CsvDataset

HEADER = "ImageId,PredictionString"


def write(root, *rows, header=HEADER, pictures=("a.png", "b.jpg")):
    """A table of ``rows`` beside pictures of 8 x 6 pixels (width x height)."""
    for name in pictures:
        (root / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 6)).save(root / name)
    (root / "train.csv").write_text("\n".join([header, *rows]), encoding="utf-8")
    return root


def read(root, **settings):
    return CsvDataset(root, root / "train.csv", **settings)


def quiet(root, **settings):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return read(root, **settings)


def test_a_row_is_an_image_with_all_its_objects(tmp_path):
    dataset = read(write(tmp_path, "b,n02 1 2 5 4 n01 0 0 8 6 ", "a,n01 3.5 1 4 5"))
    assert dataset.names == ["b", "a"]
    assert dataset.categories == ["n01", "n02"]
    image, target = dataset[0]
    assert image.shape == (3, 6, 8)
    assert target["boxes"].tolist() == [[1, 2, 5, 4], [0, 0, 8, 6]]
    assert target["labels"].tolist() == [1, 0]
    assert target["image_id"] == 0
    assert target["area"].tolist() == [8, 48]
    assert dataset.target(1)["boxes"].tolist() == [[3.5, 1, 4, 5]]
    assert dataset.image_size(1) == (6, 8)


def test_pictures_may_lie_in_folders_of_their_class_as_in_imagenet(tmp_path):
    write(tmp_path, "n01_7,n01 1 2 5 4", "a,n01 1 2 5 4", pictures=("n01/n01_7.JPEG", "a.png"))
    assert read(tmp_path)[0][0].shape == (3, 6, 8)


def test_an_empty_cell_is_an_image_without_objects(tmp_path):
    dataset = read(write(tmp_path, "a,", "b,n01 1 2 5 4", ""))
    assert len(dataset.target(0)["boxes"]) == 0
    assert len(dataset) == 2


def test_lines_may_be_of_windows_and_cells_quoted(tmp_path):
    write(tmp_path)
    (tmp_path / "train.csv").write_bytes(b"\xef\xbb\xbf" + HEADER.encode() + b'\r\n"a","n01 1 2 5 4"\r\n')
    assert read(tmp_path).target(0)["labels"].tolist() == [0]


def test_classes_fix_the_labels_and_other_names_are_refused(tmp_path):
    write(tmp_path, "a,n02 1 2 5 4")
    assert read(tmp_path, classes=["n01", "n02"]).target(0)["labels"].tolist() == [1]
    with pytest.raises(ValueError, match=r"train\.csv: line 2: object 0: name='n02'; allowed are \['n01'\]"):
        read(tmp_path, classes=["n01"])


BAD = {
    "x 1 4 4 1": "is inverted",
    "x 1 1 1 5": "has no width",
    "x 9 1 12 4": "lies outside its picture of 6 x 8",
    "x 1 one 4 4": "ymin='one'; allowed is a finite number",
    "x 1 1 inf 4": "xmax='inf'; allowed is a finite number",
}


@pytest.mark.parametrize("words", BAD)
def test_an_object_that_is_none_is_dropped_with_a_warning_or_refused(tmp_path, words):
    write(tmp_path, "b,", f"a,x 1 1 4 4 {words}")
    with pytest.warns(UserWarning, match=rf"line 3: object 1: .*{BAD[words]}.*1 of 2 boxes were dropped"):
        dataset = read(tmp_path)
    assert dataset.target(1)["boxes"].tolist() == [[1, 1, 4, 4]]
    with pytest.raises(ValueError, match=BAD[words]):
        read(tmp_path, degenerate="raise")


def test_all_kinds_of_objects_that_are_none_share_one_warning(tmp_path):
    write(tmp_path, "a,x 1 1 4 4 x 1 4 4 1", "b,x 1 1 1 4 x 1 1 nothing 4")
    with pytest.warns(UserWarning, match=r"(?s)CsvDataset: 3 kinds of faults.*3 of 4 boxes were dropped") as warned:
        read(tmp_path)
    assert len(warned) == 1


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (["a,x 1 2 3"], r"line 2: 4 words; allowed are five for each object: class \(without spaces\) xmin ymin"),
        (["a,x 1 2 3 4", "a,x 1 2 3 4"], "line 2: 'a' occurs twice; all objects of an image stand in one row"),
        (["a,x 1 2 3 4,5"], "line 2 has 3 columns; allowed are 2"),
        (["a"], "line 2 has 1 columns; allowed are 2"),
        (['a,"x 1 2 3 4'], "cannot be read as csv"),
        (["a,x 1 2 3 4", "a.png,x 1 2 3 4"], "'a' and 'a.png' have one picture"),
        (["../a,x 1 2 3 4"], r"'\.\./a' has a part '\.\.'"),
        ([",x 1 2 3 4"], "file_name='' is not a text of at least one character"),
    ],
)
def test_what_a_table_cannot_say_is_refused_by_line(tmp_path, rows, words):
    with pytest.raises(ValueError, match=words):
        read(write(tmp_path, *rows))


@pytest.mark.parametrize("header", ["a,x 1 2 3 4", "filename,xmin,ymin,xmax,ymax"])
def test_a_table_with_other_columns_is_refused(tmp_path, header):
    with pytest.raises(ValueError, match=f"begins with '{header[:9]}.*allowed are the columns .*ImageId,Pred"):
        read(write(tmp_path, header=header))


def test_all_kinds_of_faults_are_told_at_once(tmp_path):
    write(tmp_path, "a,x 1 2 3", "c,x 1 1 4 4", "b,x 1 1 4 4 x 4 4 1 1")
    with pytest.raises(ValueError, match=r"(?s)3 kinds of faults.*line 2: 4 words.*no picture.*'c'.*is inverted"):
        read(tmp_path)


def test_missing_pictures_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no picture below .* for 'c', 'd'"):
        read(write(tmp_path, "c,", "a,x 1 1 4 4", "d,x 1 1 4 4"))


def test_bytes_that_are_no_text_are_refused(tmp_path):
    write(tmp_path)
    (tmp_path / "train.csv").write_bytes(HEADER.encode() + b"\na,\xff\xfe 1 2 3 4\n")
    with pytest.raises(ValueError, match=r"train\.csv cannot be read as csv in UTF-8: .* byte 0xff"):
        read(tmp_path)


def test_a_table_without_objects_warns(tmp_path):
    with pytest.warns(UserWarning, match=r"CsvDataset: .*train\.csv: holds no object"):
        read(write(tmp_path, "a,"))


def test_thousands_of_objects_fit_in_a_row_and_the_limit_of_others_stays(tmp_path):
    limit = csv.field_size_limit()
    row = " ".join(f"n{t:08d} 1.25 2.25 5.5 4.5" for t in range(8000))
    assert len(quiet(write(tmp_path, f"a,{row}")).target(0)["boxes"]) == 8000
    assert csv.field_size_limit() == limit
