"""Files of weights and training states: whole whatever happens, checked before loading, never running code."""

import builtins
import contextlib
import os
import pickle
import random
import re
import signal
import subprocess
import sys
import time
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from strategies import unhooked
from torch import nn

from detkit.weights import load_checkpoint, load_metadata, load_weights, save_checkpoint, save_weights


class Tied(nn.Module):
    """Two heads of one weight, and a view of it as a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 2)
        self.second = nn.Linear(3, 2)
        self.second.weight = self.first.weight
        self.register_buffer("turned", self.first.weight.detach().T)


def assert_same_state(first: nn.Module, second: nn.Module) -> None:
    one, two = first.state_dict(), second.state_dict()
    assert one.keys() == two.keys()
    for key, value in one.items():
        assert value.dtype == two[key].dtype, key
        assert torch.equal(value, two[key]), key


def frozen_state(module: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in module.state_dict().items()}


def assert_refused(module: nn.Module, path: Path, message: str, **arguments: bool) -> None:
    """load_weights raises ValueError with this message, names the path, and leaves the module as it was."""
    before = frozen_state(module)
    with pytest.raises(ValueError, match=message) as caught:
        load_weights(module, path, **arguments)
    assert str(path) in str(caught.value)
    for key, value in module.state_dict().items():
        assert torch.equal(value, before[key]), key


# weights


def test_weights_come_back_bit_for_bit_with_their_dtypes(tmp_path):
    def build():
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2).half(), nn.PReLU(0))

    module, other = build(), build()
    module[1](torch.randn(2, 4, 3, 3))
    save_weights(module, tmp_path / "a.safetensors")
    assert load_weights(other, tmp_path / "a.safetensors") == ([], [])
    assert_same_state(module, other)


def test_the_file_is_plain_safetensors_with_every_key_of_the_state(tmp_path):
    module = Tied()
    save_weights(module, tmp_path / "a.safetensors")
    tensors = safetensors.torch.load_file(tmp_path / "a.safetensors")
    assert tensors.keys() == module.state_dict().keys()
    assert torch.equal(tensors["turned"], module.first.weight.T)


def test_shared_tensors_come_back_still_shared(tmp_path):
    module, other = Tied(), Tied()
    save_weights(module, tmp_path / "a.safetensors")
    load_weights(other, tmp_path / "a.safetensors")
    assert_same_state(module, other)
    assert other.second.weight is other.first.weight


def test_a_file_that_keeps_one_of_the_shared_keys_loads(tmp_path):
    module, other = nn.ModuleList([nn.Linear(3, 2)] * 3), nn.ModuleList([nn.Linear(3, 2)] * 3)
    safetensors.torch.save_model(module, str(tmp_path / "a.safetensors"))
    assert len(safetensors.torch.load_file(tmp_path / "a.safetensors")) == 2
    assert load_weights(other, tmp_path / "a.safetensors") == ([], [])
    assert_same_state(module, other)


def test_metadata_comes_back_as_it_was_given(tmp_path):
    metadata = {"epoch": "7", "note": "Häuser, 家\n"}
    save_weights(nn.Linear(1, 1), tmp_path / "a.safetensors", metadata=metadata)
    assert load_metadata(tmp_path / "a.safetensors") == metadata


def test_missing_unexpected_and_misshapen_keys_are_all_named_at_once(tmp_path):
    save_weights(nn.ModuleDict({"a": nn.Linear(3, 2), "old": nn.Linear(1, 1)}), tmp_path / "a.safetensors")
    module = nn.ModuleDict({"a": nn.Linear(4, 2), "new": nn.Linear(1, 1, bias=False)})
    message = (
        r"load_weights: .* does not fit ModuleDict: 1 missing keys: new.weight; "
        r"2 unexpected keys: old.bias, old.weight; 1 other shapes or types: "
        r"a.weight \(file \(2, 3\) torch.float32, module \(2, 4\) torch.float32\) "
        r"\(strict=False allows missing and unexpected keys\)"
    )
    assert_refused(module, tmp_path / "a.safetensors", message)


def test_a_long_list_of_keys_is_counted_and_shortened(tmp_path):
    save_weights(nn.Linear(1, 1), tmp_path / "a.safetensors")
    module = nn.Sequential(*(nn.Linear(1, 1) for _ in range(20)))
    message = r"40 missing keys: 0.weight, 0.bias, 1.weight, 1.bias, \.\.\.; 2 unexpected"
    assert_refused(module, tmp_path / "a.safetensors", message)


def test_not_strict_loads_what_fits_and_returns_the_rest_but_never_another_shape(tmp_path):
    source = nn.ModuleDict({"a": nn.Linear(3, 2), "old": nn.Linear(1, 1, bias=False)})
    save_weights(source, tmp_path / "a.safetensors")
    module = nn.ModuleDict({"a": nn.Linear(3, 2), "new": nn.Linear(1, 1, bias=False)})
    assert load_weights(module, tmp_path / "a.safetensors", strict=False) == (["new.weight"], ["old.weight"])
    assert torch.equal(module["a"].weight, source["a"].weight)
    other = nn.ModuleDict({"a": nn.Linear(3, 5)})
    assert_refused(other, tmp_path / "a.safetensors", r"2 other shapes or types: a.bias \(file \(2,\)", strict=False)


def test_precision_is_converted_but_floats_never_become_integers(tmp_path):
    module = nn.BatchNorm1d(2)
    save_weights(nn.BatchNorm1d(2).double(), tmp_path / "double.safetensors")
    load_weights(module, tmp_path / "double.safetensors")
    assert module.weight.dtype == torch.float32
    floats = {key: value.float() + 0.5 for key, value in module.state_dict().items()}
    safetensors.torch.save_file(floats, tmp_path / "float.safetensors")
    assert_refused(module, tmp_path / "float.safetensors", r"num_batches_tracked \(file \(\) torch.float32")


def test_a_module_without_memory_is_refused_on_both_ways(tmp_path):
    save_weights(nn.Linear(2, 2), tmp_path / "a.safetensors")
    empty = nn.Linear(2, 2, device="meta")
    with pytest.raises(ValueError, match=r"2 keys without memory \(call to_empty first\): bias, weight"):
        load_weights(empty, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"save_weights: weight is a torch.strided meta tensor; allowed are dense"):
        save_weights(empty, tmp_path / "b.safetensors")


def test_entries_that_are_no_tensors_are_refused(tmp_path):
    class Extra(nn.Linear):
        def get_extra_state(self):
            return {"seen": 3}

        def set_extra_state(self, state):
            raise AssertionError("nothing was saved")

    with pytest.raises(ValueError, match=r"save_weights: _extra_state is of type builtins.dict"):
        save_weights(Extra(1, 1), tmp_path / "a.safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("cut", [0, 1, 7, 8, 50, -1])
def test_truncated_weights_are_named_and_change_nothing(tmp_path, cut):
    path = tmp_path / "a.safetensors"
    save_weights(nn.Linear(3, 2), path)
    path.write_bytes(path.read_bytes()[:cut])
    assert_refused(nn.Linear(3, 2), path, r"is truncated, corrupt or no safetensors file: SafetensorError")
    with pytest.raises(ValueError, match=r"load_metadata: .* is truncated, corrupt or no safetensors file"):
        load_metadata(path)


@pytest.mark.parametrize("archive", [True, False])
def test_a_file_of_torchs_own_is_told_from_a_damaged_one(tmp_path, archive):
    path, way_out = tmp_path / "published.pth", "; torch.load(path, map_location='cpu', weights_only=True) reads what"
    torch.save(nn.Linear(3, 2).state_dict(), path, _use_new_zipfile_serialization=archive)
    assert_refused(nn.Linear(3, 2), path, re.escape(way_out))
    if archive:
        assert load_checkpoint(path).keys() == {"weight", "bias"}
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"load_checkpoint: .*published\.pth is truncated, corrupt") as caught:
        load_checkpoint(path)
    assert (way_out in str(caught.value)) is not archive


class Wide(nn.Module):
    """A network whose last layer depends on the number of classes."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.body, self.classes = nn.Linear(3, 4), nn.Linear(4, classes)
        self.register_buffer("seen", torch.tensor(0))


