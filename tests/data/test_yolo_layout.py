"""Where pictures, label files and names stand: tests/data/test_yolo.py tries every layout through the data set."""

from detkit.data.yolo_layout import YoloLayout, find_layout, read_lines


def test_pictures_come_sorted_with_the_label_file_of_each_or_none(tmp_path):
    for name in ("images/b.png", "images/a.png", "images/.hidden.png", "images/notes.md", "labels/b.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert find_layout(tmp_path, None, ["cat"]) == YoloLayout(
        ["images/a.png", "images/b.png"], [None, "labels/b.txt"], ["cat"]
    )


def test_a_list_may_begin_with_a_byte_order_mark_and_end_its_lines_as_windows_does(tmp_path):
    (tmp_path / "train.txt").write_bytes(b"\xef\xbb\xbfa.png\r\nb.png \r\n")
    assert read_lines(tmp_path, "train.txt") == ["a.png", "b.png"]
