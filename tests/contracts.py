"""What every detector promises, as checks that a test file applies to each recipe: ``check(case)``.

A case is a seeded, small detector with its number of classes. A check is a function whose name is the sentence that it
proves; ``CONTRACT`` lists them all, and ``SHORT_CONTRACT`` those worth running on a detector that takes seconds.
"""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from detkit.anchors import BalancedSampler
from detkit.detectors import Detector, ProposalPostprocess
from detkit.structures import Detections, Images, Target, Targets, pad_targets


class Case(NamedTuple):
    """A detector under contract: ``build()`` makes it with fresh random weights.

    ``background`` names the losses that an image without objects costs: where hard negatives are mined, none.
    """

    build: Callable[[], Detector]
    num_classes: int
    background: frozenset[str] = frozenset()

    def detector(self, seed: int = 0) -> Detector:
        """The detector, in eval mode, with the weights of this seed; nothing in it is left to chance."""
        torch.manual_seed(seed)
        return without_chance(self.build()).eval()

    def assert_nothing_but_background(self, losses: dict[str, Tensor]) -> None:
        """Losses are 0 but for those of background."""
        assert losses.keys() >= self.background
        for name, loss in losses.items():
            assert (loss > 0) == (name in self.background), (name, loss)


def without_chance(detector: Detector) -> Detector:
    """Samplers take all there is, from few proposals; masks stay probabilities, which no rounding flips."""
    for module in detector.modules():
        if isinstance(module, BalancedSampler):
            module.count, module.positive_fraction, module.negatives_per_positive = 10_000, 1.0, None
            module.gray_per_other = float(module.gray_per_other > 0)
        elif isinstance(module, ProposalPostprocess):
            module.candidates_per_level, module.max_proposals = 40, 40
    detector.preprocess.mask_threshold = None
    return detector


Check = Callable[[Case], None]


def pictures(*sizes: tuple[int, int], seed: int = 1) -> list[Tensor]:
    """Noise images in [0, 1], one for each (height, width)."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(3, *size, generator=generator) for size in sizes]


def target(boxes: list[list[float]], labels: list[int], **more: list[float]) -> Target:
    """A Target from lists."""
    extra = {name: torch.tensor(values) for name, values in more.items()}
    return Target(
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        labels=torch.tensor(labels, dtype=torch.int64),
        **extra,
    )


def two_images() -> tuple[list[Tensor], list[Target]]:
    """Two images of different size with two and one objects, as large as some default box; masks fill the boxes."""
    targets = [
        target([[8, 8, 56, 56], [40, 20, 100, 76]], [0, 1]),
        target([[10, 30, 50, 90]], [1]),
    ]
    sizes = (96, 128), (120, 100)
    return pictures(*sizes), [filled(one, size) for one, size in zip(targets, sizes, strict=True)]


def filled(one: Target, size: tuple[int, int]) -> Target:
    """The target with masks (T, height, width): all of each box."""
    masks = torch.zeros(len(one["boxes"]), *size, dtype=torch.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, one["boxes"].int().tolist(), strict=True):
        mask[y1:y2, x1:x2] = 1
    return Target(**{**one, "masks": masks})


def losses_and_gradients(detector: Detector, images, targets) -> tuple[dict[str, Tensor], dict[str, Tensor | None]]:
    """The losses, and the gradient of their sum for every parameter, by name."""
    detector.zero_grad(set_to_none=True)
    losses = detector(images, targets)
    sum(losses.values()).backward()
    return losses, {name: parameter.grad for name, parameter in detector.named_parameters()}


def assert_trainable(detector: Detector, images, targets) -> dict[str, Tensor]:
    """Losses are finite and every parameter gets a finite gradient; hands the losses back."""
    losses, gradients = losses_and_gradients(detector, images, targets)
    assert losses
    for name, loss in losses.items():
        assert torch.isfinite(loss), (name, loss)
    for name, gradient in gradients.items():
        assert gradient is not None, f"{name} has no gradient"
        assert torch.isfinite(gradient).all(), f"{name} has a gradient that is not finite"
    return losses


def assert_same_losses(found: dict[str, Tensor], expected: dict[str, Tensor], *, rtol=1e-5, atol=1e-6) -> None:
    assert found.keys() == expected.keys()
    for name, loss in expected.items():
        torch.testing.assert_close(
            found[name], loss, rtol=rtol, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
        )


def assert_same_found(found, expected) -> None:
    """Two lists of Detection dicts agree; one more or less at the very end of a list would be a failure."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for key in other:
            torch.testing.assert_close(one[key], other[key], rtol=1e-4, atol=1e-4)