def test_weights_of_another_number_of_classes_fill_what_fits_and_what_was_left_comes_back(tmp_path):
    save_weights(Wide(20), path := tmp_path / "a.safetensors")
    module, saved = Wide(3), safetensors.torch.load_file(path)
    before = frozen_state(module)
    left = ["classes.weight", "classes.bias"]
    missing, unexpected = load_weights(module, path, misfits="drop")
    assert sorted(missing) == sorted(unexpected) == sorted(left)
    for key, value in module.state_dict().items():
        assert torch.equal(value, before[key] if key in left else saved[key]), key


def test_what_does_not_fit_is_refused_unless_it_may_be_left(tmp_path):
    save_weights(Wide(20), path := tmp_path / "a.safetensors")
    assert_refused(Wide(3), path, r'2 other shapes or types: .*misfits="drop" leaves other shapes', strict=False)
    with pytest.raises(ValueError, match=r"load_weights: misfits='leave'; allowed are 'drop' and 'raise'"):
        unhooked(load_weights)(Wide(3), path, misfits="leave")
    more = nn.ModuleDict({"body": nn.Linear(3, 4), "new": nn.Linear(1, 1)})
    assert_refused(more, path, r"2 missing keys: new.weight, new.bias; 3 unexpected keys", misfits="drop")
    other = nn.ModuleDict({"body": nn.Linear(9, 9)})
    assert_refused(other, path, "2 other shapes or types: body.bias", strict=False, misfits="drop")


