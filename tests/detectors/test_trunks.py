"""The trunks that recipes share: which strides and widths they give, and what of a given backbone they keep."""

import pytest
import torch
from strategies import assert_refused
from torch import nn
from torchvision.models import resnet18

from detkit.backbones import SmallBackbone, TorchvisionBackbone
from detkit.detectors import recipes
from detkit.detectors.recipes.trunks import pyramid, short_side_800, small_pyramid
from detkit.inspect.anchors import AnchorFit
from detkit.weights import load_weights, save_weights


def test_a_pyramid_has_two_levels_more_than_its_backbone():
    backbone = SmallBackbone((4, 8, 8, 16), levels=(1, 2, 3))
    trunk, neck = pyramid(backbone)
    assert trunk[0] is backbone
    assert neck.strides == (8, 16, 32, 64, 128)
    levels = trunk.eval()(torch.zeros(1, 3, 128, 128))
    assert [tuple(level.shape[1:]) for level in levels] == [(256, side, side) for side in (16, 8, 4, 2, 1)]


def test_the_first_further_level_is_made_of_the_backbones_last_map():
    neck = pyramid(SmallBackbone((4, 8, 8, 16), levels=(1, 2, 3)))[1]
    strided = [part for part in neck.modules() if isinstance(part, nn.Conv2d) and part.stride == (2, 2)]
    assert [part.in_channels for part in strided] == [16, 256]


def test_a_small_pyramid_has_one_width_and_the_norm_asked_for():
    trunk, strides = small_pyramid(8, 2, nn.InstanceNorm2d)
    assert strides == (8, 16, 32)
    assert [tuple(level.shape[1:]) for level in trunk(torch.zeros(1, 3, 64, 96))] == [(8, 8, 12), (8, 4, 6), (8, 2, 3)]
    assert not any(isinstance(part, nn.BatchNorm2d) for part in trunk.modules())
    assert any(isinstance(part, nn.InstanceNorm2d) for part in trunk.modules())


def test_coco_images_are_brought_to_800_by_at_most_1333_padded_to_32():
    batch, _ = short_side_800()([torch.zeros(3, 8, 40)])
    assert batch.sizes.tolist() == [[266, 1333]]
    assert batch.tensors.shape == (1, 3, 288, 1344)


SMALL = (recipes.fpn_ssd, recipes.small_retinanet, recipes.small_fcos, recipes.small_tood, recipes.small_yolox)
SMALL += (recipes.small_yolo_v3, recipes.small_faster_rcnn, recipes.small_mask_rcnn)


@pytest.mark.parametrize("recipe", [*SMALL, recipes.small_detr], ids=lambda recipe: recipe.__name__)
def test_every_small_recipe_takes_a_backbone(recipe):
    backbone = SmallBackbone((4, 8, 12, 16), levels=(1, 2, 3))
    detector = recipe(2, size=(64, 64), channels=32, backbone=backbone).eval()
    assert (detector.trunk if recipe is recipes.small_detr else detector.trunk[0]) is backbone
    assert detector.recipe.unwritable == ("backbone",)
    (found,) = detector([torch.zeros(3, 64, 64)])
    assert found["boxes"].shape[1] == 4


def test_what_a_backbone_has_of_its_own_is_not_given_beside_it():
    backbone = SmallBackbone((4, 8, 12, 16), levels=(1, 2, 3))
    for given in ({"blocks": 2}, {"norm": nn.InstanceNorm2d}, {"finest": 4}):
        with pytest.raises(ValueError, match=f"small_pyramid: {next(iter(given))} is given beside a backbone"):
            recipes.small_tood(2, backbone=backbone, **given)


def test_a_finest_level_of_another_stride_is_refused():
    for finest in (2, 3, 16, 0):
        assert_refused(f"small_pyramid finest={finest} allowed 4 and 8", recipes.small_tood, 2, finest=finest)


def test_a_pyramid_from_stride_4_on_has_cells_for_objects_of_a_few_pixels():
    target = {"boxes": torch.tensor([[9.0, 9, 11, 11]]), "labels": torch.tensor([1])}
    for finest, fits in ((8, False), (4, True)):
        detector = recipes.small_tood(2, size=(64, 64), channels=8, finest=finest)
        assert detector.dense.anchors.strides[0] == finest
        assert AnchorFit(detector).fit(target, (64, 64)).fits.tolist() == [fits]


@pytest.mark.slow
def test_a_backbone_of_torchvision_with_weights_of_a_file_needs_no_network(tmp_path):
    save_weights(resnet18(weights=None), tmp_path / "resnet18.safetensors")
    model = resnet18(weights=None)
    load_weights(model, tmp_path / "resnet18.safetensors")
    nodes = [f"layer{number}" for number in (2, 3, 4)]
    detector = recipes.fpn_ssd(2, size=(64, 64), backbone=TorchvisionBackbone(model, nodes=nodes))
    assert detector.dense.anchors.strides == (8, 16, 32)
    losses = detector(
        [torch.rand(3, 64, 64)], [{"boxes": torch.tensor([[4.0, 4, 40, 40]]), "labels": torch.tensor([1])}]
    )
    assert sum(losses.values()).isfinite()
