"""Files that annotations name: nothing outside the root, nothing too large, nothing that blocks."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detkit.data import files
from detkit.data.files import (
    MISSING,
    decode_inside,
    find_name,
    name_problem,
    open_inside,
    picture_size,
    read_class_map,
    resolve_inside,
)

OUTSIDE = ["../x.png", "a/../../x.png", "/etc/passwd", "C:\\x.png", "\\x.png", "..\\x.png", "a\0b.png", "x" * 5000]
NO_NAMES = ["", ".", "./", "y" * 300, "file:///etc/passwd", "http://host/x.png", "\ud800.png", None, 7]


@pytest.mark.parametrize("name", OUTSIDE + NO_NAMES)
def test_a_name_that_is_no_relative_path_below_the_root_is_refused_and_nothing_is_opened(tmp_path, monkeypatch, name):
    monkeypatch.setattr(os, "open", lambda *_: pytest.fail("opened"))
    with pytest.raises(ValueError, match=r"image id=7: file_name="):
        open_inside(tmp_path, name, owner="image id=7")


def test_a_link_out_of_the_root_is_refused_and_one_inside_followed(tmp_path):
    root = tmp_path / "root"
    (root / "real").mkdir(parents=True)
    (tmp_path / "secret").write_text("s")
    (root / "real" / "a").write_text("a")
    (root / "file").symlink_to(tmp_path / "secret")
    (root / "folder").symlink_to(tmp_path)
    (root / "inner").symlink_to(root / "real")
    for name in ("file", "folder/secret"):
        with pytest.raises(ValueError, match="leads out of the root"):
            open_inside(root, name, owner="image id=1")
    with open_inside(root, "inner/a", owner="image id=1") as file:
        assert file.read() == b"a"


def test_a_root_that_is_itself_a_link_is_the_users_choice(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert resolve_inside(tmp_path / "link", "a", owner="o") == Path(os.path.realpath(tmp_path)) / "real" / "a"


def test_a_sibling_whose_name_begins_like_the_root_is_outside(tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "root2").mkdir()
    (tmp_path / "root" / "l").symlink_to(tmp_path / "root2")
    with pytest.raises(ValueError, match="leads out"):
        resolve_inside(tmp_path / "root", "l/x", owner="o")


def test_a_pipe_does_not_block_and_a_folder_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(ValueError, match="allowed is a regular file"):
            open_inside(tmp_path, name, owner="image id=1")


def test_a_missing_file_is_named_with_its_image(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"image id=7: there is no file .*gone\.png"):
        open_inside(tmp_path, "gone.png", owner="image id=7")


def test_of_several_names_the_first_that_is_a_file_below_the_root_is_found(tmp_path, monkeypatch):
    (tmp_path / "b").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "out").symlink_to("/etc/passwd")
    monkeypatch.setattr(os, "open", lambda *_: pytest.fail("opened"))
    assert find_name(tmp_path, ["a", "b", "c"]) == ("b", "")
    assert find_name(tmp_path, ["a", "../b", "folder"]) == ("a", MISSING)
    assert find_name(tmp_path, [None, "b"]) == ("b", "")
    assert find_name(tmp_path, ["out", "a"]) == (
        "out",
        "leads out of the root by a link, and nothing was opened; copy the file there, or name the folder it lies in",
    )


def test_problems_of_names_say_what_to_do_instead():
    assert "cut it down to what follows the folder of images" in name_problem("/data/a.png")
    assert "download the file" in name_problem("http://host/a.png")
    assert name_problem("a/b.png") == ""


def test_the_size_is_read_from_the_header_alone(tmp_path, monkeypatch):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:1500])
    assert picture_size(tmp_path, "a.png", owner="image id=1") == (40, 60)
    monkeypatch.setattr(files, "MAX_IMAGE_PIXELS", 2399)
    with pytest.raises(ValueError, match=r"image id=1: 'a\.png': height=40, width=60; .*MAX_IMAGE_PIXELS=2399"):
        picture_size(tmp_path, "a.png", owner="image id=1")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_every_eight_bit_mode_becomes_rgb(tmp_path, mode):
    extension = "tif" if mode == "CMYK" else "png"
    pixels = np.full((4, 6, 3), 255, np.uint8)
    Image.fromarray(pixels).convert(mode).save(tmp_path / f"a.{extension}")
    image = decode_inside(tmp_path, f"a.{extension}", size=(4, 6), owner="image id=1")
    assert image.dtype == torch.uint8
    assert image.shape == (3, 4, 6)
    assert (image == 255).all()


def test_an_alpha_channel_is_dropped_and_colors_stay(tmp_path):
    pixels = np.zeros((4, 6, 4), np.uint8)
    pixels[..., 0] = 200
    Image.fromarray(pixels).save(tmp_path / "a.png")
    image = decode_inside(tmp_path, "a.png", size=(4, 6), owner="image id=1")
    assert image.amax((1, 2)).tolist() == [200, 0, 0]


def test_sixteen_bit_pixels_are_refused_rather_than_clipped(tmp_path):
    Image.fromarray(np.full((4, 6), 40_000, np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"image id=1: 'a\.png' has pixels of mode"):
        decode_inside(tmp_path, "a.png", size=(4, 6), owner="image id=1")


def test_a_size_other_than_declared_is_refused(tmp_path):
    Image.new("RGB", (6, 4)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"image id=1: 'a\.png' is 4 x 6 .* declared as 6 x 4"):
        decode_inside(tmp_path, "a.png", size=(6, 4), owner="image id=1")


def test_an_image_over_the_bound_is_refused_before_decoding(tmp_path, monkeypatch):
    Image.new("RGB", (6, 4)).save(tmp_path / "a.png")
    monkeypatch.setattr(files, "MAX_IMAGE_PIXELS", 23)
    monkeypatch.setattr(Image.Image, "convert", lambda *_: pytest.fail("decoded"))
    with pytest.raises(ValueError, match="MAX_IMAGE_PIXELS=23"):
        decode_inside(tmp_path, "a.png", size=(4, 6), owner="image id=1")


def test_a_header_that_declares_a_giant_is_refused_in_no_time(tmp_path):
    (tmp_path / "a.bmp").write_bytes(_bmp_header(200_000, 200_000))
    with pytest.raises(ValueError, match="image id=1"):
        decode_inside(tmp_path, "a.bmp", size=(200_000, 200_000), owner="image id=1")


@pytest.mark.parametrize("content", [b"", b"no image", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n"])
def test_what_is_no_image_is_refused(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"image id=1: 'a\.png' cannot be read"):
        decode_inside(tmp_path, "a.png", size=(4, 4), owner="image id=1")


def test_an_image_cut_short_is_refused(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    for name in ("a.png", "a.jpg"):
        Image.fromarray(noise).save(tmp_path / name)
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:1500])
        with pytest.raises(ValueError, match=r"image id=1: 'a\.(png|jpg)' cannot be decoded"):
            decode_inside(tmp_path, name, size=(64, 64), owner="image id=1")


def _bmp_header(width: int, height: int) -> bytes:
    sizes = width.to_bytes(4, "little") + height.to_bytes(4, "little")
    return (
        b"BM" + bytes(8) + (54).to_bytes(4, "little") + (40).to_bytes(4, "little") + sizes + b"\1\0\x18\0" + bytes(24)
    )


@pytest.mark.parametrize("mode", ["L", "P"])
def test_a_class_map_is_the_numbers_of_the_file(tmp_path, mode):
    values = np.random.default_rng(0).integers(0, 256, (4, 6)).astype(np.uint8)
    picture = Image.fromarray(values)
    if mode == "P":
        picture = Image.new("P", (6, 4))
        picture.putdata(values.flatten().tolist())
        picture.putpalette([(3 * i) % 256 for i in range(768)])
    picture.save(tmp_path / "a.png")
    read = read_class_map(tmp_path, "a.png", size=(4, 6), owner="image id=1")
    assert (read.numpy() == values).all()
    with pytest.raises(ValueError, match=r"is 4 x 6 .*, but declared as 6 x 4"):
        read_class_map(tmp_path, "a.png", size=(6, 4), owner="image id=1")


def test_a_picture_of_colors_is_no_class_map(tmp_path):
    Image.new("RGB", (6, 4)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"image id=1: 'a.png' has pixels of mode 'RGB'; allowed is gray or indexed"):
        read_class_map(tmp_path, "a.png", size=(4, 6), owner="image id=1")
