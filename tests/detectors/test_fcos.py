"""FCOS as a DenseStage: how heads, points, matcher, coder and loss meet; test_retinanet.py holds it to the contract."""

import pytest
import torch
from torch import Tensor, nn

from detkit.anchors import CenterMatcher, centerness
from detkit.backbones import SmallBackbone
from detkit.boxes import DistanceCoder
from detkit.detectors import DenseStage, LevelwisePostprocess, Preprocess, fcos
from detkit.heads import DenseHead
from detkit.losses import FCOSLoss
from detkit.structures import Anchors, DensePredictions, Images, Target, pad_targets

BOXES = torch.tensor([[24.0, 24, 32, 32], [8, 8, 16, 16], [16, 8, 24, 16], [64, 64, 80, 80]])
POINTS = Anchors(BOXES, BOXES[:, 2:] - BOXES[:, :2], (3, 1))
IMAGES = Images(torch.zeros(1, 3, 160, 160), torch.tensor([[160, 160]]))
FEATURES = [torch.zeros(1, 1, 1, 3), torch.zeros(1, 1, 1, 1)]


class Fixed(nn.Module):
    """Answers every call with one value."""

    gives_quality = True

    def __init__(self, answer: Tensor | tuple[object, ...]) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, *inputs: object) -> Tensor | tuple[object, ...]:
        return self.answer


class Recorder(FCOSLoss):
    """A criterion that keeps what it is asked to judge."""

    def forward(self, predictions, assigned, anchors, coder) -> dict[str, Tensor]:
        self.seen = assigned
        return super().forward(predictions, assigned, anchors, coder)


def stage(logits: Tensor, distances: Tensor, center: Tensor, **settings) -> DenseStage:
    return DenseStage(
        head=DenseHead(Fixed(logits), Fixed((distances, center))),
        anchors=Fixed(POINTS),
        matcher=CenterMatcher(),
        coder=DistanceCoder(unit=1.0),
        criterion=Recorder(),
        postprocess=LevelwisePostprocess(**settings),
    )


def test_its_outputs_are_those_of_heads_and_points():
    values = torch.rand(1, 4, 2), torch.rand(1, 4, 4), torch.rand(1, 4)
    predictions, anchors, _ = stage(*values)(FEATURES, IMAGES, None)
    assert all(one is other for one, other in zip(predictions[:3], values, strict=True))
    assert anchors is POINTS


@pytest.mark.parametrize("weights", [None, torch.tensor([0.25, 3.0])])
def test_its_criterion_judges_against_the_matched_objects(weights):
    dense = stage(torch.zeros(1, 4, 2), torch.ones(1, 4, 4), torch.zeros(1, 4))
    more = {} if weights is None else {"weights": weights}
    truth = Target(boxes=torch.tensor([[2.0, 2, 26, 22], [0, 0, 150, 140]]), labels=torch.tensor([1, 0]), **more)
    losses = dense.loss(dense(FEATURES, IMAGES, None), pad_targets([truth]))
    assigned = dense.criterion.seen
    assert assigned.labels.tolist() == [[-1, 1, 1, 0]]
    targets = dense.coder.encode(assigned.boxes, POINTS)  # in strides
    torch.testing.assert_close(targets[0, 1], torch.tensor([10, 10, 14, 10]) / 8.0)
    torch.testing.assert_close(targets[0, 3], torch.tensor([72, 72, 78, 68]) / 16.0)
    assert assigned.weights.tolist() == [[1, 1, 1, 1] if weights is None else [1, 0.25, 0.25, 3]]
    assert losses.keys() == {"classification", "box", "centerness"}


def test_perfect_predictions_cost_next_to_nothing_and_find_the_objects():
    boxes = torch.tensor([[2.0, 2, 26, 22], [0, 0, 150, 140]])
    distances = DistanceCoder(unit=1.0).encode(boxes[[0, 0, 0, 1]], POINTS)[None]
    logits = torch.tensor([[[-20.0, -20], [-20, 20], [-20, -20], [20, -20]]])
    dense = stage(logits, distances, torch.full((1, 4), 20.0), max_detections=5)
    found = dense.detections(dense(FEATURES, IMAGES, None), IMAGES)
    assert found.labels[found.valid].sort().values.tolist() == [0, 1]
    order = found.labels[found.valid].argsort(descending=True)
    torch.testing.assert_close(found.boxes[found.valid][order], boxes)
    target = pad_targets([Target(boxes=boxes, labels=torch.tensor([1, 0]))])
    sure = dense.criterion.scores(DensePredictions(logits, distances, torch.full((1, 4), 20.0)))
    assert sure.max() > 0.999
    assert dense.loss(dense(FEATURES, IMAGES, None), target)["box"] < 1e-5
    assert centerness(distances).max() <= 1


def test_the_recipe_takes_given_parts_and_lays_one_point_in_each_cell():
    backbone, preprocess = SmallBackbone((8, 16, 16, 16), levels=(1, 2, 3)), Preprocess((64, 64))
    detector = fcos(2, backbone=backbone, preprocess=preprocess)
    assert detector.trunk[0] is backbone
    assert detector.preprocess is preprocess
    assert detector.dense.anchors.per_cell == (1,) * 5
    assert detector.trunk[1].strides == (8, 16, 32, 64, 128)
    images = Images(torch.zeros(1, 3, 128, 128), torch.tensor([[128, 128]]))
    points = detector.dense.anchors([torch.zeros(1, 1, 128 // s, 128 // s) for s in (8, 16, 32, 64, 128)], images)
    assert points.counts == (256, 64, 16, 4, 1)
    assert torch.equal(points.strides, points.boxes[:, 2:] - points.boxes[:, :2])
    assert (points.boxes[:, 2:] - points.boxes[:, :2]).unique().tolist() == [8, 16, 32, 64, 128]


@pytest.mark.parametrize("label", [-1, 2])
def test_an_object_whose_label_is_no_class_is_named_and_not_learned_as_background(label):
    dense = stage(torch.zeros(1, 4, 2), torch.ones(1, 4, 4), torch.zeros(1, 4))
    objects = Target(boxes=torch.tensor([[0.0, 0, 50, 50]]), labels=torch.tensor([label]))
    with pytest.raises(ValueError, match=rf"DenseStage: targets.labels\[0, 0\]={label}.*0..1"):
        dense.loss(dense(FEATURES, IMAGES, None), pad_targets([objects]))
