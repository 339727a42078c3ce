"""Detectors without anchors, by queries and by language, export with dynamic sizes and find what they find eagerly."""

from collections.abc import Callable

import pytest
import torch
from exported import FromTensors, images
from thorough import mostly
from torch import nn
from torch.export import Dim

from detkit.detectors.detector import Detector
from detkit.detectors.recipes.d_fine import small_d_fine
from detkit.detectors.recipes.deformable_detr import small_deformable_detr
from detkit.detectors.recipes.detr import small_detr
from detkit.detectors.recipes.pix2seq import small_pix2seq

SIZES = ((2, (96, 128)), (3, (130, 90)), (5, (64, 200)))
DETECTORS: dict[str, Callable[[], Detector]] = {
    "queries": lambda: small_detr(3, size=(96, 128), channels=32, depth=1, queries=5),
    "cells": lambda: small_deformable_detr(3, size=(96, 128), channels=32, depth=1, queries=5),
    "edges": lambda: small_d_fine(3, size=(96, 128), channels=32, depth=1, queries=5),
    "language": lambda: small_pix2seq(3, size=(96, 128), channels=16, layers=1, max_objects=2, bins=20),
}


@pytest.mark.parametrize("name", mostly(DETECTORS, ("queries", "cells"), "what has parts of others was NOT exported"))
def test_a_detector_exports_with_dynamic_batch_height_and_width(name):
    torch.manual_seed(0)
    torch.compiler.reset()
    model = FromTensors(DETECTORS[name]().eval())
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            nn.init.normal_(parameter, std=0.3)  # what is said must depend on the image, or ties hide what is wrong
    dynamic = ({0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}, {0: Dim.DYNAMIC})
    program = torch.export.export(model, tuple(images(2, (96, 128))[:2]), dynamic_shapes=dynamic).module()
    with torch.no_grad():
        for count, size in SIZES:
            batch = images(count, size)
            expected = model(*batch[:2])
            assert expected[3].any()
            shares = expected[0] / batch.sizes.flip(-1).repeat(1, 2)[:, None]
            assert shares.std(dim=0).max() > 0.01  # what is found follows the image
            for one, other in zip(program(*batch[:2]), expected, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
