"""Files come whole or not at all; what killed processes left is swept; errors of the disk name path and reason."""

import errno
import fcntl
import os
import resource
import stat
from pathlib import Path

import pytest
import torch
from torch import nn

from detkit._disk import write_atomically
from detkit.weights import load_checkpoint, load_weights, save_checkpoint, save_weights


def left_behind(target: Path, token: str = "0123456789ab") -> Path:
    """A temporary file as a killed process leaves it."""
    path = target.with_name(f".{target.name}.{token}.tmp")
    path.write_bytes(b"half")
    return path


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()], ids=repr)
def test_a_failed_write_leaves_the_earlier_file_and_no_litter(tmp_path, error):
    (tmp_path / "a").write_text("earlier")

    def half(file):
        file.write(b"half")
        raise error

    with pytest.raises(type(error)) as caught:
        write_atomically(tmp_path / "a", half, owner="save")
    if isinstance(error, OSError):
        assert caught.value.errno == errno.ENOSPC
        assert f"save: cannot save {tmp_path / 'a'}" in str(caught.value)
        assert "No space left on device" in str(caught.value)
    assert (tmp_path / "a").read_text() == "earlier"
    assert [*tmp_path.iterdir()] == [tmp_path / "a"]


@pytest.mark.parametrize(
    ("save", "small", "large"),
    [
        (save_checkpoint, {"a": torch.zeros(1)}, {"a": torch.zeros(100_000)}),
        (save_weights, nn.Linear(1, 1), nn.Linear(1000, 100)),
    ],
)
def test_a_full_disk_is_named_with_path_and_reason(save, small, large, tmp_path):
    save(small, path := tmp_path / "last")
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))  # what would be longer fails as on a full disk
    try:
        with pytest.raises(OSError, match=rf"{save.__name__}: cannot save {path}.*: File too large"):
            save(large, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert [*tmp_path.iterdir()] == [path]


def test_an_error_that_is_not_the_disks_stays_what_it_is(tmp_path):
    def broken(file):
        raise RuntimeError("its own")

    with pytest.raises(RuntimeError, match=r"^its own$"):
        write_atomically(tmp_path / "a", broken, owner="save")


def test_what_killed_processes_left_is_swept_by_the_next_save_and_nothing_else(tmp_path):
    target = tmp_path / "last[1].pt"
    dead = [left_behind(target), left_behind(target, "ba9876543210")]
    others = [left_behind(tmp_path / "last.pt"), left_behind(target, "notes"), tmp_path / "last[1].pt.tmp"]
    others[2].touch()
    save_checkpoint({}, target)
    assert not any(path.exists() for path in dead)
    assert all(path.exists() for path in others)


def test_a_file_that_is_being_written_is_not_swept(tmp_path):
    target = tmp_path / "last.pt"

    def write(file):
        file.write(b"outer")
        write_atomically(target, lambda inner: inner.write(b"inner"), owner="save")
        assert target.read_bytes() == b"inner"

    write_atomically(target, write, owner="save")
    assert target.read_bytes() == b"outer"
    assert [*tmp_path.iterdir()] == [target]


def test_without_locks_files_are_written_and_none_is_swept(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    dead = left_behind(tmp_path / "last.pt")
    save_checkpoint({"epoch": 1}, tmp_path / "last.pt")
    assert load_checkpoint(tmp_path / "last.pt") == {"epoch": 1}
    assert dead.exists()


def test_content_reaches_the_disk_before_the_name_and_the_name_before_the_return(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    order = []
    fsync, replace = os.fsync, os.replace

    def spied_fsync(descriptor):
        kind = "folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"
        order.append((f"sync {kind}", path.exists(), os.fstat(descriptor).st_size > 0))
        fsync(descriptor)

    def spied_replace(source, target):
        order.append(("rename", path.exists(), True))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", spied_fsync)
    monkeypatch.setattr(os, "replace", spied_replace)
    save_weights(nn.Linear(1, 1), path)
    assert order == [("sync file", False, True), ("rename", False, True), ("sync folder", True, True)]


def test_files_get_the_usual_permissions_and_links_stay_links(tmp_path):
    path, link = tmp_path / "epoch_7.safetensors", tmp_path / "last.safetensors"
    (tmp_path / "usual").touch()
    save_weights(nn.Linear(1, 1), path)
    assert path.stat().st_mode == (tmp_path / "usual").stat().st_mode
    link.symlink_to(path)
    module = nn.Linear(1, 1)
    save_weights(module, link)
    assert link.is_symlink()
    other = nn.Linear(1, 1)
    load_weights(other, path)
    assert torch.equal(module.weight, other.weight)
