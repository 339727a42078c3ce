"""The networks of the table: how tasks share encoders."""

from functools import partial
from typing import Any

from nuclei.scenes import BOXES, CLASS, MASKS, Scene
from nuclei.training import train
from torch import nn

from detkit import backbones, detectors, losses, multitask, necks

THREE = CLASS, BOXES, MASKS
ROWS = {
    "masks": (MASKS,),
    "masks + class": (CLASS, MASKS),
    "masks + boxes": (BOXES, MASKS),
    "three, stitched": THREE,
    "three, equal weights": THREE,
    "three, one encoder": THREE,
    "sequential": (MASKS,),
}


def encoder() -> backbones.SmallBackbone:
    """Levels at strides 2, 4, 8 and 16."""
    return backbones.SmallBackbone((8, 16, 32, 64), stem_stride=2)


class Coarser(necks.FPN):
    """A pyramid without the finest level, whose many points would take most of the time."""

    def forward(self, features: list[Any]) -> list[Any]:
        return super().forward(features[1:])


def compose(tasks: tuple[str, ...], trunk: Any) -> detectors.Detector:
    """A stage for each task, on its branch of the trunk; that of boxes has a pyramid in front."""
    channels, neck = trunk.out_channels, Coarser(trunk.out_channels[1:], trunk.strides[1:], channels=16)
    groups = partial(nn.GroupNorm, 8)  # a batch norm would average over levels, of which each needs its own
    boxes = detectors.fcos_stage(1, 16, detectors.fcos_anchors(neck.strides), depth=1, norm=groups).on(BOXES)
    boxes.criterion = losses.FCOSLoss(losses.diou_cost)
    boxes.postprocess = detectors.LevelwisePostprocess(score_threshold=0.05, iou_threshold=0.5, max_detections=200)
    stages = {CLASS: detectors.image_class_stage(2, channels[-1], branch=CLASS), BOXES: boxes}
    stages[MASKS] = detectors.segmentation_stage(2, channels, skips=True, branch=MASKS)
    trunk = nn.Sequential(trunk, necks.BranchNecks(**{BOXES: neck} if BOXES in tasks else {}))
    own = {name: stages[name] for name in tasks}
    return detectors.Detector(trunk, preprocess=detectors.Preprocess((128, 128)), **own)


def build(row: str, scenes: list[Scene], steps: int) -> Any:
    """The trained detector of a row."""
    tasks = ROWS[row]
    if row == "sequential":
        return sequential(scenes, steps)
    if len(tasks) == 1 or row == "three, one encoder":
        return train(compose(tasks, multitask.SharedTrunk(encoder(), tasks)), scenes, steps)
    stitches = multitask.cross_stitches(len(tasks), encoder().out_channels)
    detector = compose(tasks, multitask.StitchedTrunk({name: encoder() for name in tasks}, stitches))
    equal = multitask.FixedWeights(tasks, [1.0] * len(tasks)) if row == "three, equal weights" else None
    return train(detector, scenes, steps, equal)


def sequential(scenes: list[Scene], steps: int) -> Any:
    """Two networks first; then masks with their frozen encoders, and their stages answering beside it."""
    helpers = {}
    for name in (CLASS, BOXES):
        helpers[name] = train(compose((name,), multitask.SharedTrunk(encoder(), [name])), scenes, steps)
    frozen = {name: helper.trunk[0].backbone for name, helper in helpers.items()}
    own = train(compose((MASKS,), multitask.TransferTrunk(encoder(), frozen, branch=MASKS)), scenes, steps)
    stages = {name: helper.get_submodule(name) for name, helper in helpers.items()}
    trunk = nn.Sequential(own.trunk[0], helpers[BOXES].trunk[1])
    return detectors.Detector(trunk, preprocess=own.preprocess, **stages, segmentation=own.segmentation).eval()
