"""CopyPaste: against loops over pixels; what is hidden loses its pixels, its box or itself, and nothing else does."""

import pytest
import torch
from batches import assert_in_step, batches
from hypothesis import given
from hypothesis import strategies as st

from detkit.structures import VOID
from detkit.structures.rows import complete_rows
from detkit.tricks import CopyPaste


def rectangle(box, size=(12, 12)):
    mask = torch.zeros(size, dtype=torch.uint8)
    x1, y1, x2, y2 = box
    mask[y1:y2, x1:x2] = 1
    return mask


def scene(*boxes, labels=None, size=(12, 12), **entries):
    masks = torch.stack([rectangle(box, size) for box in boxes]) if boxes else torch.zeros(0, *size, dtype=torch.uint8)
    labels = torch.arange(len(boxes)) if labels is None else torch.tensor(labels)
    return {"boxes": torch.tensor(boxes).float().reshape(-1, 4), "labels": labels, "masks": masks, **entries}


def paste_onto(below, above, **settings):
    """The first of two images, 0 below and 200 above, after pasting all objects of the second."""
    images = [torch.zeros(1, 12, 12, dtype=torch.uint8), torch.full((1, 12, 12), 200, dtype=torch.uint8)]
    results = CopyPaste(object_probability=1.0, **settings)(images, [below, above])
    return results[0][0], results[1][0]


@given(batch=batches(fewest=2, masks=True), seed=st.integers(0, 99), share=st.sampled_from([0.0, 0.3, 1.0]))
def test_objects_below_keep_exactly_what_is_not_pasted_over(batch, seed, share):
    images, targets = batch
    canvases, found = CopyPaste(min_visible=share)(images, targets, generator=torch.Generator().manual_seed(seed))
    for image, target, canvas, result in zip(
        images, complete_rows(targets, where="f")[0], canvases, found, strict=True
    ):
        assert_in_step(targets, result)
        own = set(target["labels"].tolist())
        numbers = result["labels"].tolist()
        count = sum(number in own for number in numbers)
        assert all((number in own) is (row < count) for row, number in enumerate(numbers))  # those below come first
        over = result["masks"][count:].bool().any(0)
        assert torch.equal(canvas[:, ~over], image[:, ~over])
        expected = []
        for row, mask in enumerate(target["masks"].bool()):
            left, crowd = mask & ~over, "iscrowd" in target and bool(target["iscrowd"][row])
            before, after = int(mask.sum()), int(left.sum())
            if after == before or (after and (crowd or after >= share * before)):
                expected.append((int(target["labels"][row]), left, target["boxes"][row], after < before))
        assert numbers[:count] == [label for label, *_ in expected]
        for row, (_, left, box, changed) in enumerate(expected):
            assert torch.equal(result["masks"][row].bool(), left)
            places = left.nonzero().float()
            tight = torch.cat((places.amin(0).flip(0), places.amax(0).flip(0) + 1)) if changed else box
            assert torch.equal(result["boxes"][row], tight)
            if changed and "area" in result:
                assert result["area"][row] == left.sum()
        if "iscrowd" in result:
            assert not result["iscrowd"][count:].any()
        low, high = result["boxes"][count:, :2], result["boxes"][count:, 2:]
        assert bool(((low >= 0) & (high <= torch.tensor(image.shape[:0:-1])) & (high - low >= 1)).all())


def test_pixels_masks_and_boxes_of_a_half_hidden_object():
    canvas, target = paste_onto(scene((0, 0, 6, 6)), scene((0, 3, 6, 12), labels=[5]))
    assert target["labels"].tolist() == [0, 5]
    assert target["boxes"].tolist() == [[0, 0, 6, 3], [0, 3, 6, 12]]
    assert torch.equal(canvas[0] == 200, rectangle((0, 3, 6, 12)) > 0)
    assert torch.equal(target["masks"][0], rectangle((0, 0, 6, 3)))


@pytest.mark.parametrize(("least", "stays"), [(0.0, True), (0.5, True), (0.51, False)])
def test_an_object_goes_once_less_than_enough_of_it_is_left(least, stays):
    _, target = paste_onto(scene((0, 0, 6, 6)), scene((0, 3, 6, 12), labels=[5]), min_visible=least)
    assert (0 in target["labels"].tolist()) is stays


