"""Constants come back right from wherever a module loses its memory: the meta device, ``to_empty``, ``assign=True``."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from detkit._constants import Constants
from detkit.anchors import GridAnchors
from detkit.boxes import DeltaCoder
from detkit.detectors import Detector, Preprocess, recipes
from detkit.weights import load_weights, save_weights

WHOLE = [name for name in recipes.__all__ if not name.endswith(("_stage", "_anchors", "_scales", "_neck"))]
RECIPES = [name for name in WHOLE if name not in ("ssd", "ssdlite", "rcnn", "segmenter", "three_tasks")]  # of a trunk
SMALL = ["fpn_ssd", "small_faster_rcnn", "small_fcos"]


def build(name: str, device: str) -> Detector:
    with torch.device(device):
        return getattr(recipes, name)(*[] if "hourglass" in name else [3])  # proposals have no classes


def constants(module: nn.Module) -> dict[str, torch.Tensor]:
    """The buffers that no file of weights holds."""
    return {key: value for key, value in module.named_buffers() if key not in module.state_dict()}


def assert_same_constants(module: nn.Module, other: nn.Module) -> None:
    own, expected = constants(module), constants(other)
    assert own.keys() == expected.keys()
    for key, value in expected.items():
        assert own[key].device == value.device, key
        assert torch.equal(own[key], value), key


@pytest.fixture
def dirty_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that nothing was written to holds anything: here, 77."""
    empty_like = torch.empty_like
    monkeypatch.setattr(torch, "empty_like", lambda *args, **kwargs: empty_like(*args, **kwargs).fill_(77))


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_a_detector_without_memory_that_takes_a_file_or_assigned_values_predicts_as_the_one_that_was_saved(
    name: str, tmp_path: Path, dirty_memory: None
):
    torch.manual_seed(0)
    saved = build(name, "cpu").eval()
    save_weights(saved, tmp_path / "a.safetensors")
    loaded = build(name, "meta").to_empty(device="cpu").eval()
    assert all((parameter == 77).all() for parameter in loaded.parameters())
    assert load_weights(loaded, tmp_path / "a.safetensors") == ([], [])
    assigned = build(name, "meta").eval()
    assigned.load_state_dict(saved.state_dict(), assign=True)
    image = torch.rand(3, 96, 96)
    expected = saved([image])[0]
    for module in (loaded, assigned):
        assert_same_constants(module, saved)
        found = module([image])[0]
        for key, value in expected.items():
            assert torch.equal(found[key], value), key


def test_constants_survive_to_empty_of_a_module_that_has_memory(dirty_memory: None):
    coder = DeltaCoder((10.0, 10.0, 5.0, 5.0))
    assert coder.to_empty(device="cpu").scale.tolist() == [10, 10, 5, 5]


def test_constants_are_on_the_meta_device_with_the_rest_and_come_back_with_the_last_values():
    preprocess = Preprocess((4, 4), mean=(0.1, 0.2, 0.3))
    preprocess.mean.fill_(0.5)
    preprocess.std = torch.full((3, 1, 1), 2.0)
    away = copy.deepcopy(preprocess).to("meta")
    assert away.mean.is_meta
    assert away.std.is_meta
    assert_same_constants(away.to_empty(device="cpu"), preprocess)


def test_constants_follow_the_type_of_the_module_and_are_in_no_file():
    anchors = GridAnchors(shapes=[[(10, 13), (16, 30)]], strides=(8,))
    assert anchors.half().shapes_0.dtype == torch.float16
    assert anchors.float().shapes_0.tolist() == [[10, 13], [16, 30]]
    assert anchors.state_dict() == {}


def test_shapes_given_as_a_tensor_are_kept_when_built_on_the_meta_device():
    with torch.device("meta"):
        anchors = GridAnchors(shapes=[torch.tensor([[10.0, 13.0]], device="cpu")], strides=(8,))
    assert anchors.to_empty(device="cpu").shapes_0.tolist() == [[10, 13]]


def test_a_constant_has_the_default_type_or_the_given_one():
    module = Constants()
    module.register_constant("whole", [1, 2])
    module.register_constant("fine", [1, 2], dtype=torch.float64)
    assert module.whole.dtype == torch.int64
    assert module.fine.dtype == torch.float64


@pytest.mark.slow(3)
def test_every_buffer_of_every_recipe_is_saved_or_a_constant():
    for name in RECIPES:
        for part_name, part in build(name, "meta").named_modules():
            unsaved = part._non_persistent_buffers_set
            assert unsaved == getattr(part, "_constants", {}).keys(), f"{name}: {part_name} has {unsaved}"
