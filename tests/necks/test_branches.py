"""BranchNecks: a neck for each branch."""

import torch
from strategies import assert_refused

from detkit.necks import FPN, BranchNecks


def features():
    return {name: [torch.rand(1, 4, 8, 8), torch.rand(1, 6, 4, 4)] for name in ("boxes", "masks")}


def test_each_branch_goes_through_its_neck_and_others_pass():
    neck, maps = FPN([4, 6], [4, 8], channels=3), features()
    found = BranchNecks(boxes=neck)(maps)
    assert list(found) == list(maps)
    assert found["masks"] is maps["masks"]
    assert all(torch.equal(one, other) for one, other in zip(found["boxes"], neck(maps["boxes"]), strict=True))


def test_a_branch_that_is_not_there_is_refused():
    necks = BranchNecks(faces=FPN([4, 6], [4, 8], channels=3))
    assert_refused("BranchNecks: there is no branch ['faces']; the trunk has ['boxes', 'masks']", necks, features())
    assert_refused("BranchNecks: the trunk returns no branches", necks, features()["boxes"])
