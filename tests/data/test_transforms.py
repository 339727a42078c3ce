"""Augmentations: what belongs to a box goes with it, and random numbers are those of (seed, epoch, index)."""

import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from torchvision import tv_tensors
from torchvision.transforms import v2

from detkit.data import (
    Augmented,
    DigitScenes,
    collate,
    flip_augmentation,
    large_scale_jitter,
    localization_augmentation,
    sanitize,
    short_side_augmentation,
    ssd_augmentation,
)
from detkit.data.transforms import MEAN_COLOR
from detkit.structures import VOID

COMPOSITIONS = {
    "ssd": ssd_augmentation(),
    "ssd resized": ssd_augmentation(size=(64, 80)),
    "flip": flip_augmentation(),
    "flip both": flip_augmentation(vertical=True),
    "jitter": large_scale_jitter((72, 88)),
    "localization": localization_augmentation(),
    "short side": short_side_augmentation([48, 120], long_side=130),
}


def scene(index):
    """A scene whose labels, areas, crowd marks and weights all tell the number of the object."""
    image, target = DigitScenes(60, masks=True)[index]
    number = torch.arange(len(target["labels"]))
    return image, dict(target) | {
        "labels": number,
        "area": number * 1.0,
        "iscrowd": number + 0,
        "weights": number * 0.5,
    }


@pytest.mark.slow
@pytest.mark.parametrize("transforms", COMPOSITIONS.values(), ids=COMPOSITIONS)
def test_everything_of_a_dropped_box_goes_with_it_and_the_rest_stays_aligned(transforms):
    torch.manual_seed(0)
    for index in range(40):
        image, target = transforms(*scene(index))
        number = target["labels"]
        assert len(target["boxes"]) == len(target["masks"]) == len(number)
        assert torch.equal(target["area"], number * 1.0)
        assert torch.equal(target["iscrowd"], number)
        assert torch.equal(target["weights"], number * 0.5)
        assert target["image_id"] == index
        assert image.dtype == torch.uint8
        assert target["masks"].shape[1:] == image.shape[1:]
        _assert_boxes_hold_their_masks(target, image.shape[1:])


def _assert_boxes_hold_their_masks(target, size):
    assert target["boxes"].canvas_size == tuple(size)
    for box, mask in zip(target["boxes"].tolist(), target["masks"], strict=True):
        assert 0 <= box[0] < box[2] <= size[1]
        assert 0 <= box[1] < box[3] <= size[0]
        rows, columns = mask.nonzero(as_tuple=True)
        if len(rows):
            assert columns.min() >= box[0] - 1.5
            assert rows.min() >= box[1] - 1.5
            assert columns.max() < box[2] + 1.5
            assert rows.max() < box[3] + 1.5


@pytest.mark.slow
def test_ssd_augmentation_drops_some_boxes_zooms_out_and_crops():
    torch.manual_seed(0)
    before = [len(scene(index)[1]["labels"]) for index in range(60)]
    after = [ssd_augmentation()(*scene(index)) for index in range(60)]
    assert sum(len(target["labels"]) for _, target in after) < sum(before)
    sizes = {tuple(image.shape[1:]) for image, _ in after}
    assert min(min(size) for size in sizes) < 96 < max(max(size) for size in sizes)


@pytest.mark.parametrize("transforms", COMPOSITIONS.values(), ids=COMPOSITIONS)
def test_an_image_without_objects_passes(transforms):
    boxes = tv_tensors.BoundingBoxes(torch.zeros(0, 4), format="XYXY", canvas_size=(40, 50))
    target = {"boxes": boxes, "labels": torch.zeros(0, dtype=torch.int64), "image_id": 3}
    torch.manual_seed(0)
    for _ in range(5):
        _, result = transforms(tv_tensors.Image(torch.zeros(3, 40, 50, dtype=torch.uint8)), target)
        assert result["boxes"].shape == (0, 4)
        assert result["labels"].shape == (0,)


def test_a_box_that_sticks_out_by_a_hair_is_clamped_not_lost():
    boxes = tv_tensors.BoundingBoxes([[-0.01, 2.0, 8.001, 6.0]], format="XYXY", canvas_size=(8, 8))
    _, target = sanitize()(tv_tensors.Image(torch.zeros(3, 8, 8)), {"boxes": boxes, "labels": torch.tensor([1])})
    assert target["boxes"].tolist() == [[0, 2, 8, 6]]


