"""The pretend device itself: it computes as a CPU, refuses what a GPU refuses, and counts what a GPU waits for."""

from collections import Counter

import pretend
import pytest
import torch
from torch import Tensor, nn

from detkit._sent import sent
from detkit.boxes import batched_nms, box_iou, nms, nms_padded

BOXES = torch.tensor([[0.0, 0, 10, 10], [1, 1, 10, 10], [20, 20, 30, 30]])


def there(*values: float) -> Tensor:
    return pretend.on_device(torch.tensor(values))


def test_tensors_are_plain_ones_of_another_device():
    values = there(1, 2)
    assert type(values) is Tensor
    assert values.device.type == "pretend"
    assert type(torch.zeros(2, device="pretend")) is Tensor
    assert pretend.on_host(values + 1).tolist() == [2, 3]


def gradient(values: Tensor, factor: Tensor) -> Tensor | None:
    """Through views, in place and out of it, indices and a copy."""
    values = values.detach().requires_grad_()
    doubled = values * 2
    doubled[1:, ::2].mul_(factor)
    doubled[0, 1] = 3.0
    doubled[doubled > 1] = 0.5
    rows = torch.arange(3, device=values.device).flip(0)
    (doubled.sigmoid()[rows].double().to(values.device) * doubled.t().sort(0).values.t()).sum().backward()
    return values.grad


def network(images: Tensor) -> tuple[Tensor | None, ...]:
    torch.manual_seed(0)
    convolved = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2))
    attention = nn.MultiheadAttention(4, 2, batch_first=True)
    if images.device.type == pretend.NAME:
        convolved, attention = pretend.on_device(convolved), pretend.on_device(attention)
    rows = convolved(images).flatten(2).transpose(1, 2)
    attention(rows, rows, rows)[0].sum().backward()
    return convolved[0].weight.grad, convolved[1].running_mean, attention.in_proj_weight.grad


@pytest.mark.parametrize(
    ("function", "arguments"),
    [(gradient, (torch.randn(3, 4), torch.tensor(2.0))), (network, (torch.rand(2, 3, 8, 8),))],
)
def test_values_and_gradients_are_those_of_the_cpu_without_a_wait(function, arguments):
    with pretend.counted() as waits:
        found = function(*pretend.on_device(arguments))
    torch.testing.assert_close(pretend.on_host(found), function(*arguments))
    assert not waits


def test_weights_that_two_modules_share_stay_shared():
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    second.weight = first.weight
    pair = pretend.on_device(nn.ModuleList((first, second)))
    assert pair[0].weight is pair[1].weight
    assert pair[0].weight.device.type == pretend.NAME


@pytest.mark.parametrize(
    ("what", "wait"),
    [
        (lambda x: x.sum().item(), "item"),
        (lambda x: bool(x.any()), "item"),
        (lambda x: int(x[0]), "item"),
        (lambda x: x.tolist(), "copy to the host"),
        (lambda x: x.new_tensor([1.0, 2.0]), "copy to the device"),
        (lambda x: torch.tensor([1.0], device=x.device), "copy to the device"),
        (lambda x: torch.zeros(1 << 15).to(x.device, non_blocking=True), "copy to the device"),
        (lambda x: x[..., [0, 1]], "copy to the device"),
        (lambda x: x.nonzero(), "nonzero"),
        (lambda x: torch.where(x > 1), "nonzero"),
        (lambda x: x[x > 1], "boolean index"),
        (lambda x: x.masked_select(x > 1), "boolean index"),
        (lambda x: x.index_put_((x > 1,), x[1:]), "boolean index"),
        (lambda x: x.unique(), "unique"),
        (lambda x: x.long().bincount(), "bincount"),
        (lambda x: x.repeat_interleave(x.long()), "repeat_interleave"),
        (lambda x: torch.equal(x, x), "equal"),
    ],
)
def test_what_a_gpu_waits_for_is_counted(what, wait):
    values = there(1, 2)
    with pretend.counted() as waits:
        what(values)
    assert Counter(one.what for one in waits) == {wait: 1}


