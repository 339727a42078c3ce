"""Where the cases that the interpreter shares run in this folder: on a GPU, or not at all."""

import pytest
import torch


@pytest.fixture(scope="session")
def device() -> str:
    if not torch.cuda.is_available():
        pytest.skip("THERE IS NO GPU HERE: no kernel was run on one, only interpreted and compiled ahead")
    return "cuda"


@pytest.fixture
def no_wait(device):
    """A context in which CUDA raises where the host would wait for the device."""

    class NoWait:
        def __enter__(self) -> None:
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("error")

        def __exit__(self, *_: object) -> None:
            torch.cuda.set_sync_debug_mode("default")

    return NoWait()
