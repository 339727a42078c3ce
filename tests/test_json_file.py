"""JSON from outside: read as it stands, or refused by name."""

import pytest

from detkit._json_file import read_json


def test_what_a_file_holds_is_read_with_and_without_a_byte_order_mark(tmp_path):
    for mark in (b"", b"\xef\xbb\xbf"):
        (tmp_path / "a.json").write_bytes(mark + '{"name": "ü"}'.encode())
        assert read_json(tmp_path / "a.json", owner="f") == {"name": "ü"}


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(ValueError, match=r"^f: .* is no regular file$"):
        read_json(tmp_path, owner="f")


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "\xff", '{"a": ' + "9" * 10_000 + "}"])
def test_json_that_is_none_or_too_deep_is_refused_by_name(tmp_path, text):
    (tmp_path / "a.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"CocoDataset: .*a\.json is not valid JSON"):
        read_json(tmp_path / "a.json", owner="CocoDataset")


def test_json_over_the_bound_is_not_read(tmp_path, monkeypatch):
    (tmp_path / "a.json").write_text("[1, 2, 3]")
    monkeypatch.setattr("detkit._json_file.MAX_JSON_BYTES", 8)
    with pytest.raises(ValueError, match="has 9 bytes; allowed are 8"):
        read_json(tmp_path / "a.json", owner="CocoDataset")
