"""Tiles cover the image, and a detector of local pixels finds in them what it finds in the whole image."""

from itertools import pairwise

import pytest
import torch
from bright import BrightAreas, assert_same_objects, scattered
from hypothesis import given
from hypothesis import strategies as st
from strategies import assert_refused, unhooked
from torch import nn
from torch.nn import functional as F

from detkit.tricks import KeepAll, NMSFusion, TestTimeAugmentation, TiledInference, image_tiles

SIDE, OVERLAP = 24, 9
LENGTHS = st.integers(1, 90)


def tiled(detector=None, **options):
    options = {"tile": SIDE, "overlap": OVERLAP, "merge": NMSFusion(0.5), **options}
    return TiledInference(detector or BrightAreas(), **options)


@given(LENGTHS, LENGTHS, st.integers(1, 40), st.integers(0, 39), st.integers(1, 8))
def test_tiles_cover_every_pixel_and_every_object_up_to_the_overlap_is_whole_in_one(h, w, side, overlap, multiple_of):
    overlap = min(overlap, side - 1)
    multiple_of = min(multiple_of, side - overlap)
    tiles = image_tiles((h, w), (side, side + 3), overlap=overlap, multiple_of=multiple_of)
    assert len(set(tiles)) == len(tiles)
    for length, most, spans in (
        (h, side, {(tile.top, tile.bottom) for tile in tiles}),
        (w, side + 3, {(tile.left, tile.right) for tile in tiles}),
    ):
        assert all(0 <= start < end <= length and end - start <= most for start, end in spans)
        assert all(start % multiple_of == 0 for start, _ in spans)
        assert all(end == length or end - start == most for start, end in spans)
        for object_side in {min(1, length), min(overlap, length)} - {0}:
            for start in range(length - object_side + 1):
                assert any(first <= start and start + object_side <= last for first, last in spans)
        ordered = sorted(spans)
        assert all(before[1] - after[0] >= overlap for before, after in pairwise(ordered))
    assert len(tiles) == len({tile.top for tile in tiles}) * len({tile.left for tile in tiles})


def test_the_number_of_tiles_is_the_smallest_that_the_overlap_allows():
    assert len(image_tiles((100, 100), 100, overlap=99)) == 1
    assert len(image_tiles((101, 100), 100, overlap=50)) == 2
    assert len(image_tiles((150, 200), 100, overlap=50)) == 2 * 3
    assert len(image_tiles((151, 200), 100, overlap=50)) == 3 * 3


@given(st.integers(1, 80), st.integers(1, 80), st.integers(0, 10**6), st.integers(1, 5))
@pytest.mark.slow
def test_tiles_find_what_the_whole_image_shows_where_the_overlap_is_as_large_as_the_objects(h, w, seed, batch_size):
    image = scattered(h, w, largest=OVERLAP, count=30, seed=seed)
    (expected,) = BrightAreas()([image])
    assert_same_objects(tiled(batch_size=batch_size)([image])[0], expected)
    (found,) = tiled(tile=(SIDE - 5, SIDE + 5))([image])
    assert_same_objects(found, expected)
    assert found["scores"].tolist() == expected["scores"].tolist()  # best first


def test_without_a_merge_objects_in_the_overlap_would_come_more_than_once():
    image = scattered(80, 80, largest=OVERLAP, count=60, seed=4)
    expected = len(BrightAreas()([image])[0]["boxes"])
    assert len(tiled(merge=KeepAll())([image])[0]["boxes"]) > expected > 10


def test_parts_of_objects_that_a_border_cuts_are_dropped_and_nothing_else():
    image = torch.zeros(1, SIDE, 40)
    image[0, 10:14, 20:28] = 0.9  # tiles end at 24 and begin at 15 and 16
    (found,) = tiled(merge=KeepAll())([image])
    assert found["boxes"].unique(dim=0).tolist() == [[20, 10, 28, 14]]


