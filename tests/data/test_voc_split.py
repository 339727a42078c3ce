"""Lists of names as tools write them."""

import time

import pytest

from detkit._faults import Faults
from detkit.data import voc_split
from detkit.data.voc_split import all_files, list_files, split_files


def files_of(folder, text, *, names=("one", "two"), split="train"):
    for name in names:
        (folder / f"{name}.xml").touch()
    (folder / f"{split}.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    faults = Faults("VocDataset")
    files = split_files(folder, split, folder, faults)
    faults.settle()
    return files


@pytest.mark.parametrize(
    "text",
    ["two\none", "\ufefftwo\r\n\r\none \r\n", "two\none\n".encode("utf-16")],
    ids=["plain", "with a mark", "of Windows PowerShell"],
)
def test_names_keep_the_order_of_the_list(tmp_path, text):
    assert files_of(tmp_path, text) == {"two": "two.xml", "one": "one.xml"}


def test_names_may_have_an_extension(tmp_path):
    assert files_of(tmp_path, "one.JPG\ntwo.xml\nthree.png") == {
        "one.JPG": "one.xml",
        "two.xml": "two.xml",
        "three.png": None,
    }


def test_the_extension_of_the_xml_may_be_in_capitals(tmp_path):
    (tmp_path / "two.XML").touch()
    assert files_of(tmp_path, "one\ntwo", names=("one",))["two"].lower() == "two.xml"


def test_the_whole_name_comes_before_the_one_without_extension(tmp_path):
    assert files_of(tmp_path, "one.jpg", names=("one", "one.jpg")) == {"one.jpg": "one.jpg.xml"}


def test_names_may_have_a_folder_and_windows_separators(tmp_path):
    (tmp_path / "sub").mkdir()
    assert files_of(tmp_path, "sub/one\nsub\\two", names=("sub/one", "sub/two")) == {
        "sub/one": "sub/one.xml",
        "sub\\two": "sub/two.xml",
    }


def test_names_may_end_in_a_number_if_there_are_such_files(tmp_path):
    assert files_of(tmp_path, "cell 1\ncell 0", names=("cell 1", "cell 0")) == {
        "cell 1": "cell 1.xml",
        "cell 0": "cell 0.xml",
    }


def test_the_list_of_one_class_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"split='cat_train': lists the images of one class.*'one -1'.*split=None"):
        files_of(tmp_path, "one -1\ntwo  1\n", split="cat_train")


def test_names_that_stand_twice_are_counted_with_the_first(tmp_path):
    with pytest.raises(ValueError, match=r"split='train': 'one' stands there more than once \(2 such\)"):
        files_of(tmp_path, "one\ntwo\none\ntwo")


def test_two_names_of_one_xml_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"split='train': 'one\.xml' stands there more than once"):
        files_of(tmp_path, "one.jpg\none.png\ntwo")


def test_a_long_list_takes_linear_time(tmp_path, monkeypatch):
    monkeypatch.setattr(voc_split, "_annotation", lambda *_: None)
    start = time.process_time()
    with pytest.raises(ValueError, match="'0' stands there more than once"):
        files_of(tmp_path, "".join(f"{i}\n" for i in range(40_000)) + "0\n")
    assert time.process_time() - start < 2  # to count each name took half a minute


def test_files_of_all_folders_are_found_without_hidden_ones(tmp_path):
    for folder in ("b", ".git"):
        (tmp_path / folder).mkdir()
    for name in ("b/two.xml", "b/one.XML", ".git/x.xml", "._a.xml", "a.xml", "a.jpg"):
        (tmp_path / name).touch()
    found = all_files(tmp_path)
    assert list(found.items()) == [("a", "a.xml"), ("b/one", "b/one.XML"), ("b/two", "b/two.xml")]
    (tmp_path / "a.XML").touch()
    with pytest.raises(ValueError, match=r"a\.(xml|XML)' and 'a\.(xml|XML)' are of one image"):
        all_files(tmp_path)


def test_a_folder_without_xml_is_refused_with_the_way_out(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"no XML file below {tmp_path}.*folders="):
        list_files(tmp_path, tmp_path, None, unlabeled=False, faults=Faults("VocDataset"))
