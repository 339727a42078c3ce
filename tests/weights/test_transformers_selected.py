"""transformers' RT-DETRs and D-FINE find and cost the same in this library, in any shape, and go both ways."""

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detkit.boxes import cxcywh_to_xyxy
from detkit.detectors import Detector, d_fine, denoising, rt_detr_v2, small_rt_detr
from detkit.structures import Images, Targets, pad_targets
from detkit.weights.transformers import from_transformers, to_transformers

transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed: weights from and to its RT-DETRs and D-FINE were NOT tested"
)

HEIGHT, WIDTH, CLASSES = 96, 128, 3
SMALL = {
    "encoder_hidden_dim": 16,
    "encoder_ffn_dim": 24,
    "encoder_attention_heads": 2,
    "d_model": 16,
    "num_queries": 9,
    "decoder_in_channels": [16] * 3,
    "decoder_ffn_dim": 20,
    "decoder_layers": 3,
    "decoder_attention_heads": 2,
    "num_labels": CLASSES,
    "num_denoising": 12,
}
NAMES = {"vfl": "classification", "bbox": "l1", "giou": "giou", "fgl": "fgl", "ddf": "ddf"}


def resnet(*hidden: int, kind: str, **settings: Any) -> Any:
    stages = ["stage2", "stage3", "stage4"]
    sizes = {"embedding_size": 8, "hidden_sizes": list(hidden), "depths": [1, 2, 1, 1], "layer_type": kind}
    return transformers.RTDetrResNetConfig(**sizes, out_features=stages, **settings)


def hgnet(*, affine: bool) -> Any:
    return transformers.HGNetV2Config(
        stem_channels=[3, 8, 8],
        stage_in_channels=[8, 12, 16, 20],
        stage_mid_channels=[4] * 4,
        stage_out_channels=[12, 16, 20, 24],
        stage_num_blocks=[1, 1, 2, 1],
        stage_numb_of_layers=[2] * 4,
        use_learnable_affine_block=affine,
        hidden_sizes=[12, 16, 20, 24],
        out_features=["stage2", "stage3", "stage4"],
    )


