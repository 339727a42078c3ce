"""Mosaic: against its description in plain loops; nothing is lost or invented beyond the rule of what is in view."""

import pytest
import torch
from batches import assert_in_step, batches
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional as v2

from detkit.structures import VOID
from detkit.structures.rows import complete_rows
from detkit.tricks import Mosaic
from detkit.tricks.pieces import Piece, View, place_target
from detkit.tricks.samples import uniform


def expected_pieces(sizes, size, numbers, *, scales=(0.5, 1.5), centers=(0.25, 0.75)):
    """(image, piece) of each quarter, said slowly: the numbers are the point, three partners, then three a quarter."""
    point = [
        round(side * (centers[0] + (centers[1] - centers[0]) * at)) for side, at in zip(size, numbers, strict=False)
    ]
    found = []
    for quarter in range(4):
        below, right = quarter >= 2, quarter % 2 == 1
        scale, *corner = numbers[5 + 3 * quarter : 8 + 3 * quarter]
        own = sizes[quarter]
        factor = min(size[0] / own[0], size[1] / own[1]) * (scales[0] + (scales[1] - scales[0]) * scale)
        source, place = [], []
        for axis, after in enumerate((below, right)):
            room = size[axis] - point[axis] if after else point[axis]
            length = max(1, round(own[axis] * factor))
            if length > room > 0:
                taken, shown = min(own[axis], max(1, round(own[axis] * room / length))), room
            else:
                taken, shown = own[axis], min(length, room)
            start = int(corner[axis] * (own[axis] - taken + 1))
            source.append((start, start + taken))
            place.append((point[axis], point[axis] + shown) if after else (point[axis] - shown, point[axis]))
        (top, bottom), (left, east) = source
        (up, down), (west, rim) = place
        if down > up and rim > west:
            found.append((quarter, Piece((top, left, bottom, east), (up, west, down, rim))))
    return found


def members_of(index, numbers, count):
    pool, found = [(index + 1 + i) % count for i in range(count - 1)], [index]
    for number in numbers[: count - 1]:
        found.append(pool.pop(int(number * len(pool))))
    return [found[i % len(found)] for i in range(4)]


@given(batch=batches(), data=st.data(), seed=st.integers(0, 99))
@pytest.mark.slow
def test_a_mosaic_is_what_its_description_says(batch, data, seed):
    images, targets = batch
    size = (data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40)))
    mosaic = Mosaic(size, min_visible=data.draw(st.sampled_from([0.0, 0.3])))
    canvases, found = mosaic(images, targets, generator=torch.Generator().manual_seed(seed))
    complete, keys = complete_rows(targets, where="f")
    numbers = uniform((len(images), 1 + mosaic.draws), torch.Generator().manual_seed(seed))
    white = 255 if images[0].dtype == torch.uint8 else 1.0
    for i, (canvas, target) in enumerate(zip(canvases, found, strict=True)):
        members = members_of(i, numbers[i][3:6], len(images))
        expected = torch.full((3, *size), white * 114 / 255, dtype=torch.float64)
        labels, boxes = [], []
        for quarter, piece in expected_pieces([images[m].shape[1:] for m in members], size, numbers[i][1:]):
            (top, left, bottom, right), (up, west, down, east) = piece
            part = images[members[quarter]][:, top:bottom, left:right]
            part = part if part.shape[1:] == (down - up, east - west) else part.double()
            expected[:, up:down, west:east] = v2.resize(part, [down - up, east - west], antialias=True)
            own = complete[members[quarter]]
            placed = place_target(own, piece, size, keys=keys, view=View(mosaic.view.min_visible, 1.0))
            labels += placed["labels"].tolist()
            boxes.append(placed["boxes"])
            if "masks" in target:
                rows = slice(len(labels) - len(placed["labels"]), len(labels))
                assert torch.equal(target["masks"][rows], placed["masks"])
            if "segmentation" in target:
                seen = target["segmentation"][up:down, west:east]
                assert torch.equal(seen, placed["segmentation"][up:down, west:east])
        assert (canvas - expected).abs().max() <= white / 250  # torch resizes uint8 in whole numbers
        assert target["labels"].tolist() == labels
        assert torch.equal(target["boxes"], torch.cat(boxes))
        assert target["image_id"] == targets[i]["image_id"]
        assert_in_step(targets, target)
        low, high = target["boxes"][:, :2], target["boxes"][:, 2:]
        assert bool(((low >= 0) & (high > low) & (high <= torch.tensor([size[1], size[0]]))).all())