class Peaks(nn.Module):
    """A convolutional detector of stride 4 that sees 3 cells: boxes of 8 pixels where its one feature map has peaks."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.ReLU(), nn.Conv2d(8, 1, 3, padding=1))

    def forward(self, images):
        return [self.peaks(self.layers(self.padded(image)[None])[0]) for image in images]

    def padded(self, image):
        return F.pad(image, (0, -image.shape[2] % 4, 0, -image.shape[1] % 4))

    def peaks(self, features):
        highest = F.max_pool2d(features[None], 3, stride=1, padding=1)[0]
        _, rows, columns = (features == highest).nonzero().unbind(1)
        centers = torch.stack((columns, rows), 1) * 4 + 2.0
        boxes = torch.cat((centers - 4, centers + 4), dim=1)
        scores = features[0, rows, columns].sigmoid()
        return {"boxes": boxes, "scores": scores, "labels": torch.zeros_like(rows)}


def test_a_convolutional_detector_finds_the_same_in_tiles_that_begin_at_multiples_of_its_stride():
    torch.manual_seed(1)
    detector, image = Peaks().double(), torch.rand(3, 250, 331, dtype=torch.float64)
    looks = tiled(detector, tile=96, overlap=44, multiple_of=4)  # 44 is 8 and four times 9: a peak sees 3 + 2 cells
    (found,) = looks([image])
    with torch.no_grad():
        (expected,) = detector([image])
    merged = NMSFusion(0.5)([expected["boxes"]], [expected["scores"]], [expected["labels"]])
    assert len(merged.boxes) > 200
    expected = {"boxes": merged.boxes, "scores": merged.scores, "labels": merged.labels}
    assert_same_objects(found, expected, tolerance=1e-12)
    (found,) = tiled(detector, tile=97, overlap=44)([image])
    assert sorted(found["boxes"].tolist()) != sorted(expected["boxes"].tolist())


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_the_detector_sees_few_tiles_at_a_time_and_none_larger_than_asked(batch_size):
    detector, image = BrightAreas(), scattered(70, 100, largest=5, count=9, seed=1)
    tiled(detector, tile=(20, 30), batch_size=batch_size, whole_image=True)([image])
    sizes = [shape for shapes in detector.seen for shape in shapes]
    assert max(len(shapes) for shapes in detector.seen) <= batch_size
    assert max(shape[1] for shape in sizes) == 20
    assert max(shape[2] for shape in sizes) == 30
    assert len(sizes) == len(image_tiles((70, 100), (20, 30), overlap=OVERLAP)) + 1


def test_an_image_that_fits_into_a_tile_is_handed_on_as_it_is_and_so_is_what_is_found():
    image = scattered(SIDE, SIDE - 1, largest=20, count=3, seed=1)
    (found,), (expected,) = tiled(merge=len)([image]), BrightAreas()([image])
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_objects_larger_than_any_tile_are_found_in_the_whole_image_only():
    image = torch.zeros(1, 96, 96)
    image[0, 8:72, 16:88] = 1
    image[0, 80:84, 40:48] = 1
    (cut,), (found,) = tiled()([image]), tiled(whole_image=True)([image])
    assert [16, 8, 88, 72] not in cut["boxes"].tolist()
    assert sorted(found["boxes"].tolist()) == [[16, 8, 88, 72], [40, 80, 48, 84]]
    large = found["masks"][found["boxes"][:, 1] == 8][0]
    assert large.sum() == 64 * 72
    assert large[8:72, 16:88].all()


@pytest.mark.parametrize("side", [4, 5, 9, 10, 14, 24])
def test_with_the_whole_image_objects_of_every_size_are_found_once(side):
    image = torch.zeros(1, 96, 96)
    image[0, 40 : 40 + side, 20 : 20 + side] = 1
    (found,) = tiled(whole_image=True)([image])
    assert len(found["boxes"]) == 1
    torch.testing.assert_close(found["boxes"][0], torch.tensor([20.0, 40, 20 + side, 40 + side]), rtol=0, atol=4)


class Brightness(nn.Module):
    """Finds nothing, and says of each pixel what it is."""

    def forward(self, images):
        none = {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0).long()}
        return [{**none, "segmentation": (image[0] > 0.5).long()} for image in images]


@pytest.mark.parametrize("size", [(70, 83), (24, 25), (10, 99), (24, 24), (99, 1)])
def test_maps_are_put_together_pixel_by_pixel(size):
    image = torch.rand(1, *size)
    (found,) = tiled(Brightness(), whole_image=True)([image])
    assert torch.equal(found["segmentation"], (image[0] > 0.5).long())


class Edges(nn.Module):
    """Says 1 of pixels at the border of what it sees, as detectors that look around each pixel err there."""

    def forward(self, images):
        none = {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0).long()}
        return [{**none, "segmentation": 1 - F.pad(torch.ones_like(x[0, 4:-4, 4:-4]), (4, 4, 4, 4))} for x in images]


def test_each_pixel_of_a_map_is_that_of_a_tile_in_whose_middle_it_lies():
    (found,) = tiled(Edges())([torch.zeros(1, 70, 83)])
    assert found["segmentation"][4:-4, 4:-4].sum() == 0
    assert found["segmentation"].sum() == 70 * 83 - 62 * 75


def test_masks_may_take_so_much_memory_and_no_more():
    image = scattered(60, 70, largest=OVERLAP, count=9, seed=2)
    (expected,) = BrightAreas()([image])
    needed = len(expected["boxes"]) * 60 * 70
    assert_same_objects(tiled(mask_memory=needed)([image])[0], expected)
    assert_refused(f"TiledInference: masks {needed} mask_memory={needed - 1}", tiled(mask_memory=needed - 1), [image])


def test_masks_are_left_out_where_they_may_take_none():
    for size in ((60, 70), (9, 9)):
        (found,) = tiled(mask_memory=None)([scattered(*size, largest=5, count=9, seed=2)])
        assert "masks" not in found
        assert len(found["keypoints"]) == len(found["boxes"])


def test_an_empty_list_and_images_without_objects_make_no_detections():
    assert tiled()([]) == []
    for size in ((1, 1), (1, 200), (200, 1), (60, 70)):
        (found,) = tiled(whole_image=True)([torch.zeros(1, *size)])
        assert {key: len(rows) for key, rows in found.items()} == dict.fromkeys(found, 0)
        assert found["masks"].shape == (0, *size)


def test_images_of_one_list_may_differ_in_size_and_do_not_meet():
    images = [scattered(h, w, largest=OVERLAP, count=20, seed=h) for h, w in ((70, 30), (10, 10), (26, 90))]
    for found, expected in zip(tiled()(images), BrightAreas()(images), strict=True):
        assert_same_objects(found, expected)


@pytest.mark.slow
def test_tiles_and_test_time_augmentation_go_into_each_other():
    image = scattered(60, 70, largest=OVERLAP, count=20, seed=3)
    (expected,) = BrightAreas()([image])
    options = {"fusion": NMSFusion(0.5), "keypoint_pairs": [(0, 1)]}
    inside = tiled(TestTimeAugmentation(BrightAreas(), **options))
    outside = TestTimeAugmentation(tiled(), **options)
    for looks in (inside, outside):
        assert_same_objects(looks([image])[0], expected, tolerance=1e-6)


class Fixed(nn.Module):
    """Finds the same in every image."""

    def __init__(self, **found) -> None:
        super().__init__()
        self.found = {"boxes": torch.ones(1, 4), "scores": torch.ones(1), "labels": torch.zeros(1).long(), **found}

    def forward(self, images):
        return [dict(self.found) for _ in images]


def test_boxes_that_are_not_finite_are_named_and_not_dropped():
    detector = Fixed(boxes=torch.tensor([[0.0, 0, float("nan"), 4]]))
    with pytest.raises(ValueError, match=r"boxes\[0, 2\]=nan"):
        tiled(detector)([torch.zeros(1, 50, 50)])


def test_what_belongs_to_a_whole_image_is_refused_by_name():
    looks = tiled(Fixed(image_scores=torch.ones(2)))
    assert_refused("TiledInference: 'image_scores' whole image allowed", looks, [torch.zeros(1, 50, 50)])
    assert looks([torch.zeros(1, 9, 9)])[0]["image_scores"].tolist() == [1, 1]


def test_masks_of_another_size_than_the_tile_are_refused_by_name():
    looks = tiled(Fixed(masks=torch.ones(1, 28, 28)))
    assert_refused("TiledInference: detections: masks (28, 28) (24, 24)", looks, [torch.zeros(1, 50, 50)])


def test_an_overlap_that_leaves_no_step_is_refused_by_name():
    for tile, overlap, multiple_of in ((8, 8, 1), (8, 9, 1), ((8, 30), 8, 1), (16, 9, 8)):
        said = f"TiledInference: overlap={overlap} tiles allowed at most multiple_of={multiple_of}"
        assert_refused(said, tiled, tile=tile, overlap=overlap, multiple_of=multiple_of)
        said = said.replace("TiledInference", "image_tiles")
        assert_refused(said, image_tiles, (90, 90), tile, overlap=overlap, multiple_of=multiple_of)


class Stacked(nn.Module):
    def forward(self, images):
        return torch.stack(images)


def test_what_is_no_detector_and_what_it_does_not_return_is_refused_by_name():
    assert_refused("TiledInference: detector builtin_function_or_method allowed module", tiled, len)
    assert_refused("TiledInference: merge None allowed NMSFusion(0.5)", tiled, merge=None)
    with pytest.raises(TypeError, match=r"TiledInference: images is a tensor \(1, 30, 30\); give a list"):
        unhooked(tiled())(torch.zeros(1, 30, 30))
    assert_refused(
        "TiledInference: detector Tensor 1 images allowed eval()", tiled(Stacked()), [torch.zeros(1, 30, 30)]
    )


def test_nothing_keeps_a_graph():
    detector = Peaks()
    (found,) = tiled(detector, tile=96, overlap=44)([torch.rand(3, 100, 130)])
    assert not found["scores"].requires_grad
