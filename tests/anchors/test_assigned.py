"""What an assignment means: labels, boxes and weights of each anchor, and which lie in a crowd."""

import torch
from strategies import random_boxes, targets_of

from detkit.anchors import gather_assigned
from detkit.structures import Assignment


def test_assigned_labels_boxes_and_weights_are_those_of_the_object():
    objects = random_boxes(3)
    assignment = Assignment(torch.tensor([[2, -1, -2, 0]]), torch.ones(1, 4))
    assigned = gather_assigned(assignment, targets_of(objects, weights=[torch.tensor([0.1, 0.2, 0.3])]))
    assert assigned.labels.tolist() == [[2, -1, -2, 0]]
    assert torch.equal(assigned.boxes[0, [0, 3]], objects[[2, 0]])
    torch.testing.assert_close(assigned.weights, torch.tensor([[0.3, 1, 1, 0.1]]))
    assert (gather_assigned(assignment, targets_of(objects)).weights == 1).all()
