#!/usr/bin/env bash
# Under torch.autocast a weight that is used several times is cast once, and the gradients of its uses are added in
# bfloat16, in that cast copy; with cache_enabled=False each use has a cast of its own, and they are added in float32.
#
# Guess before the first run: parameters stay in float32, so the gradients of all uses are added in float32; the cache
# saves time and memory and changes no number.
# Seen with torch 2.15.0 on a CPU: a 16 x 16 weight that multiplies 512 rows one by one gets gradients that are wrong by up
# to 4.6 %; without the cache by .015 %, all rows at once by .36 %. The gradient's dtype is float32 each time, so nothing
# shows. Whatever runs one layer in many pieces is hit: heads over levels or images, regions in chunks, recurrent steps.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/show.py" <<'PYTHON'
import torch

print("torch", torch.__version__)
assert torch.__version__.startswith("2.15.0")
torch.manual_seed(0)
torch.set_num_threads(1)
weight, rows = torch.nn.Parameter(torch.randn(16, 16)), torch.rand(512, 16)
(exact,) = torch.autograd.grad((rows.double() @ weight.double()).sum(), weight)


def error(pieces: int, cached: bool) -> float:
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=cached):
        loss = sum((piece @ weight).float().sum() for piece in rows.chunk(pieces))
    (gradient,) = torch.autograd.grad(loss, weight)
    assert gradient.dtype == torch.float32
    return float(((gradient - exact).abs() / exact.abs()).max())


cached, apart, whole = error(512, True), error(512, False), error(1, True)
print(f"  largest relative error: 512 pieces {cached:.4f}, without the cache {apart:.5f}, at once {whole:.4f}")
assert cached > 0.02 and apart < 0.001 and whole < 0.005
PYTHON
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q uv
"$folder/venv/bin/uv" venv -q "$folder/own"
"$folder/venv/bin/uv" pip install -q --python "$folder/own/bin/python" "torch==2.15.0" "numpy==2.3.5"
"$folder/own/bin/python" "$folder/show.py"