def test_an_object_that_is_hidden_whole_goes_even_if_nothing_need_be_visible():
    _, target = paste_onto(scene((2, 2, 6, 6)), scene((0, 0, 9, 9), labels=[5]), min_visible=0.0)
    assert target["labels"].tolist() == [5]


def test_crowds_are_not_pasted_and_stay_below_as_long_as_a_pixel_is_left():
    crowds = {"iscrowd": torch.tensor([1, 0])}
    below = scene((0, 0, 12, 12), (8, 8, 10, 10), **crowds)
    above = scene((0, 0, 12, 12), (0, 0, 11, 12), labels=[7, 8], **crowds)
    _, target = paste_onto(below, above, min_visible=0.9)
    assert target["labels"].tolist() == [0, 8]
    assert target["boxes"][0].tolist() == [11, 0, 12, 12]
    assert target["iscrowd"].tolist() == [1, 0]


def test_boxes_that_do_not_fit_their_masks_stay_while_nothing_is_pasted_over_them():
    below = scene((0, 0, 2, 2), (4, 4, 6, 6)) | {"boxes": torch.tensor([[0.25, 0.5, 2.75, 2.5], [4, 4, 6, 6.5]])}
    _, target = paste_onto(below, scene((5, 5, 9, 9), labels=[5]))
    assert target["boxes"].tolist() == [[0.25, 0.5, 2.75, 2.5], [4, 4, 6, 6], [5, 5, 9, 9]]


def test_keypoints_that_are_pasted_over_are_labeled_and_not_visible():
    points = torch.tensor([[[5.5, 5.5, 2], [1, 1, 2], [5, 5, 1], [0, 0, 0], [30, 30, 2]]])
    empty = torch.zeros(1, 5, 3)
    _, target = paste_onto(scene((0, 0, 12, 8), keypoints=points), scene((5, 5, 9, 9), labels=[5], keypoints=empty))
    assert target["keypoints"][0, :, 2].tolist() == [1, 2, 1, 0, 2]
    assert torch.equal(target["keypoints"][0, :, :2], points[0, :, :2])


def test_a_segmentation_takes_the_pixels_of_what_is_pasted():
    above = scene((0, 3, 6, 12), labels=[5], segmentation=torch.full((12, 12), 4))
    _, target = paste_onto(scene((0, 0, 6, 6), segmentation=torch.full((12, 12), 1)), above)
    assert torch.equal(target["segmentation"] == 4, rectangle((0, 3, 6, 12)) > 0)
    _, target = paste_onto(scene((0, 0, 6, 6)), above)
    assert target["segmentation"].unique().tolist() == [4, VOID]


def test_mirrored_and_resized_objects_lie_where_their_masks_do():
    generator = torch.Generator().manual_seed(0)
    images, targets = [torch.zeros(1, 40, 40)] * 2, [scene(size=(40, 40)), scene((2, 4, 12, 24), size=(40, 40))]
    paste = CopyPaste(object_probability=1.0, scale_range=(0.3, 2.0), flip=0.5, min_visible=0.0)
    seen = set()
    for _ in range(60):
        target = paste(images, targets, generator=generator)[1][0]
        for box, mask in zip(target["boxes"], target["masks"], strict=True):
            places = mask.nonzero().float()
            tight = torch.cat((places.amin(0).flip(0), places.amax(0).flip(0) + 1))
            assert (box - tight).abs().max() <= 0.75
            seen.add((box[2] - box[0] > 11).item())
    assert seen == {True, False}


def test_a_flip_is_a_mirror_image():
    image = torch.arange(144, dtype=torch.uint8).reshape(1, 12, 12)
    images, targets = [torch.zeros_like(image), image], [scene(), scene((1, 2, 5, 9))]
    canvas, target = (each[0] for each in CopyPaste(object_probability=1.0, flip=1.0)(images, targets))
    assert target["boxes"].tolist() == [[7, 2, 11, 9]]
    assert torch.equal(canvas, image.flip(-1) * rectangle((7, 2, 11, 9)))


