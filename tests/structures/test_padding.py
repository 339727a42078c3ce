"""Batches of images and of targets: padded once, at the border, with nothing lost."""

import re

import pytest
import torch
import torchvision.tv_tensors as tv_tensors
from strategies import random_boxes, unhooked
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from detkit.structures import VOID, batch_images, collate, pad_rows, pad_targets, read_target


def target(count: int, **entries) -> dict:
    return {"boxes": random_boxes(count, seed=count), "labels": torch.arange(count), **entries}


def test_images_stand_in_the_top_left_corner_of_zeros():
    images = [torch.rand(3, 4, 6), torch.rand(3, 5, 2)]
    batch = batch_images(images, multiple_of=4)
    assert batch.tensors.shape == (2, 3, 8, 8)
    for padded, image, size in zip(batch.tensors, images, batch.sizes.tolist(), strict=True):
        assert size == list(image.shape[1:])
        assert torch.equal(padded[:, : size[0], : size[1]], image)
        assert padded.sum() == pytest.approx(image.sum().item(), rel=1e-5)
    assert torch.equal(batch.original_sizes, batch.sizes)
    assert batch_images(images).tensors.shape == (2, 3, 5, 6)
    assert batch_images(images[:1], multiple_of=2).tensors.shape == (1, 3, 4, 6)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float64])
def test_images_keep_their_type(dtype):
    assert unhooked(batch_images)([torch.ones(1, 2, 2, dtype=dtype)]).tensors.dtype == dtype


def test_images_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="batch_images: got no images"):
        batch_images([])
    for bad in (torch.zeros(1, 2, 2), torch.zeros(3, 0, 2), torch.zeros(2, 2)):
        with pytest.raises(ValueError, match=r"batch_images: images\[1\].*3 channels.*images\[0\]"):
            unhooked(batch_images)([torch.zeros(3, 2, 2), bad])


@pytest.mark.parametrize(
    ("counts", "length"), [((0, 0), 1), ((1,), 1), ((2, 1), 2), ((3, 0), 4), ((5, 4), 8), ((8,), 8)]
)
def test_targets_are_padded_to_a_power_of_two_and_at_least_one(counts, length):
    targets = [target(count) for count in counts]
    padded = pad_targets(targets)
    assert padded.boxes.shape == (len(counts), length, 4)
    assert padded.valid.sum(1).tolist() == list(counts)
    for i, count in enumerate(counts):
        assert torch.equal(padded.boxes[i, :count], targets[i]["boxes"])
        assert padded.labels[i, :count].tolist() == list(range(count))
        assert padded.valid[i, :count].all()
        assert (padded.boxes[i, count:] == 0).all()
    assert not padded.ignore.any()
    assert padded.weights is padded.masks is padded.keypoints is padded.segmentation is None


def test_crowds_become_ignored_rows_whatever_their_type():
    padded = pad_targets([target(2, iscrowd=torch.tensor([0, 1])), target(3), target(1, iscrowd=torch.tensor([True]))])
    assert padded.ignore.tolist() == [[False, True, False, False], [False] * 4, [True, False, False, False]]


def test_a_missing_weight_is_one():
    padded = pad_targets([target(2, weights=torch.tensor([0.5, 0.25])), target(1), target(0)])
    assert padded.weights.tolist() == [[0.5, 0.25], [1, 0], [0, 0]]


def test_masks_and_keypoints_are_padded_to_the_largest():
    masks, points = torch.ones(1, 3, 5, dtype=torch.uint8), torch.rand(1, 2, 3)
    more, others = torch.ones(2, 4, 2, dtype=torch.uint8), torch.rand(2, 2, 3)
    padded = pad_targets([target(1, masks=masks, keypoints=points), target(2, masks=more, keypoints=others), target(0)])
    assert padded.masks.shape == (3, 2, 4, 5)
    assert padded.masks.sum((1, 2, 3)).tolist() == [15, 16, 0]
    assert padded.masks.dtype == torch.uint8
    assert torch.equal(padded.masks[1, :, :4, :2], more)
    assert torch.equal(padded.keypoints[0, :1], points)
    assert torch.equal(padded.keypoints[1], others)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.int32, torch.int64, torch.uint8])
