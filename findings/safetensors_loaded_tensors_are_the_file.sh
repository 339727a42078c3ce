#!/usr/bin/env bash
# safetensors 0.8.0, load_file for torch: the tensors that it returns are the file itself, mapped. Writing over the file
# afterwards changes them, where torch.load's stay as they were.
#
# Guess before the first look, at an index that was loaded in this way: copies, as torch.load makes without mmap=True.
# Guess before this script, having seen that: load_file does as safe_open does, torch.load does not.
# Seen: after bytes of the file are overwritten in place (as cp and rsync --inplace do) the weights are other numbers;
# those of torch.load stay. A rename over the file, as atomic writers do, is harmless. (As with any mapping, a process may
# also end where its file loses pages under it; that is not shown here.)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q uv
"$folder/venv/bin/uv" pip install -q --python "$folder/venv/bin/python" "safetensors==0.8.0" "torch==2.15.0" numpy
cat > "$folder/show.py" <<'PYTHON'
import sys
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

folder = Path(sys.argv[1])
weights, path, other = torch.ones(100_000), folder / "weights.safetensors", folder / "weights.pt"
save_file({"weight": weights}, path)
torch.save({"weight": weights}, other)
loaded = {"safetensors": load_file(path)["weight"], "torch.load": torch.load(other)["weight"]}
for name in (path, other):
    with name.open("r+b") as file:
        file.seek(50_000)
        file.write(bytes(100_000))
changed = {name: int((found != weights).sum()) for name, found in loaded.items()}
print("safetensors", version("safetensors"), "torch", torch.__version__)
print("weights changed by writing 25,000 zeros into the file:", changed)
if changed != {"safetensors": 25_000, "torch.load": 0}:
    sys.exit("changed: loaded tensors no longer are the file")
PYTHON
"$folder/venv/bin/python" "$folder/show.py" "$folder"
