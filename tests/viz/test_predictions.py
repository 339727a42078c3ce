"""Drawings of predictions, by the file and by the folder."""

import pytest
import torch
from PIL import Image
from strategies import unhooked

from detkit.detectors import Prediction, save_results
from detkit.structures import Detection
from detkit.viz import class_color, draw_prediction, save_drawings

FOUND = Detection(boxes=torch.tensor([[10.0, 10, 30, 30]]), scores=torch.tensor([0.1]), labels=torch.tensor([1]))


def has_color(picture, label):
    return class_color(label) in {color for _, color in picture.convert("RGB").getcolors(1 << 24)}


def predicted(path):
    Image.new("L", (64, 48), 90).save(path)
    return Prediction(str(path), (48, 64), FOUND, ("cat", "dog"))


def test_a_prediction_is_drawn_on_its_file_whatever_its_score(tmp_path):
    picture = draw_prediction(predicted(tmp_path / "a.png"), enlarge=1)
    assert picture.size == (64, 48)
    assert has_color(picture, 1)


def test_one_prediction_is_drawn_and_saved_as_a_list_of_it_is_and_a_dict_is_refused(tmp_path):
    found = predicted(tmp_path / "a.png")
    assert [path.name for path in save_drawings(found, tmp_path / "drawn")] == ["a.jpg"]
    save_results(found, tmp_path / "one.json")
    save_results([found], tmp_path / "list.json")
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "list.json").read_bytes()
    for save in (save_drawings, save_results):
        with pytest.raises(ValueError, match=rf"{save.__name__}: predictions: a dict is no Prediction; give what"):
            unhooked(save)([found.detection], tmp_path / "none")
    with pytest.raises(ValueError, match=r"draw_prediction: prediction: a list is no Prediction"):
        unhooked(draw_prediction)([found])


def test_what_was_no_file_needs_its_picture():
    prediction = Prediction("picture 3", (48, 64), FOUND)
    assert has_color(draw_prediction(prediction, image=torch.zeros(3, 48, 64)), 1)
    with pytest.raises(ValueError, match=r"'picture 3' is no file; give its picture, image=\.\.\."):
        draw_prediction(prediction)


def test_a_drawing_of_a_turned_photograph_has_the_boxes_where_they_were_found(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (64, 48)).save(tmp_path / "turned.jpg", exif=exif)
    assert draw_prediction(Prediction(str(tmp_path / "turned.jpg"), (64, 48), FOUND), enlarge=1).size == (48, 64)


@pytest.mark.parametrize(("suffix", "start"), [(".jpg", b"\xff\xd8"), (".png", b"\x89PNG"), (".pdf", b"%PDF")])
def test_a_folder_of_drawings_in_each_format(suffix, start, tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    found = [predicted(tmp_path / "one" / "a.png"), predicted(tmp_path / "two" / "a.png")]
    paths = save_drawings(found, tmp_path / "out", suffix=suffix)
    assert [path.name for path in paths] == [f"a{suffix}", f"a-2{suffix}"]
    assert all(path.read_bytes().startswith(start) for path in paths)
    with pytest.raises(ValueError, match="must end in"):
        save_drawings(found, tmp_path / "out", suffix=".svg")
