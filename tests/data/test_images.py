"""Pictures of any kind, as RGB uint8: what a phone, a scanner and a microscope write."""

import numpy as np
import pytest
import torch
from PIL import Image

from detkit.data import image_paths, read_image

PIXELS = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)


def saved(picture: Image.Image, path, **options):
    picture.save(path, **options)
    return read_image(path)


def test_rgb_comes_back_as_it_is(tmp_path):
    assert torch.equal(saved(Image.fromarray(PIXELS), tmp_path / "a.png"), torch.from_numpy(PIXELS).permute(2, 0, 1))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_every_mode_becomes_three_channels(tmp_path, mode):
    path = tmp_path / ("a.tiff" if mode == "CMYK" else "a.png")
    image = saved(Image.new("RGB", (5, 4), "white").convert(mode), path)
    assert (image.dtype, image.shape, image.unique().tolist()) == (torch.uint8, (3, 4, 5), [255])


@pytest.mark.filterwarnings("error")
def test_a_palette_with_transparent_colors_is_read_as_one_without(tmp_path):
    Image.new("RGBA", (3, 2), (200, 10, 30, 0)).quantize().save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png")[:, 0, 0].tolist() == [200, 10, 30]


def test_an_alpha_channel_is_dropped_as_data_sets_do(tmp_path):
    assert saved(Image.new("RGBA", (1, 1), (9, 8, 7, 0)), tmp_path / "a.png").flatten().tolist() == [9, 8, 7]


@pytest.mark.parametrize(("deep", "shown"), [(0, 0), (128, 0), (129, 1), (257, 1), (32768, 128), (65535, 255)])
@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_sixteen_bits_are_scaled_to_eight_and_rounded(tmp_path, deep, shown, suffix):
    picture = Image.fromarray(np.full((2, 2), deep, np.uint16))
    assert saved(picture, tmp_path / f"a.{suffix}").unique().tolist() == [shown]


def test_a_picture_taken_sideways_is_turned_upright_unless_its_stored_pixels_are_asked_for(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by 90 degrees
    Image.fromarray(PIXELS).save(tmp_path / "a.png", exif=exif)
    stored = torch.from_numpy(PIXELS).permute(2, 0, 1)
    assert torch.equal(read_image(tmp_path / "a.png"), stored.rot90(-1, (1, 2)))
    assert torch.equal(read_image(tmp_path / "a.png", upright=False), stored)


def test_what_is_no_picture_is_refused_with_its_path(tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    Image.fromarray(np.zeros((2, 2), np.float32)).save(tmp_path / "float.tiff")
    Image.fromarray(np.full((2, 2), 70_000, np.int32)).save(tmp_path / "deep.tiff")
    Image.new("RGB", (64, 64), "red").save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:90])
    for name, words in {
        "text.png": "cannot be read as an image: it is none of JPEG",
        "float.tiff": "mode 'F'",
        "deep.tiff": "70000",
        "cut.png": "cannot be decoded",
        ".": "is a folder",
    }.items():
        with pytest.raises(ValueError, match=rf"read_image: .*{words}"):
            read_image(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        read_image(tmp_path / "none.png")


def test_a_folder_gives_its_pictures_and_those_of_its_folders_in_order(tmp_path):
    for name in ("b.JPG", "a/2.png", "a/1.webp", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    assert [str(path.relative_to(tmp_path)) for path in image_paths(tmp_path)] == ["a/1.webp", "a/2.png", "b.JPG"]
    both = image_paths([tmp_path / "b.JPG", tmp_path / "a"])
    assert [path.name for path in both] == ["b.JPG", "1.webp", "2.png"]


def test_what_is_not_there_and_a_folder_without_a_picture_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="image_paths: there is no file or folder"):
        list(image_paths(tmp_path / "none"))
    with pytest.raises(ValueError, match=r"image_paths: .* holds no picture; looked for \.bmp"):
        list(image_paths(tmp_path))


def test_hidden_files_of_a_folder_are_left_out_and_an_empty_path_is_not_the_current_folder(tmp_path):
    for name in ("a.png", "._a.png", ".thumbnails/a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [*image_paths(tmp_path)] == [tmp_path / "a.png"]
    with pytest.raises(ValueError, match="image_paths: a path is empty"):
        list(image_paths([""]))