def model(kind: str, backbone: Any, **settings: Any) -> nn.Module:
    """As small as it gets; nothing is what it starts as, and queries differ."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")
    sizes = {**SMALL, "encoder_in_channels": backbone.hidden_sizes[1:], **settings}
    peer = getattr(transformers, f"{kind}ForObjectDetection")(config(backbone_config=backbone, **sizes))
    for name, parameter in peer.named_parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.3 if parameter.ndim == 2 else (2 / parameter[0].numel()) ** 0.5)
        elif not name.endswith(("up", "reg_scale")):
            norm = any(part in name for part in ("norm", ".1.weight", "lab.scale"))
            nn.init.normal_(parameter, mean=float(norm and not name.endswith("bias")), std=0.2)
    for name, buffer in peer.named_buffers():
        if buffer.ndim == 1 and "points" not in name:
            nn.init.uniform_(buffer, *((0.5, 1.5) if name.endswith(("weight", "var")) else (-0.3, 0.3)))
    return peer


MODELS: dict[str, Callable[[], nn.Module]] = {
    "RT-DETR": lambda: model("RTDetr", resnet(8, 16, 24, 32, kind="bottleneck", downsample_in_bottleneck=True)),
    "RT-DETR v2": lambda: model("RTDetrV2", resnet(8, 12, 16, 20, kind="basic")),
    "RT-DETR v2, discrete": lambda: model(
        *("RTDetrV2", resnet(8, 16, 24, 32, kind="bottleneck")),
        decoder_method="discrete",
        decoder_offset_scale=0.7,
        encoder_layers=2,
        hidden_expansion=0.5,
        freeze_backbone_batch_norms=False,
        d_model=24,
        decoder_attention_heads=3,
        weight_loss_vfl=2.0,
        focal_loss_alpha=0.6,
        matcher_giou_cost=1.0,
    ),
    "RT-DETR v2, last layer": lambda: model("RTDetrV2", hgnet(affine=True), auxiliary_loss=False, num_denoising=0),
    "D-FINE": lambda: model("DFine", hgnet(affine=True), decoder_n_points=[3, 4, 2]),
    "D-FINE, projected": lambda: model(
        *("DFine", hgnet(affine=False)),
        depth_mult=0.34,
        hidden_expansion=0.5,
        d_model=24,
        decoder_attention_heads=3,
        reg_scale=8.0,
        freeze_backbone_batch_norms=False,
        decoder_layers=2,
        decoder_method="discrete",
    ),
    "D-FINE, without denoising": lambda: model(
        *("DFine", resnet(8, 12, 16, 20, kind="basic")),
        max_num_bins=16,
        num_denoising=0,
        top_prob_values=2,
        lqe_layers=3,
        lqe_hidden_dim=8,
        weight_loss_fgl=0.5,
        weight_loss_ddf=0.7,
    ),
}
every_model = pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)


class Draws:
    """What transformers draws for its denoising queries, and the same as the numbers that detkit draws for its own."""

    def __init__(self) -> None:
        self.drawn: list[Tensor] = []

    def rand_like(self, values: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
        self.drawn.append(torch.rand(values.shape, dtype=dtype or values.dtype))
        return self.drawn[-1]

    def randint_like(self, values: Tensor, low: int, high: int, *, dtype: torch.dtype | None = None) -> Tensor:
        self.drawn.append(torch.randint(low, high, values.shape).to(dtype or values.dtype))
        return self.drawn[-1]

    def uniform_like(self, values: Tensor, generator: None) -> Tensor:
        other, label, sign, part = self.drawn
        rows = ((2 * sign - 1) * part + 1) / 2, other[..., None], (label[..., None] + 0.5) / CLASSES
        return torch.cat([row.to(values) for row in rows], -1)


class Torch:
    """torch for a module of transformers, with draws that are kept, and single precision as double if asked for."""

    def __init__(self, draws: Draws, *, double: bool) -> None:
        self.given = {"rand_like": draws.rand_like, "randint_like": draws.randint_like}
        self.given |= {"float": torch.float64} if double else {}

    def __getattr__(self, name: str) -> Any:
        return self.given.get(name) or getattr(torch, name)


@contextmanager
def in_double() -> Iterator[None]:
    """transformers goes through single precision in losses; without it, they are comparable to the last digits."""
    torch.set_default_dtype(torch.float64)
    single, torch.Tensor.float = torch.Tensor.float, torch.Tensor.double
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)
        torch.Tensor.float = single


def truth(dtype: torch.dtype, *counts: int) -> tuple[Targets, list[dict[str, Tensor]]]:
    """As many objects in each of the images, ours and theirs."""
    generator = torch.Generator().manual_seed(3)
    ours, theirs = [], []
    for count in counts:
        boxes = torch.rand(count, 4, generator=generator).to(dtype) * 0.3 + 0.25
        labels = torch.randint(0, CLASSES, (count,), generator=generator)
        scale = torch.tensor([WIDTH, HEIGHT] * 2, dtype=dtype)
        ours.append({"boxes": cxcywh_to_xyxy(boxes) * scale, "labels": labels})
        theirs.append({"boxes": boxes, "class_labels": labels})
    return pad_targets(ours), theirs


def batch(dtype: torch.dtype) -> Images:
    pixels = torch.rand(2, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1)).to(dtype)
    return Images(pixels, torch.tensor([[HEIGHT, WIDTH]] * 2))


def costs_of(peer: Any, images: Images, labels: list[dict[str, Tensor]], draws: Draws) -> dict[str, Tensor]:
    """The losses of transformers' model in training mode, under this library's names; noised ones of all layers."""
    module: Any = importlib.import_module(type(peer).__module__)
    double = images.tensors.dtype == torch.float64
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "torch", Torch(draws, double=double))
        if double:
            with in_double():
                outputs = peer.train()(images.tensors, labels=labels)
        else:
            outputs = peer.train()(images.tensors, labels=labels)
    layers, fine = peer.config.decoder_layers, hasattr(peer.config, "reg_scale")
    costs: dict[str, Tensor] = {}
    for key, value in outputs.loss_dict.items():
        _, kind, *where = key.split("_")
        name = f"objects.{layer_of(kind, where, layers, fine=fine)}{NAMES[kind]}"
        costs[name] = costs.get(name, torch.zeros(())) + value
    return costs | {"sum": outputs.loss}


def layer_of(kind: str, where: list[str], layers: int, *, fine: bool) -> str:
    """The prefix of a loss of transformers; D-FINE's predictions before distributions count as a layer there."""
    if not where or where[0] == "dn":
        return "denoising." if where else ""
    place = int(where[1])
    if place == layers - 1:
        return "proposals."
    shifted = place - (fine and kind not in ("fgl", "ddf"))
    return f"layer{shifted}." if shifted >= 0 else "first."