FLAT = [[20.0, 20, 20, 60], [30, 30, 30, 30]]


def empty_target(boxes: list[list[float]] = ()) -> Target:
    """Objects that no anchor can fit: none at all, or boxes without area."""
    return target(list(boxes), [0] * len(boxes))


# Losses


def losses_are_weighted_scalars_prefixed_by_their_stage(case: Case) -> None:
    detector = case.detector()
    losses = assert_trainable(detector, *two_images())
    for name, loss in losses.items():
        assert loss.shape == ()
        assert loss > 0
        assert name.split(".")[0] in detector.stages


def losses_depend_on_the_arguments_not_on_the_mode(case: Case) -> None:
    detector, (images, targets) = case.detector(), two_images()
    for mode in (True, False):
        detector.train(mode)
        assert set(detector(images, targets)) == set(detector.eval()(images, targets))
        assert isinstance(detector.train(mode)(images), list)
        assert detector.training is mode


def a_batch_without_objects_trains_every_parameter(case: Case) -> None:
    images, _ = two_images()
    losses = assert_trainable(case.detector().train(), images, [empty_target(), empty_target()])
    case.assert_nothing_but_background(losses)


def a_batch_without_positives_trains_every_parameter(case: Case) -> None:
    """Objects without area, which the preprocess would not let through."""
    detector, (images, _) = case.detector().train(), two_images()
    batch, _ = detector.preprocess(images)
    flat = filled(empty_target(FLAT), (96, 128))
    losses = assert_trainable(detector, batch, pad_targets([flat, empty_target()]))
    case.assert_nothing_but_background(losses)


def objects_without_area_are_refused_or_dropped_as_the_policy_says(case: Case) -> None:
    detector, (images, targets) = case.detector(), two_images()
    flat = filled(empty_target(FLAT), (120, 100))
    assert detector.preprocess.degenerate == "raise"
    with pytest.raises(ValueError, match=r"targets\[1\]: boxes\[0\].*x2 > x1.*y2 > y1.*2"):
        detector(images, [targets[0], flat])
    detector.preprocess.degenerate = "drop"
    assert_same_losses(detector(images, [targets[0], flat]), detector(images, [targets[0], empty_target()]))


def an_image_without_objects_beside_one_with_some_trains_every_parameter(case: Case) -> None:
    images, targets = two_images()
    losses = assert_trainable(case.detector().train(), images, [targets[0], empty_target()])
    assert sum(losses.values()) > 0


def padding_targets_further_changes_nothing(case: Case) -> None:
    detector, (images, targets) = case.detector(), two_images()
    batch, padded = detector.preprocess(images, targets)
    longer = Targets._make(None if rows is None else torch.cat((rows, torch.zeros_like(rows)), 1) for rows in padded)
    noise = longer._replace(boxes=torch.where(longer.valid[..., None], longer.boxes, torch.tensor([0.0, 0, 50, 50])))
    expected, gradients = losses_and_gradients(detector, batch, padded)
    for rows in (longer, noise):
        found, same = losses_and_gradients(detector, batch, rows)
        assert_same_losses(found, expected)
        for name, gradient in gradients.items():
            torch.testing.assert_close(same[name], gradient, rtol=1e-4, atol=1e-6)


def crowds_teach_nothing(case: Case) -> None:
    detector, (images, targets) = case.detector(), two_images()
    crowd = [Target(**one, iscrowd=torch.ones(len(one["labels"]))) for one in targets]
    case.assert_nothing_but_background(detector(images, crowd))
    other_class = [Target(**{**one, "labels": one["labels"] * 0 + case.num_classes - 1}) for one in crowd]
    both = [joined(plain, extra) for plain, extra in zip(targets, crowd, strict=True)]
    relabeled = [joined(plain, extra) for plain, extra in zip(targets, other_class, strict=True)]
    assert_same_losses(detector(images, relabeled), detector(images, both))