def test_boxes_are_float32_unless_they_are_float64(dtype):
    rows = torch.tensor([[1, 2, 3, 4]])
    assert pad_targets([{"boxes": rows.to(dtype), "labels": torch.tensor([0])}]).boxes.dtype == torch.float32
    assert pad_targets([{"boxes": rows.double(), "labels": torch.tensor([0])}]).boxes.dtype == torch.float64


def test_empty_lists_and_tv_tensors_are_boxes_too():
    boxes = tv_tensors.BoundingBoxes(torch.tensor([[0, 0, 2, 2]]), format="XYXY", canvas_size=(4, 4))
    padded = pad_targets(
        [{"boxes": boxes, "labels": torch.tensor([1])}, {"boxes": torch.tensor([]), "labels": torch.tensor([])}]
    )
    assert type(padded.boxes) is torch.Tensor
    assert padded.boxes.tolist() == [[[0, 0, 2, 2]], [[0, 0, 0, 0]]]
    assert padded.labels.dtype == torch.int64


@pytest.mark.parametrize(
    ("message", "bad"),
    [
        (r"targets\[1\]: boxes have shape \(2, 4\) and labels \(3,\)", {**target(2), "labels": torch.arange(3)}),
        (r"targets\[1\]: boxes have shape \(1, 5\)", {"boxes": torch.zeros(1, 5), "labels": torch.zeros(1)}),
        (r"targets\[1\]: boxes have shape \(2, 4\) and weights \(1,\)", target(2, weights=torch.ones(1))),
        (r"targets\[1\]: boxes have shape \(2, 4\) and iscrowd \(3,\)", target(2, iscrowd=torch.ones(3))),
        (r"targets\[1\]: boxes have shape \(2, 4\) and iscrowd \(1,\)", target(2, iscrowd=torch.ones(1))),
        (r"targets\[1\]: 2 boxes but no masks; each object needs its own", target(2)),
    ],
)
def test_entries_that_disagree_are_named(message, bad):
    with pytest.raises(ValueError, match=message):
        pad_targets([target(1, masks=torch.ones(1, 2, 2)), bad])


def test_no_images_make_no_batch():
    with pytest.raises(ValueError, match="pad_targets: got no targets; a batch needs those of at least one image"):
        pad_targets([])


def test_padding_does_not_change_the_callers_targets():
    given = target(3, weights=torch.ones(3))
    copies = {key: value.clone() for key, value in given.items()}
    pad_targets([given, target(5)]).boxes.add_(1)
    assert all(torch.equal(given[key], copies[key]) for key in copies)


def test_a_data_loader_hands_out_lists_of_images_and_targets():
    samples = [(torch.rand(3, 4 + i, 5), target(i)) for i in range(3)]
    images, targets = next(iter(DataLoader(samples, batch_size=3, collate_fn=collate)))
    assert [image.shape[1] for image in images] == [4, 5, 6]
    assert [len(t["boxes"]) for t in targets] == [0, 1, 2]
    assert collate([]) == ([], [])


def test_an_image_without_objects_needs_no_masks_of_the_right_shape():
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "masks": torch.tensor([])}
    one = {"boxes": torch.ones(1, 4), "labels": torch.tensor([1]), "masks": torch.ones(1, 5, 6, dtype=torch.uint8)}
    assert pad_targets([nothing, one]).masks.sum((1, 2, 3)).tolist() == [0, 30]


@pytest.mark.parametrize("entry", ["weights", "keypoints"])
def test_whole_numbers_of_one_image_do_not_round_those_of_another(entry):
    shape = (1,) if entry == "weights" else (1, 2, 3)
    rows = [torch.ones(shape, dtype=torch.int64), torch.full(shape, 0.5)]
    targets = [{"boxes": torch.ones(1, 4), "labels": torch.tensor([0]), entry: own} for own in rows]
    assert getattr(pad_targets(targets), entry)[1].unique().tolist() == [0.5]


