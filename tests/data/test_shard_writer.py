"""Any data set as shards: files as they are, names as they were, and nothing half written or old among the new."""

import io
import json
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from strategies import assert_refused, unhooked
from torch.utils.data import ConcatDataset, IterableDataset, Subset
from torchvision import tv_tensors

from detkit.data import (
    CocoDataset,
    CsvDataset,
    DigitScenes,
    ShardDataset,
    flip_augmentation,
    shard_writer,
    write_shards,
)

TARGET = {"boxes": [[0, 0, 4, 4]], "labels": [1]}


def written(dataset, folder, name="train.json", **settings):
    return ShardDataset(write_shards(dataset, folder / name, progress=False, **settings))


def members(path):
    with tarfile.open(path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}


@pytest.fixture
def coco(tmp_path):
    """Two pictures of awkward names, one taken sideways, and a crowd with a mask."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.effect_noise((8, 6), 50).save(tmp_path / "a.1.größe.jpg", exif=exif)
    Image.effect_noise((8, 6), 50).save(tmp_path / "a.2.png")
    names = ("a.1.größe.jpg", "a.2.png")
    annotation = {"id": 1, "image_id": 5, "category_id": 90, "bbox": [1, 1, 2, 3], "area": 6, "iscrowd": 1}
    annotation["segmentation"] = {"size": [6, 8], "counts": [7, 3, 38]}
    about = {
        "images": [{"id": 5 + i, "file_name": name, "height": 6, "width": 8} for i, name in enumerate(names)],
        "categories": [{"id": 90, "name": "cell"}],
        "annotations": [annotation],
    }
    (tmp_path / "a.json").write_text(json.dumps(about))
    return CocoDataset(tmp_path, tmp_path / "a.json", masks=True)


def test_a_set_of_files_comes_back_as_it_was_and_its_files_are_not_touched(coco, tmp_path):
    shards = written(coco, tmp_path)
    assert (shards.categories, shards.category_ids, len(shards)) == (["cell"], [90], 2)
    for index in range(2):
        stored = shards.stored_picture(index)
        assert stored == coco.stored_picture(index)
        assert stored.data == (tmp_path / stored.name).read_bytes()
        (image, target), (own_image, own_target) = shards[index], coco[index]
        assert torch.equal(image, own_image)
        assert (target.keys(), target["image_id"]) == (own_target.keys(), own_target["image_id"])
        for key in target.keys() - {"image_id"}:
            assert (type(target[key]), target[key].dtype) == (type(own_target[key]), own_target[key].dtype)
            assert torch.equal(target[key], own_target[key]), key
    assert sorted(members(tmp_path / "train-000000.tar")) == [
        *("000000000.jpg", "000000000.json", "000000001.json", "000000001.png")
    ]


def test_parts_and_joined_sets_and_shards_of_shards_keep_their_files(coco, tmp_path):
    shards = written(ConcatDataset([Subset(coco, [1]), coco]), tmp_path)
    assert [shards.stored_picture(index).name for index in range(3)] == ["a.2.png", "a.1.größe.jpg", "a.2.png"]
    again = ShardDataset(write_shards(shards, tmp_path / "again.json", progress=False))
    assert [again.stored_picture(index) for index in range(3)] == [shards.stored_picture(index) for index in range(3)]
    assert torch.equal(again[1][0], coco[0][0])


def test_a_set_by_names_keeps_its_files_too(tmp_path):
    Image.new("RGB", (6, 4)).save(tmp_path / "one.png")
    (tmp_path / "train.csv").write_text("ImageId,PredictionString\none,cat 1 0 5 4 ")
    shards = written(CsvDataset(tmp_path, tmp_path / "train.csv"), tmp_path)
    assert (shards.categories, shards.stored_picture(0).name) == (["cat"], "one.png")
    assert shards[0][1]["boxes"].tolist() == [[1, 0, 5, 4]]


def test_what_transforms_make_is_written_without_loss(coco, tmp_path):
    coco.transforms = flip_augmentation()
    torch.manual_seed(0)
    expected = [coco[index] for index in range(2)]
    torch.manual_seed(0)
    shards = written(coco, tmp_path)
    for (image, target), (own_image, own_target) in zip(shards, expected, strict=True):
        assert torch.equal(image, own_image)
        assert torch.equal(target["boxes"], own_target["boxes"])


def test_images_of_every_form_are_taken(tmp_path):
    gray = Image.fromarray(np.full((6, 8), 40_000, np.uint16))
    gray.save(tmp_path / "deep.1.tif")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (6, 8), "red").save(sideways := io.BytesIO(), "JPEG", exif=exif)
    pictures = [
        *(tmp_path / "deep.1.tif", str(tmp_path / "deep.1.tif"), gray, sideways.getvalue()),
        *(torch.full((3, 6, 8), 7, dtype=torch.uint8), tv_tensors.Image(torch.full((1, 6, 8), 7, dtype=torch.uint8))),
        Image.new("CMYK", (8, 6)),
    ]
    shards = written(((picture, TARGET) for picture in pictures), tmp_path)
    images = [image for image, _ in shards]
    assert {tuple(image.shape) for image in images} == {(3, 6, 8)}
    assert [image[0, 0, 0].item() for image in images] == [156, 156, 156, 254, 7, 7, 255]
    assert shards.stored_picture(0).name == str(tmp_path / "deep.1.tif")


def test_a_shard_ends_at_so_many_samples_or_bytes(tmp_path):
    scenes = DigitScenes(5)
    assert written(scenes, tmp_path, samples_per_shard=2).shard_sizes == [2, 2, 1]
    (tmp_path / "b").mkdir()
    assert written(scenes, tmp_path / "b", bytes_per_shard=1).shard_sizes == [1] * 5
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == [f"train-00000{i}.tar" for i in range(5)] + [
        "train.json"
    ]


def test_the_same_set_makes_the_same_bytes(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        written(DigitScenes(2), tmp_path / folder)
    for name in ("train.json", "train-000000.tar"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


class Streamed(IterableDataset):
    """A stream that knows its length."""

    def __iter__(self):
        return iter([(IMAGE, TARGET)] * 3)

    def __len__(self):
        return 3


def test_a_stream_is_written_though_it_has_a_length(tmp_path):
    assert len(written(Streamed(), tmp_path)) == 3


def test_an_empty_set_is_one(tmp_path):
    assert len(written([], tmp_path)) == 0


def test_nothing_old_stands_among_the_new(tmp_path):
    shards = written(DigitScenes(3), tmp_path, samples_per_shard=1)
    with pytest.raises(FileExistsError, match=r"train\.json; delete"):
        write_shards(DigitScenes(1), tmp_path / "train.json")
    (tmp_path / "train.json").unlink()
    with pytest.raises(FileExistsError, match=r"train-000000\.tar; delete"):
        write_shards(DigitScenes(1), tmp_path / "train.json")
    assert len(shards) == 3
    write_shards(DigitScenes(1), tmp_path / "val.json", progress=False)
    write_shards(DigitScenes(1), tmp_path / "val-201701.json", progress=False)
    (tmp_path / "val.json").unlink()
    (tmp_path / "val-000000.tar").unlink()
    assert len(written(DigitScenes(1), tmp_path, name="val.json")) == 1  # shards of val-201701 are no old ones of val


def test_parts_of_other_categories_are_refused_before_anything_is_written(coco, tmp_path):
    before = set(tmp_path.iterdir())
    with pytest.raises(ValueError, match="write_shards: parts of the data set have the categories"):
        write_shards(ConcatDataset([coco, DigitScenes(1)]), tmp_path / "train.json", progress=False)
    assert set(tmp_path.iterdir()) == before


class Darkened(CocoDataset):
    """A reader whose items are no longer the files."""

    def __getitem__(self, index):
        image, target = super().__getitem__(index)
        return image // 2, target


def test_what_a_subclass_makes_of_the_files_is_written(coco, tmp_path):
    dark = Darkened(tmp_path, tmp_path / "a.json")
    assert torch.equal(written(dark, tmp_path)[1][0], coco[1][0] // 2)


def test_a_run_that_ends_early_leaves_no_index_and_no_part_of_a_shard(tmp_path):
    def broken():
        yield from [(torch.zeros(3, 6, 8, dtype=torch.uint8), TARGET)] * 3
        raise FileNotFoundError(2, "gone", "picture.jpg")

    with pytest.raises(FileNotFoundError, match="gone"):
        write_shards(broken(), tmp_path / "train.json", samples_per_shard=2, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["train-000000.tar"]


def test_a_full_disk_leaves_no_part_of_a_shard(tmp_path, monkeypatch):
    def full(samples, first, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shard_writer, "_write", full)
    with pytest.raises(OSError, match=r"write_shards: cannot save .*train-000000.tar"):
        write_shards(DigitScenes(1), tmp_path / "train.json", progress=False)
    assert list(tmp_path.iterdir()) == []


IMAGE = torch.zeros(3, 6, 8, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        ([(IMAGE, TARGET), (IMAGE, {**TARGET, "labels": [1, 2]})], "sample 1 labels"),
        ([(IMAGE, {**TARGET, "masks": torch.zeros(1, 8, 6)})], "sample 0 masks"),
        ([IMAGE], "sample 0 pair"),
        ([7], "sample 0 int pair"),
        ([(IMAGE / 255, TARGET)], "sample 0 float32 uint8"),
        ([("a", "b", TARGET)], "sample 0 tuple pair"),
        ([(b"no picture", TARGET)], "sample 0 cannot be read as an image"),
        ([(IMAGE[:, :0], TARGET)], "sample 0 (3, 0, 8) (3, H, W)"),
        ([(Image.new("F", (8, 6)), TARGET)], "sample 0 PNG mode 'F'"),
        ([(Image.new("L", (8, 0)), TARGET)], "sample 0 PNG empty"),
        ([(7, TARGET)], "sample 0 int path"),
    ],
)
def test_what_is_no_sample_is_refused_by_number(samples, words, tmp_path):
    assert_refused(f"write_shards: {words}", write_shards, samples, tmp_path / "train.json", progress=False)


def test_what_is_no_target_is_refused_by_number(tmp_path):
    with pytest.raises(TypeError, match="write_shards: sample 0: a list"):
        unhooked(write_shards)([(IMAGE, [{"bbox": [0, 0, 1, 1]}])], tmp_path / "train.json", progress=False)
    with pytest.raises(ValueError, match=r"write_shards: index='.*train'"):
        write_shards([], tmp_path / "train")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        write_shards([(IMAGE, TARGET)], tmp_path / "none" / "train.json", progress=False)
