"""Metrics of several processes are those of one, to the last bit."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("rank.py")


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("metrics_rank", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("world", [2, 3])
def test_uneven_processes_one_without_images_give_the_numbers_of_one_process(world, script, tmp_path):
    wanted = json.loads(json.dumps(script.evaluate(script.SHARES[1][0])))
    assert 0 < wanted[4]["bbox/AP"] < 1  # the fifth entry: CocoMetrics over all images
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parents[2])}
    ranks = [
        subprocess.Popen([sys.executable, SCRIPT, str(rank), str(world), str(tmp_path)], env=environment)
        for rank in range(world)
    ]
    try:
        assert [rank.wait(timeout=120) for rank in ranks] == [0] * world
    finally:
        for rank in ranks:
            rank.kill()
    for rank in range(world):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == wanted
