#!/usr/bin/env bash
# torchvision.transforms.v2 keeps boxes of integers as integers: what lies between two pixels is cut off, towards zero.
#
# Guess before the first run: resizing rounds; from one format to another nothing is lost, as by ops.box_convert.
# Seen with torchvision 0.29.2: wrap_dataset_for_transforms_v2 reads the boxes of VOCDetection as int64. Resized to half,
# 3 3 8 8 becomes 1 1 4 4, where floats become 1.5 1.5 4 4; at a third, 1 1 2 2, of one pixel, instead of 5/3. From
# CXCYWH 3 3 7 7, 7 wide, to XYXY becomes 0 0 6 6, 6 wide; and 3 3 8 8, centered at 5.5, has its center at 5 in CXCYWH.
# Of a small object that is a tenth and more of a side, always to the upper left.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/show.py" <<'PYTHON'
import sys
from pathlib import Path

import torch
import torchvision
from PIL import Image
from torchvision import datasets, ops, tv_tensors
from torchvision.transforms import v2

print("torchvision", torchvision.__version__)
assert torchvision.__version__.startswith("0.29.2")
voc = Path(sys.argv[1]) / "VOCdevkit" / "VOC2012"
for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
    (voc / part).mkdir(parents=True)
Image.new("RGB", (60, 60)).save(voc / "JPEGImages" / "1.jpg")
(voc / "ImageSets" / "Main" / "train.txt").write_text("1\n")
corners = "".join(f"<{name}>{value}</{name}>" for name, value in zip(("xmin", "ymin", "xmax", "ymax"), (3, 3, 8, 8)))
box = f"<object><name>cat</name><bndbox>{corners}</bndbox></object>"
(voc / "Annotations" / "1.xml").write_text(f"<annotation><filename>1.jpg</filename>{box}</annotation>")
read = datasets.wrap_dataset_for_transforms_v2(datasets.VOCDetection(sys.argv[1], year="2012", image_set="train"))
image, target = read[0]
boxes = target["boxes"]
print(f"  VOC's box, wrapped: {boxes.tolist()}, {boxes.dtype}")
assert boxes.dtype == torch.int64
floats = tv_tensors.wrap(boxes.as_subclass(torch.Tensor).float(), like=boxes)
for size, whole, real in ((30, [1, 1, 4, 4], [1.5, 1.5, 4, 4]), (20, [1, 1, 2, 2], [1.0, 1.0, 8 / 3, 8 / 3])):
    resize = v2.Resize((size, size))
    found, exact = (resize(image, {"boxes": own})[1]["boxes"] for own in (boxes, floats))
    print(f"  resized from 60 to {size}: {found.tolist()}, as floats {exact.tolist()}")
    assert found.tolist() == [whole] and torch.allclose(exact, torch.tensor([real]))
centered = tv_tensors.BoundingBoxes([[3, 3, 7, 7]], format="CXCYWH", canvas_size=(60, 60))
as_corners = v2.functional.convert_bounding_box_format(centered, new_format="XYXY").tolist()
as_center = v2.functional.convert_bounding_box_format(boxes, new_format="CXCYWH").tolist()
print(f"  CXCYWH 3 3 7 7 as XYXY: {as_corners}; XYXY 3 3 8 8 as CXCYWH: {as_center}")
assert as_corners == [[0, 0, 6, 6]] and as_center == [[5, 5, 5, 5]]
by_ops = ops.box_convert(torch.tensor([[3, 3, 7, 7]]), "cxcywh", "xyxy").tolist()
print(f"  torchvision.ops.box_convert of the first: {by_ops}")
assert by_ops == [[-0.5, -0.5, 6.5, 6.5]]
PYTHON
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q uv
"$folder/venv/bin/uv" venv -q "$folder/own"
"$folder/venv/bin/uv" pip install -q --python "$folder/own/bin/python" "torch==2.15.0" "torchvision==0.29.2" "numpy==2.3.5"
"$folder/own/bin/python" "$folder/show.py" "$folder"
