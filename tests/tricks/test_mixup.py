"""Mixup of labels and of detections: formulas in plain numbers, the distribution of the shares, what is refused."""

import math

import pytest
import torch
from batches import assert_in_step, batches
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from strategies import assert_refused

from detkit.detectors import tiny_ssd
from detkit.structures import pad_targets
from detkit.tricks import DetectionMixup, Mixup
from detkit.tricks.mixup import beta
from detkit.tricks.samples import others, uniform


@pytest.mark.parametrize("alpha", [0.2, 1.0, 1.5, 8.0])
def test_shares_have_the_beta_distribution(alpha):
    numbers = [row[0] for row in uniform((4000, 1), torch.Generator().manual_seed(0))]
    shares = beta(numbers, alpha)
    assert stats.kstest(shares, stats.beta(alpha, alpha).cdf).pvalue > 0.01
    assert all(0 <= share <= 1 for share in shares)


@pytest.mark.parametrize("alpha", [1e-300, 1e-6, 1e8, 1e300])
def test_extreme_distributions_stay_in_range(alpha):
    assert all(0 <= share <= 1 for share in beta([0.0, 1e-12, 0.25, 0.5, 1 - 2**-53], alpha))


# Classification


@given(seed=st.integers(0, 999), count=st.integers(2, 5), hot=st.booleans(), whole=st.booleans())
def test_images_and_labels_are_mixed_by_the_same_shares(seed, count, hot, whole):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, 70, 3), generator=generator)
    images = images.byte() if whole else images / 255
    rows = torch.randint(0, 2, (count, 4), generator=generator)
    labels = rows if hot else torch.randint(0, 4, (count,), generator=generator)
    mixed, soft = Mixup(4, alpha=1.0)(images, labels, generator=torch.Generator().manual_seed(seed))
    assert mixed.dtype == images.dtype
    assert soft.dtype == torch.float32
    for i, (first, second) in enumerate(uniform((count, 2), torch.Generator().manual_seed(seed))):
        share, (j,) = first, others(i, [second], count)  # Beta(1, 1) is uniform
        assert j != i
        for c in range(4):
            one, other = (float(labels[k][c] if hot else labels[k] == c) for k in (i, j))
            assert soft[i, c].item() == pytest.approx(share * one + (1 - share) * other, abs=1e-6)
        expected = share * images[i].double() + (1 - share) * images[j].double()
        if whole:
            assert (mixed[i] - expected).abs().max() <= 0.5001
        else:
            torch.testing.assert_close(mixed[i].double(), expected, atol=1e-6, rtol=0)


def test_the_slides_example_of_nine_tenths_clock_and_one_tenth_bittern():
    images, labels = torch.stack((torch.zeros(3, 2, 2), torch.ones(3, 2, 2))), torch.tensor([3, 1])
    mixup, generator = Mixup(5, alpha=1.0), torch.Generator()
    shares = (uniform((2, 2), generator.manual_seed(seed))[0][0] for seed in range(10**6))
    seed = next(seed for seed, share in enumerate(shares) if abs(share - 0.9) < 5e-4)
    mixed, soft = mixup(images, labels, generator=generator.manual_seed(seed))
    torch.testing.assert_close(soft[0], torch.tensor([0, 0.1, 0, 0.9, 0]), atol=1e-3, rtol=0)
    torch.testing.assert_close(mixed[0], torch.full((3, 2, 2), 0.1), atol=1e-3, rtol=0)


def test_soft_labels_sum_to_one_and_are_what_cross_entropy_takes():
    labels = torch.tensor([0, 1, 2, 1])
    _, soft = Mixup(3)(torch.zeros(4, 3, 2, 2), labels)
    torch.testing.assert_close(soft.sum(1), torch.ones(4))
    assert torch.isfinite(torch.nn.functional.cross_entropy(torch.zeros(4, 3), soft))


@pytest.mark.parametrize(
    ("images", "labels", "said"),
    [
        (torch.zeros(3, 4, 4), torch.tensor([0, 1, 2]), "Mixup: images (3, 4, 4)"),
        (torch.zeros(2, 3, 4, 4), torch.tensor([0]), "Mixup: images (2, 3, 4, 4) and labels (1,)"),
        (torch.zeros(2, 3, 4, 4), torch.tensor([0, 3]), "Mixup: labels[1]=3 must lie in [0, 2]; 1 of 2"),
        (torch.zeros(2, 3, 4, 4), torch.tensor([-1, 0]), "Mixup: labels[0]=-1 must lie in [0, 2]"),
        (torch.zeros(2, 3, 4, 4), torch.tensor([0.0, 1]), "Mixup: labels have shape (2,) and are torch.float32"),
        (torch.zeros(2, 3, 4, 4), torch.zeros(2, 4), "Mixup: labels have shape (2, 4)"),
        (torch.zeros(2, 3, 4, 4), torch.tensor([[0.0, 0, math.nan]] * 2), "Mixup: labels[0, 2]=nan must lie in [0, 1]"),
        (torch.zeros(1, 3, 4, 4), torch.tensor([0]), "Mixup: a batch of 1 has no second image"),
        (torch.zeros(2, 3, 4, 4).to(torch.int8), torch.tensor([0, 1]), "Mixup: images torch.int8 uint8, uint16"),
        (torch.zeros(2, 3, 4, 4) > 0, torch.tensor([0, 1]), "Mixup: images torch.bool uint8, uint16"),
    ],
)
def test_what_cannot_be_mixed_is_refused(images, labels, said):
    assert_refused(said, Mixup(3), images, labels)


