"""Parallel stages that read the same features: several box tasks on one trunk."""

from collections.abc import Mapping
from typing import Any, TypeVar, cast

from torch import Tensor

from detkit._door import door
from detkit.detectors.detector import Features, Found, Stage, Truth, add_stages, branch_of
from detkit.structures import Detections, Images, Targets

Part = TypeVar("Part", Targets, Detections)


class SideBySide(Stage):
    """Runs several stages as one: each reads the features, or its branch of them, and makes its own detections.

    Results are passed on by name, to the caller or to another SideBySide with the same names: in padded form as a dict
    of Detections, in list form as one dict per image that holds a Detection for each name. Targets may also be given by
    name: then each stage learns its own targets, so tasks may have different classes; otherwise all stages learn the
    same targets. With names, every image's target has exactly these names, ``{}`` where a task has no objects::

        model = Detector(trunk, preprocess=preprocess, tasks=SideBySide(faces=one, cars=other))
        losses = model(images, [{"faces": {"boxes": ..., "labels": ...}, "cars": {"boxes": ..., "labels": ...}}, ...])
        found = model(images)  # found[0]["cars"]["boxes"]

    Losses are named "tasks.cars.box". Each stage receives the detections of an earlier stage, or the proposals.
    Raises ValueError if there are no stages, and for targets or detections under other names.

    >>> import torch
    >>> from detkit.structures import pad_targets
    >>> class Find(Stage):
    ...     def forward(self, features, images, detections, targets=None): return features[0].mean()
    ...     def loss(self, outputs, targets): return {"mean": outputs}
    >>> tasks, images = SideBySide(faces=Find(), cars=Find()), Images(torch.zeros(1, 3, 4, 4), torch.tensor([[4, 4]]))
    >>> tasks.loss(tasks([images.tensors], images, None), pad_targets([{}]))
    {'faces.mean': tensor(0.), 'cars.mean': tensor(0.)}
    """

    several = True

    def __init__(self, **stages: Stage) -> None:
        super().__init__()
        self.stage_names: tuple[str, ...] = ()  # taken, too
        self.stage_names = add_stages(self, stages)

    @property
    def stages(self) -> dict[str, Stage]:
        """The stages by name."""
        return {name: cast(Stage, self.get_submodule(name)) for name in self.stage_names}

    @door
    def forward(
        self, features: Features, images: Images, detections: Found | None, targets: Truth | None = None
    ) -> dict[str, Any]:
        """The outputs of every stage, by name."""
        return {
            name: stage(
                branch_of(features, name, stage),
                images,
                _own(detections, name, "detections"),
                _own(targets, name, "targets"),
            )
            for name, stage in self.stages.items()
        }

    @door
    def loss(self, outputs: Mapping[str, Any], targets: Truth) -> dict[str, Tensor]:
        """The losses of all stages, with the stage names as prefix."""
        return {
            f"{name}.{key}": loss
            for name, stage in self.stages.items()
            for key, loss in stage.loss(outputs[name], _own(targets, name, "targets")).items()
        }

    # What several stages find is no Detections: the fold and Preprocess.undo know, and other stages are kept from it.
    @door
    def detections(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, outputs: Mapping[str, Any], images: Images
    ) -> dict[str, Detections]:
        """The detections of every stage, by name."""
        return {name: stage.detections(outputs[name], images) for name, stage in self.stages.items()}

    @door
    def handover(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, outputs: Mapping[str, Any], images: Images, targets: Truth
    ) -> dict[str, Detections | None]:
        """The detections that the next stages train on, by name."""
        return {
            name: stage.handover(outputs[name], images, _own(targets, name, "targets"))
            for name, stage in self.stages.items()
        }


def _own(values: Part | dict[str, Part] | None, name: str, kind: str) -> Any:
    """The values for the stage ``name``: its entry if values come by name, otherwise all of them."""
    if not isinstance(values, dict):
        return values
    if name not in values:
        raise ValueError(f"SideBySide: {kind} come by name, {sorted(values)}; stage {name!r} needs its own")
    return values[name]
