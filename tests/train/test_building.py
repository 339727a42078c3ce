"""The detector of a run."""

import pytest
import torch
from training import begun

from detkit.data import DigitScenes
from detkit.detectors import fpn_ssd
from detkit.train.building import backbone_of, batch_shapes, build, choose_input
from detkit.train.options import arguments
from detkit.weights import save_weights


def test_random_sizes_are_multiples_of_32_in_the_ratio_of_the_size_to_judge_at(tmp_path):
    first = begun(tmp_path, "--size", "64", "96", "--random-scale", "0.5", "2")
    assert first.shapes.sizes == ((32, 64), (64, 96), (96, 128), (128, 192))
    assert begun(tmp_path).shapes is None
    first.model.preprocess.size = first.shapes(0)
    assert first.average.module.preprocess.size == (64, 96)


@pytest.mark.parametrize(("size", "reason"), [((64, 64), "no multiple of 32"), (800, "no size")])
def test_a_scale_that_leaves_no_size_is_refused(size, reason):
    detector = fpn_ssd(10, size=(64, 64), channels=16)
    detector.preprocess.size = size
    with pytest.raises(ValueError, match=rf"--random-scale.*{reason}"):
        batch_shapes((0.6, 0.8), detector, 0)


def test_a_run_starts_from_weights_of_its_recipe_with_other_classes_unless_it_goes_on(tmp_path, capsys):
    taught = fpn_ssd(3, size=(64, 64))
    save_weights(taught, path := tmp_path / "weights.safetensors")
    args = arguments(["--recipe", "fpn_ssd", "--weights", str(path), "--resume", "--output", str(tmp_path)])
    own, other = build(args, 10).state_dict(), taught.state_dict()
    fit = [key for key, value in other.items() if value.shape == own[key].shape]
    assert all(torch.equal(own[key], other[key]) for key in fit)
    assert 0 < len(own) - len(fit) < 10
    assert f"--weights: {len(own) - len(fit)} values of other shapes are learned anew: " in capsys.readouterr().out
    (tmp_path / "checkpoint.pt").touch()
    assert not all(torch.equal(build(args, 10).state_dict()[key], other[key]) for key in fit)


def test_a_backbone_trained_before_is_taken_out_of_another_recipes_weights(tmp_path):
    taught, path = fpn_ssd(10).eval(), tmp_path / "weights.safetensors"
    save_weights(taught, path)
    options = ["--trunk", str(path), "--output", str(tmp_path)]
    for recipe in ("small_pix2seq", "small_retinanet"):  # a backbone alone, and one below a neck
        trunk = build(arguments([*options, "--recipe", recipe]), 10).trunk
        own = trunk[0] if recipe == "small_retinanet" else trunk
        for key, value in own.state_dict().items():
            assert torch.equal(value, taught.trunk[0].state_dict()[key]), key
    with pytest.raises(
        ValueError, match=r"--trunk .*weights.safetensors lacks \d+ of \d+ values of the backbone: stages"
    ):
        build(arguments([*options, "--recipe", "small_detr"]), 10)


def test_a_recipe_that_learns_from_masks_asks_for_them_before_the_first_batch(tmp_path):
    options = ["--recipe", "small_mask_rcnn", "--output", str(tmp_path)]
    with pytest.raises(ValueError, match="recipe small_mask_rcnn learns from masks; read them with --masks"):
        build(arguments(options), 10)
    build(arguments([*options, "--masks"]), 10)


def test_frozen_layers_of_the_backbone_do_not_learn(tmp_path):
    run = begun(tmp_path, "--freeze", "2")
    backbone = backbone_of(run.model)
    learned = {name for name, value in backbone.named_parameters() if value.requires_grad}
    assert 0 < len(learned) < len(list(backbone.named_parameters()))
    assert not any(name.startswith("stem") for name in learned)
    with pytest.raises(ValueError, match=r"freeze: layers=99, but a SmallBackbone has \d"):
        begun(tmp_path, "--freeze", "99")


def test_the_size_suits_the_objects_where_none_is_given(tmp_path, capsys):
    def chosen(*options):
        args = arguments(["--output", str(tmp_path), "--data", "yolo", "--root", str(tmp_path), *options])
        choose_input(args, DigitScenes(40))
        return args.size, args.finest

    assert chosen() == ((128, 128), 8)  # digits of 18 pixels and more in scenes of 96 x 96
    assert capsys.readouterr().out == "chosen for these objects: --size 128 128 --finest 8\n"
    assert chosen("--recipe", "fpn_ssd") == ((128, 128), None)
    assert chosen("--recipe", "fpn_ssd", "--size", "64", "96") == ([64, 96], None)
    assert chosen("--recipe", "tiny_ssd") == (None, None)
    assert arguments(["--output", str(tmp_path)]).size == [96, 96]  # as scenes are drawn


def test_the_finest_level_is_the_recipes_own_option(tmp_path):
    args = arguments(["--output", str(tmp_path), "--size", "64", "64", "--finest", "4"])
    assert build(args, 10).dense.anchors.strides == (4, 8, 16, 32)
    with pytest.raises(ValueError, match="recipe fpn_ssd does not take --finest; leave it out"):
        build(arguments(["--output", str(tmp_path), "--recipe", "fpn_ssd", "--finest", "4"]), 10)
