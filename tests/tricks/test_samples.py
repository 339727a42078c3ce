"""What all augmentations of batches promise: the caller's data stays, one seed gives one batch, errors by name."""

import functools
import pickle

import numpy as np
import pytest
import torch
from batches import batches, copied, same
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import unhooked
from torch.utils.data import DataLoader
from torchvision import tv_tensors
from torchvision.transforms import v2

from detkit.data import Augmented, DigitScenes, collate, flip_augmentation, sanitize
from detkit.structures import VOID
from detkit.tricks import ColorDistortion, CopyPaste, DetectionMixup, Mosaic
from detkit.tricks.samples import others, read_batch, strips, uniform, whole

MOVES = {
    "mosaic": lambda **given: Mosaic((24, 32), **given),
    "mixup": lambda **given: DetectionMixup(**given),
    "paste": lambda **given: CopyPaste(object_probability=0.9, scale_range=(0.5, 1.5), blend=0.7, **given),
    "color": lambda **given: ColorDistortion(**given),
}
every = pytest.mark.parametrize("make", MOVES.values(), ids=MOVES)


def plain(count=3, **entries):
    images = [torch.randint(0, 256, (3, 12 + i, 20), dtype=torch.uint8) for i in range(count)]
    targets = [{"boxes": torch.tensor([[2.0, 2, 9, 9]]), "labels": torch.tensor([i]), **entries} for i in range(count)]
    for image, target in zip(images, targets, strict=True):
        target["masks"] = torch.ones(1, *image.shape[1:], dtype=torch.uint8)
    return images, targets


@every
@settings(max_examples=20)
@given(batch=batches(fewest=2, masks=True, segmentation=False), seed=st.integers(0, 99))
@pytest.mark.slow
def test_nothing_of_the_callers_changes_and_one_generator_gives_one_batch(make, batch, seed):
    images, targets = batch
    before, augment = copied([images, targets]), make()
    first = augment(images, targets, generator=torch.Generator().manual_seed(seed))
    assert same([images, targets], before)
    assert len(first[0]) == len(first[1]) == len(images)
    assert same(first, augment(images, targets, generator=torch.Generator().manual_seed(seed)))
    for image, target in zip(*first, strict=True):
        assert image.dtype == images[0].dtype
        assert target["masks"].shape == (len(target["boxes"]), *image.shape[1:])


@every
def test_without_a_generator_numbers_are_those_of_torchs_global_one(make):
    images, targets = plain()
    torch.manual_seed(5)
    first, second = make()(images, targets), make()(images, targets)
    torch.manual_seed(5)
    assert same(make()(images, targets), first)
    assert not same(first, second)


@every
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=str)
def test_the_number_of_threads_changes_nothing(make, dtype):
    generator, threads = torch.Generator().manual_seed(0), torch.get_num_threads()
    images = [torch.randint(0, 256, (3, 301, 257 + 3 * i), generator=generator) for i in range(4)]
    images = [image.to(dtype) if dtype == torch.uint8 else image / 255 for image in images]
    targets = plain(4)[1]
    for image, target in zip(images, targets, strict=True):
        target["masks"] = torch.rand(1, *image.shape[1:], generator=generator) < 0.5
    results = []
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            results.append(make()(images, targets, generator=torch.Generator().manual_seed(1)))
    finally:
        torch.set_num_threads(threads)
    assert same(*results)


@every
def test_probability_is_of_each_image_and_the_others_come_back_as_they_are(make):
    images, targets = plain(40)
    results, _ = make(probability=0.5)(images, targets, generator=torch.Generator().manual_seed(0))
    kept = sum(torch.equal(*pair) for pair in zip(results, images, strict=True))
    assert 10 < kept < 30
    never, same_targets = make(probability=0)(images[:1], targets[:1])
    assert torch.equal(never[0], images[0])
    assert same(same_targets[0], targets[0])


@every
def test_tv_tensors_come_back_as_such_on_the_new_canvas(make):
    images, targets = plain()
    for image, target in zip(images, targets, strict=True):
        size = tuple(image.shape[1:])
        target["boxes"] = tv_tensors.BoundingBoxes([[2.0, 2, 7, 7]], format="XYWH", canvas_size=size)
        target["masks"] = tv_tensors.Mask(target["masks"])
    results, found = make()([tv_tensors.Image(image) for image in images], targets)
    for image, target in zip(results, found, strict=True):
        assert type(image) is tv_tensors.Image
        assert type(target["boxes"]) is tv_tensors.BoundingBoxes
        assert target["boxes"].format == tv_tensors.BoundingBoxFormat.XYXY
        assert target["boxes"].canvas_size == tuple(image.shape[1:])
        assert type(target["masks"]) is tv_tensors.Mask
        assert type(target["labels"]) is torch.Tensor
    kept = make(probability=0)([tv_tensors.Image(image) for image in images], targets)[1]
    assert kept[0]["boxes"].tolist() == [[2, 2, 9, 9]]


