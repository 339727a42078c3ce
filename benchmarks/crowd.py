"""``python -m benchmarks crowd``: a training step of each recipe, of one image with 1 and 10,000 objects.

Each step runs in a process of its own: the peak is the system's (VmHWM) less what the loaded network held before it
(VmRSS), and memory goes back to the system as soon as it is free. The image has 640 x 640 pixels, and so has the input
of recipes that take a size or a preprocess. Objects have sides of 2 to 70 pixels, as many of each octave. A mask for
each of 10,000 objects would alone be 4 GB, so recipes that learn masks have an image and an input of 128 x 128 pixels.
``python -m benchmarks crowd fcos`` measures the recipes whose name contains the word.
"""

import inspect
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.peak import ALONE, peak_of
from detkit import detectors
from detkit.detectors import Detector, Preprocess
from detkit.train.options import RECIPES

OBJECTS = (1, 10_000)
SIDE, _WITH_MASKS, _CLASSES, _KEYPOINTS = 640, 128, 20, 17
_LEFT_OUT = {"rcnn", "ssd", "ssdlite", "segmenter", "three_tasks", "ssdlite320_mobilenet_v3_large"}
_LARGEST = 2000  # MB above the network


def study(words: Sequence[str]) -> str:
    """The table of the recipes whose name contains all ``words``."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.crowd", *words]
    rows = [
        f"| recipe | {' | '.join(f'{count:,}: MB | CPU s' for count in OBJECTS)} | |",
        "|" + "---|" * (2 * len(OBJECTS) + 2),
    ]
    with subprocess.Popen(command, env={**os.environ, **ALONE}, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            name, *found = json.loads(line)
            cells = [f"{one['peak']:,.0f} | {one['seconds']:.1f}" for one in found]
            over = "over" if found[-1]["peak"] > _LARGEST else ""
            rows.append(f"| `{name}` | {' | '.join(cells)} | {over} |")
            tqdm.write(rows[-1])
    assert process.returncode == 0
    return "\n".join(rows)


def names() -> list[str]:
    """Recipes of whole detectors that learn in steps, but for those that are others with a trunk of one's own, and for
    one whose batch norm refuses a single image."""
    return sorted({*RECIPES} - _LEFT_OUT)


def _in_child(name: str, objects: int) -> dict[str, float]:
    """The measure of a step in a process of its own, which has imported everything before."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(write, json.dumps(_one_step(name, objects)).encode())
        except Exception:
            traceback.print_exc()
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        found = pipe.read()
    _, status = os.waitpid(child, 0)
    if status or not found:
        raise RuntimeError(f"{name}, {objects:,} objects: the process ended with {status}")
    return json.loads(found)


def build(name: str) -> Detector:
    """The recipe, at 640 x 640 where it takes a size or a preprocess."""
    recipe: Any = getattr(detectors, name)
    taken = inspect.signature(recipe).parameters
    options: dict[str, Any] = {"size": (SIDE, SIDE)} if "size" in taken else {}
    if "preprocess" in taken:
        options = {"preprocess": Preprocess((SIDE, SIDE))}
    if learns_masks(name):
        options = {"size": (_WITH_MASKS, _WITH_MASKS)} if "size" in taken else {"preprocess": Preprocess(_WITH_MASKS)}
    return recipe(*[_CLASSES] if "num_classes" in taken else [], **options)


def learns_masks(name: str) -> bool:
    """Whether targets need masks."""
    return "mask" in name


def crowd(objects: int, side: int, *, masks: bool) -> dict[str, Any]:
    """The target of one image, with everything that any recipe learns from."""
    generator = torch.Generator().manual_seed(0)
    low, high = torch.tensor([2.0, 70.0]).log()
    sides = torch.exp(low + torch.rand(objects, 2, generator=generator) * (high - low)).clamp(max=side / 2)
    corner = torch.rand(objects, 2, generator=generator) * (side - sides)
    boxes = torch.cat((corner, corner + sides), 1)
    target = {"boxes": boxes, "labels": torch.arange(objects) % _CLASSES}
    points = (boxes[:, None, :2] + boxes[:, None, 2:]) / 2 + torch.zeros(_KEYPOINTS, 1)
    target["keypoints"] = torch.cat((points, torch.full((objects, _KEYPOINTS, 1), 2.0)), 2)
    if masks:
        target["masks"] = torch.zeros(objects, side, side, dtype=torch.uint8)
        for mask, (x1, y1, x2, y2) in zip(target["masks"], boxes.round().long().tolist(), strict=True):
            mask[y1:y2, x1:x2] = 1
    return target


def _one_step(name: str, objects: int) -> dict[str, float]:
    torch.manual_seed(0)
    model, masks = build(name).train(), learns_masks(name)
    side = _WITH_MASKS if masks else SIDE
    image, target = torch.rand(3, side, side), crowd(objects, side, masks=masks)
    more: dict[str, Any] = (
        {"proposals": [{"boxes": target["boxes"], "scores": torch.ones(objects)}]} if name == "fast_rcnn" else {}
    )

    def step() -> float:
        start = time.process_time()
        loss = torch.stack([*model([image], [target], **more).values()]).sum()
        loss.backward()
        assert torch.isfinite(loss), name
        return time.process_time() - start

    peak, seconds = peak_of(step)
    return {"peak": peak, "seconds": seconds}


if __name__ == "__main__":
    for chosen in (name for name in names() if all(word in name for word in sys.argv[1:])):
        print(json.dumps([chosen, *(_in_child(chosen, count) for count in OBJECTS)]), flush=True)