def squares(count, **entries):
    images = [torch.full((1, 20, 20), 10 * (i + 1), dtype=torch.uint8) for i in range(count)]
    targets = [{"boxes": torch.tensor([[5.0, 5, 15, 15]]), "labels": torch.tensor([i])} for i in range(count)]
    return images, [{**target, **entries} for target in targets]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 6])
def test_four_images_are_shown_and_none_twice_if_there_are_four(count):
    images, targets = squares(count)
    mosaic = Mosaic((40, 40), scale_range=(0.5, 0.5), center_range=(0.5, 0.5))
    for i, target in enumerate(mosaic(images, targets, generator=torch.Generator().manual_seed(0))[1]):
        labels = target["labels"].tolist()
        assert len(labels) == 4
        assert labels[0] == i
        assert len(set(labels)) == min(count, 4)


def test_images_that_fit_their_quarters_touch_the_point_and_keep_all_they_have():
    images, targets = squares(4)
    mosaic = Mosaic((60, 40), scale_range=(0.5, 0.5), center_range=(0.5, 0.5), fill=1.0)
    (canvas, *_), (target, *_) = mosaic(images, targets)
    assert target["boxes"].tolist() == [[5, 15, 15, 25], [25, 15, 35, 25], [5, 35, 15, 45], [25, 35, 35, 45]]
    assert canvas[0, :10].unique().tolist() == canvas[0, 50:].unique().tolist() == [255]
    assert canvas[0, 10:30, :20].unique().tolist() == [10]


@pytest.mark.parametrize("center", [0.0, 1.0])
def test_a_point_at_the_corner_leaves_one_image_all_of_the_canvas(center):
    images, targets = squares(5, segmentation=torch.ones(20, 20))
    mosaic = Mosaic((20, 20), scale_range=(1, 1), center_range=(center, center))
    for i, (canvas, target) in enumerate(zip(*mosaic(images, targets), strict=True)):
        (value,) = canvas.unique().tolist()
        assert target["labels"].tolist() == [value // 10 - 1]
        assert target["segmentation"].unique().tolist() == [1]
        assert (value == 10 * (i + 1)) is (center == 1.0)


def test_segmentations_of_all_quarters_are_kept_and_the_rest_has_no_class():
    images, targets = squares(4)
    for i, target in enumerate(targets[:3]):
        target["segmentation"] = torch.full((20, 20), i)
    mosaic = Mosaic((60, 40), scale_range=(0.5, 0.5), center_range=(0.5, 0.5))
    for target in mosaic(images, targets)[1]:
        assert target["segmentation"].unique().tolist() == [0, 1, 2, VOID]
        assert int((target["segmentation"] == VOID).sum()) == 60 * 40 - 3 * 400


@pytest.mark.slow
def test_a_part_that_is_cut_is_any_part():
    generator, images = torch.Generator().manual_seed(0), [torch.arange(20.0).expand(1, 20, 20)]
    mosaic = Mosaic((20, 20), scale_range=(1, 1), center_range=(0.5, 0.5))
    left = [mosaic(images, [{"image_id": 1}], generator=generator)[0][0][0, 0, 0].item() for _ in range(80)]
    assert set(left) == set(range(11))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"size": (0, 5)}, r"size\[0\]=0"),
        ({"size": (5, 5), "scale_range": (1.5, 0.5)}, "scale_range"),
        ({"size": (5, 5), "center_range": (0.5, 1.5)}, "center_range"),
        ({"size": (5, 5), "min_visible": -0.1}, "min_visible=-0.1"),
    ],
)
def test_senseless_settings_are_refused(settings, said):
    with pytest.raises(ValueError, match=f"^Mosaic: {said}"):
        Mosaic(**settings)
