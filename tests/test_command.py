"""Commands end with one line for errors that tell their repair."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

from detkit import _command, data


def ended(main) -> str:
    with pytest.raises(SystemExit) as caught:
        _command.run(main)
    return str(caught.value.code)


def test_an_error_of_this_library_is_one_line(tmp_path):
    assert ended(lambda: data.CsvDataset(tmp_path, tmp_path / "none.csv")).startswith("error: ")
    assert "none.csv" in ended((tmp_path / "none.csv").read_text)
    assert ended(lambda: data.large_scale_jitter((0, 8))).startswith("error: large_scale_jitter: size[0]=0")


@pytest.mark.parametrize("main", [lambda: int("x"), lambda: [][0]], ids=["a ValueError", "an IndexError"])
def test_errors_of_others_keep_their_traceback(main):
    with pytest.raises((ValueError, IndexError)):
        _command.run(main)


def test_development_mode_shows_every_traceback(monkeypatch, tmp_path):
    monkeypatch.setattr(_command, "sys", SimpleNamespace(flags=SimpleNamespace(dev_mode=True)))
    with pytest.raises(FileNotFoundError):
        _command.run(lambda: data.CsvDataset(tmp_path, tmp_path / "none.csv"))


@pytest.mark.slow(5)
def test_a_command_that_finds_no_data_says_where_it_looked(tmp_path):
    options = ["--data", "yolo", "--root", str(tmp_path / "none"), "--output", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-m", "detkit.train", *options], capture_output=True, text=True)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert str(tmp_path / "none") in done.stderr
