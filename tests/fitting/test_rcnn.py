"""fit_rcnn: what each machine learns from, what it refuses, and that an R-CNN finds objects after it."""

import math
import warnings

import numpy as np
import pytest
import torch
from contracts import target
from sklearn.linear_model import Ridge
from sklearn.svm import LinearSVC
from torch import nn
from torch.utils.data import Dataset

from detkit.backbones import SmallBackbone
from detkit.boxes import DeltaCoder, box_iou
from detkit.boxes.crop import crop_and_resize
from detkit.detectors import Detector, Preprocess, rcnn, tiny_ssd
from detkit.fitting.rcnn import _Regions, _rescale, fit_rcnn
from detkit.fitting.svm import SVMSettings
from detkit.metrics import CocoMetrics
from detkit.proposals import pad_proposals, sliding_windows
from detkit.structures import Target
from detkit.weights import load_weights, save_weights

SIZE = 6
FEATURES = 3 * SIZE * SIZE
COLORS = torch.tensor([[0.9, 0.1, 0.1], [0.1, 0.2, 0.9]])


def detector_of_pixels(num_classes: int = 2, **options) -> Detector:
    """An R-CNN whose features are the pixels of its crops."""
    return rcnn(num_classes, nn.Flatten(), feature_size=FEATURES, size=SIZE, context=1, **options).eval()


