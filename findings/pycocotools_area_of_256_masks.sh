#!/usr/bin/env bash
# pycocotools 2.0.11 with NumPy 2.4.6: mask.area of more than 255 masks raises OverflowError.
#
# Guess before the first run: the list may be of any length, as for mask.encode and mask.toBbox.
# Seen: 255 masks give 255 areas; 256 raise "Python integer 256 out of bounds for uint8", since the length is put into
# an array of bytes on the way. toBbox of the same 256 masks works, and so does area with NumPy 1.26.4.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/show.py" <<'PYTHON'
import sys
from importlib.metadata import version

import numpy as np
from pycocotools import mask

print("pycocotools", version("pycocotools"), "NumPy", np.__version__)
masks = mask.encode(np.asfortranarray(np.ones((4, 5, 256), dtype=np.uint8)))
seen = []
for count in (255, 256):
    try:
        seen.append(len(mask.area(masks[:count])))
    except OverflowError as error:
        seen.append(str(error))
seen.append(len(mask.toBbox(masks)))
print("area of 255 masks, area of 256, toBbox of 256:", seen)
wanted = "Python integer 256 out of bounds for uint8" if np.__version__ >= "2" else 256
if seen != [255, wanted, 256]:
    sys.exit(f"changed: expected {[255, wanted, 256]}")
PYTHON
for numpy in 2.4.6 1.26.4; do
  python3 -m venv "$folder/$numpy"
  "$folder/$numpy/bin/pip" install -q "pycocotools==2.0.11" "numpy==$numpy"
  "$folder/$numpy/bin/python" -W ignore "$folder/show.py"
done
