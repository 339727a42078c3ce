"""A picture for every annotation file."""

import pytest
from PIL import Image

from detkit._faults import Faults
from detkit.data.named_pictures import complete_sizes, find_pictures


def find(folder, names, told=None):
    faults = Faults("VocDataset")
    found = find_pictures(folder, names, told or [""] * len(names), faults)
    faults.settle()
    return found


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()


def test_the_name_comes_before_what_the_file_says(tmp_path):
    touch(tmp_path, "one.jpeg", "sub/two.PNG", "three.tif", "old.jpg")
    told = ["one.jpg", "elsewhere.jpg", "three.png", "old.jpg"]
    found = find(tmp_path, ["one", "sub/two", "three", "new"], told)
    assert found == ["one.jpeg", "sub/two.PNG", "three.tif", "old.jpg"]


@pytest.mark.parametrize("told", ["old", "old.jpg", "old.png", "sub\\..jpg"])
def test_what_the_file_says_may_lack_or_err_in_its_extension(tmp_path, told):
    touch(tmp_path, "old.png", "sub/..jpg")
    assert find(tmp_path, ["new"], [told]) == ["sub/..jpg" if "sub" in told else "old.png"]


def test_of_several_pictures_of_a_name_the_file_says_which(tmp_path):
    touch(tmp_path, "one.jpg", "one.png")
    assert find(tmp_path, ["one"], ["C:\\data\\one.png"]) == ["one.png"]
    with pytest.raises(ValueError, match=r"'one' may be any of \['one\.jpg', 'one\.png'\]"):
        find(tmp_path, ["one"], ["one.gif"])


def test_two_names_of_one_picture_are_refused(tmp_path):
    touch(tmp_path, "one.jpg")
    with pytest.raises(ValueError, match=r"'one' and 'two' have one picture, 'one\.jpg' \(2 such\)"):
        find(tmp_path, ["one", "two", "one.jpg"], ["", "one.jpg", ""])


def test_all_missing_pictures_are_named_at_once_and_a_dead_link_is_missing(tmp_path):
    touch(tmp_path, "one.jpg")
    (tmp_path / "two.jpg").symlink_to("gone.jpg")
    (tmp_path / "three.jpg").mkdir()
    with pytest.raises(FileNotFoundError, match=r"for 'two', 'three'$"):
        find(tmp_path, ["two", "one", "three"])


def test_a_name_that_leads_out_is_refused(tmp_path):
    (tmp_path / "root").mkdir()
    touch(tmp_path, "secret.jpg")
    (tmp_path / "root/folder").symlink_to(tmp_path)
    (tmp_path / "root/file.jpg").symlink_to(tmp_path / "secret.jpg")
    for name in ("../secret", "folder/secret", "file"):
        with pytest.raises(ValueError, match=rf"VocDataset: image id=0 \({name}\): file_name="):
            find(tmp_path / "root", [name])


def test_one_warning_counts_names_whose_file_says_another_picture(tmp_path):
    touch(tmp_path, "1.jpg", "2.jpg", "3.jpg")
    with pytest.warns(UserWarning, match=r"'1' has <filename>2\.jpg</filename>, which is another picture \(2 such\)"):
        assert find(tmp_path, ["1", "2", "3"], ["2.jpg", "3.jpg", "/far/9.jpg"]) == ["1.jpg", "2.jpg", "3.jpg"]


def test_sizes_that_are_not_given_are_read_from_headers_and_only_those(tmp_path):
    Image.new("L", (6, 4)).save(tmp_path / "a.png")
    touch(tmp_path, "b.png")
    faults = Faults("VocDataset")
    given = [(0, 0), (0, 6), (9, 9), (0, 0)]
    assert complete_sizes(tmp_path, ["a.png", "a.png", "b.png", ""], given, faults) == [(4, 6), (4, 6), (9, 9), (0, 0)]
    faults.settle()
    complete_sizes(tmp_path, ["b.png"], [(0, 0)], faults)
    with pytest.raises(ValueError, match=r"VocDataset: .*'b\.png' cannot be read as an image"):
        faults.settle()


def test_all_names_that_lead_out_where_they_count_are_in_one_error(tmp_path):
    touch(tmp_path, "1.jpg")
    told = ["/data/1.jpg", "C:\\data\\2.jpg", "/data/3.jpg", "../4.jpg"]
    with pytest.raises(ValueError, match="2 kinds of faults") as error:
        find(tmp_path, ["1", "2", "3", "4"], told)
    assert "for '2', '3', '4'" in str(error.value)
    assert "image id=1 (2): file_name='C:\\\\data\\\\2.jpg' is absolute" in str(error.value)
    assert "(3 such)" in str(error.value)