def test_boxes_of_bytes_are_mirrored_in_wide_images():
    targets = [scene(size=(20, 300)), scene((10, 5, 40, 10), size=(20, 300))]
    targets = [{**target, "boxes": target["boxes"].byte()} for target in targets]
    _, (target, _) = CopyPaste(object_probability=1.0, flip=1.0)([torch.zeros(1, 20, 300)] * 2, targets)
    assert target["boxes"].tolist() == [[260, 5, 290, 10]]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=str)
def test_blending_softens_the_edge_and_leaves_the_inside_and_the_masks(dtype):
    images = [torch.zeros(1, 40, 40).to(dtype), torch.full((1, 40, 40), 200).to(dtype)]
    targets = [scene(size=(40, 40)), scene((10, 10, 30, 30), size=(40, 40))]
    (canvas, _), (target, _) = CopyPaste(object_probability=1.0, blend=1.0)(images, targets)
    assert canvas.dtype == dtype
    row = canvas[0, 20].tolist()
    assert row[20] == pytest.approx(200, abs=1e-3)
    assert row[0] == 0
    assert 0 < row[9] < 100 < row[10] < 200
    assert torch.equal(target["masks"][0], rectangle((10, 10, 30, 30), (40, 40)))


def test_about_the_stated_share_of_objects_is_pasted():
    boxes = [(x, y, x + 1, y + 1) for x in range(12) for y in range(12)]
    generator, counts = torch.Generator().manual_seed(0), []
    images = [torch.zeros(1, 12, 12)] * 2
    for _ in range(20):
        found = CopyPaste(object_probability=0.3)(images, [scene(), scene(*boxes)], generator=generator)[1]
        counts.append(len(found[0]["labels"]))
    assert sum(counts) / 20 == pytest.approx(0.3 * 144, abs=6)
    assert len(set(counts)) > 5


@pytest.mark.slow
def test_images_of_other_sizes_are_cut_or_lie_at_random():
    small, large = torch.full((1, 4, 4), 9.0), torch.zeros(1, 12, 12)
    whole = scene((0, 0, 4, 4), size=(4, 4))
    paste, places = CopyPaste(object_probability=1.0), set()
    generator = torch.Generator().manual_seed(0)
    for _ in range(80):
        canvases, (onto, _) = paste([large, small], [scene(), whole], generator=generator)
        (box,) = onto["boxes"].tolist()
        places.add(tuple(box[:2]))
        assert canvases[0].sum() == 9 * 16
    assert {x for x, _ in places} == {y for _, y in places} == set(range(9))
    for least, stays in ((0.1, [[0, 0, 4, 4]]), (0.2, [])):  # a ninth of the object is in view
        paste = CopyPaste(object_probability=1.0, min_visible=least)
        _, (onto, _) = paste([small, large], [scene(size=(4, 4)), scene((0, 0, 12, 12))])
        assert onto["boxes"].tolist() == stays


def test_objects_without_masks_and_mirrored_keypoints_are_refused():
    images, target = [torch.zeros(1, 4, 4)] * 2, {"boxes": torch.tensor([[0.0, 0, 2, 2]]), "labels": [0]}
    with pytest.raises(ValueError, match=r"^CopyPaste: targets\[0\] has 1 boxes but no 'masks'; .*Mosaic"):
        CopyPaste()(images, [target, target])
    pointed = target | {"masks": torch.ones(1, 4, 4), "keypoints": torch.ones(1, 2, 3)}
    with pytest.raises(ValueError, match=r"^CopyPaste: targets\[0\] has 'keypoints'.*use flip=0"):
        CopyPaste(flip=0.5)(images, [pointed, pointed])
    CopyPaste()(images, [pointed, pointed])


def test_a_batch_without_objects_comes_back():
    images = [torch.zeros(1, 4, 4), torch.ones(1, 5, 5)]
    canvases, found = CopyPaste()(images, [{"image_id": 1}, {"image_id": 2}])
    assert all(torch.equal(*pair) for pair in zip(canvases, images, strict=True))
    assert [target["image_id"] for target in found] == [1, 2]
