"""Every operation gives on a device what it gives on a CPU, with its gradients, and its results lie there."""

import pretend
import pytest
import torch
from opspec import OpSpec
from records import RECORDS
from test_records import followed, results
from torch import Tensor


def gradients(found: tuple[Tensor, ...], arguments: tuple[Tensor, ...]) -> list[Tensor | None]:
    learned = [column.sum() for column in found if column.requires_grad]
    if learned:
        sum(learned).backward()
    return [argument.grad for argument in arguments]


@pytest.mark.parametrize("count", [0, 7, 30])
@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.name)
def test_an_operation_gives_what_it_gives_on_a_cpu(record: OpSpec, count: int):
    for dtype in {torch.float16, torch.float32, torch.int64} & {*record.dtypes}:
        arguments = record.make(count, dtype)
        copies = pretend.on_device(tuple(argument.clone() for argument in arguments))
        if record.gradient != "none":
            arguments, copies = followed(record, arguments), followed(record, copies)
        wanted, found = results(record, arguments), results(record, copies)
        assert {column.device.type for column in found} == {pretend.NAME}
        torch.testing.assert_close(pretend.on_host(found), tuple(column.detach() for column in wanted))
        there, here = gradients(found, copies), gradients(wanted, arguments)
        torch.testing.assert_close(pretend.on_host(there), here, rtol=1e-4, atol=1e-5)
