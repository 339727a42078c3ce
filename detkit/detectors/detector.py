"""The one model of the library: a trunk that sees, and stages that decide, each refining what the one before found."""

from collections.abc import Sequence
from typing import Any, cast, overload

from torch import Tensor, nn

from detkit.detectors.preprocess import Preprocess
from detkit.proposals import Proposals
from detkit.structures import Detection, Detections, Images, Target, Targets

Features = list[Tensor] | dict[str, list[Tensor]]
Given = Sequence[Proposals] | Detections


class Stage(nn.Module):
    """One step of a detector: it predicts, judges its predictions, and turns them into detections.

    A subclass is final and fills in ``forward``, ``loss`` and ``detections``; ``handover`` where the next stage learns
    on something other than the detections. ``branch`` names the part of the features that the stage reads, where the
    trunk returns a dict. Outputs are whatever the stage likes; nobody else looks inside.

    >>> class Constant(Stage):
    ...     def forward(self, features, images, detections, targets=None): return features[0].mean()
    ...     def loss(self, outputs, targets): return {"mean": outputs}
    >>> Constant().loss(3.0, None)
    {'mean': 3.0}
    """

    def __init__(self, *, branch: str | None = None) -> None:
        super().__init__()
        self.branch = branch

    def forward(
        self, features: list[Tensor], images: Images, detections: Detections | None, targets: Targets | None = None
    ) -> Any:
        """Predict from features and the ``detections`` of the stage before; ``targets`` come in training only."""
        raise NotImplementedError(f"{type(self).__name__} must define forward()")

    def loss(self, outputs: Any, targets: Targets) -> dict[str, Tensor]:
        """Scalars, already weighted: their sum is what the stage minimizes."""
        raise NotImplementedError(f"{type(self).__name__} must define loss()")

    def detections(self, outputs: Any, images: Images) -> Detections:
        """What the outputs mean, at inference: padded to a number of rows that does not depend on values."""
        raise NotImplementedError(f"{type(self).__name__} must define detections()")

    def handover(self, outputs: Any, images: Images, targets: Targets) -> Detections | None:
        """What the next stage learns on, in training: by default the detections."""
        return self.detections(outputs, images)


class Detector(nn.Module):
    """A trunk and its stages, in order.

    ``trunk`` maps (B, D, H, W) to a list of feature maps, or to a dict of lists for stages with a ``branch``;
    ``preprocess`` turns images as they come into its input and results back. Stage names are free; they prefix losses
    and state_dict keys. Whether the model trains or infers is chosen by arguments, not by ``train()`` and ``eval()``:

    - ``detector(images)`` finds: list of images in, list of Detection dicts out, in the images' own pixels;
    - ``detector(images, targets)`` gives the losses, a dict of weighted scalars: minimize ``sum(losses.values())``;
    - an :class:`Images` batch, already preprocessed, goes straight in with padded :class:`Targets`, and padded
      :class:`Detections` come out: that form compiles and exports.

    ``proposals`` enter as the detections before the first stage: with a list of images a list of dicts of boxes (N, 4)
    in each image's own pixels and scores (N,), best first; or padded, in the batch's pixels. Raises ValueError without
    stages.

    >>> import torch
    >>> from detkit.detectors import tiny_ssd
    >>> detector = tiny_ssd(num_classes=2).eval()
    >>> [sorted(found) for found in detector([torch.zeros(3, 200, 300)])]
    [['boxes', 'labels', 'scores']]
    """

    def __init__(self, trunk: nn.Module, *, preprocess: Preprocess, **stages: Stage) -> None:
        super().__init__()
        if not stages:
            raise ValueError("Detector: needs at least one stage, given by name: Detector(trunk, ..., dense=stage)")
        self.trunk, self.preprocess = trunk, preprocess
        self.stage_names: tuple[str, ...] = ()
        for name, stage in stages.items():
            if hasattr(self, name):
                raise ValueError(f"Detector: a stage cannot be called {name!r}: every module has that already")
            self.add_module(name, stage)
            self.stage_names += (name,)

    @property
    def stages(self) -> dict[str, Stage]:
        """The stages by name, in the order they run."""
        return {name: cast(Stage, self.get_submodule(name)) for name in self.stage_names}

    @overload
    def forward(
        self, images: Sequence[Tensor], targets: None = None, proposals: Given | None = None
    ) -> list[Detection]: ...
    @overload
    def forward(self, images: Images, targets: None = None, proposals: Detections | None = None) -> Detections: ...
    @overload
    def forward(
        self, images: Sequence[Tensor], targets: Sequence[Target], proposals: Given | None = None
    ) -> dict[str, Tensor]: ...
    @overload
    def forward(self, images: Images, targets: Targets, proposals: Detections | None = None) -> dict[str, Tensor]: ...
    def forward(
        self,
        images: Sequence[Tensor] | Images,
        targets: Sequence[Target] | Targets | None = None,
        proposals: Given | None = None,
    ) -> list[Detection] | Detections | dict[str, Tensor]:
        """Detections, or with ``targets`` losses; see the class."""
        if isinstance(images, Images):
            if proposals is not None and not isinstance(proposals, Detections):
                raise ValueError(
                    "Detector: images came as Images, so proposals must be Detections; see pad_proposals()"
                )
            return self._fold(images, _padded(targets), proposals)
        if isinstance(targets, Targets):
            raise ValueError("Detector: images came as a list, so targets must be a list of dicts, one for each image")
        batch, padded = self.preprocess(images, targets)
        if proposals is not None and not isinstance(proposals, Detections):
            proposals = self.preprocess.proposals(proposals, batch)
        result = self._fold(batch, padded, proposals)
        return self.preprocess.undo(result, batch) if isinstance(result, Detections) else result

    def _fold(
        self, images: Images, targets: Targets | None, detections: Detections | None
    ) -> Detections | dict[str, Tensor]:
        features: Features = self.trunk(images.tensors)
        losses: dict[str, Tensor] = {}
        last = self.stage_names[-1]
        for name, stage in self.stages.items():
            outputs = stage(_branch(features, name, stage), images, detections, targets)
            if targets is None:
                detections = stage.detections(outputs, images)
                continue
            losses |= {f"{name}.{key}": loss for key, loss in stage.loss(outputs, targets).items()}
            if name != last:
                detections = stage.handover(outputs, images, targets)
        return losses if targets is not None else cast(Detections, detections)


def _branch(features: Features, name: str, stage: Stage) -> list[Tensor]:
    if isinstance(features, dict):
        if stage.branch not in features:
            raise ValueError(
                f"Detector: stage {name!r} reads branch {stage.branch!r}; the trunk has {sorted(features)}"
            )
        return features[stage.branch]
    if stage.branch is not None:
        raise ValueError(f"Detector: stage {name!r} reads branch {stage.branch!r}, but the trunk returns no branches")
    return features


def _padded(targets: Sequence[Target] | Targets | None) -> Targets | None:
    if targets is None or isinstance(targets, Targets):
        return targets
    raise ValueError("Detector: images came as Images, so targets must be Targets; pad_targets() makes them")
