#!/usr/bin/env bash
# accelerate 1.15.0, Accelerator.prepare(DataLoader) with torch's DistributedSampler: the samples are divided twice.
#
# Guess before the first run: a loader whose sampler divides the samples already is left as it is.
# Seen: every process drops all but its share of what the sampler gave it. Of 16 samples two processes see 8 in an
# epoch, without an error or a warning; with N processes it is 1 / N of the data.
# prepare_data_loader is what prepare() calls, here with the process named, so that none has to be started.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q uv
"$folder/venv/bin/uv" pip install -q --python "$folder/venv/bin/python" "torch==2.15.0" "accelerate==1.15.0" numpy
cat > "$folder/show.py" <<'PYTHON'
import warnings

import accelerate
import torch
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader, DistributedSampler

print("torch", torch.__version__, "accelerate", accelerate.__version__)
assert accelerate.__version__ == "1.15.0"
data, given, seen = list(range(16)), [], []
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    for rank in range(2):
        sampler = DistributedSampler(data, num_replicas=2, rank=rank, shuffle=False)
        loader = DataLoader(data, batch_size=2, sampler=sampler)
        prepared = prepare_data_loader(loader, num_processes=2, process_index=rank, put_on_device=False)
        given += [int(value) for batch in loader for value in batch]
        seen += [int(value) for batch in prepared for value in batch]
print("the samplers give:", sorted(given))
print("the processes see:", sorted(seen))
print("warnings:", [str(warning.message) for warning in said])
assert sorted(given) == data
assert sorted(seen) == [0, 2, 5, 7, 8, 10, 13, 15]
assert not any("ampler" in str(warning.message) for warning in said)
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
