"""Classifiers of label sets: linear, or with hidden layers, of which the last gives neural codes."""

import torch
from torch import Tensor, nn

from detkit.heads import EmbeddingHead


def classifier(hidden: tuple[int, ...], dropout: float, features: int, frequencies: Tensor) -> nn.Sequential:
    """Codes of the last hidden layer, and logits; without hidden layers the features are the codes.

    Logits start at the classes' frequencies: from 0, small steps of a bias alone would not reach those of rare classes.
    """
    last = nn.Linear(hidden[-1] if hidden else features, len(frequencies))
    with torch.no_grad():
        last.bias.copy_(frequencies.clamp(min=1e-4).logit())
    if not hidden:
        return nn.Sequential(nn.Identity(), last)
    codes = EmbeddingHead(features, hidden[-1], hidden=hidden[:-1], dropout=dropout, rectified=True)
    return nn.Sequential(codes, nn.Dropout(dropout), last)
