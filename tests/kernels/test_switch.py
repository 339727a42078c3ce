"""An operator that handed over runs the kernel on its device, unless kernels are off or the kernel declines."""

import importlib.util
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from detkit import kernels
from detkit.kernels import switch
from detkit.kernels.switch import available, takes_over

AVAILABLE = available


@torch.library.custom_op("detkit_tests::doubled", mutates_args=())
def doubled(values: Tensor, times: int) -> Tensor:
    return values * 2**times


@doubled.register_fake
def _(values: Tensor, times: int) -> Tensor:
    return torch.empty_like(values)


def kernel(values: Tensor, times: int) -> Tensor:
    return NotImplemented if times > 1 else values * 2**times + 100


@pytest.fixture(autouse=True)
def handed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("detkit.kernels.switch.available", lambda: True)
    takes_over(doubled, lambda values, times: values * 2**times, lambda: kernel, device="cpu")


def test_the_kernel_answers_where_it_is_registered():
    assert doubled(torch.ones(1), 1).item() == 102


def test_what_the_kernel_declines_the_torch_form_answers():
    assert doubled(torch.ones(1), 2).item() == 4


def test_disabled_kernels_leave_everything_to_the_torch_form_and_come_back():
    with kernels.disabled():
        assert doubled(torch.ones(1), 1).item() == 2
        assert torch.compile(doubled, fullgraph=True, backend="eager")(torch.ones(1), 1).item() == 2
    with pytest.raises(KeyError), kernels.disabled():
        raise KeyError
    assert doubled(torch.ones(1), 1).item() == 102


def test_without_triton_the_torch_form_answers(monkeypatch):
    monkeypatch.setattr("detkit.kernels.switch.available", lambda: False)
    assert doubled(torch.ones(1), 1).item() == 2


def test_without_a_compiler_triton_counts_as_missing(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert not AVAILABLE.__wrapped__()
    monkeypatch.setattr("shutil.which", lambda name: name if name == "gcc" else None)
    assert AVAILABLE.__wrapped__() == (importlib.util.find_spec("triton") is not None)


def test_a_function_hands_over_on_the_devices_of_kernels_unless_they_are_off(monkeypatch):
    assert not switch.serves(torch.ones(1))
    monkeypatch.setattr(switch, "DEVICES", {"cpu"})
    assert switch.serves(torch.ones(1))
    assert not switch.serves(torch.ones(1, device="meta"))
    with kernels.disabled():
        assert not switch.serves(torch.ones(1))
    assert switch.launched(kernel, torch.ones(1), times=1).item() == 102


@pytest.mark.slow(5)
def test_importing_and_using_detkit_needs_no_triton():
    code = """
import sys
sys.modules["triton"] = None  # any import of it fails
import torch, detkit, detkit.detectors, detkit.tricks
from detkit.boxes import nms
assert nms(torch.tensor([[0.0, 0, 9, 9], [0, 0, 9, 8]]), torch.tensor([0.9, 0.8]), 0.5).tolist() == [0]
assert not detkit.kernels.available()
assert not [name for name in sys.modules if name.startswith("detkit.kernels.") and name != "detkit.kernels.switch"]
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