def test_boxes_below_the_smallest_side_go():
    boxes = tv_tensors.BoundingBoxes([[0, 0, 2.5, 8], [0, 0, 3.5, 8]], format="XYXY", canvas_size=(8, 8))
    target = {"boxes": boxes, "labels": torch.tensor([4, 5])}
    assert sanitize(min_size=3)(tv_tensors.Image(torch.zeros(3, 8, 8)), target)[1]["labels"].tolist() == [5]


@pytest.mark.parametrize("transforms", COMPOSITIONS.values(), ids=COMPOSITIONS)
def test_keypoints_are_refused_rather_than_left_behind(transforms):
    image, target = scene(0)
    with pytest.raises(ValueError, match="target has 'keypoints'"):
        transforms(image, target | {"keypoints": torch.zeros(len(target["labels"]), 2, 3)})


def items(dataset, order):
    return {index: dataset[index] for index in order}


def same(one, other):
    return all(
        torch.equal(one[i][0], other[i][0]) and torch.equal(one[i][1]["boxes"], other[i][1]["boxes"]) for i in one
    )


def augmented(seed=0, epoch=0):
    dataset = Augmented(DigitScenes(10), ssd_augmentation(size=(48, 48)), seed=seed)
    dataset.set_epoch(epoch)
    return dataset


@pytest.mark.slow
def test_an_item_depends_on_seed_epoch_and_index_only():
    first = items(augmented(), range(10))
    torch.manual_seed(99)
    assert same(first, items(augmented(), reversed(range(10))))
    assert not same(first, items(augmented(seed=1), range(10)))
    assert not same(first, items(augmented(epoch=1), range(10)))
    assert torch.equal(augmented()[-1][0], first[9][0])


def test_items_of_one_epoch_get_different_random_numbers():
    dataset = Augmented(DigitScenes(30), lambda image, target: (torch.rand(()), target))
    assert len({float(dataset[index][0]) for index in range(30)}) == 30


def test_the_global_generator_is_left_as_it_was_even_after_an_error():
    def broken(image, target):
        torch.rand(3)
        raise RuntimeError("broken")

    torch.manual_seed(5)
    before = torch.get_rng_state()
    augmented()[3]
    with pytest.raises(RuntimeError, match="broken"):
        Augmented(DigitScenes(4), broken)[2]
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.slow
@pytest.mark.parametrize("persistent", [True, False])
def test_the_epoch_reaches_workers_that_live_already(persistent):
    dataset = augmented()
    loader = DataLoader(dataset, batch_size=5, num_workers=2, collate_fn=collate, persistent_workers=persistent)
    for epoch in (0, 3, 1):
        dataset.set_epoch(epoch)
        made = {index: pair for batch in loader for pair in zip(*batch, strict=True) for index in [pair[1]["image_id"]]}
        assert same(made, items(augmented(epoch=epoch), range(10)))


def test_only_the_stated_transforms_are_applied():
    dataset = Augmented(DigitScenes(4), v2.Compose([v2.RandomHorizontalFlip(1.0)]))
    assert torch.equal(dataset[2][0], DigitScenes(4)[2][0].flip(-1))
    assert len(dataset) == 4


def test_a_negative_seed_or_epoch_is_refused():
    with pytest.raises(ValueError, match="Augmented: seed=-1"):
        Augmented(DigitScenes(1), flip_augmentation(), seed=-1)
    with pytest.raises(ValueError, match="epoch=-2"):
        augmented().set_epoch(-2)


# The table of fields


@pytest.mark.parametrize("transforms", COMPOSITIONS.values(), ids=COMPOSITIONS)
@pytest.mark.slow
def test_whatever_belongs_to_an_object_goes_with_it_and_all_else_stays(transforms):
    own = {"file_name": "a.png", "captions": ["one", "two"], "size": torch.tensor([96, 96])}
    torch.manual_seed(0)
    fewer = 0
    for index in range(20):
        image, target = scene(index)
        number = target["labels"]
        rows = {
            "identities": number + 3,
            "label_sets": torch.nn.functional.one_hot(number, 20),
            "ignore": number % 2,
            "track": number + 5,
            "names": np.array([f"object {i}" for i in number.tolist()]),
        }
        image_labels = torch.arange(len(number))  # as many classes as objects, by chance
        image, target = transforms(image, target | rows | own | {"image_labels": image_labels})
        fewer += len(target["labels"]) < len(number)
        for key, values in rows.items():
            kept = values[target["labels"].numpy()] if isinstance(values, np.ndarray) else values[target["labels"]]
            assert target[key].tolist() == kept.tolist(), key
        assert target["image_labels"].tolist() == image_labels.tolist()
        assert {key: target[key] for key in ("file_name", "captions")} == {
            key: own[key] for key in own if key != "size"
        }
        assert target["size"].tolist() == [96, 96]
    assert fewer or transforms not in (COMPOSITIONS["ssd"], COMPOSITIONS["jitter"])


