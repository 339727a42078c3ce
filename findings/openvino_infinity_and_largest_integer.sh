#!/usr/bin/env bash
# openvino 2026.4.1, CPU: the largest of a row of -inf is -3.4e38, which equals nothing in the row; and 2**31 - 1, set by
# torch.where among small integers whose smallest is taken next, becomes -2**31. A loop that asks "which is the first
# place that holds the maximum" reads far outside its rows. Precision is float32 by hint; int64 is i32 there.
#
# Guess before the first run: amax gives -inf, and 2**31 - 1 stays, as it fits in 32 bits.
# Seen: the largest of -inf is -3.4028234663852886e+38, the first place -2147483648. The second depends on what stands
# around it: beside another torch.where of the same condition, or without the minimum, 2**31 - 1 stays.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q uv
"$folder/venv/bin/uv" pip install -q --python "$folder/venv/bin/python" "torch==2.15.0" "openvino==2026.4.1" numpy packaging
cat > "$folder/show.py" <<'PYTHON'
import openvino
import torch
from torch import nn
from torch.export import Dim, export


class Places(nn.Module):
    def forward(self, values):
        best = values.amax(1, keepdim=True)
        held = torch.where(values == best, torch.arange(values.shape[1]), 2**31 - 1)
        return held, held.amin(1), best


free = ({0: Dim.DYNAMIC, 1: Dim.DYNAMIC},)
model = openvino.convert_model(export(Places(), (torch.rand(2, 5),), dynamic_shapes=free))
ready = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
given = torch.tensor([[0.1, 0.5, 0.5], [-torch.inf] * 3])
held, first, best = (part.tolist() for part in ready([given.numpy()]).values())
print("openvino", openvino.__version__)
print("largest of -inf:", best[1][0], " first place:", first[0], " of", held[0])
assert openvino.__version__.startswith("2026.4.1")
assert Places()(given)[2][1].item() == -torch.inf and Places()(given)[1].tolist() == [1, 0]
assert best[1][0] == -3.4028234663852886e38
assert first[0] == held[0][0] == -(2**31)
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
