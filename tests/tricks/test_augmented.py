"""Test-time augmentation of detectors whose answer is known in every view."""

import itertools

import pytest
import torch
from bright import BrightAreas, assert_same_objects, scattered
from strategies import assert_refused, unhooked
from torch import nn

from detkit.detectors import Preprocess, tiny_ssd
from detkit.tricks import KeepAll, NMSFusion, TestTimeAugmentation, WeightedBoxesFusion

IMAGES = [scattered(31, 47, largest=9, count=12, seed=1), scattered(20, 16, largest=5, count=8, seed=2)]
PAIRS = [(0, 1)]


class Whole(nn.Module):
    """Finds the whole image, and says what it was given."""

    def __init__(self, score: float = 0.5) -> None:
        super().__init__()
        self.score, self.given = score, []

    def forward(self, images):
        self.given += [[image.clone() for image in images]]
        return [
            {
                "boxes": torch.tensor([[0.0, 0, image.shape[2], image.shape[1]]]),
                "scores": torch.tensor([self.score]),
                "labels": torch.tensor([0]),
            }
            for image in images
        ]


def test_without_augmentation_it_is_the_detector_itself_bit_for_bit():
    looks = TestTimeAugmentation(BrightAreas(), fusion=KeepAll(), flips=["none"])
    for found, expected in zip(looks(IMAGES), BrightAreas()(IMAGES), strict=True):
        assert found.keys() == expected.keys()
        for key, rows in expected.items():
            assert torch.equal(found[key], rows), key
            assert found[key].dtype == rows.dtype


def test_without_augmentation_a_detector_of_the_library_is_itself_bit_for_bit():
    torch.manual_seed(0)
    detector, images = tiny_ssd(num_classes=2).eval(), [torch.rand(3, 60, 80), torch.rand(3, 40, 40)]
    found = TestTimeAugmentation(detector, fusion=KeepAll(), flips=["none"])(images)
    with torch.no_grad():
        expected = detector(images)
    assert sum(len(one["boxes"]) for one in expected) > 10
    assert all(torch.equal(one[key], two[key]) for one, two in zip(found, expected, strict=True) for key in two)


@pytest.mark.parametrize("flip", ["horizontal", "vertical", "both"])
def test_a_detector_that_is_the_same_in_a_mirror_finds_the_same_in_each_flip(flip):
    looks = TestTimeAugmentation(BrightAreas(), fusion=KeepAll(), flips=[flip], keypoint_pairs=PAIRS)
    for found, expected in zip(looks(IMAGES), BrightAreas()(IMAGES), strict=True):
        assert_same_objects(found, expected, tolerance=1e-6)


def test_all_flips_and_scales_fused_find_each_object_once():
    looks = TestTimeAugmentation(
        BrightAreas(rich=False),
        fusion=NMSFusion(0.5),
        scales=(1, 2, 3),
        flips=["none", "horizontal", "vertical", "both"],
    )
    for found, expected in zip(looks([(image > 0).float() for image in IMAGES]), BrightAreas()(IMAGES), strict=True):
        assert sorted(found["boxes"].tolist()) == sorted(expected["boxes"].tolist())


def test_masks_of_a_scaled_image_come_back_in_its_own_pixels():
    image = (IMAGES[0] > 0).float()
    looks = TestTimeAugmentation(BrightAreas(), fusion=KeepAll(), scales=(2,), flips=["both"], keypoint_pairs=PAIRS)
    (found,), (expected,) = looks([image]), BrightAreas()([image])
    parts = [{key: part[key] for key in ("boxes", "masks", "keypoints")} for part in (found, expected)]
    assert_same_objects(*parts, tolerance=1e-4)


@pytest.mark.parametrize("scale", [0.001, 0.3, 0.77, 1.0, 1.5])
def test_boxes_come_back_by_the_ratio_of_the_sides_that_the_view_had(scale):
    looks = TestTimeAugmentation(Whole(), fusion=KeepAll(), scales=(scale,))
    for height, width in ((7, 11), (1, 50), (33, 1)):
        found = looks([torch.rand(3, height, width)])[0]
        expected = torch.tensor([[0.0, 0, width, height]]).expand(2, -1)
        torch.testing.assert_close(found["boxes"], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16])
def test_views_come_in_order_in_the_type_of_the_image_and_at_scale_1_with_its_pixels(dtype):
    detectors = [Whole(), Whole()]
    image = (torch.rand(3, 8, 12) * 200).to(dtype)
    TestTimeAugmentation(detectors, fusion=KeepAll(), scales=(1, 0.5))([image])
    for detector in detectors:
        seen = [images[0] for images in detector.given]
        assert [tuple(view.shape) for view in seen] == [(3, 8, 12), (3, 8, 12), (3, 4, 6), (3, 4, 6)]
        assert {view.dtype for view in seen} == {dtype}
        assert torch.equal(seen[0], image)
        assert torch.equal(seen[1], image.flip(-1))
        assert torch.equal(seen[3], seen[2].flip(-1))


def test_shrinking_averages_over_the_pixels_that_fall_together():
    detector, stripes = Whole(), torch.tensor([0.0, 1.0]).repeat(1, 32, 16)
    TestTimeAugmentation(detector, fusion=KeepAll(), scales=(0.25,), flips=["none"])([stripes])
    inside = detector.given[0][0][0, :, 1:-1]
    torch.testing.assert_close(inside, torch.full_like(inside, 0.5), rtol=0, atol=0.1)


