"""What a run finds out, and what it writes."""

import importlib.util
import json

import pytest
from training import begun

from detkit.data import DigitScenes
from detkit.train.results import evaluate, finish, keep_best, report
from detkit.weights import load_detector


@pytest.mark.slow
def test_the_best_weights_stay_and_the_test_set_is_judged_by_them(tmp_path, capsys):
    run, data = begun(tmp_path), DigitScenes(4, size=(64, 64))
    for ap, bias in ((0.2, 1.0), (0.1, 2.0)):
        run.average.module.trunk[0].stem[0][0].weight.data.fill_(bias)
        run.judged({"bbox/AP": ap})
        keep_best(run, data.categories)
    run.sums, run.records = {"dense.box": 1.0}, [{"epoch": 0, "dense.box": 1.0, "bbox/AP": 0.2, "bbox/AP50": 0.5}]
    finish(run, data, data.categories)
    weights = run.average.module.trunk[0].stem[0][0].weight
    assert weights.unique().tolist() == [1.0]
    assert load_detector(tmp_path / "weights.safetensors").categories == tuple(data.categories)
    assert (
        json.loads((tmp_path / "result.json").read_text())["bbox/AP"]
        == evaluate(run, data, data.categories).compute()["bbox/AP"]
    )
    assert {"curve.png", "pictures.png"} <= {path.name for path in tmp_path.iterdir()}


def test_a_run_ends_without_matplotlib_and_says_what_is_missing(tmp_path, capsys, monkeypatch):
    run, data = begun(tmp_path), DigitScenes(1, size=(64, 64))
    run.judged({"bbox/AP": 0.2})
    keep_best(run, data.categories)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    finish(run, data, data.categories)
    assert 'no curve.png without matplotlib: pip install "torch-detkit[viz]"' in capsys.readouterr().out
    assert (tmp_path / "pictures.png").exists()


def test_a_record_is_written_printed_and_handed_to_tensorboard(tmp_path, capsys):
    class Writer(list):
        def add_scalar(self, *values):
            self.append(values)

        def flush(self):
            self.append("flushed")

    writer = Writer()
    report(begun(tmp_path).args, [{"epoch": 0, "lr": 1.0}, {"epoch": 1, "lr": 0.5}], writer)
    assert writer == [("epoch", 1, 1), ("lr", 0.5, 1), "flushed"]
    assert capsys.readouterr().out == "epoch=1  lr=0.5\n"
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