def scene(seed: int, *, objects: int = 2, side: int = 64) -> tuple[torch.Tensor, Target]:
    """Red discs (0) and blue squares (1) on noise."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(3, side, side, generator=generator) * 0.3 + 0.35
    boxes, labels = [], []
    for k in range(objects):
        size = int(torch.randint(14, 25, (), generator=generator))
        left = int(torch.randint(0, side // objects - size, (), generator=generator)) + k * side // objects
        top = int(torch.randint(0, side - size, (), generator=generator))
        label = int(torch.randint(0, 2, (), generator=generator))
        y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
        inside = ((x + 0.5 - size / 2) ** 2 + (y + 0.5 - size / 2) ** 2 <= size**2 / 4) | (label == 1)
        window = image[:, top : top + size, left : left + size]
        window.copy_(torch.where(inside, COLORS[label][:, None, None], window))
        boxes.append([left, top, left + size, top + size])
        labels.append(label)
    return image, target(boxes, labels)


def windows(side: int = 64) -> torch.Tensor:
    return torch.cat([sliding_windows(side, side, size=s, stride=s // 4) for s in (16, 20)])


SCENES = [scene(seed) for seed in range(12)]
QUIET = {"progress": False}


def fitted(detector: Detector, scenes=SCENES, **options):
    return fit_rcnn(detector, scenes, [windows()] * len(scenes), **{**QUIET, **options})


def found_in(detector: Detector, image: torch.Tensor, boxes: torch.Tensor | None = None):
    boxes = windows() if boxes is None else boxes
    with torch.no_grad():
        return detector([image], proposals=pad_proposals([{"boxes": boxes, "scores": torch.ones(len(boxes))}]))[0]


def crops_of(detector: Detector, image: torch.Tensor, boxes: torch.Tensor) -> np.ndarray:
    batch, _ = detector.preprocess([image])
    return crop_and_resize(batch.tensors, boxes[None], SIZE, context=1).flatten(1).double().numpy()


@pytest.mark.slow
def test_the_machines_are_linear_svc_and_ridge_on_the_samples_that_the_paper_names():
    """Everything is chosen and fitted a second time, in plain steps."""
    detector = detector_of_pixels()
    report = fitted(detector, svm=SVMSettings(retrain_every=10**9))
    everything = [crops_of(detector, i, torch.cat((windows(), t["boxes"]))) for i, t in SCENES]
    factor = 20 / np.linalg.norm(np.concatenate(everything), axis=1).mean()
    assert detector.region.describe.scale.item() == pytest.approx(factor, rel=1e-5)
    for label in (0, 1):
        positives, negatives, near, deltas = [], [], [], []
        for (_, truth), features in zip(SCENES, everything, strict=True):
            own, rows = truth["boxes"][truth["labels"] == label], features * factor
            overlap = box_iou(windows(), truth["boxes"])
            positives.append(rows[len(windows()) :][(truth["labels"] == label).numpy()])
            background = (overlap[:, truth["labels"] == label] < 0.3).all(1)
            negatives.append(rows[: len(windows())][background.numpy()])
            good = (overlap.amax(1) > 0.6) & (truth["labels"][overlap.argmax(1)] == label)
            near.append(rows[: len(windows())][good.numpy()])
            deltas.append(DeltaCoder().encode(truth["boxes"][overlap.argmax(1)][good], windows()[good]).numpy())
            assert len(own) == len(positives[-1])
        positives, negatives = np.concatenate(positives), np.concatenate(negatives)
        near, deltas = np.concatenate(near), np.concatenate(deltas).astype(np.float64)
        counts = (report.positives[label], report.negatives[label], report.fittings[label], report.regressed[label])
        assert counts == (len(positives), len(negatives), 1, len(near))
        machine = LinearSVC(
            loss="hinge", C=1e-3, class_weight={1: 2}, intercept_scaling=10, max_iter=10_000, random_state=0
        ).fit(np.concatenate((positives, negatives)), np.repeat((1, 0), (len(positives), len(negatives))))
        both = np.concatenate((positives, negatives))
        with torch.no_grad():
            decided = detector.region.svm(torch.from_numpy(both).float())[:, label].numpy()
        np.testing.assert_allclose(decided, machine.decision_function(both), atol=1e-3)
        augmented = np.concatenate((near, np.ones((len(near), 1))), 1)
        d, v = np.linalg.eigh(np.cov(deltas.T, bias=True))
        white = v @ np.diag((d + 0.001) ** -0.5) @ v.T
        ridge = Ridge(alpha=1000, fit_intercept=False).fit(augmented, (deltas - deltas.mean(0)) @ white)
        expected = ridge.predict(augmented) @ np.linalg.inv(white) + deltas.mean(0)
        with torch.no_grad():
            regressed = detector.region.regression(torch.from_numpy(near).float())[:, 4 * label : 4 * label + 4]
        np.testing.assert_allclose(regressed.numpy(), expected, atol=1e-4)


def test_data_may_be_a_data_set_or_an_iterator():
    class Scenes(Dataset):
        def __len__(self):
            return 3

        def __getitem__(self, index):
            return SCENES[index]

    expected = fitted(detector_of_pixels(), SCENES[:3])
    assert fit_rcnn(detector_of_pixels(), Scenes(), [windows()] * 3, **QUIET) == expected
    assert fit_rcnn(detector_of_pixels(), iter(SCENES[:3]), (windows() for _ in range(3)), **QUIET) == expected


def test_features_have_the_wanted_mean_norm_after_fitting():
    detector = detector_of_pixels()
    fitted(detector, feature_norm=7.0)
    norms = []
    for image, truth in SCENES:
        batch, _ = detector.preprocess([image])
        boxes = torch.cat((windows(), truth["boxes"]))[None]
        norms.append(detector.region.describe(batch.tensors, boxes).norm(dim=2)[0])
    assert torch.cat(norms).mean().item() == pytest.approx(7, rel=1e-4)


@pytest.mark.slow
def test_fitting_twice_gives_the_same_machines_and_leaves_the_backbone_and_modes_alone():
    torch.manual_seed(0)
    detector = rcnn(2, SmallBackbone((8, 16), stem_stride=2), feature_size=16, size=16, context=1).train()
    detector.region.describe.backbone.stem.eval()
    modes = [module.training for module in detector.modules()]
    before = {name: value.clone() for name, value in detector.region.describe.backbone.state_dict().items()}
    fitted(detector, SCENES[:4])
    first = {name: value.clone() for name, value in detector.state_dict().items()}
    fitted(detector, SCENES[:4])
    for name, value in detector.state_dict().items():
        assert torch.equal(value, first[name]), name
    for name, value in detector.region.describe.backbone.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert [module.training for module in detector.modules()] == modes


@pytest.mark.slow
def test_whitening_can_be_left_out_as_in_the_paper():
    white, plain = detector_of_pixels(), detector_of_pixels()
    fitted(white)
    fitted(plain, whiten=False)
    assert torch.equal(white.region.svm.weight, plain.region.svm.weight)
    assert not torch.allclose(white.region.regression.weight, plain.region.regression.weight)


@pytest.mark.slow
def test_proposals_follow_the_resizing_of_images():
    plain, twice = detector_of_pixels(), detector_of_pixels(preprocess=Preprocess((128, 128)))
    large = [(nn.functional.interpolate(i[None], scale_factor=2, mode="nearest")[0], t) for i, t in SCENES]
    both = [(i, Target(boxes=t["boxes"] * 2, labels=t["labels"])) for i, t in large]
    small = detector_of_pixels(preprocess=Preprocess((64, 64)))
    reports = [
        fitted(plain),
        fitted(twice),
        fit_rcnn(small, both, [windows() * 2] * len(both), **QUIET),
    ]
    assert reports[0].positives == reports[1].positives == reports[2].positives
    assert reports[0].regressed == reports[1].regressed == reports[2].regressed


def test_a_class_without_an_object_warns_and_is_never_found():
    detector = detector_of_pixels(num_classes=3)
    with pytest.warns(UserWarning, match="class 2 has no object in the data, and will never be detected"):
        report = fitted(detector)
    assert report.positives[2] == report.negatives[2] == report.fittings[2] == report.regressed[2] == 0
    found = found_in(detector, SCENES[0][0])
    assert set(found["labels"].tolist()) == {0, 1}


@pytest.mark.slow
def test_an_image_without_objects_only_gives_negatives():
    empty = (torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(5)), target([], []))
    few = fitted(detector_of_pixels(), SCENES)
    more = fitted(detector_of_pixels(), [*SCENES, empty])
    assert (more.positives, more.regressed) == (few.positives, few.regressed)
    settings = SVMSettings(retrain_every=10**9)
    counts = [fitted(detector_of_pixels(), s, svm=settings).negatives for s in (SCENES, [*SCENES, empty])]
    assert [b - a for a, b in zip(*counts, strict=True)] == [len(windows())] * 2


@pytest.mark.slow
def test_an_image_without_proposals_only_gives_positives():
    settings = SVMSettings(retrain_every=10**9)
    boxes = [windows()] * 11 + [torch.tensor([])]
    without = fit_rcnn(detector_of_pixels(), SCENES, boxes, svm=settings, **QUIET)
    rest = fitted(detector_of_pixels(), SCENES[:11], svm=settings)
    own = torch.bincount(SCENES[11][1]["labels"], minlength=2).tolist()
    assert without.positives == [a + b for a, b in zip(rest.positives, own, strict=True)]
    assert (without.negatives, without.regressed) == (rest.negatives, rest.regressed)


def test_without_any_proposal_to_regress_boxes_stay_as_they_are():
    detector = detector_of_pixels()
    report = fitted(detector, regression_iou=0.999)
    assert report.regressed == [0, 0]
    found = found_in(detector, SCENES[0][0])
    assert torch.isin(found["boxes"].flatten(), windows().flatten()).all()


@pytest.mark.slow
def test_crowd_regions_and_flat_objects_teach_nothing():
    image, truth = SCENES[0]
    crowd = target([*truth["boxes"].tolist(), [0, 0, 64, 64]], [*truth["labels"].tolist(), 0], iscrowd=[0, 0, 1])
    flat = target([*truth["boxes"].tolist(), [5, 5, 5, 9]], [*truth["labels"].tolist(), 1])
    settings = SVMSettings(retrain_every=10**9)
    plain = fitted(detector_of_pixels(), SCENES, svm=settings)
    dropping = detector_of_pixels(preprocess=Preprocess(None, degenerate="drop"))
    assert fitted(dropping, [(image, flat), *SCENES[1:]], svm=settings) == plain
    with_crowd = fitted(detector_of_pixels(), [(image, crowd), *SCENES[1:]], svm=settings)
    rest = fitted(detector_of_pixels(), SCENES[1:], svm=settings)
    assert with_crowd.positives == plain.positives
    assert with_crowd.negatives == rest.negatives, "every window lies in the crowd"


def test_weights_saved_and_loaded_predict_identically(tmp_path):
    detector = detector_of_pixels()
    fitted(detector)
    save_weights(detector, tmp_path / "rcnn.safetensors")
    again = detector_of_pixels()
    load_weights(again, tmp_path / "rcnn.safetensors")
    for image, _ in SCENES[:3]:
        found, expected = found_in(again, image), found_in(detector, image)
        assert len(expected["scores"]) > 0
        for key in expected:
            assert torch.equal(found[key], expected[key])


@pytest.mark.slow(2)
def test_an_rcnn_on_a_random_network_learns_to_find_shapes_it_has_not_seen():
    torch.manual_seed(0)
    backbone = SmallBackbone((16, 32), stem_stride=2)
    detector = rcnn(2, backbone, feature_size=32 * 16, size=24, context=2, grid=4).eval()
    unseen = [scene(100 + seed) for seed in range(12)]

    def score() -> float:
        metrics = CocoMetrics(2)
        metrics.update([found_in(detector, image) for image, _ in unseen], [truth for _, truth in unseen])
        return metrics.compute()["bbox/AP50"]

    before = score()
    fitted(detector)
    after = score()
    assert before < 0.1
    assert after > 0.6


@pytest.mark.slow
def test_regression_brings_boxes_nearer_to_objects():
    detector = detector_of_pixels()
    fitted(detector, penalty=10.0)

    def nearness() -> float:
        overlaps = []
        for image, truth in SCENES:
            found = found_in(detector, image)
            overlaps.append(box_iou(truth["boxes"], found["boxes"][:10]).amax(1))
        return torch.cat(overlaps).mean().item()

    refined = nearness()
    nn.init.zeros_(detector.region.regression.weight)
    nn.init.zeros_(detector.region.regression.bias)
    assert refined > nearness() + 0.03


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"data": SCENES[:1], "proposals": []}, "proposals end after 0 images"),
        ({"data": SCENES[:1], "proposals": [windows()] * 2}, "data end after 1 images"),
        ({"data": [], "proposals": []}, "data holds no images"),
        ({"proposals": [torch.zeros(1, 2, 4)]}, r"proposals\[0\] has shape \(1, 2, 4\); allowed is \(N, 4\)"),
        ({"proposals": [torch.zeros(2, 5)]}, r"proposals\[0\] has shape \(2, 5\); allowed is \(\.\.\., 4\)"),
        ({"data": [(SCENES[0][0], target([[1, 1, 9, 9]], [2]))]}, "targets of image 0 have label 2; allowed is 0..1"),
        ({"data": [(SCENES[0][0] * math.nan, SCENES[0][1])]}, r"images\[0\] has pixels from nan to nan"),
        ({"data": [(torch.zeros(3, 64, 64), target([], []))], "proposals": [torch.tensor([])]}, "all features are 0"),
        ({"negative_iou": 2}, r"negative_iou=2 must lie in \[0, 1\]"),
        ({"regression_iou": -1}, r"regression_iou=-1 must lie in \[0, 1\]"),
        ({"feature_norm": 0}, "feature_norm=0 must be above 0 and finite"),
        ({"proposals": [SCENES[0][1]["boxes"][:0]]}, "has no negative: no proposal has IoU below 0.3"),
        ({"detector": tiny_ssd(num_classes=2)}, "last stage is a DenseStage; allowed is a RegionStage"),
    ],
)
def test_what_cannot_be_fitted_is_refused_and_changes_nothing(arguments, message):
    detector = detector_of_pixels()
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    good = {"detector": detector, "data": SCENES[:1], "proposals": [windows()], "progress": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        with pytest.raises(ValueError, match=message):
            fit_rcnn(**{**good, **arguments})
    for name, value in detector.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize(
    ("row", "problem"), [([math.nan, 0, 4, 4], "must be finite"), ([9, 0, 4, 4], "x2 < x1"), ([0, 9, 4, 4], "y2 < y1")]
)
def test_a_proposal_that_is_no_box_is_named_and_not_learned_as_background(row, problem):
    image, truth = SCENES[0]
    with pytest.raises(ValueError, match=rf"fit_rcnn: proposals\[0\].*{problem}"):
        fit_rcnn(detector_of_pixels(), [(image, truth)], [torch.tensor([row, [0.0, 0, 9, 9]])], progress=False)


def test_proposals_may_come_as_a_detector_takes_them():
    given = {"boxes": windows(), "scores": torch.ones(len(windows()))}
    from_tensors, from_dicts = detector_of_pixels(), detector_of_pixels()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit_rcnn(from_tensors, SCENES[:2], [windows()] * 2, progress=False)
        fit_rcnn(from_dicts, SCENES[:2], [given] * 2, progress=False)
    assert from_tensors.region.svm.weight.abs().max() > 0
    assert torch.equal(from_dicts.region.svm.weight, from_tensors.region.svm.weight)


def test_rescaling_needs_no_second_copy_of_the_features():
    regions = [
        _Regions(*(None,) * 7)._replace(features=np.full((2, 3), 2.0, np.float32), object_features=np.zeros((0, 3)))
    ]
    rows = regions[0].features
    factor = _rescale(regions, 20.0)
    assert factor == pytest.approx(20 / math.sqrt(12))
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 20.0, rtol=1e-6)
