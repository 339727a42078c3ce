#!/usr/bin/env bash
# torchvision.ops.batched_nms finds other duplicates in class 1202 than in class 0, for the same float32 boxes.
#
# Guess before the first run: boxes of one class are suppressed as nms does it, whatever number the class has; LVIS
# has 1,203.
# Seen with torchvision 0.29.2 on a CPU: up to 1,000 boxes are moved apart by class number times the largest coordinate
# plus one. In a picture of 4,096 pixels class 1202 then lies near 4.9 million, where float32 has steps of half a pixel:
# two boxes of 10 pixels with IoU .504 are no longer above .5, and both stay. The same two among 1,001 boxes, which are
# suppressed class by class, or in float64, lose the second, as in class 0 and as by nms.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/show.py" <<'PYTHON'
import torch
import torchvision
from torchvision.ops import batched_nms, box_iou, nms

print("torchvision", torchvision.__version__)
assert torchvision.__version__.startswith("0.29.2")
boxes = torch.tensor([[100.0, 100.0, 110.0, 110.0], [100.0, 103.3, 110.0, 113.3], [4090.0, 4090.0, 4096.0, 4096.0]])
scores = torch.tensor([0.9, 0.8, 0.7])
print(f"  IoU of the first two: {box_iou(boxes, boxes)[0, 1]:.4f}; nms at .5 keeps {nms(boxes, scores, 0.5).tolist()}")
assert nms(boxes, scores, 0.5).tolist() == [0, 2]


def kept(label, own, scores=scores):
    return batched_nms(own, scores, torch.full((len(own),), label), 0.5).tolist()


found = {label: kept(label, boxes) for label in (0, 79, 1202)}
print(f"  batched_nms, all boxes of one class, by class: {found}")
assert found == {0: [0, 2], 79: [0, 2], 1202: [0, 1, 2]}
print(f"  class 1202 in float64: {kept(1202, boxes.double(), scores.double())}")
assert kept(1202, boxes.double(), scores.double()) == [0, 2]
apart = torch.arange(998.0)[:, None] * torch.tensor([4.0, 0, 4, 0]) + torch.tensor([0.0, 2000, 3, 2003])
many, low = torch.cat([boxes, apart]), torch.cat([scores, torch.full((998,), 0.1)])
among = batched_nms(many, low, torch.full((1001,), 1202), 0.5)
print(f"  class 1202 among 1,001 boxes: the second {'stays' if 1 in among else 'goes'}")
assert 1 not in among
PYTHON
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q uv
"$folder/venv/bin/uv" venv -q "$folder/own"
"$folder/venv/bin/uv" pip install -q --python "$folder/own/bin/python" "torch==2.15.0" "torchvision==0.29.2" "numpy==2.3.5"
"$folder/own/bin/python" "$folder/show.py"
