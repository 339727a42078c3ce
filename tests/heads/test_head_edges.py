"""D-FINE's head: even distributions at the start, what it adds to, and how its quality reads them."""

import torch
from torch import nn

from detkit.heads import EdgeHead, QualityEstimator


def test_at_the_start_distributions_are_even_and_quality_is_nothing():
    head = EdgeHead(8, num_classes=3, bins=6)
    plain, logits, distributions = head(torch.randn(2, 5, 8), torch.randn(2, 5, 8))
    assert not distributions.any()
    assert torch.equal(plain, logits)
    assert head.logits.bias.sigmoid().allclose(torch.tensor(0.01))


def test_distributions_are_added_to_those_before_and_read_both_embeddings():
    head = EdgeHead(8, num_classes=3, bins=6)
    nn.init.normal_(head.edges[-1].weight)
    embeddings, before, total = torch.randn(2, 5, 8), torch.randn(2, 5, 8), torch.randn(2, 5, 28)
    found = head(embeddings, before, total)[2]
    torch.testing.assert_close(found, head.edges(embeddings + before) + total)


def test_quality_reads_the_highest_shares_of_each_edge_and_their_mean():
    torch.manual_seed(0)
    estimator = QualityEstimator(bins=6, top=2, hidden=4)
    for parameter in estimator.parameters():
        nn.init.normal_(parameter)
    distributions = torch.randn(1, 1, 28)
    numbers = []
    for edge in distributions[0, 0].reshape(4, 7).softmax(-1).tolist():
        best = sorted(edge)[-2:][::-1]
        numbers += [*best, sum(best) / 2]
    torch.testing.assert_close(estimator(distributions)[0, 0], estimator.net(torch.tensor(numbers)))


def test_quality_is_added_to_every_class():
    head = EdgeHead(8, num_classes=3, bins=6)
    nn.init.constant_(head.quality.net[-1].bias, 2.0)
    plain, logits, _ = head(torch.randn(1, 1, 8), torch.zeros(1, 1, 8))
    torch.testing.assert_close(logits, plain + 2)
    assert "bins=6, top=4" in repr(head.quality)