def joined(first: Target, crowd: Target) -> Target:
    """Objects followed by crowd regions, one quarter the size of theirs, that no object shares."""
    return Target(
        boxes=torch.cat((first["boxes"], crowd["boxes"] * 0.5)),
        labels=torch.cat((first["labels"], crowd["labels"])),
        masks=torch.cat((first["masks"], crowd["masks"])),
        iscrowd=torch.cat((torch.zeros(len(first["labels"])), crowd["iscrowd"])),
    )


def an_object_counts_as_often_as_it_weighs(case: Case) -> None:
    """Of weight 0 it is not there, of weight 1 it is there once; tests/detectors/test_object_weights.py knows more."""
    detector, (images, targets) = case.detector(), two_images()

    def losses(*weights: float, objects: slice = slice(None)) -> dict[str, Tensor]:
        chosen = {key: rows[objects] for key, rows in targets[0].items()}
        weighted = Target(**chosen, weights=torch.tensor(weights)[objects])
        return detector(images[:1], [weighted])

    assert_same_losses(losses(1, 1), detector(images[:1], targets[:1]))
    assert_same_losses(losses(1, 0), losses(1, 0, objects=slice(1)))
    assert_same_losses(losses(0, 1), losses(0, 1, objects=slice(1, None)))
    assert_same_losses(losses(0, 0), losses(0, 0, objects=slice(0)))
    assert sum(losses(1, 1).values()) != sum(losses(0, 0).values())
    assert sum(losses(1, 0.25).values()) != sum(losses(1, 1).values())


# Detections


def lists_and_batches_find_the_same(case: Case) -> None:
    detector, (images, targets) = case.detector(), two_images()
    batch, padded = detector.preprocess(images, targets)
    found = detector(batch)
    assert isinstance(batch, Images)
    assert isinstance(found, Detections)
    assert_same_found(detector(images), detector.preprocess.undo(found, batch))
    assert_same_losses(detector(images, targets), detector(batch, padded))


def an_image_alone_finds_what_it_finds_in_a_batch(case: Case) -> None:
    detector, (images, targets) = case.detector(), two_images()
    together = detector(images)
    for i, image in enumerate(images):
        assert_same_found(detector([image]), together[i : i + 1])
    assert_same_losses(detector(images * 2, targets * 2), detector(images, targets), rtol=1e-4)


def detections_are_sorted_clipped_counted_and_zero_where_not_valid(case: Case) -> None:
    detector, (images, _) = case.detector(), two_images()
    batch, _ = detector.preprocess(images)
    found = detector(batch)
    images_count, rows = found.valid.shape
    assert images_count == len(images)
    assert found.boxes.shape == (images_count, rows, 4)
    assert found.scores.shape == found.labels.shape == (images_count, rows)
    assert found.valid.any()
    assert (found.valid[:, :-1] >= found.valid[:, 1:]).all()
    assert (found.scores[:, :-1] >= found.scores[:, 1:]).all()
    assert ((found.scores >= 0) & (found.scores <= 1)).all()
    assert ((found.labels >= 0) & (found.labels < case.num_classes)).all()
    for part in (found.boxes, found.scores, found.labels, found.masks):
        assert part is None or not part[~found.valid].any()
    limits = batch.sizes.flip(-1).repeat(1, 2)[:, None]
    assert ((found.boxes >= 0) & (found.boxes <= limits)).all()
    assert (found.boxes[..., 2:] >= found.boxes[..., :2]).all()


def results_lie_in_the_pixels_of_each_image(case: Case) -> None:
    detector, (images, _) = case.detector(), two_images()
    for image, found in zip(images, detector(images), strict=True):
        height, width = image.shape[-2:]
        assert len(found["boxes"]) == len(found["scores"]) == len(found["labels"]) > 0
        assert (found["boxes"] >= 0).all()
        assert (found["boxes"] <= torch.tensor([width, height, width, height])).all()
        # Untrained boxes reach every border of the image: less would mean that the way back lost a factor.
        assert found["boxes"][:, 2].max() > 0.9 * width
        assert found["boxes"][:, 3].max() > 0.9 * height


