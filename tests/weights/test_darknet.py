"""Darknet's files as detectors: they find what loops over the numbers find, and are written back bit for bit."""

import copy
import random
import warnings
from functools import partial
from pathlib import Path

import darknet_cfgs as cfgs
import darknet_loops as loops
import pytest
import torch
from strategies import assert_refused
from torch import Tensor, nn

from detkit.anchors import GridAnchors
from detkit.backbones import SmallBackbone, darknet19_backbone, darknet53_backbone
from detkit.detectors import Detector, Preprocess, yolo_stage, yolo_v1_tiny, yolo_v2_tiny, yolo_v3_tiny
from detkit.heads import GridHead
from detkit.layers import ConvNormActivation
from detkit.losses import YOLOLoss
from detkit.necks import PassthroughNeck, YOLONeck
from detkit.structures import Images
from detkit.weights import from_darknet, to_darknet

NETS = {"two [yolo]": cfgs.PYRAMID, "[region]": cfgs.PASSED}


def files(folder: Path, cfg: str, weights: bytes) -> tuple[Path, Path]:
    paths = folder / "net.cfg", folder / "net.weights"
    paths[0].write_text(cfg)
    paths[1].write_bytes(weights)
    return paths


def read(folder: Path, cfg: str, **header) -> Detector:
    """The detector of a cfg with random weights, in inference mode; any warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return from_darknet(*files(folder, cfg, loops.weights_file(loops.random_weights(cfg), **header))).eval()


def random_image(cfg: str) -> loops.Map:
    draw, keys = random.Random(1), loops.sections_of(cfg)[0][1]
    rows, columns = int(keys["height"]), int(keys["width"])
    return [[[draw.random() for _ in range(columns)] for _ in range(rows)] for _ in range(3)]


def expected(cfg: str, image: loops.Map) -> tuple[Tensor, Tensor]:
    """Boxes xyxy in pixels and scores of all anchors, finest level first, by the loops."""
    height, width = len(image[0]), len(image[0][0])
    levels = sorted(loops.detect(cfg, loops.random_weights(cfg), image), key=len, reverse=True)
    found = [box for level in levels for box in level]
    boxes = [(b.x - b.w / 2, b.y - b.h / 2, b.x + b.w / 2, b.y + b.h / 2) for b in found]
    scores = [[b.objectness * share for share in b.classes] for b in found]
    return torch.tensor(boxes) * torch.tensor([width, height] * 2), torch.tensor(scores)


def all_anchors(detector: Detector, images: Images) -> tuple[Tensor, Tensor]:
    """Boxes and scores of every anchor, before any is left out."""
    stage = detector.get_submodule("dense")
    with torch.no_grad():
        predictions, anchors, _ = stage(detector.trunk(images.tensors), images, None)
        return stage.coder.decode(predictions.deltas, anchors), stage.criterion.scores(predictions)


@pytest.mark.parametrize("cfg", NETS.values(), ids=NETS)
def test_a_detector_finds_what_loops_over_the_numbers_of_the_files_find(cfg, tmp_path):
    image, detector = random_image(cfg), read(tmp_path, cfg)
    pixels = torch.tensor(image)
    boxes, scores = expected(cfg, image)
    assert scores.std() > 0.02
    found = all_anchors(detector, Images(pixels[None], torch.tensor([pixels.shape[1:]])))
    torch.testing.assert_close(found[0][0], boxes, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[1][0], scores, rtol=1e-5, atol=1e-6)
    (best,) = detector([pixels])
    torch.testing.assert_close(best["scores"][0], scores.max())
    assert best["labels"][0] == scores.max(0).values.argmax()


def test_images_are_letterboxed_to_the_size_of_the_net(tmp_path):
    detector = read(tmp_path, cfgs.PYRAMID)
    assert detector.preprocess.size == (32, 64)
    batch, _ = detector.preprocess([torch.full((3, 40, 40), 0.25)])
    assert batch.tensors.shape == (1, 3, 32, 64)
    assert batch.tensors[0, :, 16, [0, 32]].tolist() == [[0.5, 0.25]] * 3  # gray beside it, and no other scale


@pytest.mark.parametrize("cfg", NETS.values(), ids=NETS)
@pytest.mark.parametrize(
    ("version", "seen"), [((0, 1, 0), 2**31 - 1), ((0, 2, 0), 2**40 + 3), ((0, 2, 5), 0), ((1, 0, 0), 6)]
)
def test_files_are_written_back_bit_for_bit(cfg, version, seen, tmp_path):
    detector = read(tmp_path, cfg, version=version, seen=seen)
    assert detector.dense.criterion.seen == seen
    to_darknet(copy.deepcopy(detector), tmp_path / "back.weights", cfg=tmp_path / "back.cfg")
    for suffix in ("weights", "cfg"):
        assert (tmp_path / f"back.{suffix}").read_bytes() == (tmp_path / f"net.{suffix}").read_bytes()


def test_trained_on_it_counts_images_for_region_and_gives_every_parameter_a_gradient(tmp_path):
    for cfg, after in ((cfgs.PASSED, 1002), (cfgs.PYRAMID, 1000)):
        detector = read(tmp_path, cfg, seen=1000).train()
        targets = [{"boxes": torch.tensor([[3.0, 4, 20, 22]]), "labels": torch.tensor([1])}] * 2
        losses = detector(list(torch.rand(2, 3, 32, 48)), targets)
        assert all(loss.isfinite() for loss in losses.values())
        sum(losses.values()).backward()
        assert all(parameter.grad.isfinite().all() for parameter in detector.parameters())
        to_darknet(detector, tmp_path / "on.weights")
        trained = from_darknet(tmp_path / "net.cfg", tmp_path / "on.weights")
        assert trained.dense.criterion.seen == after
        for key, value in trained.state_dict().items():
            if "num_batches_tracked" not in key:
                assert value.equal(detector.state_dict()[key]), key


def test_the_last_section_sets_matcher_and_losses(tmp_path):
    changed = cfgs.PASSED
    for old, new in {
        "object_scale=5": "object_scale=4",
        "noobject_scale=1": "noobject_scale=.5",
        "rescore=1": "rescore=0",
        "class_scale=1": "class_scale=2",
        "coord_scale=1": "coord_scale=3",
        "softmax=1": "softmax=0",
    }.items():
        changed = changed.replace(f"\n{old}\n", f"\n{new}\n")
    for cfg, classes, rescore, weights in (
        (cfgs.PASSED, "softmax", True, (5, 1, 1, 1)),
        (changed, "logistic", False, (4, 0.5, 2, 3)),
    ):
        stage = read(tmp_path, cfg).dense
        own: YOLOLoss = stage.criterion
        assert (own.classes, own.rescore, own.prior_images) == (classes, rescore, 12_800)
        assert (own.object_weight, own.background_weight, own.class_weight, own.box_weight) == weights
        assert stage.matcher.ignore_iou == 0.6
    stage = read(tmp_path, cfgs.PYRAMID).dense
    assert (stage.matcher.ignore_iou, stage.criterion.classes, stage.criterion.prior_images) == (0.7, "logistic", 0)


def shrunk(backbone: nn.Module, neck: nn.Module, anchors: GridAnchors, criterion: YOLOLoss, size: int) -> Detector:
    stage = yolo_stage(2, neck.out_channels, anchors, criterion=criterion)
    preprocess = Preprocess((size, size), mean=[0.0] * 3, std=[1.0] * 3, letterbox=True)
    return Detector(nn.Sequential(backbone, neck), preprocess=preprocess, dense=stage)


def shapes(text: str, unit: int = 1) -> list[tuple[float, float]]:
    numbers = [float(number) * unit for number in text.split(",")]
    return [*zip(numbers[::2], numbers[1::2], strict=True)]


def narrow_v2() -> Detector:
    backbone = darknet19_backbone(width=2)
    neck = PassthroughNeck(backbone.out_channels, backbone.strides, channels=64, passed=4)
    anchors = GridAnchors(shapes=[shapes(cfgs.V2_SHAPES, 32)], strides=[32])
    return shrunk(backbone, neck, anchors, YOLOLoss(classes="softmax"), 96)


def narrow_v3() -> Detector:
    backbone = darknet53_backbone(width=2)
    all_shapes = shapes(cfgs.V3_SHAPES)
    anchors = GridAnchors(shapes=[all_shapes[:3], all_shapes[3:6], all_shapes[6:]], strides=[8, 16, 32])
    return shrunk(backbone, YOLONeck(backbone.out_channels, backbone.strides), anchors, YOLOLoss(), 96)


PUBLISHED = {
    "v2, narrow": (narrow_v2, cfgs.published_v2(2, width=2, side=96)),
    "v3, narrow": (narrow_v3, cfgs.published_v3(2, width=2, side=96)),
    "v2 tiny": (partial(yolo_v2_tiny, 20), cfgs.published_v2_tiny(20, width=16)),
    "v3 tiny": (partial(yolo_v3_tiny, 80), cfgs.published_v3_tiny(80, width=16)),
}


@pytest.mark.slow
@pytest.mark.parametrize(("build", "cfg"), PUBLISHED.values(), ids=PUBLISHED)
def test_a_recipe_is_written_in_the_order_of_the_published_cfg(build, cfg, tmp_path):
    recipe = build().eval()
    with torch.no_grad():
        for norm in (module for module in recipe.modules() if isinstance(module, nn.BatchNorm2d)):
            norm.running_mean.normal_(0, 0.1)
            norm.running_var.uniform_(0.3, 1)
            norm.bias.normal_(0, 0.2)
    recipe.dense.criterion.seen.fill_(32_013_312)
    to_darknet(recipe, tmp_path / "recipe.weights")
    (tmp_path / "recipe.cfg").write_text(cfg)
    detector = from_darknet(tmp_path / "recipe.cfg", tmp_path / "recipe.weights").eval()
    assert detector.dense.criterion.seen == 32_013_312
    assert detector.preprocess.size == recipe.preprocess.size
    images = Images(torch.rand(1, 3, 96, 96), torch.tensor([[96, 96]]))
    for one, other in zip(all_anchors(detector, images), all_anchors(recipe, images), strict=True):
        torch.testing.assert_close(one, other)


FAULTS = {  # in the sections of PYRAMID: what is replaced, by what, and what the message says
    "channels=3": ("channels=1", "line 7: channels=1 of [net]; allowed is 3"),
    "width=64": ("", "line 1: [net] has no width; allowed are whole numbers from 1"),
    "height=32": ("height=tall", "line 6: height=tall of [net]; allowed are whole numbers from 1"),
    "[upsample]": ("[avgpool]", "the section [avgpool] is not known; allowed are [net] [convolutional]"),
    "activation=relu": ("activation=mish", "activation=mish of [convolutional]; allowed are linear leaky relu"),
    "filters=3\nsize=2": ("filters=3\ngroups=3", "groups=3 of [convolutional]; allowed is 1"),
    "size=2\nstride=2\nact": ("size=99\nstride=2\nact", "[convolutional]: it cannot read 4 x 8 x 16"),
    "stride=2\nact": ("stride=70000\nact", "stride=70000 of [convolutional]; allowed are whole numbers from 1"),
    "size=3\nstride=1\n\n": ("size=3\npadding=3\n", "padding=3 of [maxpool]; allowed are 0 to 2"),
    "from=-3": ("from=-2", "[shortcut]: its layers are 4 x 16 x 32 and 2 x 16 x 32"),
    "from=-3\n": ("from=-3,-2\n", "from=-3,-2 of [shortcut]; allowed is one number"),
    "layers = -1, 5": ("layers=-1,99", "layers=-1,99 of [route]; allowed are layers from -13 to 12"),
    " -1, 5": (" -1, 9", "layers=-1,9 of [route]; layer 9 predicts or detects"),
    "-1, 5": ("-1, 2", "[route]: its layers are 6 x 8 x 16 and 4 x 16 x 32"),
    "[route]\nlayers = -3": ("[maxpool]", "[maxpool]: it follows a section that detects"),
    "filters=14": ("filters=255", "filters=255 of [convolutional]; needs 14: 2 anchors with 5 numbers and 2 classes"),
    "7\nactivation=linear": ("7\nactivation=leaky", "activation=leaky of [convolutional]; allowed is linear before"),
    "size=1\nstride=1\npad=1\nfilters=7": ("size=3\nfilters=7", "size=3 of [convolutional]; allowed is 1 before"),
    "mask = 1,2": ("mask = 1,3", "mask=1,3 of [yolo]; allowed are 0 to 2"),
    "num=3": ("num=9", "anchors=4,6,10,14,20,12 of [yolo]; allowed are num=9 pairs"),
    "4,6, 10,14": ("4,6, 10,nan", "anchors=4,6,10,nan,20,12 of [yolo]; allowed are finite numbers"),
    "4,6, 10,14, ": ("4,6, 10,1e300,", "anchors=4,6,10,1e300,20,12 of [yolo]; allowed are num=3 pairs of width and"),
    "[maxpool]\nsize=3": ("[maxpool]\nsize=65", "size=65 of [maxpool]; allowed are whole numbers from 1 to 64"),
    "[upsample]\nstride=2": ("[upsample]\nstride=65", "stride=65 of [upsample]; allowed are whole numbers from 1 to"),
    "width=64\nheight=32": ("width=65536\nheight=65536", "it makes 4 x 32768 x 32768 (channels, height, width);"),
    "mask = 0\nanchors = 4": ("mask = 0\nanchors = 5", "[yolo]: anchors, classes and ignore_thresh must be those of"),
    "ignore_thresh = .7": ("ignore_thresh = 7", "ignore_thresh=7 of [yolo]; allowed are finite numbers from 0 to 1"),
}  # fmt: skip


@pytest.mark.parametrize(("old", "new", "said"), [(old, *row) for old, row in FAULTS.items()])
def test_a_fault_in_the_cfg_is_refused_with_file_line_and_value(old, new, said, tmp_path):
    assert old in cfgs.PYRAMID
    paths = files(tmp_path, cfgs.PYRAMID.replace(old, new, 1), b"")
    assert_refused(f"from_darknet: net.cfg {said}", from_darknet, *paths)


def test_a_net_that_does_not_end_by_detecting_is_refused(tmp_path):
    start = cfgs.net(32, 32)
    for cfg, said in (
        (start, "[net]: the last section must be [yolo] or [region]"),
        (start + cfgs.conv(4), "[convolutional]: the last section must be [yolo] or [region]"),
        (start + "[yolo]\nanchors=1,1", "[yolo]: the section before it must be the [convolutional] that predicts"),
        (start + cfgs.MAX + "[yolo]\nanchors=1,1", "[yolo]: the section before it must be the [convolutional]"),
        (cfgs.PASSED + cfgs.route(0) + cfgs.region("1,1", 3), "[region]: allowed is one [region]"),
        (cfgs.PASSED.replace("coords=4", "coords=8"), "coords=8 of [region]; allowed is 4"),
        (cfgs.PASSED.replace("stride=2\n\n[route]", "stride=3\n\n[route]"), "[reorg]: it reads 4 x 8 x 12"),
    ):
        assert_refused(f"from_darknet: net.cfg {said}", from_darknet, *files(tmp_path, cfg, b""))


def test_weights_of_another_number_are_refused_and_the_layer_that_lacks_them_is_named(tmp_path):
    weights = loops.weights_file(loops.random_weights(cfgs.PYRAMID))
    count = (len(weights) - 20) // 4
    for content, said in (
        (weights[:-4], f"holds {count - 1} numbers, and the cfg needs {count}: it ends in the kernels of layer 14,"),
        (weights[:-2], f"holds {count - 1} numbers and 2 bytes, and the cfg needs {count}: it ends in the kernels"),
        (weights[: 20 + 4 * 6], f"holds 6 numbers, and the cfg needs {count}: it ends in the scales of layer 0, "
                                "[convolutional] of line 21"),
        (weights + bytes(8), f"holds {count + 2} numbers, and the cfg needs {count}: 8 bytes are left over"),
    ):  # fmt: skip
        assert_refused(f"from_darknet: net.weights {said}", from_darknet, *files(tmp_path, cfgs.PYRAMID, content))


def test_numbers_that_are_not_finite_are_named(tmp_path):
    drawn = loops.random_weights(cfgs.PYRAMID)
    for layer, part, place, value, said in (
        (2, "kernels", 70, float("nan"), "kernels[70]=nan of layer 2, [convolutional] of line 37 of the cfg; allowed"),
        (9, "biases", 3, float("inf"), "biases[3]=inf of layer 9,"),
        (1, "variances", 1, -0.5, "variances[1]=-0.5 of layer 1, [convolutional]"),
    ):
        weights = copy.deepcopy(drawn)
        getattr(weights[layer], part)[place] = value
        paths = files(tmp_path, cfgs.PYRAMID, loops.weights_file(weights))
        assert_refused(f"from_darknet: net.weights {said}", from_darknet, *paths)


def test_keys_that_are_not_followed_are_warned_of_once(tmp_path):
    passed = cfgs.PASSED.replace("bias_match=1", "bias_match=0\nnonsense=3").replace("[reorg]", "[reorg]\ncolour=1")
    pyramid = cfgs.PYRAMID.replace("truth_thresh = 1", "truth_thresh = .9").replace("mask = 1,2", "mask = 0,2")
    truth = "truth_thresh=.9 of [yolo] is not followed in training"
    for cfg, *words in (
        (
            passed,
            "colour of [reorg] is not known",
            "bias_match=0 of [region] is not",
            "nonsense of [region] is not known",
        ),
        (pyramid, truth, truth, "mask=0 of [yolo] and the other masks hold an anchor twice or not at all"),
    ):
        with pytest.warns(UserWarning, match="net.cfg: 3 keys are not followed: line") as caught:
            from_darknet(*files(tmp_path, cfg, loops.weights_file(loops.random_weights(cfg))))
        (warning,) = caught
        said = str(warning.message)
        assert all(word in said for word in words), said


def test_a_misspelled_key_is_named_before_the_weights_do_not_fit(tmp_path):
    cfg = cfgs.PYRAMID.replace("filters=3\n", "filter=3\n")
    paths = files(tmp_path, cfg, loops.weights_file(loops.random_weights(cfgs.PYRAMID)))
    with (
        pytest.warns(UserWarning, match=r"1 key is not followed: line \d+: filter of \[convolutional\]"),
        pytest.raises(ValueError, match=r"net\.weights holds .* numbers"),
    ):
        from_darknet(*paths)


@pytest.mark.slow
def test_what_darknet_has_no_place_for_is_not_written(tmp_path):
    path = tmp_path / "no.weights"
    other = Detector(SmallBackbone(), preprocess=Preprocess(None), dense=yolo_v3_tiny(1).dense)
    grouped = darknet19_backbone(width=2, norm=partial(nn.GroupNorm, 1))
    neck = PassthroughNeck(grouped.out_channels, grouped.strides)
    stage = yolo_stage(2, neck.out_channels, GridAnchors(shapes=[[(9, 9)]], strides=[32]))
    for detector, said in (
        (yolo_v1_tiny(1), "the head is a CellHead; allowed is a GridHead"),
        (other, "the trunk is a SmallBackbone; allowed are those of from_darknet"),
        (Detector(nn.Sequential(grouped, neck), preprocess=Preprocess(None), dense=stage), "the trunk has a GroupNorm"),
    ):
        assert_refused(f"to_darknet: {said}", to_darknet, detector, path)
    swapped = read(tmp_path, cfgs.PYRAMID)
    swapped.dense.head = GridHead([level.in_channels for level in swapped.dense.head.levels], (3, 3), num_classes=9)
    moved = read(tmp_path, cfgs.PYRAMID)
    moved.dense.anchors = GridAnchors(shapes=[[(9, 9)] * count for count in moved.dense.anchors.per_cell])
    for detector, said in (
        (yolo_v3_tiny(1), "the Sequential was not read from a cfg"),
        (swapped, "the head predicts"),
        (moved, "the anchors are [[[9.0, 9.0]"),
    ):
        assert_refused(f"to_darknet: {said}", to_darknet, detector, path, cfg=tmp_path / "no.cfg")
    kept = read(tmp_path, cfgs.PYRAMID).half()
    assert_refused("to_darknet: path and cfg are one file", to_darknet, kept, path, cfg=tmp_path / "." / path.name)
    assert not (tmp_path / "no.cfg").exists()
    for change, said in (
        (lambda layer: setattr(layer[0], "bias", nn.Parameter(torch.zeros(len(layer[0].weight)))), "a Conv2d before"),
        (lambda layer: setattr(layer[1], "weight", None), "a Conv2d before"),
        (lambda layer: setattr(layer[1], "eps", 1e-3), "eps=0.001 allowed are eps=1e-05 instead"),
        (lambda layer: layer.__delitem__(1), "a Conv2d bias=False before None; allowed are convolutions with a bias"),
        (lambda layer: layer[1].running_var.fill_(-1), "variances[0]=-1 of convolution 0; allowed are finite"),
        (lambda layer: layer[0].weight.data.fill_(torch.nan), "kernels[0]=nan of convolution 0; allowed are finite"),
    ):
        changed = read(tmp_path, cfgs.PYRAMID)
        change(next(layer for layer in changed.trunk.layers.values() if isinstance(layer, ConvNormActivation)))
        assert_refused(f"to_darknet: {said}", to_darknet, changed, path)
    old = read(tmp_path, cfgs.PYRAMID, version=(0, 1, 0))
    old.dense.criterion.seen.fill_(2**31)
    assert_refused("to_darknet: 2147483648 images were seen; a file of version 0.1.0 holds 0 to", to_darknet, old, path)
    assert not path.exists()
