"""The lines of a report, and the picture of what is hardest."""

import pytest
import torch

from detkit.data import DigitScenes
from detkit.detectors import fpn_ssd
from detkit.inspect.anchors import AnchorFit
from detkit.inspect.report import describe, describe_fit, hardest, read_truth


def fitted(scenes, size):
    truth, anchors = read_truth(scenes, 100), AnchorFit(fpn_ssd(10, size=size, channels=8))
    return truth, anchors, [anchors.fit(one, shape) for one, shape in zip(truth.targets, truth.sizes, strict=True)]


def test_counts_and_sizes_are_those_of_the_data():
    scenes = DigitScenes(10)
    truth = read_truth(scenes, 4)
    assert truth.places == [0, 3, 6, 9]
    lines = list(describe(truth, scenes.categories, 10))
    count = sum(len(target["boxes"]) for target in truth.targets)
    assert lines[0] == "images      10 (4 of them looked at), 96 x 96 (height x width)"
    assert lines[1].startswith(f"objects     {count}, {count / 4:.1f} an image, ")
    counts = dict(part.split() for part in lines[2].removeprefix("classes ").split(","))
    assert sum(map(int, counts.values())) == count


@pytest.mark.slow
def test_small_inputs_lose_objects_and_better_sizes_are_suggested():
    scenes = DigitScenes(20)
    for size, expected in (((192, 192), True), ((32, 32), False)):
        truth, anchors, fits = fitted(scenes, size)
        lines = list(describe_fit(anchors, truth, fits, 3))
        lost = sum(int((~fit.fits).sum()) for fit in fits)
        assert f"({lost} of {sum(len(fit.fits) for fit in fits)})" in lines[2]
        assert (lost < 4) == expected
        assert lines[3].startswith("suggested ")
        assert lines[3].count(" x ") == 4
        assert (hardest(scenes, truth, fits, anchors) is None) == (lost == 0)


def test_a_data_set_without_objects_is_described():
    class Empty(DigitScenes):
        def target(self, index):
            found = super().target(index)
            return {**found, **{key: found[key][:0] for key in ("boxes", "labels", "area", "iscrowd")}}

    truth, anchors, fits = fitted(Empty(2), (64, 64))
    lines = [*describe(truth, list("0123456789"), 2), *describe_fit(anchors, truth, fits, 3)]
    assert lines[1] == "objects     0, 0.0 an image, nothing to learn"
    assert "sides       none" in lines
    assert not any(line.startswith("suggested") for line in lines)
    assert hardest(Empty(2), truth, fits, anchors) is None
    assert torch.cat([fit.fits for fit in fits]).shape == (0,)
