"""Fixtures that every test may use."""

import os
from pathlib import Path

import hypothesis
import pytest
import torch

# Two workers on two cores: threads of their own would only wait for one another.
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start

# What torch.compile traces must not carry the shape checks: tests/test_compiled.py runs that folder on its own.
collect_ignore = [] if os.environ.get("DETKIT_COMPILED_TESTS") else ["compiled"]

# The machine may be slow, and CI must say the same thing twice.
# mutmut runs a test several times in one process, each time from another instance of its class.
hypothesis.settings.register_profile(
    "detkit",
    deadline=None,
    derandomize="CI" in os.environ,
    suppress_health_check=[hypothesis.HealthCheck.differing_executors],
)
hypothesis.settings.load_profile("detkit")


@pytest.fixture(scope="session")
def detkit_data() -> Path:
    """The folder of real data sets; a test that asks for it is skipped, with the reason, where there is none."""
    folder = os.environ.get("DETKIT_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("DETKIT_DATA names no folder of data sets: this test on real data did NOT run")
    return Path(folder)


@pytest.fixture
def generator() -> torch.Generator:
    """A freshly seeded generator: the same numbers in every run."""
    return torch.Generator().manual_seed(0)