def test_keys_that_all_begin_with_a_wrappers_name_are_told_to_lose_it(tmp_path):
    values = {f"model.{key}": value for key, value in Wide(3).state_dict().items()}
    safetensors.torch.save_file(values, path := tmp_path / "a.safetensors")
    for settings in ({}, {"strict": False}, {"misfits": "drop"}):
        assert_refused(Wide(3), path, r"all keys begin with 'model\.', .* strip it, and save", **settings)
    stripped = {key.removeprefix("model."): value for key, value in safetensors.torch.load_file(path).items()}
    safetensors.torch.save_file(stripped, path)
    assert load_weights(Wide(3), path) == ([], [])


def wrapped_in_a_process_group(wrap, path: Path):
    """``wrap`` of a module, with a process group of one."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{path}", rank=0, world_size=1)
    try:
        return wrap(nn.Sequential(nn.Linear(2, 3)))
    finally:
        torch.distributed.destroy_process_group()


WRAPPERS = {
    "DataParallel": nn.DataParallel,
    "DistributedDataParallel": nn.parallel.DistributedDataParallel,
    "both": lambda module: nn.DataParallel(nn.parallel.DistributedDataParallel(module)),
    "a wrapped part": lambda module: nn.Sequential(nn.DataParallel(module[0])),
    "compiled": pytest.param(lambda module: torch.compile(module, backend="eager"), marks=pytest.mark.slow(3)),
    "a compiled part": pytest.param(lambda module: nn.Sequential(torch.compile(module[0])), marks=pytest.mark.slow(3)),
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_wrappers_are_looked_through_on_both_ways(wrap, tmp_path):
    module, path = wrapped_in_a_process_group(wrap, tmp_path / "store"), tmp_path / "a.safetensors"
    save_weights(module, path)
    saved = safetensors.torch.load_file(path)
    assert saved.keys() == {"0.weight", "0.bias"}
    assert load_weights(plain := nn.Sequential(nn.Linear(2, 3)), path) == ([], [])
    assert torch.equal(plain[0].weight, saved["0.weight"])
    torch.nn.init.zeros_(next(module.parameters()))
    assert load_weights(module, path) == ([], [])
    assert torch.equal(next(module.parameters()), saved["0.weight"])


# training states


def test_a_training_state_comes_back_bit_for_bit(tmp_path):
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "random": torch.get_rng_state(),
        "history": [(1, 0.1, float("inf")), (2, -0.0, 1e-308)],
        "names": OrderedDict(a=None, b="ö", c=b"\x00", d=2**80, e=True, f=1j),
        "shape": torch.Size([2, 3]),
        "dtype": torch.bfloat16,
        "empty": torch.zeros(0, 4, dtype=torch.uint8),
    }
    save_checkpoint(state, tmp_path / "last.pt")
    found = load_checkpoint(tmp_path / "last.pt")
    for key, value in model.state_dict().items():
        assert torch.equal(found["model"][key], value)
    for key, value in optimizer.state_dict()["state"][0].items():
        assert torch.equal(found["optimizer"]["state"][0][key], value)
    assert found["optimizer"]["param_groups"] == optimizer.state_dict()["param_groups"]
    assert torch.equal(found["random"], state["random"])
    assert found["empty"].shape == (0, 4)
    assert found["empty"].dtype == torch.uint8
    for key in ("history", "names", "shape", "dtype"):
        assert found[key] == state[key]
        assert type(found[key]) is type(state[key])
    assert str(found["history"][1][1]) == "-0.0"


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"a": {"b": [0, np.float64(0.5)]}}, r"state\['a'\]\['b'\]\[1\] is of type numpy.float64; allowed are dicts"),
        ({"best": np.zeros(2)}, r"state\['best'\] is of type numpy.ndarray"),
        ({"model": nn.Linear(1, 1)}, r"state\['model'\] is of type torch.nn.modules.linear.Linear"),
        ({"path": Path("x")}, r"state\['path'\] is of type pathlib"),
        ({"a": {(0, Path("x")): 1}}, r"a key of state\['a'\]\[1\] is of type pathlib"),
    ],
)
def test_what_could_not_be_read_back_is_refused_when_saving(tmp_path, state, message):
    save_checkpoint({"epoch": 1}, tmp_path / "last.pt")
    with pytest.raises(ValueError, match=f"save_checkpoint: {message}"):
        save_checkpoint(state, tmp_path / "last.pt")
    assert load_checkpoint(tmp_path / "last.pt") == {"epoch": 1}


class Evil:
    """Unpickled by anything careless, it leaves a mark."""

    def __reduce__(self):
        return exec, ("import builtins; builtins.detkit_was_here = True",)


def run_careless(path: Path) -> bool:
    """Whether reading the file carelessly runs its code: the attack is real."""
    with contextlib.suppress(RuntimeError):  # a plain pickle is no archive, but by then its code has run
        torch.load(path, weights_only=False)
    try:
        return hasattr(builtins, "detkit_was_here")
    finally:
        vars(builtins).pop("detkit_was_here", None)


@pytest.mark.parametrize("kind", ["archive", "legacy", "plain"])
def test_code_in_a_file_is_refused_and_never_run(tmp_path, kind):
    path = tmp_path / "evil.pt"
    if kind == "plain":
        path.write_bytes(pickle.dumps({"a": Evil()}))
    else:
        torch.save({"a": Evil()}, path, _use_new_zipfile_serialization=kind == "archive")
    with pytest.raises(ValueError, match=r"load_checkpoint: .*evil\.pt is truncated, corrupt or no training") as caught:
        load_checkpoint(path)
    assert not hasattr(builtins, "detkit_was_here")
    if kind == "archive":
        assert "asks for exec" in str(caught.value)
    assert run_careless(path)


def test_a_damaged_training_state_is_named_wherever_the_damage_lies(tmp_path):
    path = tmp_path / "last.pt"
    save_checkpoint({"weights": torch.arange(4096.0), "epoch": 3}, path)
    content = path.read_bytes()
    for cut in (0, 1, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:cut])
        with pytest.raises(ValueError, match=r"load_checkpoint: .*last\.pt is truncated, corrupt"):
            load_checkpoint(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("other.txt", "no training state")
    with pytest.raises(ValueError, match=r"last\.pt is truncated, corrupt"):
        load_checkpoint(path)


def test_one_flipped_bit_in_the_values_is_noticed(tmp_path):
    path = tmp_path / "last.pt"
    save_checkpoint({"weights": torch.full((4096,), 2.0)}, path)
    content = bytearray(path.read_bytes())
    place = content.index(torch.full((64,), 2.0).numpy().tobytes()) + 1000
    content[place] ^= 1
    path.write_bytes(content)
    assert not torch.equal(torch.load(path, weights_only=True)["weights"], torch.full((4096,), 2.0))
    with pytest.raises(ValueError, match=r"checksum of .* differs"):
        load_checkpoint(path)


def test_a_file_that_holds_no_dict_is_refused(tmp_path):
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match=r"list\.pt holds a value of type builtins\.list; allowed is a dict"):
        load_checkpoint(tmp_path / "list.pt")


# the disk


def test_missing_files_and_folders_are_named(tmp_path):
    for load in (load_checkpoint, load_metadata, lambda path: load_weights(nn.Linear(1, 1), path)):
        with pytest.raises(FileNotFoundError, match="nowhere"):
            load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere"):
        save_checkpoint({}, tmp_path / "nowhere" / "a.pt")


@pytest.mark.skipif(os.name != "posix", reason="needs pipes")
def test_a_pipe_and_a_folder_are_refused_at_once_instead_of_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for load in (load_checkpoint, load_metadata, lambda path: load_weights(nn.Linear(1, 1), path)):
        with pytest.raises(ValueError, match=r"^load_\w+: .*pipe is a pipe; allowed is a regular file"):
            load(tmp_path / "pipe")
        with pytest.raises(ValueError, match=r"^load_\w+: .* is a folder; allowed is a regular file"):
            load(tmp_path)


SAVER = """
import os, sys, torch
from detkit.weights import save_checkpoint, save_weights
folder = sys.argv[1]
for line in sys.stdin:
    start = int(line)
    child = os.fork()
    if child == 0:
        module = torch.nn.Linear(1000, 1000, bias=False)
        for value in range(start, start + 100000):
            torch.nn.init.constant_(module.weight, value)
            save_weights(module, folder + "/weights", metadata={"value": str(value)})
            save_checkpoint({"weight": module.weight.detach(), "value": value}, folder + "/state")
    print(child, flush=True)
    os.waitpid(child, 0)
