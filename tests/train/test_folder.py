"""The folder of a run."""

import time
from pathlib import Path

import processes
import pytest
from training import claimed

from detkit.train.folder import claim


def hold(folder: str) -> None:
    """Claim a folder as another process does, and keep it until the test kills the process."""
    with claim(claimed(Path(folder))):
        Path(folder, "held").touch()
        time.sleep(600)


@pytest.mark.slow(2)
def test_a_folder_in_use_is_refused_until_the_process_that_uses_it_is_gone(tmp_path):
    process, _ = processes.start(hold, str(tmp_path), printed=tmp_path / "printed.txt")
    try:
        while not (tmp_path / "held").exists() and process.is_alive():
            time.sleep(0.01)
        with pytest.raises(ValueError, match=rf"--output {tmp_path} is in use by another run"):
            claim(claimed(tmp_path, "--resume"))
    finally:
        process.kill()
        process.join()
    claim(claimed(tmp_path)).close()


def test_a_folder_with_an_earlier_run_is_resumed_or_refused_and_what_a_killed_one_left_is_swept(tmp_path):
    litter = [tmp_path / f".{name}.0123456789ab.tmp" for name in ("checkpoint.pt", "weights.safetensors")]
    for path in (*litter, tmp_path / "checkpoint.pt", tmp_path / "notes.tmp"):
        path.touch()
    with pytest.raises(ValueError, match=rf"--output {tmp_path} holds checkpoint.pt of an earlier run; --resume it"):
        claim(claimed(tmp_path))
    claim(claimed(tmp_path, "--resume")).close()
    assert not any(path.exists() for path in litter)
    assert (tmp_path / "notes.tmp").exists()
