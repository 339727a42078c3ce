"""``python -m benchmarks memory``: peak memory of a training step at batch 2, 600 x 800 pixels, against torchvision.

Each side runs in a process of its own: the peak is the system's (VmHWM) less what the loaded model held before
(VmRSS). Both processes give memory back to the system as soon as it is free (MALLOC_MMAP_THRESHOLD_), so that the peak
is that of tensors, not of gaps between them. ``python -m benchmarks.memory kept "Faster R-CNN"`` prints what the
forward pass keeps for the backward pass, layer by layer.
"""

import collections
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from tqdm import tqdm

from benchmarks.models import labels_from_zero, objects_in, peer, pictures
from benchmarks.peak import ALONE, peak_of
from detkit.backbones import recompute_backbone
from detkit.structures import Target
from detkit.weights import from_torchvision

NAMES = ("RetinaNet", "FCOS", "Faster R-CNN", "Mask R-CNN")
TARGETS = {"RetinaNet": 0.75, "FCOS": 0.75, "Faster R-CNN": 0.8, "Mask R-CNN": 0.8}
_SIDES = ("torchvision", "detkit", "detkit recomputing")


def study(words: Sequence[str]) -> str:
    """The table, of the cases whose name, norms or objects contain all ``words``."""
    rows = [
        "| detector | norms | objects | torchvision MB | detkit MB | ratio | target | recomputing | ratio | its time |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    chosen = [case for case in _cases() if all(word in "{} {} {} objects".format(*case) for word in words)]
    for name, norms, objects in tqdm(chosen, unit="case"):
        theirs, ours, again = (_measured(side, name, norms, str(objects)) for side in _SIDES)
        assert abs(ours["loss"] - again["loss"]) < 1e-4 * abs(ours["loss"]), (name, ours, again)
        rows.append(
            f"| {name} | {norms} | {objects} | {theirs['peak']:.0f} | {ours['peak']:.0f} "
            f"| {ours['peak'] / theirs['peak']:.2f} | {TARGETS[name]:g} | {again['peak']:.0f} "
            f"| {again['peak'] / theirs['peak']:.2f} | {again['seconds'] / ours['seconds']:.2f}x |"
        )
        tqdm.write(rows[-1])
    return "\n".join(rows)


def _cases() -> Iterator[tuple[str, str, int]]:
    return itertools.product(NAMES, ("frozen", "learned"), (20, 200))


def _measured(*arguments: str) -> dict[str, float]:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.memory", *arguments]
    done = subprocess.run(command, env={**os.environ, **ALONE}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)}: {done.stderr}")
    return json.loads(done.stdout)


def _loaded(side: str, name: str, norms: str, objects: int) -> tuple[nn.Module, list[Tensor], list]:
    model = peer(name, norms=norms, sides=(600, 1000)).train()
    images = pictures(2, 600, 800)
    targets = objects_in(images, objects, masks=name == "Mask R-CNN")
    if side == "torchvision":
        return model, images, targets
    model = from_torchvision(model)
    if side == "detkit recomputing":
        recompute_backbone(model)
    return model, images, labels_from_zero(targets) if "R-CNN" in name else targets


def _one_step(side: str, name: str, norms: str, objects: str) -> None:
    model, images, targets = _loaded(side, name, norms, int(objects))
    _loss(model(*_small(images, targets))).backward()  # loads code, builds tables
    model.zero_grad()

    def step() -> tuple[float, float]:
        start = time.process_time()
        loss = _loss(model(images, targets))
        loss.backward()
        return time.process_time() - start, loss.item()

    peak, (seconds, loss) = peak_of(step)
    print(json.dumps({"peak": peak, "seconds": seconds, "loss": loss}))


def _loss(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack([*losses.values()]).sum()


def _small(images: Sequence[Tensor], targets: Sequence[Target]) -> tuple[list[Tensor], list[Target]]:
    """A narrow strip of each image, soon done: resizing bounds its longer side, and so its shorter one."""
    first = [{key: cast(Tensor, values)[:1] for key, values in target.items()} for target in targets]
    for target in first:
        target["boxes"] = torch.tensor([[4.0, 8, 28, 60]])
        if "masks" in target:
            target["masks"] = target["masks"][..., :32]
    return [image[..., :32] for image in images], [cast(Target, target) for target in first]


def _kept(name: str, side: str = "detkit", norms: str = "frozen", objects: str = "20") -> None:
    """What the forward pass keeps, in MB, by the module that kept it first."""
    model, images, targets = _loaded(side, name, norms, int(objects))
    known = {value.untyped_storage().data_ptr() for value in (*model.parameters(), *model.buffers())}
    held: list[Tensor] = []
    sizes: collections.Counter[str] = collections.Counter()
    running = ["losses"]
    paths = {part: path for path, part in model.named_modules() if path.count(".") < 3}
    # Hooks of all modules: those of single ones change what some layers do.
    register_module_forward_pre_hook(lambda part, _: running.append(paths.get(part, running[-1])))
    register_module_forward_hook(lambda *_: (running.pop(), None)[1])

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            known.add(storage.data_ptr())
            held.append(tensor)  # another one may not get its place
            sizes[running[-1]] += storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(images, targets)
    for path, size in sizes.most_common():
        print(f"{size / 2**20:9.1f} {path or 'losses'}")
    print(f"{sizes.total() / 2**20:9.1f} in all")


if __name__ == "__main__":
    if sys.argv[1] == "kept":
        _kept(*sys.argv[2:])
    else:
        _one_step(*sys.argv[1:])
