"""Backbones that compute their insides twice: the same training, from less memory."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torchvision.models import mobilenet_v3_small, resnet18

from detkit.backbones import (
    ResNetBackbone,
    SmallBackbone,
    SSDVGGBackbone,
    TorchvisionBackbone,
    recompute_backbone,
    tiny_ssd_backbone,
    vgg_features,
)
from detkit.detectors import fpn_ssd
from detkit.structures import Images, pad_targets

BACKBONES = {
    "resnet": lambda: ResNetBackbone(resnet18(weights=None), trainable_layers=3),
    "frozen resnet": lambda: ResNetBackbone(resnet18(weights=None), frozen_norm=True, trainable_layers=2),
    "small": lambda: SmallBackbone((8, 16)),
    "sequential": tiny_ssd_backbone,
    "vgg": lambda: SSDVGGBackbone(vgg_features((1, 1, 1, 1, 1))),
    "torchvision": lambda: TorchvisionBackbone(mobilenet_v3_small(weights=None), nodes=["features.3", "features.8"]),
}


def kept_bytes(run):
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = run()
    return result, sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.slow
def test_a_step_gives_the_same_gradients_and_statistics_and_keeps_less(name):
    torch.manual_seed(0)
    plain = BACKBONES[name]()
    other = recompute_backbone(copy.deepcopy(plain))
    assert other.state_dict().keys() == plain.state_dict().keys()
    images, kept = torch.rand(2, 3, 64, 64), {}
    for backbone in (plain, other):
        for seed in range(2):
            torch.manual_seed(seed)
            levels, kept[backbone] = kept_bytes(lambda model=backbone: model(images))
            sum(level.square().mean() for level in levels).backward()
    assert kept[other] < 0.7 * kept[plain]
    for (key, theirs), ours in zip(plain.named_parameters(), other.parameters(), strict=True):
        assert (theirs.grad is None) == (ours.grad is None), key
        if theirs.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, msg=key)
    for key, value in plain.named_buffers():
        assert torch.equal(value, other.get_buffer(key)), key


def detector_and_batch():
    torch.manual_seed(0)
    target = {"boxes": torch.tensor([[8.0, 8, 40, 50]]), "labels": torch.tensor([1])}
    return (
        fpn_ssd(3, size=(64, 96)),
        Images(torch.rand(2, 3, 64, 96), torch.tensor([[64, 96]] * 2)),
        pad_targets([target, target]),
    )


@pytest.mark.slow
def test_a_detector_trains_the_same_also_in_data_parallel_processes(tmp_path):
    plain, images, targets = detector_and_batch()
    other = recompute_backbone(copy.deepcopy(plain))
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        sum(DistributedDataParallel(other)(images, targets).values()).backward()
    finally:
        torch.distributed.destroy_process_group()
    sum(plain(images, targets).values()).backward()
    for (key, theirs), ours in zip(plain.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, msg=key)


@pytest.mark.slow(4)
def test_it_compiles_as_a_whole_and_counts_each_batch_once():
    torch.manual_seed(0)
    plain = SmallBackbone((4, 8))
    other = recompute_backbone(copy.deepcopy(plain))
    images = torch.rand(2, 3, 32, 32)
    compiled = torch.compile(other, backend="aot_eager", fullgraph=True)
    for model in (plain, compiled):
        sum(level.square().mean() for level in model(images)).backward()
    for (key, theirs), ours in zip(plain.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, msg=key)
    for key, value in plain.named_buffers():
        torch.testing.assert_close(other.get_buffer(key), value, msg=key)


def test_it_can_be_taken_back_and_is_not_used_without_gradients():
    backbone = recompute_backbone(SmallBackbone((8,)))
    with torch.no_grad():
        backbone(torch.rand(1, 3, 16, 16))
    assert not recompute_backbone(backbone, on=False).recomputes


def test_a_module_without_a_backbone_is_refused():
    with pytest.raises(ValueError, match="recompute_backbone: module is a Linear without a Backbone"):
        recompute_backbone(nn.Linear(1, 1))
