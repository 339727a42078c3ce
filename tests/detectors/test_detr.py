"""The DETR recipes: their parts, transformers' DETR with the same weights, the contract, and that one learns."""

import pytest
import torch
from contracts import CONTRACT, Case, Check, assert_trainable, empty_target, two_images
from torch import Tensor, nn

from detkit.backbones import SmallBackbone
from detkit.boxes import cxcywh_to_xyxy
from detkit.data import DigitScenes, collate
from detkit.detectors import Detector, Preprocess
from detkit.detectors.box_queries import BoxQueryStage
from detkit.detectors.recipes.detr import box_query_stage, detr, detr_dc5, detr_stage, small_detr
from detkit.detectors.set_prediction import SetPredictionStage
from detkit.metrics import CocoMetrics
from detkit.structures import Detections, Images, Target, pad_targets
from detkit.tricks import warmup_cosine

LAYERS = ("", "layer0.")
BACKGROUND = frozenset(f"objects.{layer}classification" for layer in LAYERS)
CHECKS = [
    check
    for check in CONTRACT
    if check.__name__
    not in (  # an object without area has a query, too; and queries outside a crowd learn background
        "a_batch_without_positives_trains_every_parameter",
        "crowds_teach_nothing",
    )
]


def spread(boxes: nn.Linear) -> None:
    """Boxes start as large as the image, each a little different."""
    with torch.no_grad():
        boxes.bias.copy_(torch.tensor([0.0, 0, 4, 4]))
        boxes.weight.normal_(std=0.5)


def plain(num_classes: int = 3, *, size: tuple[int, int] = (96, 128), queries: int = 8) -> Detector:
    """The paper's stage, small, on a small trunk."""
    stage = detr_stage(num_classes, 32, channels=32, hidden=128, depth=2, queries=queries, dropout=0.0, norm_first=True)
    return Detector(SmallBackbone((8, 16, 32), levels=(2,)), preprocess=Preprocess(size), objects=stage)


def wide() -> Detector:
    detector = plain()
    spread(detector.objects.head.boxes[-1])
    return detector


def boxed() -> Detector:
    """A small detector of box queries, whose noise is none."""
    detector = small_detr(3, size=(96, 128), channels=32, depth=2, queries=8)
    stage = detector.objects
    spread(stage.decoder.heads[0].boxes[-1])
    stage.denoising.label_noise = stage.denoising.box_noise = 0.0
    return detector


CASES = {"plain": Case(wide, 3, BACKGROUND), "boxes": Case(boxed, 3, BACKGROUND)}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_detr_keeps_the_contract(check: Check, case: Case):
    check(case)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_objects_without_area_train_every_parameter(case: Case):
    detector = case.detector().train()
    batch, _ = detector.preprocess(two_images()[0])
    flat = pad_targets([empty_target([[20, 20, 20, 60], [30, 30, 30, 30]]), empty_target()])
    assert_trainable(detector, batch, flat)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_in_a_crowd_that_covers_everything_nothing_is_learned(case: Case):
    everywhere = Target(
        boxes=torch.tensor([[-500.0, -500, 900, 900]]), labels=torch.tensor([0]), iscrowd=torch.tensor([1])
    )
    losses = case.detector()(two_images()[0], [everywhere, everywhere])
    assert all(loss == 0 for loss in losses.values())


@pytest.mark.slow
def test_detr_is_that_of_the_paper():
    torch.manual_seed(0)
    detector = detr(91)
    stage = detector.objects
    assert stage.queries.weight.shape == (100, 256)
    assert len(stage.encoder.encoder.layers) == len(stage.decoder.layers) == 6
    assert stage.encoder.encoder.layers[0].attention.heads == 8
    assert stage.encoder.encoder.layers[0].feed_forward.inner.out_features == 2048
    assert not stage.encoder.encoder.layers[0].attention_residual.norm_first
    assert isinstance(stage.encoder.encoder.norm, nn.Identity)
    assert stage.head.logits.out_features == 92
    assert stage.encoder.projection.in_channels == 2048
    assert detector.trunk.strides == (32,)
    assert (detector.preprocess.size, detector.preprocess.max_size) == (800, 1333)
    assert stage.encoder.encoder.layers[0].attention.dropout == 0.1
    # facebook's detr_resnet50 has this many, without the affine parameters of its frozen batch norms.
    norms = sum(p.numel() for m in detector.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters())
    assert sum(p.numel() for p in detector.parameters()) - norms == 41_524_768


