"""The small residual net: sizes, choices, and that it learns."""

from functools import partial

import pytest
import torch
from torch import nn

from detkit.backbones import SmallBackbone


def test_the_default_has_the_four_usual_strides():
    backbone = SmallBackbone()
    assert (backbone.out_channels, backbone.strides) == ((32, 64, 128, 256), (4, 8, 16, 32))
    assert sum(parameter.numel() for parameter in backbone.parameters()) < 1_300_000


def test_a_finer_stem_halves_every_stride():
    assert SmallBackbone(stem_stride=2).strides == (2, 4, 8, 16)


def test_stages_behind_the_last_level_are_not_built():
    backbone = SmallBackbone((8, 16, 32, 64), levels=(0, 2))
    assert (backbone.out_channels, backbone.strides) == ((8, 32), (4, 16))
    assert len(backbone.stages) == 3


def test_more_blocks_make_it_deeper_at_the_same_sizes():
    shallow, deep = SmallBackbone((8, 16)), SmallBackbone((8, 16), blocks=3)
    images = torch.rand(1, 3, 33, 40)
    assert [level.shape for level in shallow(images)] == [level.shape for level in deep(images)]
    assert [len(stage) for stage in shallow.stages] == [1, 1]
    assert [len(stage) for stage in deep.stages] == [3, 3]


def test_group_norm_replaces_every_batch_norm():
    backbone = SmallBackbone((8, 16, 32), norm=partial(nn.GroupNorm, 4))
    kinds = {type(module) for module in backbone.modules()}
    assert nn.GroupNorm in kinds
    assert nn.BatchNorm2d not in kinds


def test_activations_keep_their_scale_through_the_depth_at_the_start():
    torch.manual_seed(0)
    with torch.no_grad():
        levels = SmallBackbone(blocks=3)(torch.randn(4, 3, 128, 128))
    scales = [level.std().item() for level in levels]
    assert max(scales) < 4 * min(scales)


def test_it_learns_to_tell_two_textures_apart():
    torch.manual_seed(0)
    backbone, head = SmallBackbone((8, 16)), nn.Linear(16, 2)
    stripes = torch.arange(32) % 4 < 2
    images = torch.stack([stripes.float().expand(3, 32, 32), stripes.float()[:, None].expand(3, 32, 32)] * 4)
    labels = torch.tensor([0, 1] * 4)
    optimizer = torch.optim.SGD([*backbone.parameters(), *head.parameters()], lr=0.1, momentum=0.9)
    losses = []
    for _ in range(15):
        logits = head(backbone(images + 0.3 * torch.randn(8, 3, 32, 32))[-1].mean((2, 3)))
        loss = nn.functional.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 < losses[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"levels": ()}, r"levels=\(\) must be ascending"),
        ({"levels": (1, 0)}, r"levels=\(1, 0\)"),
        ({"levels": (1, 1)}, r"levels=\(1, 1\)"),
        ({"levels": (-1,)}, r"levels\[0\]=-1"),
        ({"levels": (2,)}, r"indices into channels=\(8, 16\)"),
        ({"stem_stride": 8}, "stem_stride=8 must be 2 or 4"),
        ({"blocks": 0}, "blocks=0 must be at least 1"),
    ],
)
def test_settings_that_cannot_be_built_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        SmallBackbone((8, 16), **settings)
