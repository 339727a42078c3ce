"""KeypointHead: torchvision's layers, sizes and first weights."""

import pytest
import torch
from torch import nn
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor

from detkit.heads.keypoint import KeypointHead


def test_a_seed_gives_the_weights_and_the_answers_of_torchvisions_head():
    torch.manual_seed(3)
    head = KeypointHead(6, 5, channels=(8, 8, 8))
    torch.manual_seed(3)
    expected = nn.Sequential(KeypointRCNNHeads(6, (8, 8, 8)), KeypointRCNNPredictor(8, 5))
    for one, two in zip(head.state_dict().values(), expected.state_dict().values(), strict=True):
        assert torch.equal(one, two)
    pooled = torch.randn(4, 6, 7, 7)
    torch.testing.assert_close(head(pooled), expected(pooled), rtol=1e-6, atol=1e-6)


def test_the_published_head_has_eight_layers_of_512():
    head = KeypointHead(256, 17)
    assert [block[0].out_channels for block in head.tower] == [512] * 8
    assert head.upsample.weight.shape == (512, 17, 4, 4)


def test_heatmaps_are_four_times_as_fine_as_the_pooled_regions_and_no_regions_give_none():
    head = KeypointHead(4, 3, channels=(5,))
    assert head(torch.zeros(2, 4, 14, 14)).shape == (2, 3, 56, 56)
    assert head(torch.zeros(0, 4, 14, 14)).shape == (0, 3, 56, 56)
    assert KeypointHead(4, 3, channels=())(torch.zeros(2, 4, 14, 14)).shape == (2, 3, 56, 56)


@pytest.mark.parametrize(("arguments", "settings"), [((0, 3), {}), ((4, 0), {}), ((4, 3), {"channels": (8, 0)})])
def test_counts_below_one_are_refused(arguments, settings):
    with pytest.raises(ValueError, match=r"^KeypointHead: .*=0 must be at least 1"):
        KeypointHead(*arguments, **settings)