@pytest.mark.slow
def test_dc5_sees_cells_of_16_pixels():
    detector = detr_dc5(3)
    with torch.no_grad():
        (features,) = detector.trunk(torch.zeros(1, 3, 64, 96))
    assert features.shape == (1, 2048, 4, 6)


def test_given_parts_are_taken():
    backbone, preprocess = SmallBackbone((8, 16)), Preprocess((64, 64))
    detector = detr(2, backbone=backbone, preprocess=preprocess)
    assert detector.trunk is backbone
    assert detector.preprocess is preprocess
    assert detector.objects.encoder.projection.in_channels == 16


def tiny_peer(transformers):
    """transformers' DETR, as small as it gets, with weights that let queries differ; in float64."""
    torch.manual_seed(0)
    backbone = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic", out_features=["stage2"]
    )
    config = transformers.DetrConfig(
        use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, backbone_config=backbone,
        d_model=32, encoder_attention_heads=1, decoder_attention_heads=1, encoder_ffn_dim=40, decoder_ffn_dim=40,
        encoder_layers=2, decoder_layers=2, num_queries=7, num_labels=3, auxiliary_loss=True,
    )  # fmt: skip
    model = transformers.DetrForObjectDetection(config).double().eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=2.0 if "query" in name else 0.4)
    return model


ATTENTION = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "o_proj"}
HEAD = {"head.logits": "class_labels_classifier"} | {
    f"head.boxes.{2 * i}": f"bbox_predictor.layers.{i}" for i in range(3)
}
WHOLE = {
    "encoder.projection": "model.input_projection",
    "queries": "model.query_position_embeddings",
    "decoder.norm": "model.decoder.layernorm",
    **HEAD,
}
PARTS = {
    "attention_residual.norm": "self_attn_layer_norm",
    "memory_residual.norm": "encoder_attn_layer_norm",
    "feed_forward.inner": "mlp.fc1",
    "feed_forward.outer": "mlp.fc2",
    "feed_forward_residual.norm": "final_layer_norm",
    **{f"attention.{own}": f"self_attn.{other}" for own, other in ATTENTION.items()},
    **{f"memory_attention.{own}": f"encoder_attn.{other}" for own, other in ATTENTION.items()},
}


def copy_peer(model, stage: SetPredictionStage) -> None:
    """All of transformers' weights behind its backbone, by name."""
    source, state = model.state_dict(), {}
    for key in stage.state_dict():
        module, kind = key.rsplit(".", 1)
        if module in WHOLE:
            other = WHOLE[module]
        else:
            side, _, layer, part = module.removeprefix("encoder.").split(".", 3)
            other = f"model.{side}.layers.{layer}.{PARTS[part]}"
        state[key] = source.pop(f"{other}.{kind}")
    stage.load_state_dict(state)
    assert all(key.startswith("model.backbone.") for key in source), [k for k in source if "backbone" not in k]


@pytest.mark.slow
def test_it_equals_transformers_detr_with_the_same_weights():
    transformers = pytest.importorskip(
        "transformers", reason="transformers is not installed: DETR was NOT compared with its model"
    )
    model = tiny_peer(transformers)
    stage = detr_stage(3, 12, channels=32, hidden=40, depth=2, queries=7).double().eval()
    copy_peer(model, stage)
    pixels, sizes = torch.rand(2, 3, 64, 96, dtype=torch.float64), torch.tensor([[64, 96], [40, 72]])
    mask = (torch.arange(64) < sizes[:, :1])[:, :, None] & (torch.arange(96) < sizes[:, 1:])[:, None]
    seen: list[Tensor] = []
    model.model.input_projection.register_forward_hook(lambda module, given, result: seen.append(given[0].detach()))
    with torch.no_grad():
        expected = model(pixels, pixel_mask=mask.long())
    images = Images(pixels, sizes)
    found = stage([seen[0]], images, None)
    torch.testing.assert_close(found.logits[-1], expected.logits, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.boxes[-1], expected.pred_boxes, rtol=1e-6, atol=1e-6)
    assert expected.logits.std(1).min() > 1e-3  # queries differ
    assert_finds_the_same(stage.detections(found, images), expected, transformers.DetrImageProcessor(), sizes)
    assert_costs_the_same(stage, model, seen[0], Images(pixels, sizes), mask)


