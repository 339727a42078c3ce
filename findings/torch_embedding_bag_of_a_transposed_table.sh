#!/usr/bin/env bash
# torch.nn.functional.embedding_bag takes a table whose rows are not contiguous, such as the cells of a feature map with
# channels first, at several times the price of copying the table first: it leaves its fast kernel without a word.
#
# Guess before the first run: strides cost what the copy costs, a tenth of the sum, since each row is only gathered.
# Seen with torch 2.15.0 on a processor, one thread, 100,000 bags of 16 weighted rows of 64 from a table of 30,000:
# equal sums; a transposed view takes 18 times as long as .contiguous() and the same call on that (11 beside other work).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/show.py" <<'PYTHON'
import time

import torch
from torch.nn.functional import embedding_bag

print("torch", torch.__version__)
assert torch.__version__.startswith("2.15.0")
torch.set_num_threads(1)
torch.manual_seed(0)
table = torch.randn(64, 30_000).t()
rows, weights = torch.randint(30_000, (100_000, 16), dtype=torch.int32), torch.rand(100_000, 16)


def seconds(function):
    function()
    times = []
    for _ in range(5):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return min(times)


def as_it_is():
    return embedding_bag(rows, table, per_sample_weights=weights, mode="sum")


def copied():
    return embedding_bag(rows, table.contiguous(), per_sample_weights=weights, mode="sum")


assert torch.allclose(as_it_is(), copied(), atol=1e-4)
ratio = seconds(as_it_is) / seconds(copied)
print(f"  a transposed view takes {ratio:.1f} times as long as a copy and the call on that")
assert ratio > 2
PYTHON
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q uv
"$folder/venv/bin/uv" venv -q "$folder/own"
"$folder/venv/bin/uv" pip install -q --python "$folder/own/bin/python" "torch==2.15.0" "numpy==2.3.5"
"$folder/own/bin/python" "$folder/show.py"
