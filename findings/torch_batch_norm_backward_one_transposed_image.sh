#!/usr/bin/env bash
# torch 2.11.0 and 2.15.0 on the CPU, BatchNorm2d's backward: wrong for a batch of one whose input is transposed tokens.
#
# Guess before the first run: strides do not matter; the gradient is the one with .contiguous().
# Seen: tokens (1, N, D), transposed and reshaped to (1, D, H, W), get a wrong gradient without an error, in training
# and in evaluation, in float32 and float64: off by about as much as its largest value. So does a contiguous input if
# the incoming gradient is such a tensor. Two images are right, and so is one that is cloned as channels_last.
# The reshape gives the batch dimension the stride D, not N * D. Probable cause: torch finds these strides contiguous as
# channels_last, but their suggested format is the plain one, by which the backward then reads and writes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/show.py" <<'PYTHON'
import itertools
import sys

import torch
from torch import nn

print("torch", torch.__version__)
assert torch.__version__.startswith(sys.argv[1])


def to_map(tokens):
    """(B, N, D) as (B, D, H, W), without a copy."""
    side = round(tokens.shape[1] ** 0.5)
    return tokens.transpose(1, 2).reshape(len(tokens), -1, side, side)


def usual(image):
    """The same values with the strides of channels_last in every dimension, the batch too."""
    return image.clone(memory_format=torch.channels_last)


def gradient(norm, tokens, incoming, form):
    tokens = tokens.clone().requires_grad_()
    return torch.autograd.grad(norm(form(to_map(tokens))), tokens, incoming)[0]


torch.manual_seed(0)
print("strides of one image:", to_map(torch.zeros(1, 9, 4)).stride(), "of two:", to_map(torch.zeros(2, 9, 4)).stride())
for dtype, training, count in itertools.product((torch.float32, torch.float64), (False, True), (1, 2)):
    norm = nn.BatchNorm2d(4).to(dtype).train(training)
    tokens, rows = torch.randn(2, count, 64, 4, dtype=dtype)
    plain, strided = to_map(rows).contiguous(), to_map(rows)
    right = gradient(norm, tokens, plain, torch.Tensor.contiguous)
    off = [
        ((gradient(norm, tokens, incoming, form) - right).abs().max() / right.abs().max()).item()
        for incoming, form in ((plain, lambda x: x), (strided, torch.Tensor.contiguous), (plain, usual))
    ]
    mode = "training" if training else "evaluation"
    print(f"  {dtype}, {mode}, {count}: input {off[0]:.1e}, incoming {off[1]:.1e}, usual strides {off[2]:.1e}")
    wrong = [value > 0.5 for value in off]
    assert wrong == [count == 1, count == 1, False]
    assert all(value < 1e-5 for value, bad in zip(off, wrong, strict=True) if not bad)
PYTHON
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q uv
for torch in "torch==2.11.0" "torch==2.15.0"; do
  "$folder/venv/bin/uv" venv -q --clear "$folder/own"
  "$folder/venv/bin/uv" pip install -q --python "$folder/own/bin/python" "$torch" "numpy==2.3.5"
  "$folder/own/bin/python" "$folder/show.py" "${torch#torch==}"
done