def assert_finds_the_same(ours: Detections, expected, processor, sizes: Tensor) -> None:
    theirs = processor.post_process_object_detection(expected, threshold=0.0, target_sizes=sizes)
    for i, one in enumerate(theirs):
        order = one["scores"].argsort(descending=True)
        torch.testing.assert_close(ours.scores[i], one["scores"][order], rtol=1e-6, atol=1e-6)
        assert ours.labels[i].tolist() == one["labels"][order].tolist()
        limits = sizes[i].flip(0).repeat(2)
        torch.testing.assert_close(
            ours.boxes[i], one["boxes"][order].clamp(min=0).minimum(limits), rtol=1e-5, atol=1e-4
        )


def assert_costs_the_same(stage: SetPredictionStage, model, features: Tensor, images: Images, mask: Tensor) -> None:
    """All layers together; in float32, for transformers' loss knows nothing else."""
    boxes = torch.tensor([[0.5, 0.4, 0.3, 0.2], [0.3, 0.6, 0.5, 0.4], [0.4, 0.4, 0.6, 0.6]]).split((2, 1))
    labels = [{"class_labels": torch.arange(len(rows)), "boxes": rows} for rows in boxes]
    expected = model.float()(images.tensors.float(), pixel_mask=mask.long(), labels=labels)
    scale = images.sizes.flip(1).repeat(1, 2)
    truth = [
        Target(boxes=cxcywh_to_xyxy(rows) * scale[i], labels=torch.arange(len(rows))) for i, rows in enumerate(boxes)
    ]
    targets = pad_targets(truth)
    losses = stage.loss(stage([features], images, None, targets), targets)
    assert len(losses) == 6
    assert sum(losses.values()).item() == pytest.approx(expected.loss.item(), rel=1e-5)


def test_small_detr_is_made_of_box_queries():
    stage = small_detr(3, channels=64, depth=2, queries=9).objects
    assert isinstance(stage, BoxQueryStage)
    assert stage.queries.boxes.weight.shape == (9, 4)
    assert len(stage.decoder.layers) == len(stage.decoder.heads) == 2
    assert stage.denoising.groups == 5
    assert stage.postprocess.max_detections == 9
    with torch.no_grad():
        (features,) = small_detr(3).trunk(torch.zeros(1, 3, 64, 96))
    assert features.shape[2:] == (8, 12)


def learn(detector: Detector, images: list[Tensor], targets: list[Target], *, steps: int) -> None:
    """Train in place on one batch."""
    optimizer = torch.optim.AdamW(detector.parameters(), lr=2e-3)
    schedule = warmup_cosine(optimizer, warmup_steps=10, total_steps=steps, start_factor=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        sum(detector(images, targets).values()).backward()
        nn.utils.clip_grad_norm_(detector.parameters(), 1.0)
        optimizer.step()
        schedule.step()


@pytest.mark.slow(2)
def test_the_papers_stage_learns_one_image_by_heart():
    torch.manual_seed(0)
    detector = plain(2, size=(64, 64), queries=5)
    image = torch.zeros(3, 64, 64)
    image[0, 8:32, 8:32] = 1.0
    image[1, 30:60, 24:60] = 1.0
    boxes = torch.tensor([[8.0, 8, 32, 32], [24, 30, 60, 60]])
    target = Target(boxes=boxes, labels=torch.tensor([0, 1]))
    for _ in range(2):  # a new optimizer half-way: a second query on one object then gives way on any number of threads
        learn(detector.train(), [image, image], [target, target], steps=50)
    (found,) = detector.eval()([image])
    assert found["scores"][:2].min() > 0.8
    assert found["scores"][2:].max() < 0.3
    order = found["labels"][:2].argsort()
    assert found["labels"][:2][order].tolist() == [0, 1]
    torch.testing.assert_close(found["boxes"][:2][order], boxes, rtol=0, atol=4)


@pytest.mark.parametrize(("stage", "channels"), [(detr_stage, 16), (detr_stage, 48), (box_query_stage, 0)])
def test_channels_that_are_no_heads_are_refused(stage, channels):
    with pytest.raises(ValueError, match=rf"{stage.__name__}: channels={channels}.*(multiple.*32|at least 1)"):
        stage(8, 3, channels=channels)


@pytest.mark.slow(4)
def test_small_detr_learns_eight_scenes_by_heart_in_seconds():
    torch.manual_seed(0)
    scenes = DigitScenes(8)
    images, targets = collate([scenes[i] for i in range(8)])
    detector = small_detr(10, size=(96, 96), channels=64, depth=2, queries=20)
    learn(detector, images, targets, steps=70)
    metrics = CocoMetrics(scenes.categories)
    with torch.no_grad():
        metrics.update(detector.eval()(images), targets)
    assert metrics.compute()["bbox/AP50"] >= 0.95
