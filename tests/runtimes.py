"""Every recipe on every runtime: the table of docs/runtimes.md.

``python tests/runtimes.py [recipe or runtime ...]`` runs these cells, or all, which takes hours; keeps each in
tests/runtimes.json, and prints the table of all that are kept; with ``kept`` it runs none. A cell is the largest
difference to eager in pixels and in score over three sizes, or the runtime's own refusal. A runtime that is not
installed is left out, loudly.
"""

import importlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from families import CLASSES, SIDE, SMALL, small_family
from torch import Tensor, nn

from detkit.backbones import SmallBackbone
from detkit.detectors import Detector, Preprocess, rcnn, small_faster_rcnn
from detkit.export import program
from detkit.structures import Detections, Images

KEPT = Path(__file__).with_suffix(".json")
SIZES = ((2, (64, 96)), (3, (128, 64)), (1, (96, 160)))
PROPOSALS = 12
LONGEST = 160
"""Characters of a refusal."""


class Recipe(NamedTuple):
    """A small form: how to build it, and what ``program`` must be told of it."""

    build: Callable[[], Detector]
    settings: dict = {}  # noqa: RUF012


def spread(detector: Detector, most: int) -> Detector:
    """Weights from which scores differ, so that no order is left to rounding, and nothing below a threshold."""
    torch.manual_seed(0)
    for stage in detector.stages.values():
        for parameter in stage.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=2 / parameter[0].numel() ** 0.5)
    for part in detector.modules():
        if hasattr(part, "score_threshold"):
            part.score_threshold = 0.0
        for limit in ("max_detections", "max_objects"):
            if hasattr(part, limit):
                setattr(part, limit, min(getattr(part, limit), most))
        if hasattr(part, "max_proposals"):
            part.max_proposals = min(part.max_proposals, 15 * most)
        if hasattr(part, "candidates_per_level"):
            part.candidates_per_level = 40
    return detector.eval()


def fast_rcnn() -> Detector:
    whole = small_faster_rcnn(CLASSES, **SMALL)
    return Detector(whole.trunk, preprocess=whole.preprocess, box=whole.box)


def regions() -> Detector:
    backbone = SmallBackbone((8, 16))
    return rcnn(CLASSES, backbone, feature_size=16, size=32, context=2, preprocess=Preprocess((SIDE, SIDE)))


def family(name: str, **settings) -> Recipe:
    return Recipe(lambda: small_family(name), settings)


RECIPES = {
    "SSD": family("ssd"),
    "RetinaNet": family("retinanet"),
    "FCOS": family("fcos"),
    "TOOD": family("tood"),
    "YOLOX": family("yolox"),
    "YOLO v1": family("yolo v1", multiple_of=None),
    "YOLO v3": family("yolo v3"),
    "Faster R-CNN": family("faster rcnn"),
    "Fast R-CNN": Recipe(fast_rcnn, {"proposals": PROPOSALS}),
    "R-CNN": Recipe(regions, {"proposals": PROPOSALS, "batch": 1, "multiple_of": None}),
    "Mask R-CNN": family("mask rcnn"),
    "Keypoint R-CNN": family("keypoint rcnn"),
    "DETR": family("detr + embedding"),
    "Deformable DETR": family("deformable detr"),
    "RT-DETR": family("rt detr"),
    "D-FINE": family("d fine"),
    "Pix2Seq": family("pix2seq"),
    "localizer": family("localizer", multiple_of=None),
}


def batches(recipe: Recipe, only: int | None = None) -> Iterator[tuple[Tensor, ...]]:
    """Three inputs, of every size that the program takes; ``only`` so many images of one size, where it is fixed."""
    generator = torch.Generator().manual_seed(1)
    only = only or recipe.settings.get("batch")
    for count, (height, width) in SIZES:
        height, width = (SIDE, SIDE) if only or recipe.settings.get("multiple_of", 1) is None else (height, width)
        count = only or count
        inputs = torch.rand(count, 3, height, width, generator=generator), torch.tensor([[height, width]] * count)
        if "proposals" in recipe.settings:
            corners = torch.rand(2, count, PROPOSALS, 2, generator=generator) * SIDE
            valid = torch.arange(PROPOSALS).expand(count, -1) < PROPOSALS - 3
            inputs += torch.cat((corners.amin(0), corners.amax(0)), -1), valid.clone()
        yield inputs