# Detection


@given(batch=batches(fewest=2, segmentation=False), seed=st.integers(0, 99), even=st.booleans())
def test_all_objects_of_both_stay_unchanged_with_the_weight_of_their_image(batch, seed, even):
    images, targets = batch
    canvases, found = DetectionMixup(even=even)(images, targets, generator=torch.Generator().manual_seed(seed))
    numbers = uniform((len(images), 3), torch.Generator().manual_seed(seed))
    for i, (canvas, target) in enumerate(zip(canvases, found, strict=True)):
        (j,), share = others(i, numbers[i][2:], len(images)), 0.5 if even else beta(numbers[i][1:2], 1.5)[0]
        one, other = targets[i], targets[j]
        for key in ("boxes", "labels", "keypoints", "area", "iscrowd"):
            if key in one:
                assert torch.equal(target[key], torch.cat((one[key], other[key]))), key
        assert_in_step(targets, target)
        weights = [given.get("weights", torch.ones(len(given["boxes"]))) for given in (one, other)]
        torch.testing.assert_close(target["weights"], torch.cat((weights[0] * share, weights[1] * (1 - share))))
        expected = torch.zeros(canvas.shape, dtype=torch.float64)
        for image, part in ((images[i], share), (images[j], 1 - share)):
            expected[:, : image.shape[1], : image.shape[2]] += part * image.double()
        size = tuple(max(images[i].shape[axis], images[j].shape[axis]) for axis in (1, 2))
        assert canvas.shape == (3, *size)
        assert (canvas - expected).abs().max() <= (0.5001 if canvas.dtype == torch.uint8 else 1e-6)
        if "masks" in target:
            assert target["masks"].shape[1:] == size
            both = target["masks"].sum((1, 2)).tolist()
            assert both == [*one["masks"].sum((1, 2)).tolist(), *other["masks"].sum((1, 2)).tolist()]


def test_weights_of_an_image_and_its_partner_sum_to_what_they_were():
    target = {"boxes": torch.tensor([[0.0, 0, 4, 4]]), "labels": torch.tensor([1]), "weights": torch.tensor([2.0])}
    targets = [target, target]
    found = DetectionMixup()([torch.zeros(3, 4, 4)] * 2, targets)[1]
    for target in found:
        assert target["weights"].sum().item() == pytest.approx(2.0)


def test_a_share_of_one_gives_the_plain_sample():
    images = [torch.full((3, 4, 4 + i), float(i)) for i in range(2)]
    targets = [{"boxes": torch.tensor([[0.0, 0, 2, 2]]), "labels": torch.tensor([i])} for i in range(2)]
    mixup, generator = DetectionMixup(alpha=1e-9), torch.Generator().manual_seed(0)
    results = [mixup(images, targets, generator=generator) for _ in range(20)]
    plain = [(image, target) for (image, _), (target, _) in results if target["labels"].tolist() == [0]]
    assert 0 < len(plain) < 20
    for image, target in plain:
        assert torch.equal(image, images[0])
        assert "weights" not in target


def test_a_segmentation_is_refused():
    given = [{"boxes": torch.zeros(0, 4), "labels": [], "segmentation": torch.zeros(4, 4)}] * 2
    assert_refused("DetectionMixup: targets[0] has segmentation", DetectionMixup(), [torch.zeros(3, 4, 4)] * 2, given)


@pytest.mark.slow
def test_losses_heed_the_weights():
    torch.manual_seed(0)
    detector = tiny_ssd(2)
    image, boxes = torch.rand(3, 64, 64), torch.tensor([[4.0, 4, 30, 30], [30, 30, 60, 60]])
    target = {"boxes": boxes, "labels": torch.tensor([0, 1])}

    def loss(target):
        return sum(detector([image], [target]).values()).item()

    without, half, whole = (loss(target | {"weights": torch.tensor([1.0, weight])}) for weight in (0.0, 0.5, 1.0))
    assert without == loss({key: rows[:1] for key, rows in target.items()})
    assert len({without, half, whole}) == 3
    assert whole == loss(target)


def test_what_comes_out_can_be_padded():
    images = [torch.zeros(3, 4, 4), torch.zeros(3, 6, 5)]
    targets = [{"boxes": torch.tensor([[0.0, 0, 2, 2]]), "labels": torch.tensor([1])}, {"image_id": 3}]
    padded = pad_targets(DetectionMixup()(images, targets)[1])
    assert padded.valid.sum(1).tolist() == [1, 1]
    assert padded.weights[padded.valid].sum().item() < 2
