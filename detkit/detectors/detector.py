"""The library's one model: a trunk that extracts features, and stages that each refine the previous one's results."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast, overload

import torch
from torch import Tensor, nn

from detkit._door import door
from detkit._ranges import Count, Fraction
from detkit.detectors.prediction import Picture, Prediction, predict
from detkit.detectors.preprocess import Preprocess
from detkit.detectors.recipe import Recipe
from detkit.proposals import Proposals
from detkit.structures import FIELDS, Detection, Detections, Images, Target, Targets

Features = list[Tensor] | dict[str, list[Tensor]]
Given = Sequence[Proposals] | Detections
Found = Detections | dict[str, Detections]
Truth = Targets | dict[str, Targets]
_OF_THE_IMAGE = [
    field.inside for field in FIELDS.values() if field.of != "object" and field.inside in Detections._fields
]


class Stage(nn.Module):
    """One step of a detector: it predicts, computes the losses of its predictions, and turns them into detections.

    A subclass is final and defines ``forward``, ``loss`` and ``detections``, and ``handover`` if the next stage trains
    on something other than the detections. If the trunk returns a dict, ``branch`` names the entry that the stage
    reads. Outputs may have any type; only the stage itself reads them. Results for the whole image (segmentation,
    image_scores) are carried over to later stages automatically; to keep the fields of each object, a stage keeps the
    rows and returns ``detections._replace(...)``.

    >>> class Constant(Stage):
    ...     def forward(self, features, images, detections, targets=None): return features[0].mean()
    ...     def loss(self, outputs, targets): return {"mean": outputs}
    >>> Constant().loss(3.0, None)
    {'mean': 3.0}
    """

    branch: str | None
    several = False  # whether it takes and returns dicts by stage name, as SideBySide does

    def __init__(self, *, branch: str | None = None) -> None:
        super().__init__()
        self.branch = branch

    def on(self, branch: str) -> "Stage":
        """Set the branch of the features to read and return the stage: for one whose constructor has no ``branch``.

        >>> Stage().on("boxes").branch
        'boxes'
        """
        self.branch = branch
        return self

    @door
    def forward(
        self, features: list[Tensor], images: Images, detections: Detections | None, targets: Targets | None = None
    ) -> Any:
        """Predict from features and the ``detections`` of the stage before; ``targets`` come in training only."""
        raise NotImplementedError(f"{type(self).__name__} must define forward()")

    @door
    def loss(self, outputs: Any, targets: Targets) -> dict[str, Tensor]:
        """Scalar losses, already weighted: the stage minimizes their sum."""
        raise NotImplementedError(f"{type(self).__name__} must define loss()")

    @door
    def detections(self, outputs: Any, images: Images) -> Detections:
        """Detections from the outputs, at inference: padded to a number of rows that does not depend on values."""
        raise NotImplementedError(f"{type(self).__name__} must define detections()")

    @door
    def handover(self, outputs: Any, images: Images, targets: Targets) -> Detections | None:
        """The detections that the next stage trains on; by default those of :meth:`detections`."""
        return self.detections(outputs, images)


class Detector(nn.Module):
    """A trunk and its stages, in order.

    ``trunk`` maps (B, D, H, W) to a list of feature maps, or to a dict of lists for stages with a ``branch``;
    ``preprocess`` turns images of any size into the trunk's input and maps results back. Stage names are free; they
    prefix losses and state_dict keys. Arguments choose between training and inference, not ``train()`` and ``eval()``:

    - ``detector(images)`` detects: list of images in, list of Detection dicts out, in each image's own pixels;
    - ``detector(images, targets)`` returns the losses, a dict of weighted scalars: minimize ``sum(losses.values())``;
    - a preprocessed :class:`Images` batch, with padded :class:`Targets` in training, returns padded
      :class:`Detections`: this form compiles and exports.

    Stages that run side by side take and return dicts by name: see :class:`~detkit.detectors.SideBySide`.

    The first stage gets ``proposals`` as its detections. With a list of images they are a list of dicts: boxes (N, 4)
    in each image's own pixels and scores (N,), best first; or padded Detections in the batch's pixels. Raises
    ValueError if there are no stages, and for a trunk or a preprocess that is no module.

    >>> import torch
    >>> from detkit.detectors import tiny_ssd
    >>> detector = tiny_ssd(num_classes=2).eval()
    >>> [sorted(found) for found in detector([torch.zeros(3, 200, 300)])]
    [['boxes', 'labels', 'scores']]
    """

    def __init__(self, trunk: nn.Module, *, preprocess: Preprocess, **stages: Stage) -> None:
        super().__init__()
        _check_module("trunk", trunk, "feature maps of (B, D, H, W), as nn.Sequential(backbone, neck)")
        _check_module("preprocess", preprocess, "batches of images and targets, as Preprocess(None) does")
        self.trunk, self.preprocess = trunk, preprocess
        self.categories: tuple[str, ...] = ()
        """The names of the labels, for :meth:`predict`; set them, or let :func:`detkit.weights.load_detector` do so."""
        self.recipe: Recipe | None = None
        self.stage_names: tuple[str, ...] = ()  # taken, too
        self.stage_names = add_stages(self, stages)

    @property
    def stages(self) -> dict[str, Stage]:
        """The stages by name, in the order they run."""
        return {name: cast(Stage, self.get_submodule(name)) for name in self.stage_names}

    @door
    def forward(
        self,
        images: Sequence[Tensor] | Images,
        targets: Sequence[Target] | Truth | None = None,
        proposals: Given | None = None,
    ) -> list[Detection] | Found | dict[str, Tensor]:
        """Detections, or losses if ``targets`` are given; see the class."""
        if isinstance(images, Images):
            if proposals is not None and not isinstance(proposals, Detections):
                raise ValueError(
                    "Detector: images came as Images, so proposals must be Detections; see pad_proposals()"
                )
            return self._folded(images, _padded(targets), proposals)
        if isinstance(targets, (Targets, dict)):
            raise ValueError("Detector: images came as a list, so targets must be a list of dicts, one for each image")
        batch, padded = self.preprocess(images, targets)
        if proposals is not None and not isinstance(proposals, Detections):
            proposals = self.preprocess.proposals(proposals, batch)
        result = self._folded(batch, padded, proposals)
        return result if padded is not None else self.preprocess.undo(cast(Found, result), batch)

    if TYPE_CHECKING:  # nn.Module's returns Any

        @overload
        def __call__(
            self, images: Sequence[Tensor], targets: None = None, proposals: Given | None = None
        ) -> list[Detection]: ...
        @overload
        def __call__(self, images: Images, targets: None = None, proposals: Detections | None = None) -> Detections: ...
        @overload
        def __call__(
            self,
            images: Sequence[Tensor],
            targets: Sequence[Target] | Sequence[dict[str, Tensor]],
            proposals: Given | None = None,
        ) -> dict[str, Tensor]: ...
        @overload
        def __call__(
            self, images: Images, targets: Truth, proposals: Detections | None = None
        ) -> dict[str, Tensor]: ...
        def __call__(self, images: Any, targets: Any = None, proposals: Any = None) -> Any: ...

    @door
    def predict(
        self,
        pictures: Picture | Iterable[Picture],
        *,
        batch_size: Count = 8,
        score_threshold: Fraction = 0.3,
        categories: Sequence[str] = (),
        unreadable: Literal["raise", "skip"] = "raise",
        progress: bool = True,
    ) -> list[Prediction]:
        """What is found in files, folders, Pillow images, arrays, tensors: :func:`predict` and its settings, as a list.

        For more pictures than fit into memory iterate over :func:`detkit.detectors.predict`.

        >>> from detkit.detectors import tiny_ssd
        >>> print(*tiny_ssd(2).predict(torch.zeros(3, 64, 64), score_threshold=1.0))
        picture 0: nothing
        """
        return list(
            predict(
                self,
                pictures,
                batch_size=batch_size,
                score_threshold=score_threshold,
                categories=categories,
                unreadable=unreadable,
                progress=progress,
            )
        )

    def _folded(self, images: Images, targets: Truth | None, detections: Found | None) -> Found | dict[str, Tensor]:
        """:meth:`_fold`, which says what is too small for batch norm in words of images."""
        if torch.compiler.is_compiling():
            return self._fold(images, targets, detections)
        try:
            return self._fold(images, targets, detections)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            count, _, height, width = images.tensors.shape
            raise ValueError(
                f"Detector: images of a batch of {count} are {height} x {width} pixels (height x width), too few for "
                "batch norm in training, which a feature map of one cell reaches; give larger images, more of them in "
                f"a batch, or eval() the detector ({error})"
            ) from error

    def _fold(self, images: Images, targets: Truth | None, detections: Found | None) -> Found | dict[str, Tensor]:
        features: Features = self.trunk(images.tensors)
        losses: dict[str, Tensor] = {}
        last = self.stage_names[-1]
        for name, stage in self.stages.items():
            if not stage.several:
                _check_single(name, targets=targets, detections=detections)
            outputs = stage(branch_of(features, name, stage), images, detections, targets)
            if targets is None:
                detections = _kept(stage.detections(outputs, images), detections)
                continue
            losses |= {f"{name}.{key}": loss for key, loss in stage.loss(outputs, cast(Any, targets)).items()}
            if name != last:
                detections = _kept(stage.handover(outputs, images, cast(Any, targets)), detections)
        return losses if targets is not None else cast(Found, detections)


def add_stages(owner: nn.Module, stages: dict[str, Stage]) -> tuple[str, ...]:
    """Register ``stages`` as submodules of ``owner`` under their names and return the names in order.

    Raises ValueError if there are none, and for a name that is already an attribute of the owner.

    >>> from detkit.detectors import Stage
    >>> add_stages(nn.Module(), {"train": Stage()})
    Traceback (most recent call last):
    ValueError: Module: a stage cannot be called 'train': ...
    """
    kind = type(owner).__name__
    if not stages:
        raise ValueError(f"{kind}: needs at least one stage, given by name: {kind}(..., dense=stage)")
    for name, stage in stages.items():
        if not isinstance(stage, Stage):
            raise ValueError(f"{kind}: stage {name!r} is a {type(stage).__name__}; allowed is a Stage")
        if hasattr(owner, name):
            raise ValueError(f"{kind}: a stage cannot be called {name!r}: every module has that already")
        owner.add_module(name, stage)
    return tuple(stages)


def branch_of(features: Features, name: str, stage: Stage) -> Any:
    """The branch of the features that a stage reads. Raises ValueError naming the stage if there is no such branch.

    >>> import torch
    >>> branch_of({"boxes": [torch.zeros(1)], "masks": [torch.ones(1)]}, "draw", Stage(branch="masks"))
    [tensor([1.])]
    """
    if isinstance(features, Tensor):
        raise ValueError("Detector: the trunk returns a tensor; allowed is a list of feature maps, or a dict of lists")
    if stage.several:
        return features
    if isinstance(features, dict):
        if stage.branch not in features:
            raise ValueError(
                f"Detector: stage {name!r} reads branch {stage.branch!r}; the trunk has {sorted(features)}"
            )
        return features[stage.branch]
    if stage.branch is not None:
        raise ValueError(f"Detector: stage {name!r} reads branch {stage.branch!r}, but the trunk returns no branches")
    return features


def _check_module(name: str, part: Any, makes: str) -> None:
    if not isinstance(part, nn.Module):
        raise ValueError(f"Detector: {name} is a {type(part).__name__}; allowed is a module that makes {makes}")


def _check_single(name: str, **values: Truth | Found | None) -> None:
    for kind, value in values.items():
        if isinstance(value, dict):
            raise ValueError(
                f"Detector: {kind} come by name, {sorted(value)}, but stage {name!r} takes one for all; "
                "SideBySide(name=stage, ...) gives each stage its own"
            )


def _kept(found: Any, before: Found | None) -> Any:
    """``found``, with the image-level fields that it lacks taken from ``before``."""
    if found is None or before is None:
        return found
    if isinstance(found, dict):
        own = before if isinstance(before, dict) else dict.fromkeys(found, before)
        return {name: _kept(part, own[name]) for name, part in found.items()}
    missing = {name: getattr(before, name) for name in _OF_THE_IMAGE if getattr(found, name) is None}
    return found._replace(**missing)


def _padded(targets: Sequence[Target] | Truth | None) -> Truth | None:
    if targets is None or isinstance(targets, (Targets, dict)):
        return targets
    raise ValueError("Detector: images came as Images, so targets must be Targets; pad_targets() makes them")
