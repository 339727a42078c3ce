#!/usr/bin/env bash
# Label Studio's converter (label-studio-sdk 2.1.2), export to Pascal VOC: xmax is int(x) + int(width), both cut down by
# themselves, so that a box ends up to two pixels before its end, though its xmin is right to the pixel.
#
# Guess before the first run of the exporter: whole numbers, no word on how.
# Guess before this script, having seen one box too short: just below two pixels at most.
# Seen: a box from 3.9 to 12.8 in both directions becomes 3 to 11: 1.8 short. The export to COCO keeps the numbers.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "label-studio-sdk==2.1.2"
cat > "$folder/show.py" <<'PYTHON'
import json
import sys
from importlib.metadata import version
from pathlib import Path
from xml.etree import ElementTree

from label_studio_sdk.converter import Converter
from PIL import Image

folder, side, low, high = Path(sys.argv[1]), 100, 3.9, 12.8
Image.new("RGB", (side, side)).save(folder / "a.png")
config = """<View><Image name="image" value="$image"/><RectangleLabels name="r" toName="image"><Label value="cat"/>
</RectangleLabels></View>"""
value = {"x": low, "y": low, "width": high - low, "height": high - low, "rotation": 0, "rectanglelabels": ["cat"]}
region = {"id": "one", "type": "rectanglelabels", "from_name": "r", "to_name": "image", "value": value}
region |= {"original_width": side, "original_height": side}
annotation = {"id": 1, "completed_by": 1, "result": [region]}
tasks = [{"id": 1, "data": {"image": str(folder / "a.png")}, "annotations": [annotation]}]
(folder / "tasks.json").write_text(json.dumps(tasks))
converter = Converter(config, project_dir=str(folder), download_resources=False)
for export in (converter.convert_to_voc, converter.convert_to_coco):
    name = export.__name__.rsplit("_", 1)[-1]
    images = str(folder / name / "images")
    export(str(folder / "tasks.json"), str(folder / name), output_image_dir=images, is_dir=False)
box = ElementTree.parse(folder / "voc/Annotations/a.xml").find("object/bndbox")
edges = [int(box.findtext(edge)) for edge in ("xmin", "ymin", "xmax", "ymax")]
coco = json.loads((folder / "coco/result.json").read_text())["annotations"][0]["bbox"]
print("label-studio-sdk", version("label-studio-sdk"))
print("drawn, in pixels of a picture of 100 x 100:", [low, low, high, high])
print("VOC: xmin, ymin, xmax, ymax =", edges)
print("COCO: x, y, width, height =", [round(number, 3) for number in coco])
if edges != [3, 3, 11, 11] or [round(number, 3) for number in coco] != [3.9, 3.9, 8.9, 8.9]:
    sys.exit("changed: VOC's box is no longer int(x) + int(width), or COCO's no longer exact")
PYTHON
"$folder/venv/bin/python" -W ignore "$folder/show.py" "$folder" 2> "$folder/log" || { cat "$folder/log" >&2; exit 1; }
