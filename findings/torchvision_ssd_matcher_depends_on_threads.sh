#!/usr/bin/env bash
# torchvision 0.29.2 with torch 2.15.0, SSDMatcher on the CPU: which object a default box gets that several objects claim
# depends on the number of threads.
#
# Guess before the first run: the last object wins, whatever the threads, as the assignment by index reads.
# Seen: with one thread the last one wins everywhere; with two threads, 4,000 objects and 1,080 boxes hundreds of boxes
# go to another object. It writes all claims by one assignment with repeated indices, whose order torch leaves open.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q uv
"$folder/venv/bin/uv" pip install -q --python "$folder/venv/bin/python" "torch==2.15.0" "torchvision==0.29.2" numpy
cat > "$folder/show.py" <<'PYTHON'
import torch
import torchvision
from torchvision.models.detection._utils import SSDMatcher

print("torch", torch.__version__, "torchvision", torchvision.__version__)
assert torch.__version__.startswith("2.15.0") and torchvision.__version__.startswith("0.29.2")
objects, boxes = 4000, 1080
overlaps = torch.rand(objects, boxes, generator=torch.Generator().manual_seed(0)) * 0.4
last = torch.full((boxes,), -1)
for i, box in enumerate(overlaps.argmax(1).tolist()):
    last[box] = i
differ = {}
for threads in (1, 2):
    torch.set_num_threads(threads)
    found = SSDMatcher(0.5)(overlaps)
    claimed = last >= 0
    differ[threads] = int((found[claimed] != last[claimed]).sum())
print("boxes that go to another object than the last one that claims them, by threads:", differ)
assert differ[1] == 0 and differ[2] > 0
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
