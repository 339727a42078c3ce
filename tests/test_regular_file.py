"""Files from outside: read as they stand, or refused by name."""

import os
from pathlib import Path

import pytest

from detkit._regular_file import open_regular, read_json


def test_only_regular_files_are_opened(tmp_path):
    (tmp_path / "a").write_bytes(b"content")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    with open_regular(tmp_path / "link", owner="load") as file:
        assert file.read() == b"content"
    os.mkfifo(tmp_path / "pipe")
    for path, kind in ((tmp_path / "pipe", "a pipe"), (tmp_path, "a folder"), (Path(os.devnull), "a device")):
        with pytest.raises(ValueError, match=f"^load: {path} is {kind}; allowed is a regular file$"):
            open_regular(path, owner="load")
    with pytest.raises(OSError, match="link"):
        open_regular(tmp_path / "link", owner="load", links=False)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        open_regular(tmp_path / "nowhere", owner="load")


def test_what_a_file_holds_is_read_with_and_without_a_byte_order_mark(tmp_path):
    for mark in (b"", b"\xef\xbb\xbf"):
        (tmp_path / "a.json").write_bytes(mark + '{"name": "ü"}'.encode())
        assert read_json(tmp_path / "a.json", owner="f") == {"name": "ü"}


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "\xff", '{"a": ' + "9" * 10_000 + "}"])
def test_json_that_is_none_or_too_deep_is_refused_by_name(tmp_path, text):
    (tmp_path / "a.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"CocoDataset: .*a\.json is not valid JSON"):
        read_json(tmp_path / "a.json", owner="CocoDataset")


def test_json_over_the_bound_is_not_read(tmp_path, monkeypatch):
    (tmp_path / "a.json").write_text("[1, 2, 3]")
    monkeypatch.setattr("detkit._regular_file.MAX_JSON_BYTES", 8)
    with pytest.raises(ValueError, match="has 9 bytes; allowed are 8"):
        read_json(tmp_path / "a.json", owner="CocoDataset")
