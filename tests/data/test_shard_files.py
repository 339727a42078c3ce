"""Samples found in tar files: by the name before the last dot, wherever they stand, and never from half a file."""

import gzip
import io
import os
import tarfile

import pytest

from detkit.data import shard_files
from detkit.data.shard_files import ShardFiles, list_shard


def tar_of(path, *names, contents=None):
    """A tar of members that hold their own names, or ``contents``."""
    with tarfile.open(path, "w") as tar:
        for name in names:
            data = contents if contents is not None else name.encode()
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def samples_in(path):
    """What stands at the places of each sample."""
    listing, data = list_shard(path), path.read_bytes()
    texts = [
        [data[offset : offset + size].decode() if offset >= 0 else None for offset, size in row]
        for row in listing.places.tolist()
    ]
    return {listing.key(place): row for place, row in enumerate(texts)}


@pytest.mark.parametrize(
    ("names", "samples"),
    [
        (["a.jpg", "a.json"], {"a": ["a.jpg", "a.json", None]}),
        (["a.JPG", "a.JSON"], {"a": ["a.JPG", "a.JSON", None]}),
        (["f/a.png", "f/a.segmentation.png", "f/a.json"], {"f/a": ["f/a.png", "f/a.json", "f/a.segmentation.png"]}),
        (["./a.png", "./a.segmentation.png", "./a.json"], {"./a": ["./a.png", "./a.json", "./a.segmentation.png"]}),
        (["a.1.jpg", "a.1.json", "a.2.jpg", "a.2.json"], {k: [k + ".jpg", k + ".json", None] for k in ("a.1", "a.2")}),
        (["a.jpg", "a.1.jpg", "a.1.json", "a.json"], {k: [k + ".jpg", k + ".json", None] for k in ("a", "a.1")}),
        (["a.jpg", "b.jpg", "b.json", "a.json"], {k: [k + ".jpg", k + ".json", None] for k in ("a", "b")}),
        (["a.1.png", "a.1.segmentation.png", "a.1.json"], {"a.1": ["a.1.png", "a.1.json", "a.1.segmentation.png"]}),
        (["a.1.jpg", "a.2.jpg", "a.jpg"], {k: [k + ".jpg", None, None] for k in ("a.1", "a.2", "a")}),
        (
            ["x/y.z/a.jpg", "x/y.z/a.json", "__meta__", "x/._a.jpg", "a.cls"],
            {"x/y.z/a": ["x/y.z/a.jpg", "x/y.z/a.json", None]},
        ),
    ],
    ids=[
        "plain",
        "upper",
        "fields",
        "./",
        "dots",
        "a dot beside none",
        "apart",
        "a dot and fields",
        "pictures only",
        "folders and meta",
    ],
)
def test_samples_are_what_has_a_name(tmp_path, names, samples):
    assert samples_in(tar_of(tmp_path / "a.tar", *names)) == samples


def test_long_names_and_other_scripts_are_read(tmp_path):
    name = "ordner/" * 30 + "größe 図"
    assert list(samples_in(tar_of(tmp_path / "a.tar", name + ".jpg"))) == [name]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["a.jpg", "a.jpg"], "'a.jpg' twice"),
        (["a.jpg", "a.png"], "'a.jpg' and 'a.png'"),
        (["a.jpg", "b.json"], "'b.json' without a picture"),
        (["x.left.jpg", "x.right.jpg", "x.json"], "'x.json' without a picture"),
        (["a.txt"], "no picture"),
    ],
)
def test_what_is_no_sample_is_refused_with_the_shard(tmp_path, names, words):
    path = tar_of(tmp_path / "a.tar", *names)
    with pytest.raises(ValueError, match=f"a.tar holds {words}"):
        list_shard(path)


def test_half_a_file_a_compressed_one_and_none_are_refused_with_the_shard(tmp_path):
    whole = tar_of(tmp_path / "a.tar", "a.jpg", "a.json", contents=bytes(20_000)).read_bytes()
    boundary = 512 + 20_480  # of the first member
    spoiled = whole[:boundary] + b"x" * 512 + whole[boundary + 512 :]
    for data in (
        whole[:boundary],
        whole[: 2 * boundary],
        spoiled,
        whole[:30_000],
        whole + whole,
        whole[:10_000],
        gzip.compress(whole),
        b"no tar",
        whole[:700],
    ):
        (tmp_path / "b.tar").write_bytes(data)
        with pytest.raises(ValueError, match=r"ShardDataset: .*b\.tar"):
            list_shard(tmp_path / "b.tar")
    with pytest.raises(FileNotFoundError):
        list_shard(tmp_path / "c.tar")


def tar_of_kinds(path, kinds):
    """A tar of empty members of these kinds."""
    with tarfile.open(path, "w") as tar:
        for name, kind in kinds.items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "c.jpg"
            tar.addfile(member)
    return path


def test_folders_and_links_of_other_files_are_no_samples(tmp_path):
    kinds = {"b.jpg": tarfile.DIRTYPE, "c.jpg": tarfile.REGTYPE, "notes.txt": tarfile.SYMTYPE}
    assert list(samples_in(tar_of_kinds(tmp_path / "a.tar", kinds))) == ["c"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_a_picture_that_is_a_link_is_refused_since_nobody_would_miss_it(tmp_path, kind):
    path = tar_of_kinds(tmp_path / "a.tar", {"c.jpg": tarfile.REGTYPE, "d.jpg": kind})
    with pytest.raises(ValueError, match=r"a\.tar: 'd\.jpg' is a link .* --dereference"):
        list_shard(path)


def test_samples_of_several_shards_have_one_order(tmp_path):
    paths = [tar_of(tmp_path / f"{i}.tar", *[f"{i}{n}.jpg" for n in range(i)]) for i in (2, 0, 3)]
    files = ShardFiles(paths)
    assert files.counts == [2, 0, 3]
    assert [files.read(i, "picture") for i in range(len(files))] == [
        b"20.jpg",
        b"21.jpg",
        b"30.jpg",
        b"31.jpg",
        b"32.jpg",
    ]
    assert files.name(-1) == f"{paths[2]}/32"
    assert files.read(0, "target") is None
    with pytest.raises(IndexError):
        files.read(5, "picture")


def test_only_so_many_listings_are_held(tmp_path, monkeypatch):
    monkeypatch.setattr(shard_files, "_LISTED", 4)
    files = ShardFiles([tar_of(tmp_path / f"{i}.tar", f"{i}a.jpg", f"{i}b.jpg") for i in range(4)])
    assert [files.read(index, "picture") for index in (7, 0, 3, 6)] == [b"3b.jpg", b"0a.jpg", b"1b.jpg", b"3a.jpg"]
    assert list(files._listings) == [1, 3]


def test_a_shard_that_is_not_what_the_index_says_or_changes_is_refused(tmp_path):
    path = tar_of(tmp_path / "a.tar", "a.jpg")
    for counts, sizes, words in (([2], None, "1 samples, but its index says 2"), ([1], [7], "bytes, but its index")):
        files = ShardFiles([path], counts=counts, sizes=sizes)
        for _ in range(2):
            with pytest.raises(ValueError, match=words):
                files.read(0, "picture")
    files = ShardFiles([path])
    os.utime(tar_of(path, "b.jpg"), ns=(0, 0))
    with pytest.raises(ValueError, match=r"a\.tar has changed"):
        files.read(0, "picture")