def bytes_and_fractions_are_the_same_image(case: Case) -> None:
    detector = case.detector()
    raw = (pictures((90, 110))[0] * 255).to(torch.uint8)
    assert_same_found(detector([raw]), detector([raw / 255]))


def the_state_dict_carries_the_whole_detector(case: Case) -> None:
    first, second = case.detector(seed=0), case.detector(seed=1)
    images, targets = two_images()
    state = {key: value.clone() for key, value in first.state_dict().items()}
    differs = [key for key in first(images, targets) if first(images, targets)[key] != second(images, targets)[key]]
    assert differs
    second.load_state_dict(state)
    assert_same_losses(second(images, targets), first(images, targets), rtol=0, atol=0)
    assert_same_found(second(images), first(images))


def bfloat16_autocast_stays_finite_and_close(case: Case) -> None:
    detector, (images, targets) = case.detector(), two_images()
    exact = detector(images, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = assert_trainable(detector, images, targets)
        found = detector(images)
    first = next(iter(detector.stages))  # rounding changes which boxes later stages learn on
    close = [{key: loss for key, loss in own.items() if key.startswith(first)} for own in (losses, exact)]
    assert close[0]
    assert_same_losses(*close, rtol=0.05, atol=0.02)
    assert losses.keys() == exact.keys()
    for one, image in zip(found, images, strict=True):
        assert torch.isfinite(one["boxes"]).all()
        assert one["boxes"].dtype == one["scores"].dtype == torch.float32
        assert (one["boxes"].amax(0) <= torch.tensor(image.shape[-2:]).flip(0).repeat(2)).all()


# Errors


def wrong_arguments_are_named(case: Case) -> None:
    detector, (images, targets) = case.detector(), two_images()
    batch, _ = detector.preprocess(images)
    with pytest.raises(ValueError, match=r"targets must be Targets; pad_targets\(\) makes them"):
        detector(batch, targets)
    with pytest.raises(ValueError, match=r"2 images.*1 targets.*image"):
        detector(images, targets[:1])
    with pytest.raises(ValueError, match=r"images\[1\].*\(1, 40, 50\).*\(3, height, width\)"):
        detector([images[0], torch.zeros(1, 40, 50)])
    with pytest.raises(ValueError, match=r"images\[0\] has shape \(3, 0, 50\)"):
        detector([torch.zeros(3, 0, 50)])
    with pytest.raises(ValueError, match="no images"):
        detector([])
    with pytest.raises(ValueError, match=r"targets\[1\]: boxes.*\(1, 4\).*labels \(2,\)"):
        detector(images, [targets[0], target([[0, 0, 9, 9]], [0, 1])])
    assert isinstance(detector(batch, pad_targets([empty_target()] * 2)), dict)


CONTRACT: list[Check] = [
    losses_are_weighted_scalars_prefixed_by_their_stage,
    losses_depend_on_the_arguments_not_on_the_mode,
    a_batch_without_objects_trains_every_parameter,
    a_batch_without_positives_trains_every_parameter,
    objects_without_area_are_refused_or_dropped_as_the_policy_says,
    an_image_without_objects_beside_one_with_some_trains_every_parameter,
    padding_targets_further_changes_nothing,
    crowds_teach_nothing,
    an_object_counts_as_often_as_it_weighs,
    lists_and_batches_find_the_same,
    an_image_alone_finds_what_it_finds_in_a_batch,
    detections_are_sorted_clipped_counted_and_zero_where_not_valid,
    results_lie_in_the_pixels_of_each_image,
    bytes_and_fractions_are_the_same_image,
    the_state_dict_carries_the_whole_detector,
    bfloat16_autocast_stays_finite_and_close,
    wrong_arguments_are_named,
]
FREE_BACKGROUND = {
    a_batch_without_objects_trains_every_parameter,
    a_batch_without_positives_trains_every_parameter,
    crowds_teach_nothing,
}
"""What holds where background costs nothing without an object, as with SSD's loss."""
LEARNED_BACKGROUND: list[Check] = [check for check in CONTRACT if check not in FREE_BACKGROUND]
"""The contract of detectors that learn from background alone, as with a focal loss or objectness."""
SHORT_CONTRACT: list[Check] = [
    a_batch_without_positives_trains_every_parameter,
    detections_are_sorted_clipped_counted_and_zero_where_not_valid,
]