# Fields beyond boxes and labels


def test_identities_are_minus_one_where_nobody_knows_them():
    padded = pad_targets([target(2, identities=torch.tensor([7, 9])), target(1), target(0)])
    assert padded.identities.tolist() == [[7, 9], [-1, -1], [-1, -1]]
    assert padded.identities.dtype == torch.int64


def test_label_sets_are_rows_of_their_objects():
    sets = torch.tensor([[True, False, True], [False, True, True]])
    padded = pad_targets([target(2, label_sets=sets), target(0)])
    assert padded.label_sets.shape == (2, 2, 3)
    assert torch.equal(padded.label_sets[0], sets)
    assert not padded.label_sets[1].any()
    with pytest.raises(ValueError, match=r"targets\[1\]: 1 boxes.*label_sets.*object"):
        pad_targets([target(2, label_sets=sets), target(1)])


def test_segmentations_are_padded_with_void_and_void_altogether_where_there_is_none():
    classes = torch.tensor([[0, 1, 2]], dtype=torch.uint8)
    padded = pad_targets([target(1, segmentation=classes), target(1, segmentation=torch.zeros(2, 2)), target(3)])
    assert padded.segmentation.tolist() == [[[0, 1, 2], [VOID] * 3], [[0, 0, VOID], [0, 0, VOID]], [[VOID] * 3] * 2]
    assert padded.segmentation.dtype == torch.int64


def test_image_labels_are_of_one_shape_and_of_every_image():
    padded = pad_targets([target(2, image_labels=[0, 1]), target(0, image_labels=torch.tensor([1, 1]))])
    assert padded.image_labels.tolist() == [[0, 1], [1, 1]]
    assert pad_targets([target(1, image_labels=3)]).image_labels.tolist() == [3]
    with pytest.raises(ValueError, match=r"targets\[1\]: 0 boxes.*image_labels.*image"):
        pad_targets([target(2, image_labels=[0, 1]), target(0)])
    with pytest.raises(ValueError, match=r"pad_targets: image_labels.*\[\(2,\), \(3,\)\]"):
        pad_targets([target(2, image_labels=[0, 1]), target(0, image_labels=[0, 1, 1])])


# What the border takes


def test_arrays_and_lists_are_taken_as_tensors_are():
    given = target(3, weights=torch.tensor([0.5, 1, 2]), masks=torch.ones(3, 4, 5, dtype=torch.uint8))
    expected = pad_targets([given])
    for read in (Tensor.numpy, Tensor.tolist):
        padded = pad_targets([{key: read(values) for key, values in given.items()}])
        for one, other in zip(padded, expected, strict=True):
            assert one is other is None or one.tolist() == other.tolist()
        assert padded.boxes.dtype == torch.float32


def test_entries_that_are_none_are_not_there():
    padded = pad_targets([target(2, masks=None, weights=None, iscrowd=None)])
    assert padded.masks is padded.weights is None
    assert not padded.ignore.any()


def test_a_target_of_its_image_alone_has_no_objects():
    padded = pad_targets([{"image_id": 7}, target(1)])
    assert padded.valid.tolist() == [[False], [True]]
    with pytest.raises(ValueError, match=r"targets\[0\]: no 'boxes' among \['image_id', 'labels'\]"):
        pad_targets([{"image_id": 7, "labels": torch.tensor([1])}])
    with pytest.raises(ValueError, match=r"targets\[0\]: no 'labels' among \['boxes'\]"):
        pad_targets([{"boxes": torch.zeros(0, 4)}])


def test_ground_truth_carries_no_gradient():
    boxes = random_boxes(2).requires_grad_()
    padded = pad_targets([{"boxes": boxes, "labels": torch.arange(2)}, target(3)])
    assert torch.equal(padded.boxes[0, :2], boxes)
    assert not padded.boxes.requires_grad


