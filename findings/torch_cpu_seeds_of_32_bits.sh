#!/usr/bin/env bash
# torch 2.15.0, torch.Generator on the CPU: of a seed only the low 32 bits count, though it takes and reports 64.
#
# Guess before the first run: a seed of 64 bits, as documented for manual_seed, gives a stream of its own.
# Seen: 7, 7 + 2**32 and 7 + 5 * 2**40 draw the same numbers, integers as well as normal ones, while initial_seed()
# returns each as it was given; 8 draws others. So a seed composed as (run << 32) + step says nothing of the run.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q uv
"$folder/venv/bin/uv" pip install -q --python "$folder/venv/bin/python" "torch==2.15.0" numpy
cat > "$folder/show.py" <<'PYTHON'
import torch

print("torch", torch.__version__)
assert torch.__version__.startswith("2.15.0")


def drawn(seed):
    generator = torch.Generator().manual_seed(seed)
    assert generator.initial_seed() == seed
    return torch.randint(1 << 40, (1000,), generator=generator), torch.randn(1000, generator=generator)


first, *others = (drawn(seed) for seed in (7, 7 + 2**32, 7 + 5 * 2**40, 8))
same = [all(torch.equal(a, b) for a, b in zip(first, other)) for other in others]
print("equal to the stream of seed 7: of 7 + 2**32, 7 + 5 * 2**40 and 8:", same)
assert same == [True, True, False]
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