@every
def test_pickles_and_prints(make):
    images, targets = plain()
    augment = make(probability=0.75)
    again = pickle.loads(pickle.dumps(augment))
    one, other = (each(images, targets, generator=torch.Generator().manual_seed(3)) for each in (augment, again))
    assert same(one, other)
    assert "probability=0.75" in repr(augment)


def test_boxes_hold_their_objects_after_v2_and_a_mosaic():
    """A white object on black in each image: the hull of what is white in a quarter is its box, to a pixel."""
    single = v2.Compose([sanitize(), v2.RandomHorizontalFlip(0.5), v2.RandomResizedCrop((60, 80), scale=(0.7, 1))])
    single.transforms.append(sanitize())
    generator, mosaic, seen = torch.Generator().manual_seed(0), Mosaic((120, 120), fill=0.0), 0
    torch.manual_seed(0)
    for _ in range(10):
        images = [torch.zeros(1, 70, 90, dtype=torch.uint8) for _ in range(4)]
        for image in images:
            image[:, 20:45, 30:70] = 255
        targets = [{"boxes": torch.tensor([[30.0, 20, 70, 45]]), "labels": torch.tensor([i])} for i in range(4)]
        batch = collate([single(*sample) for sample in zip(images, targets, strict=True)])
        for image, target in zip(*mosaic(*batch, generator=generator), strict=True):
            for x1, y1, x2, y2 in target["boxes"].round().int().tolist():
                inner = image[0, y1 + 2 : y2 - 2, x1 + 2 : x2 - 2]
                assert inner.numel() == 0 or int(inner.min()) > 127
                seen += inner.numel() > 0
            covered = torch.zeros(image.shape[1:], dtype=torch.bool)
            for x1, y1, x2, y2 in target["boxes"].tolist():
                covered[max(int(y1) - 2, 0) : int(y2) + 3, max(int(x1) - 2, 0) : int(x2) + 3] = True
            cut = mosaic.view.min_visible * 40 * 25 * 4
            assert int((image[0] > 127)[~covered].sum()) <= cut  # slivers of objects out of view
    assert seen > 100


def mixed_by_ids(dataset, augment, batch):
    """As docs/augmentation.md shows: a collate_fn whose numbers depend on the epoch and the batch alone."""
    images, targets = collate(batch)
    seed = np.random.default_rng([0, dataset.epoch, *(target["image_id"] for target in targets)]).integers(1 << 63)
    return augment(images, targets, generator=torch.Generator().manual_seed(int(seed)))


@pytest.mark.slow(5)
def test_one_seed_gives_one_batch_with_any_number_of_workers():
    dataset = Augmented(DigitScenes(12), flip_augmentation(), seed=1)
    loaded = []
    for workers, epoch in ((0, 0), (2, 0), (0, 1)):
        dataset.set_epoch(epoch)
        function = functools.partial(mixed_by_ids, dataset, Mosaic((64, 64)))
        loaded.append([*DataLoader(dataset, batch_size=4, num_workers=workers, collate_fn=function)])
    assert same(loaded[0], loaded[1])
    assert not same(loaded[0], loaded[2])


def test_other_images_are_drawn_evenly_none_twice_and_never_oneself():
    drawn = [others(2, numbers, 5) for numbers in uniform((3000, 3), torch.Generator().manual_seed(0))]
    assert all(len(set(found)) == 3 and 2 not in found for found in drawn)
    counts = torch.tensor(drawn).flatten().bincount(minlength=5)
    assert counts[2] == 0
    assert (counts[[0, 1, 3, 4]] - 2250).abs().max() < 150
    assert others(0, [0.5, 0.5], 2) == [1]
    assert others(0, [0.5], 1) == []
    assert others(0, [1 - 2**-53], 7) == [6]


def test_strips_cover_every_row_once():
    image = torch.arange(150.0).reshape(1, 150, 1)
    assert torch.cat([rows for (rows,) in strips(image)], dim=1).flatten().tolist() == list(range(150))


