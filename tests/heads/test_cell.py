"""CellHead: Darknet's order of outputs, shared classes, and what it refuses."""

import pytest
import torch
from torch import nn

from detkit.heads import CellHead


def test_outputs_are_classes_then_confidences_then_boxes():
    head = CellHead(2, (1, 3), per_cell=2, num_classes=2)
    (last,) = head.layers
    nn.init.zeros_(last.weight)
    last.bias.data = torch.arange(36.0)
    logits, deltas, quality, _ = head([torch.zeros(1, 2, 1, 3)])
    assert logits[0].tolist() == [[0, 1], [0, 1], [2, 3], [2, 3], [4, 5], [4, 5]]  # a cell's predictors share them
    assert quality[0].tolist() == [6, 7, 8, 9, 10, 11]
    assert deltas[0].flatten().tolist() == list(range(12, 36))


def test_a_hidden_layer_leaks_and_drops():
    head = CellHead(2, (2, 2), per_cell=1, num_classes=1, hidden=16, dropout=0.25)
    kinds = [type(layer) for layer in head.layers]
    assert kinds == [nn.Linear, nn.LeakyReLU, nn.Dropout, nn.Linear]
    assert (head.layers[1].negative_slope, head.layers[2].p) == (0.1, 0.25)


def test_other_features_and_settings_are_refused():
    head = CellHead(2, (2, 3), per_cell=1, num_classes=1)
    for features in ([torch.zeros(1, 2, 3, 2)], [torch.zeros(1, 2, 2, 3)] * 2):
        with pytest.raises(ValueError, match=r"CellHead: features have shapes .*\(B, 2, 2, 3\)"):
            head(features)
    with pytest.raises(ValueError, match=r"CellHead: .*per_cell=0"):
        CellHead(2, (2, 3), per_cell=0, num_classes=1)
