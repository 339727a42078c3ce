"""Chains of stages, and the published nets that are nothing more."""

import pytest
import torch
from torch import nn

from detkit.backbones import SequentialBackbone, ssd7_backbone, tiny_ssd_backbone


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_each_stage_reads_the_one_before():
    stages = [nn.Conv2d(3, 4, 2, 2), nn.Conv2d(4, 5, 2, 2)]
    backbone = SequentialBackbone(stages, out_channels=[4, 5], strides=[2, 4])
    images = torch.rand(1, 3, 8, 8)
    first, second = backbone(images)
    assert torch.equal(first, stages[0](images))
    assert torch.equal(second, stages[1](first))


def test_channels_and_strides_are_inferred_where_they_are_not_given():
    stages = [nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4)), nn.AvgPool2d(3, 4, 1), nn.Conv2d(4, 7, 1)]
    backbone = SequentialBackbone([stage.double() for stage in stages])
    assert backbone.out_channels == (4, 4, 7)
    assert backbone.strides == (2, 8, 8)
    assert backbone.stages[0][1].num_batches_tracked == 0


@pytest.mark.parametrize("given", [{"out_channels": [4]}, {"strides": [4]}])
def test_channels_and_strides_are_given_together(given):
    with pytest.raises(ValueError, match="SequentialBackbone: give both out_channels and strides"):
        SequentialBackbone([nn.Conv2d(3, 4, 4, 4)], **given)


def test_stages_and_declarations_must_be_as_many():
    with pytest.raises(ValueError, match=r"got 1 stages but out_channels \(4, 5\)"):
        SequentialBackbone([nn.Identity()], out_channels=[4, 5], strides=[2, 4])


def test_tiny_ssd_has_the_parameters_of_its_layers():
    blocks = [(3, 16), (16, 32), (32, 64), (64, 128), (128, 128), (128, 128)]
    # Two 3 x 3 convolutions with bias, each with a batch norm of two parameters.
    expected = sum(9 * before * after + 9 * after * after + 2 * after + 4 * after for before, after in blocks)
    assert parameters(tiny_ssd_backbone()) == expected


@pytest.mark.parametrize(("size", "cells"), [((300, 480), 2923), ((224, 224), 1038), ((300, 300), 1790)])
@pytest.mark.slow
def test_ssd7_has_the_published_number_of_cells(size, cells):
    """Four anchors a cell: 11,692, 4,152 and 7,160 anchors."""
    with torch.no_grad():
        levels = ssd7_backbone()(torch.rand(2, 3, *size))
    assert sum(level.shape[2] * level.shape[3] for level in levels) == cells


def test_ssd7_has_the_published_number_of_parameters():
    """213,232 with the predictors of five classes: four boxes of 6 + 4 channels, 3 x 3 with bias, on each level."""
    backbone = ssd7_backbone()
    predictors = sum((9 * channels + 1) * 4 * (6 + 4) for channels in backbone.out_channels)
    assert parameters(backbone) + predictors == 213_232
    statistics = [buffer.numel() for name, buffer in backbone.named_buffers() if "running" in name]
    assert sum(statistics) == 672


def test_ssd7_norms_have_the_settings_of_keras():
    norms = [module for module in ssd7_backbone().modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 7
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-3, 0.01)}
