"""Every recorded operation compiles without a graph break and follows the number of rows."""

import pytest
import torch
from records import RECORDS
from torch._dynamo.testing import CompileCounterWithBackend

COUNTS = (0, 1, 2, 7, 1000, 1001)


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.name)
def test_an_operation_compiles_whole_with_at_most_two_recompilations(record):
    torch.compiler.reset()
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(record.op, backend=counter, fullgraph=True)
    for count in COUNTS:
        arguments = record.make(count, torch.float32)
        found, expected = compiled(*arguments), record.op(*arguments)
        for one, other in zip(*([r] if isinstance(r, torch.Tensor) else r for r in (found, expected)), strict=True):
            assert one.dtype == other.dtype
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    assert counter.frame_count <= 3
