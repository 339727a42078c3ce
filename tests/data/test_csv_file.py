"""Reading csv files of any content."""

import csv

import pytest

from detkit.data import csv_file
from detkit.data.csv_file import read_rows


def test_lines_are_numbered_as_an_editor_does_and_empty_ones_left_out(tmp_path):
    (tmp_path / "a.csv").write_bytes(b'\xef\xbb\xbfa,b\r\n\r\n"1\n2",3\r\n')
    assert read_rows(tmp_path / "a.csv") == {1: ["a", "b"], 4: ["1\n2", "3"]}


def test_a_field_may_be_longer_than_csvs_own_limit_which_stays(tmp_path):
    limit = csv.field_size_limit()
    (tmp_path / "a.csv").write_text("x" * (limit + 1))
    assert len(read_rows(tmp_path / "a.csv")[1][0]) == limit + 1
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize(
    ("content", "reason"), [(b"\xff", "as csv in UTF-8"), (b'a\n"b', "line 2 cannot be read as csv")]
)
def test_what_is_no_csv_is_refused(content, reason, tmp_path):
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(ValueError, match=reason):
        read_rows(tmp_path / "a.csv")


def test_a_large_file_is_refused_before_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(csv_file, "MAX_CSV_BYTES", 3)
    (tmp_path / "a.csv").write_text("a,b,c")
    with pytest.raises(ValueError, match="has 5 bytes; allowed are 3"):
        read_rows(tmp_path / "a.csv")
