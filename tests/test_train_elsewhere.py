"""The loop of detkit.train in other trainers: every step has the losses that it has there."""

import ast
import json

import processes
import pytest
from test_train import ROOT, run

PACKAGES = {"train_fabric.py": "lightning_fabric", "train_accelerate.py": "accelerate"}


@pytest.fixture(scope="session")
def plain(tmp_path_factory):
    """metrics.jsonl of two epochs of train.py."""
    output = tmp_path_factory.mktemp("plain")
    run(output, "--recipe", "fpn_ssd", "--epochs", "2")  # that of the others
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow(10)
@pytest.mark.parametrize("name", PACKAGES)
def test_another_trainer_has_the_losses_of_the_plain_loop(name, plain, tmp_path):
    pytest.importorskip(PACKAGES[name], reason=f"without {PACKAGES[name]} examples/{name} did NOT run")
    options = ("--scenes", "24", "--side", "64", "--batch-size", "4", "--warmup", "4", "--epochs", "2")
    command = (ROOT / "examples" / name, str(tmp_path / "weights.safetensors"), *options)
    started = processes.start(
        processes.script, *command, printed=tmp_path / "printed.txt", CUDA_VISIBLE_DEVICES="", ACCELERATE_USE_CPU="true"
    )
    (printed,) = processes.end(started)
    steps = [ast.literal_eval(line) for line in printed.splitlines() if line.startswith("{")]
    assert len(steps) == 12
    for epoch, expected in enumerate(plain):
        rel = 1e-5 if epoch == 0 else 1e-4  # training enlarges what sums in another order differ by
        own = [step for step in steps if step["epoch"] == epoch]
        for loss in ("dense.classification", "dense.box"):
            assert sum(step[loss] for step in own) / 6 == pytest.approx(expected[loss], rel=rel), (epoch, loss)
    assert (tmp_path / "weights.safetensors").stat().st_size > 0


@pytest.mark.parametrize("name", PACKAGES)
def test_another_trainer_takes_at_most_sixty_lines(name):
    assert len((ROOT / "examples" / name).read_text(encoding="utf-8").splitlines()) <= 60