@pytest.mark.parametrize(
    "what",
    [
        lambda x: torch.zeros(2).to(x.device, non_blocking=True),
        lambda x: x.repeat_interleave(x.long(), output_size=3),
        lambda x: x.repeat_interleave(2),
        lambda x: x[1:] + x.new_zeros(1) + torch.arange(1, device=x.device),
        lambda x: x.masked_fill(x > 1, 0.0) * torch.tensor(2.0),
        lambda x: torch.where(x > 1, x, torch.tensor(0.0)),
    ],
)
def test_what_no_gpu_waits_for_is_not_counted(what):
    values = there(1, 2)
    with pretend.counted() as waits:
        what(values)
    assert not waits


@pytest.mark.parametrize(
    "what",
    [
        lambda x: x + torch.ones(2),
        lambda x: torch.ones(2) + x,
        lambda x: torch.cat((x, torch.ones(()).reshape(1))),
        lambda x: torch.stack((x[0], torch.ones(()))),
        lambda x: x.gather(0, torch.tensor([1])),
        lambda x: torch.ones(()).add_(x[0]),
        lambda x: torch.rand(2, generator=torch.Generator(), device=x.device),
    ],
)
def test_two_devices_in_one_operation_are_refused(what):
    values = there(1, 2)
    with pytest.raises(RuntimeError, match=r"same device.*pretend.*cpu"):
        what(values)


@torch.library.custom_op("detkit_tests::of_the_host", mutates_args=(), device_types="cpu")
def of_the_host(values: Tensor) -> Tensor:
    return values + 1


@pytest.mark.skipif(not pretend.knows_cuda(), reason="this torch or torchvision does not know the kernels of CUDA")
def test_what_has_no_kernel_for_cuda_is_refused():
    assert of_the_host(torch.ones(1)) == 2
    with pytest.raises(NotImplementedError, match="detkit_tests::of_the_host has no kernel for CUDA"):
        of_the_host(there(1, 2))


def test_the_library_names_the_argument_of_another_device():
    with pytest.raises(
        ValueError, match=r"box_iou: boxes2 is on device cpu, boxes1 on pretend:0; allowed is one device"
    ):
        box_iou(pretend.on_device(BOXES), BOXES)


def test_what_is_sent_to_the_device_is_not_waited_for_and_what_comes_back_is():
    with pretend.counted() as waits:
        values = sent(torch.ones(3), torch.device(pretend.NAME))
    assert not waits
    with pretend.counted() as waits:
        back = sent(values, torch.device("cpu"))
    assert [(one.what, one.place.partition(":")[0]) for one in waits] == [("copy to the host", "_sent.py")]
    assert back.tolist() == [1, 1, 1]


def test_a_wait_says_where_and_in_which_operator():
    boxes, scores = pretend.on_device((BOXES, torch.tensor([0.8, 0.9, 0.7])))
    with pretend.counted() as waits:
        indices, _ = nms_padded(boxes[None], scores[None], 0.5, max_detections=3)
    assert pretend.on_host(indices).tolist() == [[1, 2, 0]]
    assert {one.inside for one in waits} == {"detkit::nms_padded"}
    assert all(one.place.startswith("boxes/") for one in waits)


@pytest.mark.parametrize("suppress", [nms, lambda *rows: batched_nms(*rows[:2], rows[1].long(), rows[2])])
def test_suppression_of_one_set_waits_a_few_times_whatever_its_size(suppress):
    """It checks its input and returns as many rows as survive: a device must be asked."""
    counts = []
    for number in (100, 3000):
        low = torch.rand(number, 2, generator=torch.Generator().manual_seed(0)) * 500
        rows = torch.cat((low, low + 40), 1), torch.rand(number, generator=torch.Generator().manual_seed(1))
        with pretend.counted() as waits:
            found = suppress(*pretend.on_device(rows), 0.5)
        torch.testing.assert_close(pretend.on_host(found), suppress(*rows, 0.5))
        counts.append(len(waits))
    assert counts[0] == counts[1] <= 10
