#!/usr/bin/env bash
# torch 2.15.0, torch.export with a dynamic height and width: a strided convolution, a pooling, an upsampling back and a
# concatenation of both, as every YOLO and U-Net has them, end in sympy's NotImplementedError, which names no dimension.
#
# Guess before the first run: export succeeds, or suggests that the size be a multiple, as it does for one pooling.
# Seen: with a convolution of stride 4 before, "The inequality, Eq(...), cannot be solved using
# solve_univariate_inequality."; without it the same export succeeds, and so it does with size = 8 * Dim("...").
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q uv
"$folder/venv/bin/uv" pip install -q --python "$folder/venv/bin/python" "torch==2.15.0" numpy
cat > "$folder/show.py" <<'PYTHON'
import torch
from torch import nn
from torch.export import Dim, export
from torch.nn import functional as F

print("torch", torch.__version__)
assert torch.__version__.startswith("2.15.0")


class Net(nn.Module):
    def __init__(self, stride):
        super().__init__()
        self.first = nn.Conv2d(1, 2, 3, stride=stride, padding=1)

    def forward(self, x):
        fine = self.first(x)
        coarse = F.max_pool2d(fine, 2)
        return torch.cat((F.interpolate(coarse, scale_factor=2.0, mode="nearest"), fine), dim=1)


def outcome(stride, size):
    try:
        export(Net(stride), (torch.rand(1, 1, 64, 64),), dynamic_shapes=({2: size("h"), 3: size("w")},))
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return "exported"


plain, strided, multiple = outcome(1, lambda n: Dim.DYNAMIC), outcome(4, lambda n: Dim.DYNAMIC), outcome(4, lambda n: 8 * Dim(n))
print("stride 1, any size:      ", plain)
print("stride 4, any size:      ", strided[:120])
print("stride 4, multiples of 8:", multiple)
assert strided.startswith("NotImplementedError: The inequality, Eq(")
assert plain == multiple == "exported"
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