def exact(peer: nn.Module, dtype: torch.dtype) -> nn.Module:
    """``peer`` in ``dtype``, without what in double precision is still rounded to single."""
    for name, buffer in peer.to(dtype).named_buffers():
        if "points_scale" in name:
            buffer.copy_(1 / (1 / buffer).round())
    return peer


def assert_the_same(peer: Any, *, dtype: torch.dtype, tolerance: float) -> None:
    close = partial(torch.testing.assert_close, rtol=tolerance, atol=tolerance)
    detector, images, draws = from_transformers(exact(peer, dtype)), batch(dtype), Draws()
    ours, theirs = truth(dtype, 4, 4)
    expected = costs_of(peer, images, theirs, draws)
    with pytest.MonkeyPatch.context() as patch:
        if draws.drawn:
            patch.setattr(denoising, "uniform_like", draws.uniform_like)
        losses = detector.train()(images, ours)
    assert losses.keys() == expected.keys() - {"sum"}
    for name, value in losses.items():
        close(value, expected[name], msg=lambda said, name=name: f"{name}: {said}")
    close(sum(losses.values()), expected["sum"])
    assert_finds_the_same(detector.eval(), peer.eval(), images, close)


@torch.no_grad()
def assert_finds_the_same(detector: Detector, peer: Any, images: Images, close: Callable[..., None]) -> None:
    expected = peer(images.tensors)
    outputs = detector.objects(detector.trunk(images.tensors), images, None)
    close(outputs.found[0][-1], expected.logits)
    close(outputs.found[1][-1], expected.pred_boxes)
    assert expected.logits.std(1).min() > 1e-2  # queries differ
    found, sizes = detector(images), images.sizes
    processor = transformers.RTDetrImageProcessor()
    limits = torch.tensor([WIDTH, HEIGHT] * 2).to(expected.logits)
    rows = processor.post_process_object_detection(expected, threshold=0.0, target_sizes=sizes)
    for i, one in enumerate(rows):
        assert found.labels[i].tolist() == one["labels"].tolist()
        close(found.scores[i], one["scores"])
        close(found.boxes[i] / limits, one["boxes"].clamp(min=0).minimum(limits) / limits)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["RTDetr", "RTDetrV2"])  # cells of a new D-FINE are equal to the last bit
@pytest.mark.slow
def test_a_new_model_whose_cells_hardly_differ_chooses_the_same_in_double_precision(kind):
    torch.manual_seed(0)
    backbone = resnet(8, 12, 16, 20, kind="basic")
    config = getattr(transformers, f"{kind}Config")(
        backbone_config=backbone, **SMALL, encoder_in_channels=backbone.hidden_sizes[1:]
    )
    peer = exact(getattr(transformers, f"{kind}ForObjectDetection")(config), torch.float64).eval()
    images, detector = batch(torch.float64), from_transformers(peer)
    with in_double():
        expected = peer(images.tensors)
    found = detector.objects(detector.trunk(images.tensors), images, None).found
    torch.testing.assert_close(found[0][-1], expected.logits, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found[1][-1], expected.pred_boxes, rtol=1e-9, atol=1e-9)


