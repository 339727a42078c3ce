"""Shards as a data set: read with webdataset and written by it, in one order for all workers, ranks and restarts."""

import io
import json
import shutil
import struct
import tarfile
from itertools import chain

import numpy as np
import pytest
import torch
from PIL import Image
from strategies import assert_refused
from torch.utils.data import DataLoader

from detkit.data import (
    Augmented,
    DigitScenes,
    ResumableSampler,
    ShardDataset,
    coco_ground_truth,
    collate,
    flip_augmentation,
    write_shards,
)
from detkit.metrics import CocoMetrics

TARGET = {"boxes": [[0, 0, 4, 4]], "labels": [1]}


def encoded(value=7, name="PNG", **options):
    Image.new("RGB", (8, 6), (value, value, value)).save(file := io.BytesIO(), name, **options)
    return file.getvalue()


def tar_of(path, members):
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """Twenty-three scenes in shards of three; image_id is the position."""
    return write_shards(
        DigitScenes(23, size=(32, 32)),
        tmp_path_factory.mktemp("set") / "train.json",
        samples_per_shard=3,
        progress=False,
    )


def test_all_is_as_in_the_set_that_was_written(index):
    shards, scenes = ShardDataset(index), DigitScenes(23, size=(32, 32))
    assert (len(shards), shards.shard_sizes, shards.categories) == (23, [3] * 7 + [2], scenes.categories)
    for (image, target), (own_image, own_target) in zip(shards, scenes, strict=True):
        assert torch.equal(image, own_image)
        assert torch.equal(target["boxes"], own_target["boxes"])
    assert coco_ground_truth(shards) == coco_ground_truth(scenes)
    assert shards.image_size(-1) == (32, 32)
    with pytest.raises(IndexError):
        shards[23]


def test_metrics_and_augmentation_take_shards_as_any_set(index):
    shards = Augmented(ShardDataset(index), flip_augmentation(), seed=1)
    metrics = CocoMetrics(shards.dataset.categories)
    metrics.update([{**shards[0][1], "scores": torch.ones(len(shards[0][1]["labels"]))}], [shards[0][1]])
    assert metrics.compute()["bbox/AP"] == pytest.approx(1)


def trained(index, sampler, workers, stop_after=None):
    """Ids of the images of an epoch, in the order of steps."""
    seen = []
    loader = DataLoader(ShardDataset(index), 2, sampler=sampler, num_workers=workers, collate_fn=collate)
    for step, (images, targets) in enumerate(loader):
        seen += [target["image_id"] for target in targets]
        sampler.advance(len(images))
        if step + 1 == stop_after:
            break
    return seen


def sampler_of(index, **settings):
    shards = ShardDataset(index)
    return ResumableSampler(len(shards), blocks=shards.shard_sizes, mixed=2, seed=1, **settings)


@pytest.mark.slow(4)
def test_workers_change_nothing_and_a_killed_run_goes_on_with_the_very_next_sample(index):
    whole = trained(index, sampler_of(index), 0)
    assert sorted(whole) == list(range(23))
    assert trained(index, sampler_of(index), 2) == whole
    for workers, rest in ((0, 2), (2, 0)):
        sampler = sampler_of(index)
        before = trained(index, sampler, workers, stop_after=4)
        resumed = sampler_of(index)
        resumed.load_state_dict(json.loads(json.dumps(sampler.state_dict())))
        assert before + trained(index, resumed, rest) == whole


def test_more_ranks_than_shards_share_an_epoch(index):
    shares = [trained(index, sampler_of(index, rank=rank, world_size=10), 0) for rank in range(10)]
    assert len(set(map(len, shares))) == 1
    assert set(chain(*shares)) == set(range(23))
    plain = [sampler_of(index, shuffle=False, rank=rank, world_size=10) for rank in range(10)]
    assert sorted(chain(*plain)) == list(range(23))


def test_an_index_names_its_shards_and_no_others(index, tmp_path):
    for path in index.parent.iterdir():
        shutil.copy(path, tmp_path)
    tar_of(tmp_path / "train-000009.tar", {"old.png": encoded()})
    assert len(ShardDataset(tmp_path / "train.json")) == 23


@pytest.mark.parametrize(
    "change",
    [
        lambda about: about["shards"][0].update(name="../a.tar"),
        lambda about: about["shards"][0].update(samples=-1),
        lambda about: about["shards"][0].update(samples="3"),
        lambda about: about["shards"][0].pop("bytes"),
        lambda about: about["shards"].append(about["shards"][0]),
        lambda about: about.update(shards=7),
        lambda about: about.update(category_ids=[0]),
        lambda about: about.update(categories=[0] * 10),
    ],
)
def test_a_broken_index_is_refused_by_name(index, tmp_path, change):
    about = json.loads(index.read_text())
    change(about)
    path = tmp_path / "train.json"
    path.write_text(json.dumps(about))
    with pytest.raises(ValueError, match=r"ShardDataset: .*train\.json"):
        ShardDataset(path)


