"""Darknet's .weights files: header, numbers in order, and what is wrong with a file."""

import os
import struct
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import assert_refused
from torch import nn

from detkit.weights.darknet_file import Header, read_numbers, stored, write_numbers

RUNS = [
    *stored("layer 0", nn.Conv2d(2, 3, 3, bias=False), nn.BatchNorm2d(3)),
    *stored("layer 1", nn.Conv2d(3, 2, 1), None),
]
COUNT = 4 * 3 + 3 * 2 * 9 + 2 + 2 * 3


def written(folder: Path, content: bytes) -> Path:
    path = folder / "a.weights"
    path.write_bytes(content)
    return path


def content(*header: int, form: str = "<iiiq", count: int = COUNT) -> bytes:
    return struct.pack(form, *header) + struct.pack(f"<{count}f", *range(count))


def test_biases_come_before_scales_means_variances_and_kernels(tmp_path):
    _, values = read_numbers(written(tmp_path, content(0, 2, 0, 5)), RUNS, owner="from_darknet")
    assert [value.flatten()[0] for value in values] == [0, 3, 6, 9, 12, 66, 68]
    assert [value.shape for value in values[4:]] == [(3, 2, 3, 3), (2,), (2, 3, 1, 1)]
    assert values[4].flatten().tolist() == [*range(12, 66)]


@pytest.mark.parametrize("version", [(0, 0, 9), (0, 1, 0), (0, 2, 0), (0, 2, 5), (1, 0, 0)])
def test_images_seen_take_64_bits_from_version_0_2_on(version, tmp_path):
    form = "<iiiq" if version >= (0, 2) else "<iiii"
    path = written(tmp_path, content(*version, 2**31 - 1, form=form))
    header, values = read_numbers(path, RUNS, owner="from_darknet")
    assert header == (version, 2**31 - 1)
    assert values[0].tolist() == [0, 1, 2]


@pytest.mark.parametrize("count", [1, 11, 12, 60, COUNT - 1, COUNT + 1])
def test_too_few_and_too_many_numbers_are_told_apart(count, tmp_path):
    path = written(tmp_path, content(0, 2, 0, 0, count=count))
    place = {1: "biases of layer 0", 11: "variances of layer 0", 12: "kernels of layer 0", 60: "kernels of layer 0"}
    place |= {COUNT - 1: "kernels of layer 1"}
    said = f"holds {count} numbers, and the cfg needs {COUNT}: "
    said += "4 bytes are left over" if count > COUNT else f"it ends in the {place[count]}"
    assert_refused(f"from_darknet: a.weights {said}", read_numbers, path, RUNS, owner="from_darknet")


@pytest.mark.parametrize(
    ("start", "said"),
    [
        (b"", "has 0 bytes; the header alone has 16"),
        (struct.pack("<iii", 0, 1, 0), "has 12 bytes; the header alone has 16"),
        (struct.pack("<iiii", 0, 2, 0, 0), "has 16 bytes; the header alone has 16, or from version 0.2 on 20"),
        (b"[net]\nwidth=416\nheight=416", "is no file of Darknet's weights: its header says version"),
        (struct.pack("<iiiq", 0, -1, 0, 0), "is no file of Darknet's weights: its header says version 0.-1.0"),
        (struct.pack("<iiiq", 0, 2, 0, -5), "its header says that -5 images were seen; allowed is 0 or more"),
    ],
)
def test_what_has_no_such_header_is_refused(start, said, tmp_path):
    assert_refused(
        f"from_darknet: a.weights {said}", read_numbers, written(tmp_path, start), RUNS, owner="from_darknet"
    )


def test_a_file_that_is_far_too_long_is_not_read(tmp_path):
    path = written(tmp_path, content(0, 2, 0, 0))
    os.truncate(path, 1 << 40)
    assert_refused("from_darknet: a.weights holds 274877906939 numbers", read_numbers, path, RUNS, owner="from_darknet")


@given(st.data())
def test_any_numbers_and_headers_come_back_bit_for_bit(data):
    patterns = data.draw(st.lists(st.integers(0, 2**32 - 1), min_size=COUNT, max_size=COUNT))
    bits = torch.tensor(patterns).to(torch.uint32).view(torch.int32)
    values = bits.view(torch.float32)
    parts = values.split([run.tensor.numel() for run in RUNS])
    parts[3].abs_()  # variances
    values.nan_to_num_(1.0, 2.0, 3.0)
    runs = [run._replace(tensor=own.view(run.tensor.shape)) for run, own in zip(RUNS, parts, strict=True)]
    version = data.draw(st.sampled_from([(0, 1, 0), (0, 2, 0), (0, 2, 5), (9, 9, 9)]))
    seen = data.draw(st.integers(0, 2**31 - 1 if version < (0, 2) else 2**63 - 1))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.weights")
        write_numbers(path, Header(version, seen), runs, owner="to_darknet")
        header, back = read_numbers(path, RUNS, owner="from_darknet")
        assert path.stat().st_size == (16 if version < (0, 2) else 20) + 4 * COUNT
    assert header == (version, seen)
    for run, own in zip(runs, back, strict=True):
        assert own.view(torch.int32).equal(run.tensor.view(torch.int32))


def test_half_precision_is_written_as_float32_and_a_failure_leaves_the_earlier_file(tmp_path):
    halves = [run._replace(tensor=torch.full_like(run.tensor, 0.1).half()) for run in RUNS]
    path = tmp_path / "a.weights"
    write_numbers(path, Header(), halves, owner="to_darknet")
    _, values = read_numbers(path, RUNS, owner="from_darknet")
    assert values[0].tolist() == [torch.tensor(0.1).half().item()] * 3
    before = path.read_bytes()
    assert_refused("to_darknet: -1 images were seen", write_numbers, path, Header(seen=-1), RUNS, owner="to_darknet")
    assert path.read_bytes() == before
    with pytest.raises(FileNotFoundError, match="to_darknet"):
        write_numbers(tmp_path / "no" / "a.weights", Header(), RUNS, owner="to_darknet")
