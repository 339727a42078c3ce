"""Test-time augmentation: detect in several views of each image, by one or several detectors, and fuse the results."""

from collections.abc import Sequence

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from detkit._door import door
from detkit._ranges import Positive, Whole
from detkit.structures import FIELDS, Detection
from detkit.tricks.fused import Fusion, check_fusion
from detkit.tricks.fusion import fused
from detkit.tricks.pieces import resized
from detkit.tricks.views import AXES, Flip, View, flipped_back, read_view, resized_back


class TestTimeAugmentation(nn.Module):
    """A detector that looks at each image in several views: at every scale in ``scales``, in every flip in ``flips``.

    ``detectors``: one module in eval mode that maps a list of images (D, H, W) to a list of Detections, or several that
    know the same classes; another TestTimeAugmentation or :class:`~detkit.tricks.TiledInference` is one, too.
    ``fusion`` makes one detection of the views, which come in order: detector, scale, flip. A scale multiplies height
    and width, resized with antialiasing and in the type of the image (bool as float32); 1 leaves the pixels alone.
    Flips are "none", "horizontal" (left and right change places), "vertical" and "both". Boxes, keypoints, masks and
    segmentations come back in the image's own pixels, embeddings and the like as they are. Horizontal flips need
    ``keypoint_pairs`` where there are keypoints: the pairs (left, right) of those that change places, none with ``()``.
    Records no gradient.

    A detector whose preprocess resizes would undo ``scales``, which is refused. Give the same parts with another size
    beside it: ``Detector(detector.trunk, preprocess=Preprocess((480, 640)), **detector.stages)``.

    Raises ValueError for detectors that are no modules, or return another number of results than images, flips that
    there are not, a keypoint in two pairs, keypoints without ``keypoint_pairs`` in a horizontal flip, and as
    :func:`~detkit.tricks.fuse_detections` does; TypeError for images that are one tensor.

    >>> from detkit.tricks import WeightedBoxesFusion
    >>> class Corner(nn.Module):
    ...     def forward(self, images):
    ...         boxes, one = torch.tensor([[1.0, 2, 4, 6]]), torch.ones(1)
    ...         return [{"boxes": boxes, "scores": one / 2, "labels": one.long()} for _ in images]
    >>> looks = TestTimeAugmentation(Corner(), fusion=WeightedBoxesFusion())
    >>> looks([torch.zeros(3, 10, 20)])[0]["boxes"]
    tensor([[ 1.,  2.,  4.,  6.],
            [16.,  2., 19.,  6.]])
    """

    __test__ = False  # pytest takes classes called Test... for tests

    @door
    def __init__(
        self,
        detectors: nn.Module | Sequence[nn.Module],
        *,
        fusion: Fusion,
        scales: Sequence[Positive] = (1.0,),
        flips: Sequence[Flip] = ("none", "horizontal"),
        keypoint_pairs: Sequence[tuple[Whole, Whole]] | None = None,
    ) -> None:
        super().__init__()
        several = [detectors] if isinstance(detectors, nn.Module) else list(detectors)
        scales, flips = [float(scale) for scale in scales], list(flips)
        _check(several, scales, flips)
        check_fusion(fusion, where="TestTimeAugmentation: fusion")
        self.detectors, self.fusion = nn.ModuleList(several), fusion
        self.scales, self.flips = scales, flips
        self.keypoint_pairs = None if keypoint_pairs is None else [(left, right) for left, right in keypoint_pairs]
        paired = [point for pair in self.keypoint_pairs or () for point in {*pair}]
        if twice := [point for point in paired if paired.count(point) > 1]:
            raise ValueError(
                f"TestTimeAugmentation: keypoint_pairs has {twice[0]} in two pairs; allowed is one partner for each"
            )

    @door
    @torch.no_grad()
    def forward(self, images: Sequence[Shaped[Tensor, "D _ _"]]) -> list[Detection]:
        """The fused detections of every image, in its own pixels, best first."""
        check_list(images, function="TestTimeAugmentation")
        views: list[list[View]] = [[] for _ in images]
        for detector in self.detectors if len(images) else ():
            for scale in self.scales:
                shown = [_scaled(image, scale) for image in images]
                for flip in self.flips:
                    found = detector([image.flip(AXES[flip]) if AXES[flip] else image for image in shown])
                    check_results(found, len(images), function="TestTimeAugmentation")
                    for own, image, seen, result in zip(views, images, shown, found, strict=True):
                        where = f"TestTimeAugmentation: views[{len(own)}]"
                        view = read_view(result, where=where, size=seen.shape[-2:])
                        own.append(self._undone(view, flip, seen.shape[-2:], image.shape[-2:]))
        return [fused(own, self.fusion, where="TestTimeAugmentation: views") for own in views]

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        return f"scales={self.scales}, flips={self.flips}"

    def _undone(self, view: View, flip: Flip, seen: Sequence[int], size: Sequence[int]) -> View:
        """What was found in a view of size ``seen``, in the pixels of its image of ``size``."""

        def undone(key: str, values: Tensor) -> Tensor:
            if flip in ("horizontal", "both") and key in ("keypoints", "keypoints_scores"):
                values = values[:, self._exchanged(values.shape[1])]
            moves = FIELDS[key].moves
            return values if moves == "no" else resized_back(flipped_back(values, moves, flip, seen), moves, seen, size)

        return View(*({key: undone(key, values) for key, values in part.items()} for part in view))

    def _exchanged(self, count: int) -> list[int]:
        """Which of ``count`` keypoints of the flipped image is each of the image's."""
        if self.keypoint_pairs is None:
            raise ValueError(
                "TestTimeAugmentation: keypoint_pairs=None with keypoints in a horizontal flip; name the pairs "
                "(left, right) that change places, or () where there are none"
            )
        order = list(range(count))
        for left, right in self.keypoint_pairs:
            if max(left, right) >= count:
                raise ValueError(f"TestTimeAugmentation: keypoint_pairs has ({left}, {right}) of {count} keypoints")
            order[left], order[right] = right, left
        return order