def test_missing_shards_and_no_shards_are_refused(index, tmp_path):
    (tmp_path / "train.json").write_bytes(index.read_bytes())
    shards = ShardDataset(tmp_path / "train.json")
    with pytest.raises(FileNotFoundError, match=r"train-000000\.tar"):
        shards[0]
    with pytest.raises(FileNotFoundError):
        ShardDataset(tmp_path / "none.tar")
    assert_refused("ShardDataset: source", ShardDataset, [])
    assert_refused("ShardDataset: categories='cat'", ShardDataset, index, categories="cat")
    assert_refused(f"ShardDataset: categories=['cat'] {index} '0'", ShardDataset, index, categories=["cat"])
    assert_refused(f"ShardDataset: {index} ConcatDataset", ShardDataset, [index, index])


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"x.1.png": encoded()[:50], "x.1.json": b'{"boxes": [], "labels": []}'}, "cannot be decoded"),
        ({"x.1.png": b"", "x.1.json": b'{"boxes": [], "labels": []}'}, "cannot be read as an image"),
        ({"x.1.png": encoded(), "x.1.json": b"{"}, "no JSON"),
        ({"x.1.png": encoded()}, "no json"),
        ({"x.1.png": encoded(), "x.1.json": b'{"boxes": [[0, 0, 1, 1]], "labels": [2]}'}, "labels [2] 0 to 1"),
        ({"x.1.png": encoded(), "x.1.json": b'{"boxes": [[0, 0, 1]], "labels": [1]}'}, "boxes (1, 3)"),
    ],
)
def test_a_broken_sample_is_refused_by_shard_and_key(tmp_path, members, words):
    good = {"w.png": encoded(), "w.json": json.dumps(TARGET).encode()}
    shards = ShardDataset(tar_of(tmp_path / "a.tar", {**good, **members}), categories=["cat", "dog"])
    assert shards[0][1]["labels"].tolist() == [1]
    assert_refused(f"ShardDataset: {tmp_path}/a.tar/x.1 {words}", shards.__getitem__, 1)


def test_labels_below_0_are_refused_where_no_names_are_known_too(tmp_path):
    target = b'{"boxes": [[0, 0, 1, 1]], "labels": [-1]}'
    shards = ShardDataset(tar_of(tmp_path / "a.tar", {"x.png": encoded(), "x.json": target}))
    assert_refused(f"ShardDataset: {tmp_path}/a.tar/x labels [-1]", shards.target, 0)


def test_pictures_are_upright_and_deep_ones_scaled(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (6, 8), 255).save(tagged := io.BytesIO(), "TIFF", exif=exif)
    Image.fromarray(np.full((8, 6), 65535, np.uint16)).save(deep := io.BytesIO(), "PNG", exif=exif)
    target = json.dumps({"boxes": [[0, 0, 8, 6]], "labels": [0]}).encode()
    members = {"a.png": deep.getvalue(), "a.json": target, "b.jpg": encoded(255, "JPEG"), "b.json": target}
    members |= {"c.tif": tagged.getvalue(), "c.json": target}
    shards = ShardDataset(tar_of(tmp_path / "a.tar", members))
    for index, (image, found) in enumerate(shards):
        assert (image.shape, image.unique().tolist()) == ((3, 6, 8), [255])
        assert found["boxes"].canvas_size == shards.image_size(index) == (6, 8)


@pytest.mark.parametrize("orientation", [struct.pack("<HIHH", 3, 1, 9, 0), struct.pack("<HI4s", 2, 2, b"6")])
def test_an_orientation_that_is_none_turns_nothing(tmp_path, orientation):
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<HH", 1, 0x0112) + orientation + bytes(4)
    path = tar_of(tmp_path / "a.tar", {"a.jpg": encoded(7, "JPEG", exif=exif), "a.json": json.dumps(TARGET).encode()})
    shards = ShardDataset(path)
    assert shards.image_size(0) == tuple(shards[0][0].shape[1:]) == (6, 8)


@pytest.fixture
def webdataset():
    return pytest.importorskip("webdataset", reason="without webdataset shards were NOT exchanged with it")


def test_what_webdataset_writes_is_read(webdataset, tmp_path):
    with webdataset.ShardWriter(str(tmp_path / "w-%06d.tar"), maxcount=2, verbose=0) as writer:
        for number, key in enumerate(("a", "f/b", "c.1", "c.2")):
            target = {"boxes": [[0, 0, 4, number + 1]], "labels": [number], "caption": key}
            writer.write({"__key__": key, "png": encoded(number), "json": target})
    shards = ShardDataset(sorted(tmp_path.glob("w-*.tar")))
    assert [target["caption"] for _, target in shards] == ["a", "f/b", "c.1", "c.2"]
    assert [image.unique().tolist() for image, _ in shards] == [[0], [1], [2], [3]]
    assert [target["boxes"][0, 3].item() for _, target in shards] == [1, 2, 3, 4]


def test_what_is_written_is_read_by_webdataset(webdataset, index):
    paths = [str(path) for path in sorted(index.parent.glob("*.tar"))]
    theirs = list(webdataset.WebDataset(paths, shardshuffle=False).decode("torchrgb8"))
    shards = ShardDataset(index)
    assert [sample["__key__"] for sample in theirs] == [f"{number:09}" for number in range(23)]
    for sample, (image, target) in zip(theirs, shards, strict=True):
        assert torch.equal(sample["png"], image)
        assert sample["json"]["boxes"] == target["boxes"].tolist()
        assert sample["json"]["labels"] == target["labels"].tolist()