@pytest.mark.slow(3)
@every_model
def test_a_model_costs_and_finds_the_same(build):
    assert_the_same(build(), dtype=torch.float32, tolerance=1e-4)


@pytest.mark.slow(3)
@every_model
def test_a_model_costs_and_finds_the_same_in_double_precision(build):
    assert_the_same(build(), dtype=torch.float64, tolerance=1e-9)


@every_model
@pytest.mark.slow
def test_weights_go_back_bit_for_bit_and_load_strictly(build):
    peer = build()
    expected = {key: value.clone() for key, value in peer.state_dict().items()}
    state = to_transformers(from_transformers(peer))
    classes = "model.denoising_class_embed.weight"
    if classes in expected:  # of padding, which nothing reads here
        assert not state[classes][-1].any()
        state[classes], expected[classes] = state[classes][:-1], expected[classes][:-1]
    if type(peer).__name__ == "RTDetrForObjectDetection":  # its keys are those of v2 but for these
        spare = [key for key in state if "n_points_scale" in key or key.startswith(("class_embed.", "bbox_embed."))]
        state = {key: value for key, value in state.items() if key not in spare}
    assert state.keys() == expected.keys()
    assert [key for key, value in state.items() if not torch.equal(value, expected[key])] == []
    if classes in state:
        state[classes] = torch.cat((state[classes], torch.zeros(1, state[classes].shape[1])))
    peer.load_state_dict(state)


def test_denoising_queries_see_no_padding_unlike_those_of_transformers():
    """With unequal numbers of objects only the losses of noised queries differ: there padding is among them."""
    peer, images, draws = MODELS["RT-DETR v2"](), batch(torch.float32), Draws()
    ours, theirs = truth(torch.float32, 4, 1)
    detector = from_transformers(peer)
    expected = costs_of(peer, images, theirs, draws)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(denoising, "uniform_like", draws.uniform_like)
        losses = detector.train()(images, ours)
    apart = {name for name, loss in losses.items() if not torch.isclose(loss, expected[name], rtol=1e-4)}
    assert apart
    assert all(name.startswith("objects.denoising") for name in apart)