@pytest.mark.parametrize(("dtype", "white"), [(torch.uint8, 255), (torch.uint16, 65535)], ids=str)
def test_whole_numbers_keep_their_range(dtype, white):
    values = torch.tensor([0.0, 0.9, white, white + 0.5])
    assert torch.zeros(4, dtype=torch.int32).to(dtype).copy_(whole(values, dtype)).tolist() == [0, 0, white, white]


# What is refused


@every
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda images, targets: (images[:2], targets), "2 images but 3 targets"),
        (lambda images, targets: (torch.stack(images[:1]), targets[:1]), "images is a Tensor"),
        (lambda images, targets: ([images[0], None, images[2]], targets), "images"),
        (lambda images, targets: ([images[0][0], *images[1:]], targets), r"images\[0\] has shape \(12, 20\)"),
        (lambda images, targets: ([images[0] > 0, *images[1:]], targets), r"images\[0\] has type torch.bool"),
        (lambda images, targets: ([*images[:2], images[2] / 255], targets), r"images\[2\] has type torch.float32"),
        (lambda images, targets: ([*images[:2], images[2][:1]], targets), r"images\[2\] has channels 1, images\[0\] 3"),
        (lambda images, targets: (images, [{**targets[0], "mask": 1}, *targets[1:]]), "unknown key 'mask'"),
        (lambda images, targets: (images, [{**targets[0], "labels": [0, 1]}, *targets[1:]]), r"targets\[0\]: boxes"),
        (
            lambda images, targets: (images, [{**targets[0], "boxes": [[9.0, 9, 2, 2]]}, *targets[1:]]),
            r"targets\[0\]: boxes\[0\]: x2 < x1",
        ),
        (
            lambda images, targets: (images, [{**targets[0], "boxes": [[0.0, 0, torch.inf, 2]]}, *targets[1:]]),
            r"targets\[0\]: boxes\[0, 2\]=inf must be finite",
        ),
        (
            lambda images, targets: (images, [{**targets[0], "masks": torch.ones(1, 3, 3)}, *targets[1:]]),
            r"targets\[0\]: masks of height and width \(3, 3\)",
        ),
        (
            lambda images, targets: (images, [{**targets[0], "own": torch.ones(1)}, *targets[1:]]),
            r"targets\[1\]: 1 boxes but no own",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_batch_that_cannot_be_is_refused_by_name(make, change, said):
    with pytest.raises((ValueError, TypeError), match=rf"^{type(make()).__name__}: .*{said}"):
        unhooked(make())(*change(*plain()))


@pytest.mark.parametrize("make", [MOVES[name] for name in ("mosaic", "mixup", "paste")])
@pytest.mark.parametrize("key", ["image_labels", "image_scores"])
def test_what_speaks_of_a_whole_image_is_refused_where_images_are_joined(make, key):
    with pytest.raises(ValueError, match=rf"targets\[0\] has '{key}'.*take it out"):
        make()(*plain(**{key: torch.tensor([1.0])}))
    ColorDistortion()(*plain(**{key: torch.tensor([1.0])}))


@pytest.mark.parametrize("make", [MOVES[name] for name in ("mixup", "paste")])
def test_a_batch_of_one_is_refused_with_the_way_out(make):
    with pytest.raises(ValueError, match=r"a batch of 1 has no second image to mix with; .*drop_last=True"):
        make()(*plain(1))


def test_boxes_on_another_canvas_than_their_image_are_refused():
    images, targets = plain()
    targets[1]["boxes"] = tv_tensors.BoundingBoxes([[0.0, 0, 5, 5]], format="XYXY", canvas_size=(99, 99))
    with pytest.raises(ValueError, match=r"^Mosaic: targets\[1\]: boxes of height and width \(99, 99\)"):
        Mosaic((8, 8))(images, targets)


def test_images_without_objects_or_segmentation_are_completed():
    images = [torch.zeros(1, 4, 5), torch.zeros(1, 6, 3)]
    full = {
        "boxes": torch.ones(1, 4),
        "labels": [1],
        "masks": torch.ones(1, 4, 5),
        "segmentation": torch.ones(4, 5).bool(),
    }
    batch = read_batch(images, [full, {"image_id": 3}], refused=(), function="f")
    assert batch.targets[1]["masks"].shape == (0, 6, 3)
    assert batch.targets[1]["segmentation"].tolist() == [[VOID] * 3] * 6
    assert batch.targets[0]["segmentation"].dtype == torch.int64
    assert batch.keys == ["boxes", "labels", "masks"]
