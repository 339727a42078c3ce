"""ArcFace and Proxy-Anchor: their loops, pytorch-metric-learning's numbers, and what they refuse."""

import math

import metric_loops as loops
import pytest
import pytorch_metric_learning.losses as peers
import torch
from metric_loops import batch, hostile, rows_of
from strategies import unhooked

from detkit.retrieval import ArcFaceLoss, ProxyAnchorLoss, arcface, proxy_anchor_loss

PROXIES = batch(9, 2, seed=7)[0]
BATCHES = hostile()


@pytest.mark.parametrize("margin", [0.0, 0.5, 3.0])
@pytest.mark.parametrize("name", [name for name in BATCHES if "sets" not in name])
def test_arcface_is_its_loop(name, margin):
    embeddings, labels = BATCHES[name]
    embeddings = embeddings.clone().requires_grad_()
    found = arcface(embeddings, labels, PROXIES, margin=margin, scale=8.0)
    expected = loops.arcface(rows_of(embeddings, labels), PROXIES.numpy(), margin=margin, scale=8.0)
    assert found.item() == pytest.approx(expected, rel=1e-6, abs=1e-9)
    found.backward()
    assert torch.isfinite(embeddings.grad).all()


@pytest.mark.parametrize("name", BATCHES)
def test_proxy_anchor_is_its_loop(name):
    embeddings, labels = BATCHES[name]
    proxies = PROXIES[:4] if labels.ndim == 2 else PROXIES
    found = proxy_anchor_loss(embeddings, labels, proxies)
    assert found.item() == pytest.approx(loops.proxy_anchor(rows_of(embeddings, labels), proxies.numpy()), rel=1e-9)


def test_with_the_same_proxies_they_are_pytorch_metric_learnings():
    embeddings, labels = (values for values in batch(24, 5))
    embeddings = embeddings.float()
    theirs = peers.ArcFaceLoss(num_classes=5, embedding_size=5)
    found = arcface(embeddings, labels, theirs.W.T)
    assert found.item() == pytest.approx(theirs(embeddings, labels).item(), rel=1e-4)
    theirs = peers.ProxyAnchorLoss(num_classes=5, embedding_size=5)
    found = proxy_anchor_loss(embeddings, labels, theirs.proxies)
    assert found.item() == pytest.approx(theirs(embeddings, labels).item(), rel=1e-5)
    theirs = peers.ProxyNCALoss(num_classes=5, embedding_size=5)
    found = arcface(embeddings, labels, theirs.proxies, margin=0.0, scale=2.0)
    assert found.item() == pytest.approx(theirs(embeddings, labels).item(), rel=1e-5)


@pytest.mark.slow
def test_gradients_are_those_of_the_losses():
    embeddings, labels = batch(6, 4)
    inputs = embeddings.requires_grad_(), PROXIES.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda rows, proxies: arcface(rows, labels, proxies, scale=4.0), inputs)
    assert torch.autograd.gradcheck(lambda rows, proxies: proxy_anchor_loss(rows, labels, proxies, alpha=4.0), inputs)


def test_an_embedding_on_its_proxy_has_a_finite_gradient():
    rows = torch.eye(3).requires_grad_()
    arcface(rows, torch.arange(3), torch.eye(3)).backward()
    assert torch.isfinite(rows.grad).all()


@pytest.mark.parametrize("kind", [ArcFaceLoss, ProxyAnchorLoss])
def test_proxies_are_learned_and_padding_teaches_nothing(kind):
    torch.manual_seed(0)
    loss = kind(3, 5)
    embeddings, labels = batch(6, 3)
    loss(embeddings.float(), labels).backward()
    assert loss.proxies.grad.any()
    with pytest.raises(ValueError, match=f"{kind.__name__}: takes no references"):
        loss(embeddings.float(), labels, embeddings.float(), labels)
    assert set(loss.state_dict()) == {"proxies"}


@pytest.mark.parametrize(
    ("function", "labels", "message"),
    [
        (arcface, torch.tensor([0, 9]), r"arcface: labels\[1\]=9 must lie in 0..8"),
        (arcface, torch.zeros(2, 9), r"arcface: labels have shape \(2, 9\); allowed are whole numbers \(N,\)$"),
        (proxy_anchor_loss, torch.zeros(2, 4), r"labels have shape \(2, 4\).* or label sets \(N, 9\)"),
    ],
)
def test_labels_that_are_no_classes_are_refused(function, labels, message):
    with pytest.raises(ValueError, match=message):
        unhooked(function)(torch.ones(2, 5).double(), labels, PROXIES)


def test_the_margin_is_half_a_radian():
    assert ArcFaceLoss(2, 2).function.keywords["margin"] == pytest.approx(0.5, abs=1e-3)
    assert math.isclose(ArcFaceLoss(2, 2).function.keywords["scale"], 64)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
@pytest.mark.parametrize("loss", [arcface, proxy_anchor_loss])
def test_labels_of_any_whole_type_are_taken(loss, dtype):
    labels = torch.tensor([0, 1, 2])
    torch.testing.assert_close(
        unhooked(loss)(PROXIES[:3], labels.to(dtype), PROXIES), loss(PROXIES[:3], labels, PROXIES)
    )


@pytest.mark.parametrize("loss", [arcface, proxy_anchor_loss])
def test_shapes_that_do_not_fit_the_proxies_are_named(loss):
    labels, name = torch.tensor([0, 1, 2]), loss.__name__
    for embeddings, given, proxies, message in (
        (torch.ones(3, 5), labels, torch.ones(4, 6), r"embeddings have shape \(3, 5\) and proxies \(4, 6\)"),
        (torch.ones(5), labels, torch.ones(4, 5), r"embeddings have shape \(5,\)"),
        (torch.ones(3, 5), labels - 9, torch.ones(0, 5), "of one class at least"),
        (torch.ones(3, 5), labels[:2], torch.ones(4, 5), r"labels have shape \(2,\); there are 3 embeddings"),
    ):
        with pytest.raises(ValueError, match=f"{name}: {message}|{name}: .*{message}"):
            unhooked(loss)(embeddings, given, proxies)


@pytest.mark.parametrize("loss", [ArcFaceLoss(3, 8), ProxyAnchorLoss(3, 8)])
def test_embeddings_of_another_width_than_the_proxies_are_refused(loss):
    with pytest.raises(ValueError, match=r"embeddings have shape \(2, 4\) and proxies \(3, 8\); allowed"):
        unhooked(loss)(torch.rand(2, 4), torch.tensor([0, 1]))