@pytest.mark.parametrize("transforms", COMPOSITIONS.values(), ids=COMPOSITIONS)
@pytest.mark.slow
def test_plain_entries_move_as_tv_tensors_do(transforms):
    for index in range(10):
        image, target = scene(index)
        plain = {key: values.as_subclass(torch.Tensor) for key, values in target.items() if key in ("boxes", "masks")}
        results = []
        for given, picture in ((target, image), (target | plain, image.as_subclass(torch.Tensor))):
            torch.manual_seed(index)
            results.append(transforms(picture, given))
        (first, expected), (second, found) = results
        assert torch.equal(first, second)
        for key in ("boxes", "masks", "labels"):
            assert torch.equal(found[key], expected[key])


def test_boxes_of_another_format_move_as_corners_do():
    boxes = tv_tensors.BoundingBoxes([[2.0, 2, 3, 4]], format="XYWH", canvas_size=(8, 8))
    mirrored = v2.Compose([sanitize(), v2.RandomHorizontalFlip(1.0)])
    _, target = mirrored(tv_tensors.Image(torch.zeros(3, 8, 8)), {"boxes": boxes, "labels": torch.tensor([1])})
    assert target["boxes"].tolist() == [[3, 2, 6, 6]]


@pytest.mark.parametrize("transforms", COMPOSITIONS.values(), ids=COMPOSITIONS)
@pytest.mark.parametrize("wrap", [tv_tensors.Mask, torch.Tensor.clone], ids=["mask", "plain"])
def test_a_segmentation_moves_with_the_image_and_has_no_class_where_there_is_none(transforms, wrap):
    torch.manual_seed(0)
    for _ in range(10):
        image = tv_tensors.Image(torch.full((3, 40, 50), 7, dtype=torch.uint8))
        target = {"boxes": [[5.0, 5, 40, 35]], "labels": [0], "segmentation": wrap(torch.ones(40, 50).byte())}
        moved, target = transforms(image, target)
        classes = target["segmentation"]
        assert classes.shape == moved.shape[1:]
        assert {*classes.unique().tolist()} <= {1, VOID}
        outside = classes == VOID
        if outside.any():
            assert moved[:, outside].median(1).values.tolist() == [*MEAN_COLOR]  # but for borders, which are blended


def test_an_image_of_which_nothing_is_known_gets_no_objects():
    torch.manual_seed(0)
    _, target = ssd_augmentation()(tv_tensors.Image(torch.zeros(3, 40, 50, dtype=torch.uint8)), {"image_id": 3})
    assert target["boxes"].shape == (0, 4)
    assert target["image_id"] == 3


def test_a_key_close_to_a_known_one_is_refused():
    image, target = scene(0)
    with pytest.raises(ValueError, match=r"^augmentation: target: unknown key 'mask'; did you mean 'masks'\?"):
        flip_augmentation()(image, target | {"mask": target["masks"]})


def test_compositions_travel_to_workers():
    for transforms in COMPOSITIONS.values():
        torch.manual_seed(0)
        expected = transforms(*scene(1))
        torch.manual_seed(0)
        found = pickle.loads(pickle.dumps(transforms))(*scene(1))
        assert torch.equal(found[0], expected[0])


TYPES = {torch.uint8: 255, torch.uint16: 1, torch.bool: 1, torch.float32: 1}  # and what is white afterwards


