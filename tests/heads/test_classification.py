"""The class head that all levels share."""

import pytest
import torch
from torch import nn

from detkit.heads import ClassificationHead, flatten_levels


def test_one_tower_and_one_convolution_serve_every_level():
    tower = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())
    head = ClassificationHead(4, 3, num_classes=5, tower=tower)
    features = [torch.randn(2, 4, 6, 8), torch.randn(2, 4, 3, 4)]
    expected = flatten_levels([head.logits(tower(level)) for level in features], 5)
    assert head(features).shape == (2, (48 + 12) * 3, 5)
    assert torch.equal(head(features), expected)
    torch.testing.assert_close(head(features[1:]), head(features)[:, 144:], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("prior", [0.01, 0.3])
def test_the_prior_is_every_score_at_the_start(prior):
    head = ClassificationHead(4, 2, num_classes=3, prior=prior)
    scores = head([torch.zeros(1, 4, 2, 2)]).sigmoid()
    torch.testing.assert_close(scores, torch.full((1, 8, 3), prior), rtol=1e-5, atol=1e-6)


def test_without_prior_logits_start_at_zero():
    assert (ClassificationHead(4, 2, num_classes=3)([torch.zeros(1, 4, 2, 2)]) == 0).all()


@pytest.mark.parametrize("prior", [0.0, 1.0, -0.1, float("nan")])
def test_a_prior_that_is_no_probability_is_refused(prior):
    with pytest.raises(ValueError, match=rf"ClassificationHead: prior={prior}.*\(0, 1\)"):
        ClassificationHead(4, 2, num_classes=3, prior=prior)


def test_every_parameter_gets_a_gradient():
    head = ClassificationHead(4, 2, num_classes=3, tower=nn.Conv2d(4, 4, 1), prior=0.01)
    head([torch.randn(1, 4, 3, 3)]).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in head.parameters())


@pytest.mark.parametrize("counts", [{"num_classes": 0}, {"num_classes": 2, "per_cell": 0}])
def test_counts_below_one_are_named(counts):
    settings = {"per_cell": 1} | counts
    with pytest.raises(ValueError, match=r"^ClassificationHead: .*=0 .*1"):
        ClassificationHead(4, **settings)