def eager(detector: Detector, inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """What the operators of this library find."""
    given = None
    if len(inputs) > 2:
        boxes, valid = inputs[2:]
        given = Detections(boxes, valid.float(), torch.zeros_like(valid, dtype=torch.int64), valid)
    with torch.no_grad():
        found = detector(Images(*inputs[:2]), proposals=given)
    return {key: part.detach() for key, part in found._asdict().items() if part is not None}


Run = Callable[[tuple[Tensor, ...]], list[Tensor]]
"""A detector elsewhere: takes ``batches``, gives the outputs of the program in order."""


class Made:
    """A recipe's detector, and what several runtimes start from, made once."""

    def __init__(self, recipe: Recipe, folder: Path, most: int = 20) -> None:
        self.recipe, self.folder, self.detector = recipe, folder, spread(recipe.build(), most)

    @cached_property
    def program(self) -> torch.export.ExportedProgram:
        return program(self.detector, (SIDE, SIDE), **self.recipe.settings)

    @cached_property
    def onnx(self) -> Path:
        path = self.folder / "detector.onnx"
        torch.onnx.export(self.program, (), path, output_names=self.names, verbose=False)
        return path

    @cached_property
    def names(self) -> list[str]:
        """Of the outputs, in order."""
        return list(eager(self.detector, next(batches(self.recipe))))


def by_name(inputs: tuple[Tensor, ...], taken: list[str]) -> dict[str, np.ndarray]:
    given = dict(zip(("images", "sizes", "proposals", "proposals_valid"), inputs, strict=False))
    return {name: given[name].numpy() for name in taken}


def compiled(made: Made) -> Run:
    """In one graph, which PyTorch's own operators run: what inductor makes of one is AOTInductor's column."""
    torch.compiler.reset()
    whole = torch.compile(eager, fullgraph=True, dynamic=True, backend="eager")
    return lambda inputs: list(whole(made.detector, inputs).values())


def exported(made: Made) -> Run:
    return lambda inputs: list(made.program.module()(*inputs).values())


def onnxruntime(made: Made) -> Run:
    from onnxruntime import InferenceSession

    session = InferenceSession(made.onnx, providers=["CPUExecutionProvider"])
    taken = [entry.name for entry in session.get_inputs()]
    return lambda inputs: [torch.from_numpy(part) for part in session.run(made.names, by_name(inputs, taken))]


def in_openvino(model) -> Run:
    import openvino

    ready = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    taken = [port.any_name for port in ready.inputs]
    return lambda inputs: [torch.from_numpy(part.copy()) for part in ready(by_name(inputs, taken)).values()]


def openvino_from_onnx(made: Made) -> Run:
    import openvino

    return in_openvino(openvino.convert_model(made.onnx))


def openvino_from_program(made: Made) -> Run:
    import openvino

    return in_openvino(openvino.convert_model(made.program))


ALONE = """
import sys, torch
sys.modules.update(detkit=None, torchvision=None)  # so that they cannot be imported
package, given, found = sys.argv[1:]
run = torch._inductor.aoti_load_package(package)
torch.save([list(run(*inputs).values()) for inputs in torch.load(given)], found)
"""
BRIEF = {"aot_inductor.debug_compile": True}
"""The C++ compiler optimizes nothing: asked is what a package finds, not how fast."""


def aot_inductor(made: Made) -> Run:
    """All ``batches``, in their order, in a process of its own, which can import neither detkit nor torchvision."""
    package, given, found = (str(made.folder / name) for name in ("detector.pt2", "given.pt", "found.pt"))
    torch._inductor.aoti_compile_and_package(made.program, package_path=package, inductor_configs=BRIEF)
    torch.save(list(batches(made.recipe)), given)
    done = subprocess.run([sys.executable, "-c", ALONE, package, given, found], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    results = iter(torch.load(found))
    return lambda inputs: next(results)


def executorch(made: Made) -> Run:
    """One image of a fixed size, as such devices want it."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from executorch.runtime import Runtime

    fixed = {**made.recipe.settings, "batch": 1, "multiple_of": None, "loops": False}
    whole = program(made.detector, (SIDE, SIDE), **fixed)
    lowered = to_edge_transform_and_lower(whole, partitioner=[XnnpackPartitioner()]).to_executorch()
    path = made.folder / "detector.pte"
    path.write_bytes(lowered.buffer)  # a program of bytes does not keep them alive
    method = Runtime.get().load_program(path).load_method("forward")
    return lambda inputs: [part.clone() for part in method.execute(list(inputs))]


RUNTIMES = {
    "torch.compile": (compiled, "torch"),
    "torch.export": (exported, "torch"),
    "ONNX, onnxruntime": (onnxruntime, "onnxruntime"),
    "ONNX, OpenVINO": (openvino_from_onnx, "openvino"),
    "OpenVINO": (openvino_from_program, "openvino"),
    "AOTInductor": (aot_inductor, "torch"),
    "ExecuTorch": (executorch, "executorch"),
}


def difference(names: list[str], found: list[Tensor], expected: dict[str, Tensor]) -> tuple[float, float]:
    """In pixels of boxes and keypoints, and in scores (infinite where labels differ, or other boxes were found)."""
    own = dict(zip(names, found, strict=True))
    rows = expected["valid"]
    same = own["valid"].shape == rows.shape and torch.equal(own["valid"].bool(), rows)
    same = same and torch.equal(own["labels"].long()[rows], expected["labels"][rows])
    if not same or not rows.any():
        return torch.inf, torch.inf
    places = [key for key in ("boxes", "keypoints") if key in expected]
    pixels, scores = (
        max((own[key][rows] - expected[key][rows]).abs().max().item() for key in keys) for keys in (places, ["scores"])
    )
    return pixels, scores


def cell(made: Made, runtime: str) -> str:
    only = 1 if runtime == "ExecuTorch" else None
    most = 2 if runtime == "torch.compile" else None  # a batch of one is compiled once more
    each = []
    try:
        run = RUNTIMES[runtime][0](made)
        for inputs in islice(batches(made.recipe, only), most):
            each.append(difference(made.names, run(inputs), eager(made.detector, inputs)))
    except Exception as error:
        while error.__cause__ is not None:  # an exporter's first words are of itself
            error = error.__cause__
        words = f"{type(error).__name__}: {' '.join(str(error).split())}".replace("|", "/").replace("`", "'")
        return f"`{words[:LONGEST]}{'...' * (len(words) > LONGEST)}`"
    pixels, scores = (max(column) for column in zip(*each, strict=True))
    return f"{pixels:.0e}, {scores:.0e}".replace("0e+00", "0")


def installed(module: str) -> bool:
    try:
        importlib.import_module(module)
    except ImportError:
        print(f"{module} is not installed: its cells are NOT run", file=sys.stderr)
        return False
    return True


def kept() -> dict[str, dict[str, str]]:
    """The cells found so far, by recipe and runtime."""
    return json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.exists() else {}


def table() -> str:
    """All that are kept, in Markdown."""
    cells = kept()
    lines = [["recipe", *RUNTIMES], ["---"] * (len(RUNTIMES) + 1)]
    lines += [[name, *(cells.get(name, {}).get(runtime, "not run") for runtime in RUNTIMES)] for name in RECIPES]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(chosen: list[str]) -> None:
    runtimes = [name for name in RUNTIMES if name in chosen] or list(RUNTIMES)
    runtimes = [name for name in runtimes if installed(RUNTIMES[name][1])]
    recipes = [name for name in chosen if name in RECIPES] or list(RECIPES)
    for name in recipes if chosen != ["kept"] else ():
        with tempfile.TemporaryDirectory() as folder:
            made = Made(RECIPES[name], Path(folder))
            for runtime in runtimes:
                few = Made(RECIPES[name], Path(folder), 4)  # a step of an unrolled loop takes a second to convert
                found = cell(few if runtime == "ExecuTorch" else made, runtime)
                cells = kept()
                cells.setdefault(name, {})[runtime] = found
                KEPT.write_text(json.dumps(cells, indent=1) + "\n", encoding="utf-8")
                print(f"{name}, {runtime}: {cells[name][runtime]}", file=sys.stderr, flush=True)
    print(table())


if __name__ == "__main__":
    main(sys.argv[1:])