@pytest.mark.parametrize(("dtype", "white"), TYPES.items(), ids=str)
@pytest.mark.parametrize("channels", [1, 3])
def test_uncovered_canvas_has_the_mean_color_in_the_range_of_every_type_of_pixels(dtype, white, channels):
    image = tv_tensors.Image(torch.zeros(channels, 8, 8, dtype=torch.int32).to(dtype))
    target = {"boxes": torch.tensor([[0.0, 0, 8, 8]]), "labels": torch.tensor([1])}
    torch.manual_seed(0)
    padded, _ = large_scale_jitter((32, 32), scale_range=(0.5, 0.5))(image, target)
    color = MEAN_COLOR if channels == 3 else (sum(MEAN_COLOR) / 3,)
    corner = padded[:, -1, -1].double() / white
    torch.testing.assert_close(corner, torch.tensor(color, dtype=torch.float64) / 255, atol=4e-3, rtol=0)
    for seed in range(4):
        torch.manual_seed(seed)
        assert ssd_augmentation()(image, target)[0].max() <= white


@pytest.mark.parametrize(("size", "shown"), [((40, 80), (40, 80)), ((80, 40), (20, 40)), ((60, 80), (40, 80))])
def test_scale_one_of_jittering_fits_the_image_into_the_size(size, shown):
    image = tv_tensors.Image(torch.full((3, 20, 40), 255, dtype=torch.uint8))
    target = {"boxes": torch.tensor([[0.0, 0, 40, 20]]), "labels": torch.tensor([1])}
    jittered, target = large_scale_jitter(size, scale_range=(1.0, 1.0))(image, target)
    assert jittered.shape[1:] == size
    assert (jittered == 255).sum() == 3 * shown[0] * shown[1]
    left, top, right, bottom = target["boxes"][0].tolist()
    assert (bottom - top, right - left) == shown


@pytest.mark.parametrize("size", [None, (4, 6), (1, 1)])
@pytest.mark.parametrize("shape", [(1, 1), (1, 90), (90, 1), (3, 2)])
def test_jittering_takes_images_that_shrink_to_less_than_a_pixel(shape, size):
    image = tv_tensors.Image(torch.zeros(3, *shape, dtype=torch.uint8))
    target = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    jittered, target = large_scale_jitter(size, scale_range=(0.1, 0.2))(image, target)
    assert jittered.shape[1:] == (size or shape)
    assert target["boxes"].shape == (0, 4)


def test_boxes_on_another_canvas_than_the_image_are_not_augmented():
    make = tv_tensors.BoundingBoxes
    target = {"boxes": make([[0.0, 0, 8, 8]], format="XYXY", canvas_size=(80, 80)), "labels": torch.tensor([1])}
    with pytest.raises(ValueError, match=r"^augmentation: target: boxes of height and width \(80, 80\)"):
        flip_augmentation()(tv_tensors.Image(torch.zeros(3, 8, 8)), target)


# Localization


@pytest.mark.parametrize("flips", [(False, False), (True, False), (False, True), (True, True)])
def test_boxes_follow_rotation_scale_and_flips(flips):
    """The box is the hull of what is white: pixels of the rotated edge are split, hence a tolerance of one."""
    torch.manual_seed(0)
    image = tv_tensors.Image(torch.zeros(3, 60, 80, dtype=torch.uint8))
    image[:, 12:30, 40:70] = 255
    target = {"boxes": torch.tensor([[40.0, 12, 70, 30]]), "labels": torch.tensor([4])}
    horizontal, vertical = flips
    transforms = localization_augmentation(degrees=20, color=0, horizontal=horizontal, vertical=vertical)
    sides = set()
    for _ in range(12):
        moved, result = transforms(image, target)
        assert moved.shape == image.shape
        rows, columns = (moved.amin(0) > 200).any(1).nonzero(), (moved.amin(0) > 200).any(0).nonzero()
        hull = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        torch.testing.assert_close(result["boxes"].float()[0], torch.tensor(hull).float(), rtol=0, atol=1.6)
        sides.add((bool(columns.float().mean() > 40), bool(rows.float().mean() > 30)))
    assert {side for side, _ in sides} == ({True, False} if horizontal else {True})
    assert {side for _, side in sides} == ({True, False} if vertical else {False})


def test_colors_change_and_boxes_stay_without_rotation_scale_and_flips():
    torch.manual_seed(0)
    image, target = DigitScenes(1)[0]
    settings = {"degrees": 0, "scale_range": (1.0, 1.0), "horizontal": False, "vertical": False}
    changed, result = localization_augmentation(**settings)(image, target)
    assert (changed != image).float().mean() > 0.5
    assert torch.equal(result["boxes"], target["boxes"])
    kept, _ = localization_augmentation(**settings, color=0)(image, target)
    assert torch.equal(kept, image)


