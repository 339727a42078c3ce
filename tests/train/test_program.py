"""From a command line to trained weights, in this process."""

import json
import math

import pytest
from training import OPTIONS

from detkit.train import program


@pytest.mark.slow(3)
def test_a_run_that_gets_no_better_ends_early_and_a_longer_patience_goes_on(tmp_path, monkeypatch):
    class Judged:
        def compute(self):
            return {"bbox/AP": 0.5, "bbox/AP50": 0.5}

    monkeypatch.setattr(program, "evaluate", lambda *_: Judged())
    monkeypatch.setattr(program, "finish", lambda *_: {})
    options = [*OPTIONS, "--scenes", "4", "--epochs", "5", "--output", str(tmp_path)]

    def epochs():
        return len([json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()])

    program.main([*options, "--early-stop", "2"])
    assert epochs() == 3
    program.main([*options, "--early-stop", "2", "--resume"])
    assert epochs() == 3
    program.main([*options, "--early-stop", "3", "--resume"])
    assert epochs() == 4


def test_no_step_is_taken_where_the_folder_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(program, "train", lambda *_: math.nan)
    (tmp_path / "checkpoint.pt").touch()
    with pytest.raises(ValueError, match="holds checkpoint"):
        program.main([*OPTIONS, "--output", str(tmp_path)])