def test_detectors_are_weighed_in_the_fusion():
    fusion = WeightedBoxesFusion(weights=(1, 3))
    (found,) = TestTimeAugmentation([Whole(0.4), Whole(0.8)], fusion=fusion)([torch.rand(3, 9, 9)])
    assert found["scores"].tolist() == pytest.approx([(0.4 + 3 * 0.8) / 4])


def test_embeddings_and_the_like_stay_with_their_object():
    looks = TestTimeAugmentation(BrightAreas(), fusion=NMSFusion(0.5), keypoint_pairs=PAIRS)
    for found, expected in zip(looks(IMAGES), BrightAreas()(IMAGES), strict=True):
        assert_same_objects(found, expected, tolerance=1e-6)


def test_an_empty_list_and_images_without_objects_make_no_detections():
    looks = TestTimeAugmentation(BrightAreas(), fusion=WeightedBoxesFusion(), scales=(1, 2), keypoint_pairs=())
    assert looks([]) == []
    for height, width in itertools.product((1, 9), repeat=2):
        (found,) = looks([torch.zeros(1, height, width)])
        assert {key: len(rows) for key, rows in found.items()} == dict.fromkeys(found, 0)
        assert found["masks"].shape == (0, height, width)


def test_nothing_keeps_a_graph():
    detector = tiny_ssd(num_classes=2).eval()
    (found,) = TestTimeAugmentation(detector, fusion=KeepAll())([torch.rand(3, 60, 80)])
    assert not found["boxes"].requires_grad


def test_keypoints_in_a_mirror_without_pairs_are_refused_by_name():
    looks = TestTimeAugmentation(BrightAreas(), fusion=KeepAll())
    assert_refused("TestTimeAugmentation: keypoint_pairs None pairs (left, right)", looks, IMAGES)
    looks = TestTimeAugmentation(BrightAreas(), fusion=KeepAll(), keypoint_pairs=[(0, 2)])
    assert_refused("TestTimeAugmentation: keypoint_pairs (0, 2) 2 keypoints", looks, IMAGES)
    for pairs, twice in (([(0, 1), (1, 2)], 1), ([(0, 1), (1, 0)], 0), ([(0, 0), (0, 1)], 0)):
        message = f"TestTimeAugmentation: keypoint_pairs {twice} in two pairs"
        assert_refused(message, TestTimeAugmentation, BrightAreas(), fusion=KeepAll(), keypoint_pairs=pairs)
    vertical = TestTimeAugmentation(BrightAreas(), fusion=KeepAll(), flips=["vertical"])
    assert len(vertical(IMAGES)) == 2


def test_scales_that_a_preprocess_would_undo_are_refused_by_name():
    detector = tiny_ssd(num_classes=2)
    said = "TestTimeAugmentation: scales [1.0, 2.0] preprocess detectors[0] resizes another size"
    assert_refused(said, TestTimeAugmentation, detector, fusion=KeepAll(), scales=(1, 2))
    detector.preprocess = Preprocess(None)
    TestTimeAugmentation(detector, fusion=KeepAll(), scales=(1, 2))


def test_what_is_no_detector_no_flip_and_no_view_is_refused_by_name():
    name = "TestTimeAugmentation:"
    assert_refused(
        f"{name} detectors[1] builtin_function_or_method allowed module",
        TestTimeAugmentation,
        [Whole(), len],
        fusion=len,
    )
    for empty in ("detectors", "scales", "flips"):
        given = {"detectors": [Whole()], "fusion": KeepAll(), empty: ()}
        assert_refused(f"{name} {empty} empty allowed", TestTimeAugmentation, **given)
    assert_refused(f"{name} flips 'left' allowed vertical", TestTimeAugmentation, Whole(), fusion=len, flips=["left"])
    assert_refused(f"{name} fusion class KeepAll allowed KeepAll()", TestTimeAugmentation, Whole(), fusion=KeepAll)
    assert_refused(f"{name} scales[0] above 0", TestTimeAugmentation, Whole(), fusion=len, scales=(0,))


def test_one_tensor_of_images_is_refused_by_name():
    looks = TestTimeAugmentation(Whole(), fusion=KeepAll())
    for images in (torch.ones(3, 4, 4), torch.ones(2, 3, 4, 4)):
        with pytest.raises(TypeError, match=r"TestTimeAugmentation: images is a tensor .*; give a list"):
            unhooked(looks)(images)


def test_what_is_no_detection_is_refused_by_name():
    looks = TestTimeAugmentation(nn.Identity(), fusion=KeepAll())
    with pytest.raises(TypeError, match=r"TestTimeAugmentation: views\[0\]: a Tensor; allowed is a dict"):
        unhooked(looks)([torch.ones(1, 4, 4)])


class Silent(nn.Module):
    def forward(self, images):
        return []


def test_a_detector_that_skips_images_is_refused_by_name():
    looks = TestTimeAugmentation(Silent(), fusion=KeepAll())
    assert_refused("TestTimeAugmentation: detector 0 2 images allowed", looks, IMAGES)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool], ids=str)
def test_an_image_that_shrinks_to_one_column_looks_as_its_floats_do(dtype):
    image = torch.randint(0, 256 if dtype == torch.uint8 else 2, (3, 40, 12)).to(dtype)
    detectors = Whole(), Whole()
    for detector, given in zip(detectors, (image, image.float()), strict=True):
        TestTimeAugmentation(detector, fusion=KeepAll(), scales=(0.1,), flips=["none"])([given])
    (found,), (expected,) = (detector.given[0] for detector in detectors)
    assert found.shape == (3, 4, 1)
    assert (found.float() - expected).abs().max() <= (0.51 if dtype == torch.uint8 else 1e-6)