@pytest.mark.parametrize("form", ["XYXY", "XYWH", "CXCYWH"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_tv_tensors_of_other_formats_are_converted(form, dtype):
    corners = tv_tensors.BoundingBoxes([[1, 2, 5, 10]], format="XYXY", canvas_size=(20, 20), dtype=dtype)
    given = v2.functional.convert_bounding_box_format(corners, new_format=form)
    assert pad_targets([{"boxes": given, "labels": torch.tensor([0])}]).boxes.tolist() == [[[1, 2, 5, 10]]]


@pytest.mark.parametrize(("form", "numbers"), [("XYWHR", 5), ("CXCYWHR", 5), ("XYXYXYXY", 8)])
def test_rotated_boxes_are_refused_by_name(form, numbers):
    given = tv_tensors.BoundingBoxes(torch.ones(1, numbers), format=form, canvas_size=(20, 20))
    with pytest.raises(ValueError, match=rf"targets\[0\]: boxes: BoundingBoxes.*format {form}.*XYXY, XYWH"):
        pad_targets([{"boxes": given, "labels": torch.tensor([0])}])


@pytest.mark.parametrize("entry", ["labels", "identities"])
@pytest.mark.parametrize(("bad", "shown"), [(1.7, "1.7"), (float("nan"), "nan"), (float("inf"), "inf")])
def test_numbers_that_are_not_whole_are_refused_not_cut(entry, bad, shown):
    given = target(2) | {entry: torch.tensor([1.0, bad])}
    with pytest.raises(ValueError, match=rf"^targets\[0\]: {entry}\[1\]={shown}.*whole"):
        pad_targets([given])
    assert pad_targets([target(2) | {entry: torch.tensor([1.0, 3.0])}]).valid.all()


@pytest.mark.parametrize(
    ("entry", "shape", "allowed"),
    [
        ("keypoints", (2, 17, 2), r"\(T, P, 3\)"),
        ("keypoints", (2, 51), r"\(T, P, 3\)"),
        ("masks", (2, 1, 8, 8), r"\(T, H, W\)"),
        ("weights", (2, 1), r"\(T,\)"),
        ("labels", (2, 1), r"\(T,\)"),
        ("label_sets", (2,), r"\(T, C\)"),
        ("segmentation", (1, 8, 8), r"\(H, W\)"),
    ],
)
def test_another_shape_than_that_of_the_table_is_refused(entry, shape, allowed):
    with pytest.raises(ValueError, match=rf"^targets\[0\]: {entry}.*{re.escape(str(shape))}.*{allowed}"):
        pad_targets([target(2) | {entry: torch.ones(shape)}])


def test_what_holds_no_numbers_is_refused():
    for bad in (["cat", "dog"], "cat", [[1], [1, 2]], object()):
        with pytest.raises(TypeError, match=r"^targets\[0\]: labels: a \w+ that holds no numbers; allowed is a tensor"):
            pad_targets([target(2) | {"labels": bad}])


def test_a_key_close_to_a_known_one_is_refused_in_a_batch():
    with pytest.raises(ValueError, match=r"^targets\[1\]: unknown key 'mask'; did you mean 'masks'\?"):
        pad_targets([target(1), target(1, mask=torch.ones(1, 2, 2))])


def test_a_target_is_read_without_a_change_to_what_is_the_users_own():
    own = {"file_name": "a.png", "size": (3, 4), "image_id": "seven", "captions": ["one"]}
    read = read_target({**target(2), **own})
    assert {key: read[key] for key in own} == own
    assert torch.equal(read["boxes"], target(2)["boxes"])


def test_rows_are_padded_to_a_length_or_cut():
    rows = [torch.ones(1, 2, dtype=torch.int64), torch.full((3, 1), 0.5)]
    padded = pad_rows(rows, 2, fill=-1)
    assert padded.tolist() == [[[1, 1], [-1, -1]], [[0.5, -1], [0.5, -1]]]
