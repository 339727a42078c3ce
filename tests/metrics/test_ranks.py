"""Metrics of several processes are those of one, to the last bit."""

import importlib.util
import json
from pathlib import Path

import processes
import pytest

SCRIPT = Path(__file__).with_name("rank.py")


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("metrics_rank", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow(4)
@pytest.mark.parametrize("world", [2, 3])
def test_uneven_processes_one_without_images_give_the_numbers_of_one_process(world, script, tmp_path):
    wanted = json.loads(json.dumps(script.evaluate(script.SHARES[1][0])))
    assert 0 < wanted[4]["bbox/AP"] < 1  # the fifth entry: CocoMetrics over all images
    processes.end(
        *(
            processes.start(
                processes.script, SCRIPT, str(rank), str(world), str(tmp_path), printed=tmp_path / f"{rank}.txt"
            )
            for rank in range(world)
        )
    )
    for rank in range(world):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == wanted
