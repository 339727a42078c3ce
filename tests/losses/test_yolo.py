"""YOLOLoss: the gradients by raw outputs are those of a loop; v2's rescoring and prior, v3's several classes."""

import math

import pytest
import torch
from dense_rows import Plain, assigned_to
from strategies import assert_refused
from yolo_loops import raw_gradients

from detkit.anchors import GridAnchors, ShapeMatcher, gather_assigned
from detkit.boxes import GridCoder
from detkit.losses import YOLOLoss, grid_cost
from detkit.structures import DensePredictions, Images, Predictions, pad_targets

V2 = {"classes": "softmax", "rescore": True, "object_weight": 5.0}
LEVELS = {  # strides and shapes (width, height); the frame is 64 wide and 32 high
    "v3": [(8, [(6, 9), (14, 8)]), (16, [(20, 30), (40, 14)])],
    "v2": [(16, [(10, 12), (30, 14), (24, 40)])],
}
CLASSES, FRAME = 3, (64, 32)
# The last two of the first image claim one anchor; the second image has none.
TRUTH = [[((12.0, 9.0, 7.0, 8.0), 0), ((44.5, 17.0, 22.0, 27.0), 2), ((45.0, 18.0, 21.0, 28.0), 1)], []]


def grid(levels):
    """Anchors as the library makes them, and as a list of (column, row, stride, shape)."""
    strides = [stride for stride, _ in levels]
    anchors = GridAnchors(shapes=[shapes for _, shapes in levels], strides=strides)
    width, height = FRAME
    features = [torch.zeros(1, 1, height // stride, width // stride) for stride in strides]
    cells = [
        (column, row, stride, shape)
        for stride, shapes in levels
        for row in range(height // stride)
        for column in range(width // stride)
        for shape in shapes
    ]
    return anchors(features, Images(torch.zeros(1, 3, height, width), torch.tensor([[height, width]]))), cells


def targets():
    rows = [
        {
            "boxes": torch.tensor([[x - w / 2, y - h / 2, x + w / 2, y + h / 2] for (x, y, w, h), _ in own]).double(),
            "labels": torch.tensor([label for _, label in own], dtype=torch.int64),
        }
        for own in TRUTH
    ]
    return pad_targets(rows)


def learned(raw, anchors, criterion, ignore_iou):
    """The losses of raw outputs (B, N, 5 + C)."""
    predictions = DensePredictions(raw[..., 5:], raw[..., :4], raw[..., 4])
    seen = Predictions(GridCoder().decode(raw[..., :4].detach(), anchors), criterion.scores(predictions).detach())
    truth = targets()
    assigned = gather_assigned(ShapeMatcher(ignore_iou=ignore_iou)(anchors, truth, seen), truth)
    return criterion(predictions, assigned, anchors, GridCoder())


@pytest.mark.parametrize(
    ("version", "settings", "prior"), [("v3", {}, False), ("v2", V2, False), ("v2", {**V2, "prior_images": 99}, True)]
)
def test_gradients_by_raw_outputs_are_those_of_a_loop(version, settings, prior):
    anchors, cells = grid(LEVELS[version])
    anchors = anchors._replace(boxes=anchors.boxes.double(), strides=anchors.strides.double())
    generator = torch.Generator().manual_seed(3)
    raw = torch.randn(2, len(cells), 5 + CLASSES, generator=generator, dtype=torch.float64) * 0.5
    raw.requires_grad_()
    ignore_iou = 0.2  # low, so that some are ignored
    losses = learned(raw, anchors, YOLOLoss(**settings).double(), ignore_iou)
    sum(losses.values()).backward()
    rule = {"classes": "logistic", "rescore": False, "object_weight": 1.0, **settings, "prior": prior}
    rule.pop("prior_images", None)
    expected = torch.tensor(raw_gradients(raw.tolist(), cells, FRAME, TRUTH, ignore_iou=ignore_iou, **rule))
    assert (expected[0, :, 4] == 0).any()  # ignored
    assert (expected[0] != 0).any(0).all()
    torch.testing.assert_close(raw.grad * 2, expected.double(), rtol=0, atol=1e-6)  # two images


def test_an_anchor_that_two_objects_claim_learns_both_classes_or_the_later_one():
    anchors, cells = grid(LEVELS["v3"])
    raw = torch.zeros(2, len(cells), 5 + CLASSES, requires_grad=True)
    for settings, signs in (({}, [1, -1, -1]), ({"classes": "softmax"}, [1, -1, 1])):
        raw.grad = None
        learned(raw, anchors, YOLOLoss(**settings), 0.7)["classification"].backward()
        shared = raw.grad[0, :, 5:].abs().sum(1).nonzero().squeeze(1)
        assert len(shared) == 2  # anchors of three objects
        assert raw.grad[0, shared[1], 5:].sign().tolist() == signs


def test_losses_are_averaged_over_images_whatever_is_in_them():
    anchors, cells = grid(LEVELS["v3"])
    raw, criterion = torch.zeros(2, len(cells), 5 + CLASSES), YOLOLoss()
    losses = learned(raw, anchors, criterion, 1.0)
    assert losses["objectness"].item() == pytest.approx(len(cells) * math.log(2), rel=1e-6)
    assert losses["classification"].item() == pytest.approx(2 * CLASSES * math.log(2) / 2, rel=1e-6)


def test_the_prior_is_learned_for_the_first_images_of_training_only_and_counts_on_after_loading():
    anchors, cells = grid(LEVELS["v2"])
    raw, criterion = torch.ones(2, len(cells), 5 + CLASSES), YOLOLoss(prior_images=4, **V2)
    free = len(cells) * 2 - 2
    place = math.log(1 + math.e) - 0.5  # cross-entropy of the logit 1 against one half
    each = 0.01 * (2 * place + 1)  # and twice half of 1 squared
    found = []
    for step in range(3):
        criterion.eval()
        assert learned(raw, anchors, criterion, 1.0)["prior"] > 0 or step == 2  # looking is not counted
        criterion.train()
        found.append(learned(raw, anchors, criterion, 1.0)["prior"].item())
    assert found == pytest.approx([free * each / 2, free * each / 2, 0.0], rel=1e-5)
    other = YOLOLoss(prior_images=4, **V2)
    other.load_state_dict(criterion.state_dict())
    assert learned(raw, anchors, other, 1.0)["prior"] == 0
    assert "prior" not in learned(raw, anchors, YOLOLoss(**V2), 1.0)


def test_rescoring_learns_the_quality_of_the_assignment():
    predictions = DensePredictions(torch.zeros(1, 2, 1), torch.zeros(1, 2, 4), torch.zeros(1, 2, requires_grad=True))
    assigned = assigned_to(torch.tensor([[0, -1]]), torch.zeros(1, 2, 4), quality=torch.tensor([[0.25, 0.9]]))
    for rescore, wanted in ((True, 0.25), (False, 1.0)):
        predictions.quality.grad = None
        criterion = YOLOLoss(rescore=rescore, object_weight=5.0, background_weight=2.0)
        criterion(predictions, assigned, torch.zeros(2, 4), Plain())["objectness"].backward()
        torch.testing.assert_close(predictions.quality.grad, torch.tensor([[5 * (0.5 - wanted), 2 * 0.5]]))


@pytest.mark.parametrize(("classes", "share"), [("logistic", 0.75), ("softmax", 0.75)])
def test_scores_are_objectness_times_class(classes, share):
    logits = torch.tensor([[[math.log(3), 0.0]]])
    scores = YOLOLoss(classes=classes).scores(DensePredictions(logits, torch.zeros(1, 1, 4), torch.zeros(1, 1)))
    torch.testing.assert_close(scores, torch.tensor([[[share / 2, (1 - share if classes == "softmax" else 0.5) / 2]]]))


def test_a_box_of_the_whole_grid_weighs_half_of_a_small_one():
    anchors, cells = grid([(16, [(16, 16)])])
    boxes = torch.tensor([[0.0, 0, 64, 32], [31.99, 15.99, 32.01, 16.01]])
    deltas = GridCoder().encode(boxes[:, None].expand(2, len(cells), 4), anchors).requires_grad_()
    (grid_cost(deltas + 1, boxes[:, None].expand(2, len(cells), 4), anchors, GridCoder())).sum().backward()
    torch.testing.assert_close(deltas.grad[..., 2:].amax((1, 2)), torch.tensor([1.0, 2.0]))


def test_other_classes_are_refused():
    assert_refused("YOLOLoss: classes='sigmoid' 'logistic' 'softmax'", YOLOLoss.__init__, YOLOLoss(), classes="sigmoid")
