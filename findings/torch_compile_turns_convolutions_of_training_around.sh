#!/usr/bin/env bash
# torch.compile on a processor runs the convolutions of a training step in channels_last memory whatever the model, its
# weights and its input are in, though their gradients can take twice as long in it: where a model in contiguous memory
# trains faster eagerly, its compiled step becomes the slower one. options={"layout_optimization": False} keeps the
# layout. (For Apple's GPU it was reported and turned off: pytorch issue 192551, pull request 193191.)
#
# Guess before the first run: everything is contiguous, so the compiled code is too, and takes .9 to 1.05 of eager time.
# Seen with torch 2.15.0, a processor without AVX-512, one thread, two 3 x 3 convolutions of 64 channels at 300 x 300:
# eager .55 s; eager in channels_last memory 1.09; compiled 1.19, its code full of channels_last strides; without layout
# optimization .67.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/show.py" <<'PYTHON'
import copy
import time

import torch
from torch import nn
from torch._inductor.utils import run_and_get_code

print("torch", torch.__version__)
assert torch.__version__.startswith("2.15.0")
torch.set_num_threads(1)
torch.manual_seed(0)
net = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1))
picture = torch.randn(1, 64, 300, 300, requires_grad=True)
turned = picture.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
STRIDES = "(5760000, 1, 19200, 64)"


def step(model, images):
    start = time.process_time()
    model(images).sum().backward()
    return time.process_time() - start


def seconds(model, images):
    step(model, images)
    return min(step(model, images) for _ in range(5))


def compiled(**options):
    torch._dynamo.reset()
    fast = torch.compile(net, options=options)
    _, code = run_and_get_code(lambda: step(fast, picture))
    return seconds(fast, picture), "".join(code).count(STRIDES)


eager, last = seconds(net, picture), seconds(copy.deepcopy(net).to(memory_format=torch.channels_last), turned)
(usual, channels_last), (kept, none) = compiled(), compiled(layout_optimization=False)
print(f"  eager {eager:.2f} s, in channels_last memory {last:.2f} s")
print(f"  compiled {usual:.2f} s, with {channels_last} channels_last tensors in its code")
print(f"  compiled without layout optimization {kept:.2f} s, with {none}")
assert channels_last > 0 and none == 0
if last < 1.3 * eager:
    print("  (channels_last memory is no loss on this processor: the layout alone was checked)")
else:
    assert usual > 1.2 * eager and kept < 0.8 * usual
PYTHON
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q uv
"$folder/venv/bin/uv" venv -q "$folder/own"
"$folder/venv/bin/uv" pip install -q --python "$folder/own/bin/python" "torch==2.15.0" "numpy==2.3.5"
"$folder/own/bin/python" "$folder/show.py"
