"""From a command line to trained weights, in this process."""

import json
import math

import pytest
import torch
from torch import nn
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "expected"), [((), True), (("--no-channels-last",), False), (("--channels-last",), True)]
)
def test_channels_lie_side_by_side_unless_told(given, expected, tmp_path, monkeypatch):
    class BuiltError(Exception):
        pass

    def run(args, detector, *_):
        kernels = [part.weight for part in detector.modules() if isinstance(part, nn.Conv2d)]
        wide = [kernel for kernel in kernels if kernel.shape[2] > 1]
        assert {kernel.is_contiguous(memory_format=torch.channels_last) for kernel in wide} == {expected}
        raise BuiltError

    monkeypatch.setattr(program, "Run", run)
    with pytest.raises(BuiltError):
        program.main([*OPTIONS, "--scenes", "4", "--output", str(tmp_path), *given])