def check_list(images: object, *, function: str) -> None:
    """Raise TypeError for a single image or a batch where a list of images belongs."""
    if isinstance(images, Tensor):
        raise TypeError(f"{function}: images is a tensor {tuple(images.shape)}; give a list of images (D, H, W)")


def check_results(found: object, count: int, *, function: str) -> None:
    """Raise ValueError unless a detector returned a list with one result for each of ``count`` images."""
    if not isinstance(found, Sequence) or len(found) != count:
        came = f"{len(found)}" if isinstance(found, Sequence) else f"a {type(found).__name__}"
        raise ValueError(
            f"{function}: the detector returned {came} for {count} images; allowed is a list with a dict for each: is "
            "it in eval()?"
        )


def _check(detectors: Sequence[nn.Module], scales: Sequence[float], flips: Sequence[Flip]) -> None:
    for name, given in (("detectors", detectors), ("scales", scales), ("flips", flips)):
        if not given:
            raise ValueError(f"TestTimeAugmentation: {name} is empty; allowed is at least one")
    for flip in flips:
        if flip not in AXES:
            raise ValueError(f"TestTimeAugmentation: flips has {flip!r}; allowed are {', '.join(AXES)}")
    for i, detector in enumerate(detectors):
        if not isinstance(detector, nn.Module):
            raise ValueError(
                f"TestTimeAugmentation: detectors[{i}] is a {type(detector).__name__}; allowed is a module that maps a "
                "list of images to a list of detections"
            )
        size = getattr(getattr(detector, "preprocess", None), "size", None)
        if size is not None and any(scale != 1 for scale in scales):
            raise ValueError(
                f"TestTimeAugmentation: scales={list(scales)}, but the preprocess of detectors[{i}] resizes every "
                f"image to {size}; give another detector of the same parts with another size instead"
            )


def _scaled(image: Tensor, scale: float) -> Tensor:
    height, width = (max(1, round(side * scale)) for side in image.shape[-2:])
    return resized(image, (height, width))