# What v2 itself does at torchvision 0.29: where one of these fails, docs/augmentation.md warns of a trap that is gone.


def boxed(**entries):
    boxes = tv_tensors.BoundingBoxes([[1.0, 2, 4, 6], [2, 2, 2, 2]], format="XYXY", canvas_size=(8, 10))
    target = {"boxes": boxes, "labels": torch.tensor([1, 2]), **entries}
    return tv_tensors.Image(torch.zeros(3, 8, 10, dtype=torch.uint8)), target


def test_v2_leaves_points_crowds_and_areas_of_dropped_boxes_and_sanitize_does_not():
    points = tv_tensors.KeyPoints([[[1.0, 2]], [[3.0, 3]]], canvas_size=(8, 10))
    entries = {"iscrowd": torch.tensor([0, 1]), "area": torch.tensor([12.0, 0])}
    _, target = v2.SanitizeBoundingBoxes()(*boxed(**entries, keypoints=points))
    assert [len(target[key]) for key in ("boxes", "labels", "keypoints", "iscrowd", "area")] == [1, 1, 2, 2, 2]
    _, target = sanitize()(*boxed(**entries))
    assert [len(target[key]) for key in ("boxes", "labels", "iscrowd", "area")] == [1, 1, 1, 1]


def test_v2_mirrors_points_as_whole_pixels_and_boxes_as_edges():
    points = tv_tensors.KeyPoints([[[1.0, 2]], [[3.0, 3]]], canvas_size=(8, 10))
    _, target = v2.RandomHorizontalFlip(1.0)(*boxed(keypoints=points))
    assert target["boxes"][0].tolist() == [10 - 4, 2, 10 - 1, 6]
    assert target["keypoints"][:, 0].tolist() == [[10 - 1 - 1, 2], [10 - 1 - 3, 3]]


@pytest.mark.parametrize("transforms", COMPOSITIONS.values(), ids=COMPOSITIONS)
@pytest.mark.slow
def test_boxes_of_integers_move_as_floats_do(transforms):
    for index in range(10):
        image, target = scene(index)
        found = []
        for dtype in (torch.float64, torch.int64, torch.int32):
            torch.manual_seed(index)
            found.append(transforms(image, target | {"boxes": target["boxes"].round().to(dtype)})[1]["boxes"])
        assert found[1].dtype == found[2].dtype == torch.float64
        assert torch.equal(found[0], found[1])
        assert torch.equal(found[0], found[2])


def test_v2_truncates_boxes_of_integers_and_after_sanitize_does_not():
    whole = tv_tensors.BoundingBoxes([[3, 3, 7, 7]], format="XYXY", canvas_size=(8, 10))
    image, target = boxed(boxes=whole, labels=torch.tensor([1]))
    assert v2.Resize((4, 5))(image, target)[1]["boxes"].tolist() == [[1, 1, 3, 3]]
    assert v2.Compose([sanitize(), v2.Resize((4, 5))])(image, target)[1]["boxes"].tolist() == [[1.5, 1.5, 3.5, 3.5]]


def test_v2_rotates_boxes_onto_another_canvas_than_the_image_which_is_refused():
    image, target = v2.RandomRotation((30, 30), expand=True)(*boxed())
    assert target["boxes"].canvas_size != tuple(image.shape[1:])
    with pytest.raises(ValueError, match=r"boxes of height and width \(12, 13\) for an image of \(12, 14\)"):
        sanitize()(image, target)


@pytest.mark.parametrize("mix", [v2.MixUp, v2.CutMix])
def test_v2_mixes_no_boxes(mix):
    with pytest.raises(ValueError, match="bounding boxes"):
        mix(num_classes=3)(torch.zeros(2, 3, 8, 10), boxed()[1])


def test_v2_moves_no_plain_boxes_and_sanitize_makes_them_movable():
    image, target = boxed()
    plain = target | {"boxes": target["boxes"].as_subclass(torch.Tensor)}
    mirror = v2.RandomHorizontalFlip(1.0)
    assert mirror(image, plain)[1]["boxes"][0].tolist() == [1, 2, 4, 6]
    assert v2.Compose([sanitize(), mirror])(image, plain)[1]["boxes"][0].tolist() == [6, 2, 9, 6]
