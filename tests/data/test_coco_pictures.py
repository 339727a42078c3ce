"""Names and sizes of pictures: found before training begins, and each kind of fault told once."""

import pytest
from PIL import Image

from detkit._coco.tables import Table
from detkit._faults import Faults
from detkit.data.coco_pictures import read_pictures


def read(folder, *images):
    table = Table("image", [{"id": i, "height": 4, "width": 6} | image for i, image in enumerate(images)])
    faults = Faults("a.json")
    names, sizes = read_pictures(table, folder, faults)
    faults.settle()
    return names, sizes.tolist()


def test_every_kind_of_bad_name_is_told_with_its_first_image_and_count(tmp_path):
    names = ["/a/1.png", "/a/2.png", "../x.png", None, "http://host/a.png", "gone.png", ""]
    with pytest.raises(ValueError, match="5 kinds of faults") as error:
        read(tmp_path, *({"file_name": name} for name in names))
    for line in (
        "image id=0: file_name='/a/1.png' is absolute (cut it down to what follows the folder of images); allowed is a "
        "relative path inside image_folder (2 such)",
        "image id=2: file_name='../x.png' has a part '..'",
        "image id=3: file_name=None is not a text of at least one character; allowed is a relative path inside "
        "image_folder (2 such)",
        "image id=4: file_name='http://host/a.png' is a URL, and nothing is ever fetched",
        "image id=5: there is no file 'gone.png'",
    ):
        assert line in str(error.value)


def test_of_many_missing_pictures_the_first_are_listed(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"image id=0: there is no file '0.png' below .*'9\.png' and 50 more"):
        read(tmp_path, *({"file_name": f"{i}.png"} for i in range(60)))


def test_a_name_with_backslashes_is_taken_literally_where_that_file_exists(tmp_path):
    (tmp_path / "a\\b.png").touch()
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "b.png").touch()
    assert read(tmp_path, {"file_name": "a\\b.png"}, {"file_name": "c\\b.png"})[0] == ["a\\b.png", "c/b.png"]


def test_a_name_that_is_given_is_not_replaced_by_the_url(tmp_path):
    (tmp_path / "b.png").touch()
    with pytest.raises(FileNotFoundError, match="'a\\.png'"):
        read(tmp_path, {"file_name": "a.png", "coco_url": "http://host/val/b.png"})


@pytest.mark.parametrize("url", ["http://host/../../etc/passwd", "http://host/", "file:///etc/passwd"])
def test_a_url_leads_nowhere_else_than_into_the_folder(tmp_path, url):
    with pytest.raises((ValueError, FileNotFoundError), match="image id=0"):
        read(tmp_path, {"coco_url": url})


def test_sizes_that_are_not_given_come_from_headers_and_others_open_nothing(tmp_path):
    Image.new("L", (9, 7)).save(tmp_path / "a.png")
    (tmp_path / "b.png").touch()
    images = {"file_name": "a.png", "height": None}, {"file_name": "b.png"}
    with pytest.raises(
        ValueError, match=r"image id=0: height=None, width=6; allowed is the picture's own size: \[7, 9\]"
    ):
        read(tmp_path, *images)
    images[0]["width"] = 0
    assert read(tmp_path, *images)[1] == [[7, 9], [4, 6]]


def test_without_a_folder_sizes_must_be_given(tmp_path):
    assert read(None, {"file_name": "a.png"}) == (["a.png"], [[4, 6]])
    with pytest.raises(ValueError, match="image id=0: height=-1, width=6; allowed is a number of pixels"):
        read(None, {"file_name": "a.png", "height": -1})


def test_more_pixels_than_are_ever_decoded_are_refused(tmp_path):
    with pytest.raises(
        ValueError, match="image id=0: height=200000, width=200000; allowed is at most MAX_IMAGE_PIXELS"
    ):
        read(None, {"file_name": "a.png", "height": 200_000, "width": 200_000})
