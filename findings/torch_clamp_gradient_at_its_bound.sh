#!/usr/bin/env bash
# torch.clamp, exactly at its bound: torch 2.11.0 hands the gradient through, torch 2.15.0 hands through nothing.
#
# Guess before the first run: 1 at the bound in every 2.x, since clamp's gradient has long been masked by
# "self >= min and self <= max"; so losses that clamp (hinges, widths of boxes) have the same gradient in all of them.
# Seen: clamp(min=), clamp(max=), clamp_min and clamp(low, high) give 1.0 at their bounds with 2.11.0 and 0.0 with
# 2.15.0; relu gives 0.0 in both. Whatever is trained with values exactly on a bound (boxes that only touch, padding of
# zeros, hinges of equal distances) gets another gradient after the upgrade.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/show.py" <<'PYTHON'
import sys

import torch

version, expected = sys.argv[1], float(sys.argv[2])
print("torch", torch.__version__)
assert torch.__version__.startswith(version)
forms = {
    "clamp(min=0) at 0": (lambda x: x.clamp(min=0), 0.0),
    "clamp(max=0) at 0": (lambda x: x.clamp(max=0), 0.0),
    "clamp_min(0) at 0": (lambda x: torch.clamp_min(x, 0), 0.0),
    "clamp(0, 1) at 1": (lambda x: x.clamp(0, 1), 1.0),
}
for name, (form, at) in forms.items():
    x = torch.tensor(at, dtype=torch.float64, requires_grad=True)
    form(x).backward()
    print(f"  {name}: gradient {x.grad.item()}")
    assert x.grad.item() == expected, name
x = torch.zeros((), requires_grad=True)
x.relu().backward()
print(f"  relu at 0: gradient {x.grad.item()}")
assert x.grad.item() == 0.0
PYTHON
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q uv
for pair in "torch==2.11.0 1.0" "torch==2.15.0 0.0"; do
  read -r torch gradient <<< "$pair"
  "$folder/venv/bin/uv" venv -q --clear "$folder/own"
  "$folder/venv/bin/uv" pip install -q --python "$folder/own/bin/python" "$torch" "numpy==2.3.5"
  "$folder/own/bin/python" "$folder/show.py" "${torch#torch==}" "$gradient"
done
