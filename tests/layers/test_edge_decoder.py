"""EdgeDecoder: every layer adds to the distributions, boxes are relative to the first, and where gradients go."""

import pytest
import torch
from torch import nn

from detkit.boxes import EdgeCoder, cxcywh_to_xyxy, xyxy_to_cxcywh
from detkit.heads import EdgeHead
from detkit.layers import BoxPositions, DeformableAttention, DeformableDecoderLayer, EdgeDecoder, GatedResidual

D, SHAPES = 8, [(3, 4), (2, 2)]


def decoder(depth: int = 2) -> EdgeDecoder:
    torch.manual_seed(0)
    layers = [
        DeformableDecoderLayer(
            *(D, 2),
            hidden=16,
            memory_attention=DeformableAttention(D, 2, levels=2, projected=False),
            memory_residual=GatedResidual(D),
        )
        for _ in range(depth)
    ]
    heads = [EdgeHead(D, num_classes=3, bins=6) for _ in range(depth)]
    for head in heads:
        for part in (head.edges[-1], head.quality.net[-1]):
            nn.init.normal_(part.weight)
    built = EdgeDecoder(
        layers, heads, positions=BoxPositions(D), initial=nn.Linear(D, 4), coder=EdgeCoder(bins=6), edge=1e-5
    )
    return built.eval()


def given() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(2, 5, D), torch.rand(2, 5, 4) * 0.4 + 0.3, torch.randn(2, 16, D)


def test_layers_follow_each_other_as_in_the_paper():
    built, (embeddings, boxes, memory) = decoder(), given()
    found = built(embeddings, boxes, memory, SHAPES)
    first, second = built.layers
    one = first(embeddings, boxes[:, :, None], memory, SHAPES, positions=built.positions(boxes))
    initial = (built.initial(one) + boxes.logit()).sigmoid()
    torch.testing.assert_close(found.first_boxes, initial)
    torch.testing.assert_close(found.first_logits, built.heads[0].logits(one))
    total = built.heads[0].edges(one)
    corners = cxcywh_to_xyxy(initial)
    middle = xyxy_to_cxcywh(built.coder.decode(total, corners))
    two = second(one, middle[:, :, None], memory, SHAPES, positions=built.positions(middle))
    total = built.heads[1].edges(two + one) + total
    torch.testing.assert_close(found.distributions[1], total)
    torch.testing.assert_close(found.boxes[1], xyxy_to_cxcywh(built.coder.decode(total, corners)))
    torch.testing.assert_close(found.logits[1], built.heads[1].logits(two) + built.heads[1].quality(total))


def test_the_last_distributions_teach_the_heads_before_but_boxes_do_not():
    built, (embeddings, boxes, memory) = decoder(), given()
    found = built(embeddings, boxes, memory, SHAPES)
    gradient = torch.autograd.grad(found.distributions[-1].sum(), built.heads[0].edges[-1].weight, retain_graph=True)[0]
    assert gradient.abs().sum() > 0
    initial = torch.autograd.grad(found.boxes[-1].sum(), built.initial.weight, allow_unused=True)[0]
    assert initial is None


def test_gates_start_at_half_of_both():
    gate, embeddings = GatedResidual(D), torch.randn(1, 3, D)
    expected = gate.norm(embeddings / 2 + embeddings.square() / 2)
    torch.testing.assert_close(gate(embeddings, torch.square), expected)


def test_shares_scale_what_is_attended_around():
    built, (embeddings, boxes, memory) = decoder(1), given()
    half = torch.full((2, 1, 2), 0.5)
    seen = []
    built.layers[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    built(embeddings, boxes, memory, SHAPES, shares=half)
    torch.testing.assert_close(seen[0], boxes[:, :, None] / 2)


def test_there_is_one_head_for_each_layer():
    with pytest.raises(ValueError, match="EdgeDecoder: 1 layers and 0 heads"):
        EdgeDecoder(
            list(decoder(1).layers), [], positions=BoxPositions(D), initial=nn.Linear(D, 4), coder=EdgeCoder(bins=6)
        )
