"""What ``program`` takes, names and refuses; what it makes is in tests/compiled/test_exported_programs.py."""

import pytest
import torch
from strategies import assert_refused

from detkit.detectors import tiny_ssd
from detkit.export import program
from detkit.export.programs import _columns
from detkit.structures import Detections


def test_a_detector_in_training_mode_is_refused():
    assert_refused("program training mode allowed is detector.eval()", program, tiny_ssd(2), (64, 64))


def test_numbers_out_of_range_are_refused():
    assert_refused("program batch=0 at least 1", program, tiny_ssd(2).eval(), (64, 64), batch=0)
    assert_refused("program candidates=0 at least 1", program, tiny_ssd(2).eval(), (64, 64), candidates=0)


@pytest.mark.slow(5)
def test_proposals_that_no_stage_looks_at_are_refused():
    detector = tiny_ssd(2).eval()
    assert_refused("program proposals=3 no stage of this detector looks", program, detector, (64, 64), proposals=3)


def test_outputs_are_named_by_field_and_of_stages_side_by_side_by_stage_too():
    rows = torch.zeros(1, 2)
    found = Detections(torch.zeros(1, 2, 4), rows, rows.long(), rows.bool(), masks=torch.zeros(1, 2, 7, 7))
    assert list(_columns(found)) == ["boxes", "scores", "labels", "valid", "masks"]
    assert list(_columns({"one": found._replace(masks=None), "other": found}))[3:6] == [
        "one.valid",
        "other.boxes",
        "other.scores",
    ]
