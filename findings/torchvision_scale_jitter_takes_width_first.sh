#!/usr/bin/env bash
# torchvision.transforms.v2.ScaleJitter takes target_size as (width, height); Resize, RandomCrop and canvas_size take
# (height, width).
#
# Guess before the first run: an image of 240 x 320 (height x width) already fits a target of (240, 320), so that scale 1
# leaves it as it is, as Resize((240, 320)) does.
# Seen with torchvision 0.29.2: it shrinks to 180 x 240, three quarters of either side, and a crop to (240, 320) then pads
# all around; ScaleJitter((320, 240)) leaves it as it is. Square targets, which all published recipes have, don't show
# it. Large-scale jittering of wide or tall pictures is of another scale than it says.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/show.py" <<'PYTHON'
import torch
import torchvision
from torchvision.transforms import v2

print("torchvision", torchvision.__version__)
assert torchvision.__version__.startswith("0.29.2")
image = torch.zeros(3, 240, 320)
found = {}
for size in ((240, 320), (320, 240), (320, 320)):
    found[size] = tuple(v2.ScaleJitter(size, scale_range=(1.0, 1.0))(image).shape[-2:])
    print(f"  ScaleJitter({size}) at scale 1: {found[size]}")
assert found == {(240, 320): (180, 240), (320, 240): (240, 320), (320, 320): (240, 320)}
resized = tuple(v2.Resize((240, 320))(image).shape[-2:])
print(f"  Resize((240, 320)): {resized}")
assert resized == (240, 320)
PYTHON
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q uv
"$folder/venv/bin/uv" venv -q "$folder/own"
"$folder/venv/bin/uv" pip install -q --python "$folder/own/bin/python" "torch==2.15.0" "torchvision==0.29.2" "numpy==2.3.5"
"$folder/own/bin/python" "$folder/show.py"