@pytest.mark.slow(5)
def test_the_published_rt_detr_of_18_layers_has_the_parts_of_the_recipe():
    backbone = transformers.RTDetrResNetConfig(
        depths=[2, 2, 2, 2],
        hidden_sizes=[64, 128, 256, 512],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    config = transformers.RTDetrV2Config(
        backbone_config=backbone,
        encoder_in_channels=[128, 256, 512],
        hidden_expansion=0.5,
        decoder_layers=3,
        freeze_backbone_batch_norms=False,
        num_labels=80,
    )
    assert_same_parts(rt_detr_v2(80, depth=18), transformers.RTDetrV2ForObjectDetection(config))


@pytest.mark.slow(5)
def test_published_d_fine_has_the_parts_of_the_recipe():
    backbone = transformers.HGNetV2Config(
        stem_channels=[3, 16, 16],
        stage_in_channels=[16, 64, 256, 512],
        stage_mid_channels=[16, 32, 64, 128],
        stage_out_channels=[64, 256, 512, 1024],
        stage_num_blocks=[1, 1, 2, 1],
        stage_numb_of_layers=[3, 3, 3, 3],
        hidden_sizes=[64, 256, 512, 1024],
        use_learnable_affine_block=True,
        out_features=["stage3", "stage4"],
    )
    config = transformers.DFineConfig(
        backbone_config=backbone,
        encoder_in_channels=[512, 1024],
        feat_strides=[16, 32],
        encode_proj_layers=[1],
        encoder_hidden_dim=128,
        encoder_ffn_dim=512,
        hidden_expansion=0.34,
        depth_mult=0.5,
        d_model=128,
        decoder_in_channels=[128, 128],
        decoder_ffn_dim=512,
        decoder_layers=3,
        num_feature_levels=2,
        decoder_n_points=[6, 6],
        freeze_backbone_batch_norms=False,
        num_labels=80,
    )
    assert_same_parts(d_fine(80, scale="n"), transformers.DFineForObjectDetection(config))


def assert_same_parts(recipe: Detector, peer: nn.Module) -> None:
    theirs = from_transformers(peer)
    shapes = {key: value.shape for key, value in recipe.state_dict().items()}
    assert {key: value.shape for key, value in theirs.state_dict().items()} == shapes
    assert recipe.trunk[1].strides == theirs.trunk[1].strides
    for part in ("losses.matcher", "losses.criterion", "denoising", "postprocess", "selection.count"):
        ours, other = recipe.objects, theirs.objects
        for name in part.split("."):
            ours, other = getattr(ours, name), getattr(other, name)
        assert repr(ours) == repr(other)
    for path in ("objects.decoder.layers.0.attention", "trunk.1.attention.encoder.layers.0.attention"):
        assert repr(recipe.get_submodule(path)) == repr(theirs.get_submodule(path))  # heads
    peer.load_state_dict(to_transformers(recipe))


def test_mode_precision_and_frozen_parameters_come_along():
    peer = MODELS["RT-DETR v2"]().to(torch.bfloat16).train()
    for parameter in peer.model.encoder.parameters():
        parameter.requires_grad_(False)
    detector = from_transformers(peer)
    assert detector.training
    assert {value.dtype for value in detector.state_dict().values() if value.is_floating_point()} == {torch.bfloat16}
    assert not any(parameter.requires_grad for parameter in detector.trunk[1].up.parameters())
    assert all(parameter.requires_grad for parameter in detector.objects.parameters())
    assert not from_transformers(peer.eval()).training


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eval_size": 640}, "eval_size=640; allowed is None"),
        ({"normalize_before": True}, "normalize_before=True; allowed is False"),
        ({"learn_initial_query": True}, "learn_initial_query=True; allowed is False"),
        ({"dropout": 0.1}, "dropout=0.1; allowed is 0.0"),
        ({"use_focal_loss": False}, "use_focal_loss=False; allowed is True"),
        ({"encode_proj_layers": [1]}, r"encode_proj_layers=\[1\]; allowed is \[2\]"),
        ({"activation_function": "mish"}, "activation_function='mish'; allowed is 'relu' or"),
        ({"box_noise_scale": 1.5}, r"DenoisingQueries: box_noise=1.5 must lie in \[0, 1\]"),
        ({"auxiliary_loss": False}, "num_denoising=12; allowed is 0"),
        ({"box_noise_scale": 0.0}, r"box_noise_scale=0.0; allowed is above 0"),
    ],
    ids=lambda value: None if isinstance(value, str) else "-".join(value),
)  # fmt: skip
def test_what_has_no_counterpart_is_refused_by_name(settings, message):
    peer = model("RTDetrV2", resnet(8, 12, 16, 20, kind="basic"), **settings)
    with pytest.raises(ValueError, match=message):
        from_transformers(peer)


def test_pictures_in_floats_are_seen_as_those_in_bytes_are():
    detector = from_transformers(MODELS["RT-DETR v2"]())
    images, _ = detector.preprocess([torch.full((3, 8, 8), 0.6)])
    torch.testing.assert_close(images.tensors, torch.full((1, 3, 640, 640), 0.6))


def test_a_detector_that_transformers_has_not_is_refused():
    with pytest.raises(ValueError, match="the backbone is a SmallBackbone; allowed are a ResNetBack"):
        to_transformers(small_rt_detr(2, size=(64, 64), channels=32))
    detector = small_rt_detr(2, size=(64, 64), channels=32)
    bare = Detector(detector.trunk[0], preprocess=detector.preprocess, objects=detector.objects)
    with pytest.raises(ValueError, match="allowed is one stage on nn"):
        to_transformers(bare)
