"""What the other files here rely on: kernels run in Triton's interpreter, on the CPU."""

import torch
import triton
import triton.language as tl


@triton.jit
def doubled(values, results, count, BLOCK: tl.constexpr):
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(results + places, tl.load(values + places, mask=places < count) * 2, mask=places < count)


def test_a_kernel_runs_on_tensors_of_the_cpu():
    values = torch.arange(70.0)
    results = torch.full((80,), -1.0)
    doubled[(3,)](values, results, 70, BLOCK=32)
    assert torch.equal(results, torch.cat((values * 2, torch.full((10,), -1.0))))
