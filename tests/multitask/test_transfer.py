"""TransferTrunk: frozen encoders help, and stay as they are."""

import copy

import pytest
import torch
from strategies import assert_refused

from detkit.backbones import SmallBackbone
from detkit.detectors import Detector, Preprocess, segmentation_stage
from detkit.multitask import TransferTrunk
from detkit.structures import pad_targets


def trunk(**settings):
    torch.manual_seed(0)
    helpers = {name: SmallBackbone((4, 6)) for name in ("boxes", "class")}
    return TransferTrunk(SmallBackbone((4, 6)), helpers, branch="masks", **settings)


IMAGES = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def trained(model, steps=6):
    """The losses of a few steps of segmentation."""
    stage = segmentation_stage(2, model.out_channels, branch="masks")
    detector = Detector(model, preprocess=Preprocess(None), segmentation=stage).train()
    batch, _ = detector.preprocess(list(IMAGES))
    truth = [
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0), "segmentation": (one[0] > 0.5).long()} for one in IMAGES
    ]
    optimizer = torch.optim.AdamW(detector.parameters(), 0.01)
    losses = []
    for _ in range(steps):
        loss = detector(batch, pad_targets(truth))["segmentation.segmentation"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_training_leaves_the_auxiliaries_as_they_were_but_teaches_the_rest(depth):
    """Parameters and the statistics of their batch norms, to the last bit; decay would move what has a gradient."""
    model = trunk(depth=depth)
    before = copy.deepcopy(model.state_dict())
    losses = trained(model)
    assert losses[-1] < losses[0]
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]) == key.startswith("auxiliaries."), key
    assert all(part.grad is None for part in model.auxiliaries.parameters())
    assert all(part.grad is not None for part in model.parameters() if part.requires_grad)


def test_they_stay_in_evaluation_mode_and_without_gradient_whoever_asks():
    model = trunk().train()
    assert model.training
    assert model.backbone.training
    assert not any(part.training for part in model.auxiliaries.modules())
    model.requires_grad_(True)
    model(IMAGES)["masks"][-1].sum().backward()
    assert all(part.grad is None for part in model.auxiliaries.parameters())


def test_the_branches_are_the_fused_one_and_those_of_the_auxiliaries():
    model = trunk().eval()
    features = model(IMAGES)
    assert list(features) == ["masks", "boxes", "class"]
    own = model.backbone(IMAGES)
    assert torch.equal(features["masks"][0], own[0])
    assert not torch.equal(features["masks"][1], own[1])
    for name in ("boxes", "class"):
        expected = model.auxiliaries[name](IMAGES)
        assert all(torch.equal(one, other) for one, other in zip(features[name], expected, strict=True))
        assert not features[name][-1].requires_grad


def test_without_an_auxiliary_the_output_is_another():
    model = trunk().eval()
    whole = model(IMAGES)["masks"][-1]
    for name in ("boxes", "class"):
        blind = copy.deepcopy(model)
        for part in blind.auxiliaries[name].parameters():
            part.data.zero_()
        assert not torch.allclose(blind(IMAGES)["masks"][-1], whole)


def test_depth_0_is_a_1_x_1_convolution_of_all_side_by_side():
    model = trunk(depth=0).eval()
    maps = [model.backbone(IMAGES)[-1], *(part(IMAGES)[-1] for part in model.auxiliaries.values())]
    torch.testing.assert_close(model(IMAGES)["masks"][-1], model.fuse(torch.cat(maps, 1)))
    assert model.fuse[0].kernel_size == (1, 1)


def test_what_does_not_fit_is_refused():
    own, other = SmallBackbone((4, 6)), SmallBackbone((4, 8))
    for helpers in ({}, {"masks": own}, {"boxes": other}, {"boxes": SmallBackbone((4, 6), stem_stride=2)}):
        assert_refused("TransferTrunk: branch='masks' and auxiliaries", TransferTrunk, own, helpers, branch="masks")
    said = "TransferTrunk: an auxiliary shares parameters with the backbone"
    assert_refused(said, TransferTrunk, own, {"boxes": own}, branch="masks")
    assert all(one.requires_grad for one in own.parameters())
    dotted = {"a.b": copy.deepcopy(own)}
    assert_refused("TransferTrunk: branches are called ['a.b']", TransferTrunk, own, dotted, branch="masks")
