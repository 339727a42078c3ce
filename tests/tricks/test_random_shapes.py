"""RandomBatchShapes: which size a batch has, and that boxes follow it through a detector's preprocess."""

from collections import Counter
from itertools import pairwise

import pytest
import torch

from detkit.detectors.recipes.yolo import small_yolo_v3
from detkit.tricks import RandomBatchShapes

SIZES = [(side, side) for side in range(320, 609, 32)]


@pytest.mark.parametrize("sides", [range(320, 609, 32), range(224, 353, 32)], ids=["detection", "classification"])
def test_sizes_are_a_bounded_set_of_multiples_of_32(sides):
    shapes = RandomBatchShapes([(side, side) for side in sides])
    drawn = {shapes(batch) for batch in range(2000)}
    assert drawn == {(side, side) for side in sides}
    assert all(height % 32 == 0 == width % 32 for height, width in drawn)


def test_a_size_lasts_ten_batches():
    shapes = RandomBatchShapes(SIZES)
    drawn = [shapes(batch) for batch in range(2000)]
    assert all(len(set(drawn[start : start + 10])) == 1 for start in range(0, 2000, 10))
    assert sum(before != after for before, after in pairwise(drawn[::10])) > 150


def test_every_size_is_drawn_about_equally_often():
    shapes = RandomBatchShapes(SIZES, every=1)
    counts = Counter(shapes(batch) for batch in range(5000))
    assert set(counts) == set(SIZES)
    assert max(abs(count - 500) for count in counts.values()) < 100


def test_each_batch_is_drawn_alone_so_that_processes_and_resumed_runs_agree():
    first, second = RandomBatchShapes(SIZES, seed=3), RandomBatchShapes(SIZES, seed=3)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    later = second(470)
    assert [first(batch) for batch in range(480)][470] == later
    assert torch.equal(torch.get_rng_state(), state)
    assert [RandomBatchShapes(SIZES, seed=4)(i) for i in range(0, 200, 10)] != [first(i) for i in range(0, 200, 10)]


def test_boxes_follow_the_size_of_the_batch():
    detector, shapes = small_yolo_v3(num_classes=2, channels=16), RandomBatchShapes([(64, 96), (128, 64)], every=1)
    image, target = torch.rand(3, 100, 100), {"boxes": torch.tensor([[10.0, 20, 60, 100]]), "labels": torch.tensor([1])}
    seen = set()
    for batch in range(8):
        detector.preprocess.size = shapes(batch)
        images, targets = detector.preprocess([image], [target])
        scale, (top, left) = min(shapes(batch)) / 100, images.offsets[0].tolist()
        expected = torch.tensor([10.0, 20, 60, 100]) * scale + torch.tensor([left, top, left, top])
        assert images.tensors.shape[-2:] == shapes(batch)
        torch.testing.assert_close(targets.boxes[0, 0], expected)
        seen.add(shapes(batch))
    assert len(seen) == 2
    assert all(torch.isfinite(loss) for loss in detector([image], [target]).values())


@pytest.mark.parametrize("sizes", [[], [(0, 32)], [(32,)], [(32, 32.5)]])
def test_sizes_that_are_none_are_refused(sizes):
    with pytest.raises(ValueError, match="RandomBatchShapes: sizes"):
        RandomBatchShapes(sizes)
