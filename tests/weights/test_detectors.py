"""A file of weights that says what it is: the whole detector comes back, from nothing but plain values."""

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.parallel import DataParallel

from detkit import detectors
from detkit.detectors import fpn_ssd
from detkit.weights import load_detector, load_metadata, save_detector, save_weights

SMALL = {
    "fpn_ssd": {"size": (64, 96), "channels": 8},
    "small_faster_rcnn": {"size": (64, 64), "channels": 8},
    "small_mask_rcnn": {"size": (64, 64), "channels": 8},
    "small_retinanet": {"size": (64, 64), "channels": 8},
    "small_fcos": {"size": (64, 64), "channels": 8},
    "small_tood": {"size": (64, 64), "channels": 8},
    "small_yolox": {"size": (64, 64), "channels": 8},
    "small_yolo_v3": {"size": (64, 64), "channels": 8},
    "small_detr": {"size": (64, 64)},
    "tiny_ssd": {},
    "yolo_v2_tiny": {"size": (64, 64), "shapes": ((0.5, 1.0), (1.5, 2.5))},
}


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.slow
def test_every_recipe_comes_back_with_its_arguments_names_and_results(name, tmp_path):
    torch.manual_seed(0)
    made = getattr(detectors, name)(2, **SMALL[name]).eval()
    save_detector(made, tmp_path / "a.safetensors", categories=["cat", "dog"])
    loaded = load_detector(tmp_path / "a.safetensors")
    assert (loaded.categories, loaded.training) == (("cat", "dog"), False)
    assert loaded.recipe == (name, {"num_classes": 2, **SMALL[name]}, ())
    image = [torch.rand(3, 60, 80)]
    for found, expected in zip(loaded(image), made(image), strict=True):
        assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_the_names_of_the_detector_are_written_and_wrappers_looked_through(tmp_path):
    detector = fpn_ssd(2, size=(64, 96), channels=8)
    detector.categories = ("red", "white")
    save_detector(DataParallel(detector), tmp_path / "a.safetensors")
    assert load_detector(tmp_path / "a.safetensors").categories == ("red", "white")


def test_what_no_file_can_hold_is_refused_with_the_way_out(tmp_path):
    with pytest.raises(ValueError, match=r"save_detector: detector was not built by a recipe .* save_weights\(\)"):
        save_detector(nn.Linear(1, 1), tmp_path / "a.safetensors")
    normed = fpn_ssd(2, size=(64, 96), channels=8, norm=nn.BatchNorm2d)
    with pytest.raises(ValueError, match=r"save_detector: fpn_ssd was given norm: no plain value; .* save_weights\(\)"):
        save_detector(normed, tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_file_without_a_recipe_is_refused_with_the_way_out(tmp_path):
    save_weights(nn.Linear(1, 1), tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"load_detector: .*a\.safetensors does not say what it is; .* load_weights"):
        load_detector(tmp_path / "a.safetensors")


GOOD = {"detkit": "9.9", "recipe": "fpn_ssd", "arguments": '{"num_classes": 2}', "categories": '["a", "b"]'}


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"recipe": "os.system"}, r"asks for 'os\.system', a recipe of detkit 9\.9"),
        ({"recipe": "detr_stage"}, r"asks for 'detr_stage'"),
        ({"arguments": '{"num_classes": -2}'}, r"fpn_ssd cannot be built: fpn_ssd: num_classes=-2"),
        ({"arguments": '{"backbone": "resnet"}'}, r"fpn_ssd cannot be built"),
        ({"arguments": '{"num_classes": 2, "channels": 1000000000}'}, r"cannot be built: 1000000000 is too large"),
        ({"arguments": json.dumps({"shapes": [[1, 1]] * 10**5})}, r"has arguments of more than 16384 characters"),
        ({"arguments": "[1]"}, r"fpn_ssd cannot be built"),
        ({"arguments": "no json"}, r"fpn_ssd cannot be built"),
        ({"categories": "7"}, r"fpn_ssd cannot be built: categories=7; allowed is a list of texts"),
        ({"categories": '["a", 1e999]'}, r"fpn_ssd cannot be built: categories=.*; allowed is a list of texts"),
        ({"arguments": json.dumps({"num_classes": 60_000})}, r"is too short for the \d+ numbers of fpn_ssd"),
        ({"arguments": json.dumps({"num_classes": 2, "size": [64, 10**9]})}, r"1000000000 is too large"),
        ({"recipe": "small_detr", "arguments": json.dumps({"num_classes": 2, "depth": 10**9})}, r"is too large"),
        ({}, r"does not fit|has nothing that fits"),
    ],
)
def test_a_wrong_file_is_refused_by_name_before_memory_is_taken(wrong, words, tmp_path):
    save_file({"weight": torch.zeros(10**7, dtype=torch.uint8)}, tmp_path / "a.safetensors", metadata=GOOD | wrong)
    with pytest.raises(ValueError, match=rf"(?s)load_(detector|weights): .*a\.safetensors.*({words})"):
        load_detector(tmp_path / "a.safetensors")


@pytest.mark.parametrize("name", ["", "checkpoint.pt"])
def test_the_weights_of_a_run_are_pointed_out_beside_its_other_files(name, tmp_path):
    (tmp_path / "checkpoint.pt").touch()
    save_detector(fpn_ssd(2), tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match=r"is no file of weights; those of this run are in .*weights\.safetensors$"):
        load_detector(tmp_path / name)


def test_the_metadata_is_plain_text_for_other_tools(tmp_path):
    save_detector(fpn_ssd(2, size=(64, 96), channels=8), tmp_path / "a.safetensors", categories=["a", "b"])
    about = load_metadata(tmp_path / "a.safetensors")
    assert json.loads(about["arguments"]) == {"num_classes": 2, "size": [64, 96], "channels": 8}
    assert (about["recipe"], json.loads(about["categories"])) == ("fpn_ssd", ["a", "b"])


def test_names_must_be_as_many_as_the_classes(tmp_path):
    with pytest.raises(ValueError, match="save_detector: categories has 1 names; allowed is one for each of 2 classes"):
        save_detector(fpn_ssd(2, size=(64, 96), channels=8), tmp_path / "a.safetensors", categories=["a"])
    with pytest.raises(ValueError, match="save_detector: categories='ab' is one text; allowed is a list of names"):
        save_detector(fpn_ssd(2, size=(64, 96), channels=8), tmp_path / "a.safetensors", categories="ab")


@pytest.mark.parametrize("save", [save_detector, save_weights])
def test_a_path_in_the_detectors_place_is_named(save):
    with pytest.raises(TypeError, match=rf"{save.__name__}: (detector|module) is a str"):
        save("cells.safetensors", detectors.tiny_ssd(2))
