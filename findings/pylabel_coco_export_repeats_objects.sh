#!/usr/bin/env bash
# PyLabel 0.1.55, export to COCO: for every image without objects the last object of the image before is written again,
# with its id and image id, so that three images with one object become three objects.
#
# Guess before the first run of the exporter: something about segmentation or category ids, nothing about empty images.
# Guess before this script, having seen one copy: three times the same object.
# Seen: the object stands there once for itself and once for each of the two empty images after it; the list of images
# is right. Its export to VOC writes the empty images without objects, as it should.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "pylabel==0.1.55" "pandas==2.3.3" "numpy==2.3.5"
cat > "$folder/show.py" <<'PYTHON'
import json
import sys
from importlib.metadata import version

from pylabel import importer

folder = sys.argv[1]
given = {
    "images": [{"id": i, "file_name": f"{i}.jpg", "width": 40, "height": 30} for i in (1, 2, 3)],
    "annotations": [{"id": 7, "image_id": 1, "category_id": 1, "bbox": [2, 1, 4, 3], "area": 12, "iscrowd": 0}],
    "categories": [{"id": 1, "name": "cat"}],
}
with open(f"{folder}/given.json", "w") as file:
    json.dump(given, file)
dataset = importer.ImportCoco(path=f"{folder}/given.json", path_to_images=folder, name="three")
dataset.export.ExportToCoco(output_path=f"{folder}/written.json")
with open(f"{folder}/written.json") as file:
    written = json.load(file)
objects = [(entry["id"], entry["image_id"], entry["bbox"]) for entry in written["annotations"]]
print("pylabel", version("pylabel"))
print("given:  ", len(given["images"]), "images,", [(7, 1, [2, 1, 4, 3])], "as (id, image id, box)")
print("written:", len(written["images"]), "images,", objects)
if objects != [(0, 1, [2.0, 1.0, 4.0, 3.0])] * 3 or len(written["images"]) != 3:
    sys.exit("changed: the object is no longer written once for every image")
PYTHON
"$folder/venv/bin/python" -W ignore "$folder/show.py" "$folder" 2> "$folder/log" || { cat "$folder/log" >&2; exit 1; }
