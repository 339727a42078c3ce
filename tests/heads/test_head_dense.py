"""DenseHead: parts of their own for classes, boxes and quality, put together."""

import pytest
import torch

from detkit.heads import ClassificationHead, DenseHead, FCOSHead, MultiBoxHead, RegressionHead

FEATURES = [torch.randn(2, 8, 4, 3), torch.randn(2, 8, 2, 1)]


def test_it_hands_out_what_its_parts_predict():
    classes, boxes = ClassificationHead(8, 2, num_classes=5), RegressionHead(8, 2)
    head = DenseHead(classes, boxes)
    logits, deltas, quality, _ = head(FEATURES)
    assert torch.equal(logits, classes(FEATURES))
    assert torch.equal(deltas, boxes(FEATURES))
    assert quality is None
    assert not head.gives_quality
    assert head.numbers == 4


def test_a_quality_comes_from_the_box_part_or_from_one_of_its_own():
    boxes = FCOSHead(8)
    paired = DenseHead(ClassificationHead(8, 1, num_classes=5), boxes)
    assert paired.gives_quality
    for one, other in zip(paired(FEATURES)[1:3], boxes(FEATURES), strict=True):
        assert torch.equal(one, other)
    own = RegressionHead(8, 2, outputs=1)
    head = DenseHead(ClassificationHead(8, 2, num_classes=5), RegressionHead(8, 2), quality_head=own)
    assert head.gives_quality
    assert torch.equal(head(FEATURES).quality, own(FEATURES)[..., 0])


def test_it_says_how_many_numbers_its_boxes_have():
    for boxes in (RegressionHead(8, 1, outputs=68), MultiBoxHead([8, 8], [1, 1], outputs=68)):
        head = DenseHead(ClassificationHead(8, 1, num_classes=5), boxes)
        assert head.numbers == head(FEATURES).deltas.shape[-1] == 68


def test_two_qualities_are_refused():
    with pytest.raises(ValueError, match=r"DenseHead: box_head=FCOSHead predicts a quality already"):
        DenseHead(ClassificationHead(8, 1, num_classes=5), FCOSHead(8), quality_head=RegressionHead(8, 1, outputs=1))