"""


@pytest.mark.slow(12)
@pytest.mark.skipif(os.name != "posix", reason="needs fork and SIGKILL")
def test_killing_the_process_while_it_saves_loses_nothing(tmp_path):
    moments = random.Random(0)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    saver = subprocess.Popen(
        [sys.executable, "-c", SAVER, str(tmp_path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    module, seen, litter = nn.Linear(1000, 1000, bias=False), 0, []

    def written() -> int | None:
        return (tmp_path / "state").stat().st_mtime_ns if (tmp_path / "state").exists() else None

    try:
        for turn in range(12):
            print(1 + 1000 * turn, file=saver.stdin, flush=True)
            child = int(saver.stdout.readline())
            before, deadline = written(), time.monotonic() + 60
            while written() == before and time.monotonic() < deadline:  # on a busy machine it takes a while to begin
                time.sleep(0.01)
            time.sleep(moments.uniform(0.0, 0.1))
            os.kill(child, signal.SIGKILL)
            found = {path for path in tmp_path.iterdir() if path.name not in ("weights", "state")}
            assert len(found) <= 2, "what earlier kills left was not swept: at most the last of each file stays"
            litter += found
            load_weights(module, tmp_path / "weights")
            value = int(load_metadata(tmp_path / "weights")["value"])
            assert bool((module.weight == value).all())
            state = load_checkpoint(tmp_path / "state")
            assert bool((state["weight"] == state["value"]).all())
            assert value >= state["value"] >= seen
            seen = state["value"]
    finally:
        saver.kill()
        saver.wait()
    assert seen > 1000
    assert litter, "no kill hit a file being written: the test proves nothing"
    assert all(path.name.startswith(".") and path.name.endswith(".tmp") for path in litter)
