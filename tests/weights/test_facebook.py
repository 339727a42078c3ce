"""DETR in the layout of facebook's release: a reference of torch's own layers under its keys finds the same."""

import math

import pytest
import torch
from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet, resnet50
from torchvision.ops import FrozenBatchNorm2d

from detkit.backbones import ResNetBackbone, SmallBackbone
from detkit.detectors import Detector, Preprocess, detr
from detkit.layers.position import LearnedPositions
from detkit.structures import Images
from detkit.weights.facebook import detr_from_facebook, to_facebook_detr

D, HEADS = 16, 4
SIZES = torch.tensor([[64, 96], [40, 72]])


class Rows(nn.Module):
    """The learned positions, under the names they have in the release."""

    def __init__(self) -> None:
        super().__init__()
        self.row_embed, self.col_embed = nn.Embedding(50, D // 2), nn.Embedding(50, D // 2)

    def forward(self, inside: Tensor) -> Tensor:
        height, width = inside.shape[1:]
        columns, rows = self.col_embed.weight[:width], self.row_embed.weight[:height]
        return torch.stack([torch.stack([torch.cat((x, y)) for x in columns]) for y in rows]).permute(2, 0, 1)[None]


class Waves(nn.Module):
    """Sines and cosines, cell by cell: y first, both scaled to 2 pi at the last cell inside the image."""

    def forward(self, inside: Tensor) -> Tensor:
        found = torch.zeros(len(inside), D, *inside.shape[1:], dtype=torch.float64)
        for image, mask in enumerate(inside.tolist()):
            for y, row in enumerate(mask):
                for x in range(len(row)):
                    column = [mask[i][x] for i in range(len(mask))]
                    for axis, line, at in ((0, column, y), (1, row, x)):
                        angle = sum(line[: at + 1]) / (sum(line) + 1e-6) * 2 * math.pi
                        for i in range(D // 2):
                            wave = angle / 10000 ** (2 * (i // 2) / (D // 2))
                            found[image, axis * D // 2 + i, y, x] = math.cos(wave) if i % 2 else math.sin(wave)
        return found


class Reference(nn.Module):
    """DETR as its paper draws it (figure 10), of torch's layers, under the release's keys."""

    def __init__(self, backbone: ResNet, *, learned: bool = False, norm_first: bool = False) -> None:
        super().__init__()
        first = nn.Module()
        first.body = IntermediateLayerGetter(backbone, {"layer4": "0"})
        self.backbone = nn.Sequential(first, Rows() if learned else Waves())
        settings = {"d_model": D, "nhead": HEADS, "dim_feedforward": 24, "dropout": 0.0}
        self.transformer = nn.Module()
        self.transformer.encoder, self.transformer.decoder = nn.Module(), nn.Module()
        self.transformer.encoder.layers = nn.ModuleList([nn.TransformerEncoderLayer(**settings) for _ in range(2)])
        self.transformer.decoder.layers = nn.ModuleList([nn.TransformerDecoderLayer(**settings) for _ in range(3)])
        self.transformer.decoder.norm = nn.LayerNorm(D)
        if norm_first:
            self.transformer.encoder.norm = nn.LayerNorm(D)
        self.norm_first = norm_first
        self.input_proj, self.query_embed = nn.Conv2d(backbone.fc.in_features, D, 1), nn.Embedding(6, D)
        self.class_embed, self.bbox_embed = nn.Linear(D, 4), nn.Module()
        self.bbox_embed.layers = nn.ModuleList([nn.Linear(D, D), nn.Linear(D, D), nn.Linear(D, 4)])

    def forward(self, pixels: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
        cells = self.input_proj(self.backbone[0].body(pixels)["0"])
        mask = (torch.arange(pixels.shape[2]) < sizes[:, :1])[:, :, None]
        mask = (mask & (torch.arange(pixels.shape[3]) < sizes[:, 1:])[:, None])[None].float()
        inside = nn.functional.interpolate(mask, size=cells.shape[-2:])[0].bool()
        where = self.backbone[1](inside).expand_as(cells).flatten(2).permute(2, 0, 1)
        hidden, memory = ~inside.flatten(1), cells.flatten(2).permute(2, 0, 1)
        for layer in self.transformer.encoder.layers:
            memory = self.encode(layer, memory, where, hidden)
        memory = self.transformer.encoder.norm(memory) if self.norm_first else memory
        queries = self.query_embed.weight[:, None].expand(-1, len(pixels), -1)
        found, keys = torch.zeros_like(queries), memory + where
        for layer in self.transformer.decoder.layers:
            found = self.decode(layer, found, queries, memory, keys, hidden)
        found = self.transformer.decoder.norm(found).transpose(0, 1)
        first, second, third = self.bbox_embed.layers
        return self.class_embed(found), third(second(first(found).relu()).relu()).sigmoid()

    def encode(self, layer, memory, where, hidden) -> Tensor:
        def look(x: Tensor) -> Tensor:
            return layer.self_attn(x + where, x + where, x, key_padding_mask=hidden)[0]

        memory = self.step(memory, layer.norm1, look)
        return self.step(memory, layer.norm2, lambda x: layer.linear2(layer.linear1(x).relu()))

    def decode(self, layer, found, queries, memory, keys, hidden) -> Tensor:
        def look(x: Tensor) -> Tensor:
            return layer.multihead_attn(x + queries, keys, memory, key_padding_mask=hidden)[0]

        found = self.step(found, layer.norm1, lambda x: layer.self_attn(x + queries, x + queries, x)[0])
        found = self.step(found, layer.norm2, look)
        return self.step(found, layer.norm3, lambda x: layer.linear2(layer.linear1(x).relu()))

    def step(self, x: Tensor, norm: nn.Module, change) -> Tensor:
        return x + change(norm(x)) if self.norm_first else norm(x + change(x))


def scrambled(model: Reference) -> Reference:
    """In float64, with norms and biases that are not what they start as, and queries that differ."""
    for name, values in model.double().state_dict().items():
        if "body" in name and values.ndim == 1:
            nn.init.uniform_(values, *((0.5, 1.5) if name.endswith(("weight", "var")) else (-0.3, 0.3)))
        elif "body" not in name:
            norm = float("norm" in name and name.endswith("weight"))
            nn.init.normal_(values, mean=norm, std=0.2 if values.ndim == 1 else 2.0 if "query" in name else 0.4)
    return model.eval()


def small() -> ResNet:
    return ResNet(BasicBlock, [1, 1, 1, 1], norm_layer=FrozenBatchNorm2d)


def dilated() -> ResNet:
    dilation = [False, False, True]
    return ResNet(
        Bottleneck,
        [1, 1, 1, 2],
        norm_layer=FrozenBatchNorm2d,
        replace_stride_with_dilation=dilation,
        width_per_group=16,
    )


CASES = {
    "a small one": (small, {}, {}),
    "learned positions": (small, {"learned": True}, {}),
    "layers that normalize first": (small, {"norm_first": True}, {}),
    "DC5": (dilated, {}, {"dilated": True}),
}


@pytest.mark.slow
@pytest.mark.parametrize(("backbone", "settings", "given"), CASES.values(), ids=CASES)
def test_a_checkpoint_finds_the_same_and_goes_back_bit_for_bit(backbone, settings, given):
    torch.manual_seed(0)
    model = scrambled(Reference(backbone(), **settings))
    state = model.state_dict()
    detector = detr_from_facebook(state, heads=HEADS, **given).eval()
    pixels = torch.rand(2, 3, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        logits, boxes = model(pixels, SIZES)
        found = detector.objects(detector.trunk(pixels), Images(pixels, SIZES), None)
    torch.testing.assert_close(found.logits[-1], logits, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found.boxes[-1], boxes, rtol=1e-10, atol=1e-10)
    assert logits.std(1).min() > 5e-3  # queries differ
    back = to_facebook_detr(detector)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], value) for key, value in state.items())


@pytest.mark.slow
def test_the_published_size_has_the_keys_of_the_release():
    stage = detr(91).objects
    backbone = ResNetBackbone(resnet50(weights=None), levels=("layer4",), frozen_norm=True)
    state = to_facebook_detr(Detector(backbone, preprocess=Preprocess(800, max_size=1333), found=stage))
    assert state["transformer.encoder.layers.5.self_attn.in_proj_weight"].shape == (768, 256)
    assert state["transformer.decoder.layers.0.multihead_attn.in_proj_bias"].shape == (768,)
    assert state["transformer.decoder.layers.3.norm3.weight"].shape == (256,)
    assert state["bbox_embed.layers.2.bias"].shape == (4,)
    assert state["backbone.0.body.layer4.2.bn3.running_var"].shape == (2048,)
    assert "transformer.encoder.norm.weight" not in state
    # 6 layers of 12 and of 18, the last norm, projection, queries, 2 + 6 of the head; 53 convolutions with their norms
    assert len(state) == 6 * 12 + 6 * 18 + 2 + 2 + 1 + 8 + 53 * 5
    detector = detr_from_facebook(state)
    assert detector.objects.encoder.encoder.layers[0].attention.heads == 8
    trained = sum(parameter.numel() for parameter in detector.parameters() if parameter.requires_grad)
    assert trained == 41_302_368  # the release prints this number of parameters
    assert detector.training
    assert detector.objects.encoder.encoder.layers[0].feed_forward.dropout.p == 0.1


def test_learned_positions_keep_their_number():
    model = Reference(small(), learned=True)
    model.backbone[1].row_embed = nn.Embedding(30, D // 2)
    positions = detr_from_facebook(model.state_dict(), heads=HEADS).objects.encoder.positions
    assert isinstance(positions, LearnedPositions)
    assert (positions.rows.num_embeddings, positions.columns.num_embeddings) == (30, 50)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state | {"mask_head.lay1.weight": torch.zeros(1)}, "there is no rule for the key 'mask_head"),
        (lambda state: {k: v for k, v in state.items() if k != "query_embed.weight"}, "'objects.queries.weight'"),
        (lambda state: {k: v for k, v in state.items() if "class_embed.weight" not in k}, "Missing key"),
        (lambda state: {k: v for k, v in state.items() if ".body." not in k}, "the backbone has 0 stages of residual"),
        (lambda state: state | {"backbone.0.body.layer2.0.conv2.weight": torch.zeros(128, 128, 1, 1)}, "size mismatch"),
    ],
    ids=["masks", "no queries", "no classes", "no backbone", "another shape"],
)  # fmt: skip
def test_what_is_no_detr_is_refused(change, message):
    state = change(Reference(small()).state_dict())
    with pytest.raises(ValueError, match=f"(?s)^detr_from_facebook: .*{message}"):
        detr_from_facebook(state, heads=HEADS)


def test_heads_that_do_not_divide_the_channels_are_refused():
    with pytest.raises(ValueError, match="detr_from_facebook: Attention: heads=5 must divide channels=16"):
        detr_from_facebook(Reference(small()).state_dict(), heads=5)


def test_detectors_on_other_trunks_are_refused():
    with pytest.raises(ValueError, match="to_facebook_detr: the trunk is a SmallBackbone; allowed is a ResNetBackbone"):
        to_facebook_detr(detr(2, backbone=SmallBackbone()))
