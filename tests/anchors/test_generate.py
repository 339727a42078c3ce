"""Default boxes: the published grids, their counts, order and clipping."""

import math

import pytest
import torch
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList

from detkit.anchors import DefaultBoxes
from detkit.structures import Images

VOC300 = [(30, 60), (60, 111), (111, 162), (162, 213), (213, 264), (264, 315)]
GRIDS300, STRIDES300 = (38, 19, 10, 5, 3, 1), (8, 16, 32, 64, 100, 300)
RATIOS300 = [(2,), (2, 3), (2, 3), (2, 3), (2,), (2,)]


def frame(height: int, width: int, batch: int = 1) -> Images:
    return Images(torch.zeros(batch, 3, height, width), torch.tensor([[height, width]] * batch))


def grids(*sizes, batch: int = 1) -> list[torch.Tensor]:
    return [torch.zeros(batch, 1, *((size, size) if isinstance(size, int) else size)) for size in sizes]


def ssd300(**settings) -> DefaultBoxes:
    return DefaultBoxes(VOC300, aspect_ratios=RATIOS300, strides=STRIDES300, **settings)


def test_ssd300_has_8732_boxes_and_the_published_first_four():
    anchors = ssd300()(grids(*GRIDS300), frame(300, 300))
    assert anchors.shape == (8732, 4)
    assert anchors.dtype == torch.float32
    expected = [[-11, -11, 19, 19], [-17.2132, -17.2132, 25.2132, 25.2132]]
    expected += [[-17.2132, -6.6066, 25.2132, 14.6066], [-6.6066, -17.2132, 14.6066, 25.2132]]
    torch.testing.assert_close(anchors[:4], torch.tensor(expected), rtol=0, atol=1e-4)
    torch.testing.assert_close(anchors[4], anchors[0] + torch.tensor([8.0, 0, 8, 0]), rtol=0, atol=1e-5)
    torch.testing.assert_close(anchors[38 * 4], anchors[0] + torch.tensor([0, 8.0, 0, 8]), rtol=0, atol=1e-5)


def test_ssd300_equals_torchvision_where_nothing_is_clipped():
    scales = [30 / 300, 60 / 300, 111 / 300, 162 / 300, 213 / 300, 264 / 300, 315 / 300]
    peer = DefaultBoxGenerator([list(r) for r in RATIOS300], scales=scales, steps=list(STRIDES300), clip=False)
    theirs = peer(ImageList(torch.zeros(1, 3, 300, 300), [(300, 300)]), grids(*GRIDS300))[0]
    torch.testing.assert_close(ssd300()(grids(*GRIDS300), frame(300, 300)), theirs, rtol=0, atol=1e-3)


def test_ssd512_has_24564_boxes():
    sizes = [(20, 51), (51, 133), (133, 215), (215, 297), (297, 379), (379, 461), (461, 543)]
    anchors = DefaultBoxes(sizes, aspect_ratios=[(2,), *[(2, 3)] * 4, (2,), (2,)])
    assert anchors.per_cell == (4, 6, 6, 6, 6, 4, 4)
    assert anchors(grids(64, 32, 16, 8, 4, 2, 1), frame(512, 512)).shape == (24564, 4)


def test_tiny_ssd_has_5444_boxes_in_the_order_of_its_chapter():
    pairs = [(0.2, 0.272), (0.37, 0.447), (0.54, 0.619), (0.71, 0.79), (0.88, 0.961)]
    # The chapter names both squares; here the second is the root of the first and the next size.
    anchors = DefaultBoxes([(256 * s, 256 * t * t / s) for s, t in pairs], aspect_ratios=[(2,)] * 5)
    boxes = anchors(grids(32, 16, 8, 4, 1), frame(256, 256))
    assert boxes.shape == (5444, 4)
    expected = []
    for (s, t), size in zip(pairs, (32, 16, 8, 4, 1), strict=True):
        for y in range(size):
            for x in range(size):
                for scale, ratio in ((s, 1), (t, 1), (s, 2), (s, 0.5)):
                    w, h = scale * math.sqrt(ratio), scale / math.sqrt(ratio)
                    cx, cy = (x + 0.5) / size, (y + 0.5) / size
                    expected.append([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2])
    torch.testing.assert_close(boxes, torch.tensor(expected) * 256, rtol=0, atol=1e-3)


def test_without_strides_cells_divide_the_frame_in_both_directions():
    boxes = DefaultBoxes([(10, 10)], aspect_ratios=[()])(grids((2, 3)), frame(100, 300))
    centres = (boxes[:, :2] + boxes[:, 2:])[::2] / 2
    expected = [[50.0, 25], [150, 25], [250, 25], [50, 75], [150, 75], [250, 75]]
    assert centres.tolist() == expected
    assert ((boxes[:, 2:] - boxes[:, :2]) == 10).all()


def test_ratios_are_width_over_height_at_equal_area():
    sides = DefaultBoxes([(12, 48)], aspect_ratios=[(4,)])(grids(1), frame(100, 100))
    sides = (sides[:, 2:] - sides[:, :2]).tolist()
    assert sides == [[12, 12], [24, 24], [24, 6], [6, 24]]


def test_clipping_keeps_boxes_in_the_frame():
    loose, clipped = (ssd300(clip=clip)(grids(*GRIDS300), frame(300, 280)) for clip in (False, True))
    limit = torch.tensor([280.0, 300, 280, 300])
    torch.testing.assert_close(clipped, loose.clamp(min=0).minimum(limit), rtol=0, atol=0)
    assert loose.min() < 0


def test_every_image_of_a_batch_has_the_same_boxes():
    one, three = (ssd300()(grids(*GRIDS300, batch=n), frame(300, 300, n)) for n in (1, 3))
    assert torch.equal(one, three)


def test_shapes_are_no_weights_and_follow_a_half_precision_model():
    anchors = ssd300()
    assert dict(anchors.state_dict()) == {}
    expected = anchors(grids(*GRIDS300), frame(300, 300))
    assert anchors.half()(grids(*GRIDS300), frame(300, 300)).dtype == torch.float32
    assert expected.shape == (8732, 4)


def test_settings_that_do_not_fit_are_refused():
    for message, settings in {
        "DefaultBoxes: 1 aspect_ratios for 2 sizes": {"aspect_ratios": [()]},
        "DefaultBoxes: 3 strides for 2 sizes": {"aspect_ratios": [(), ()], "strides": (1, 2, 3)},
        "must be positive numbers": {"aspect_ratios": [(0,), ()]},
        "aspect_ratios and strides must be positive": {"aspect_ratios": [(), ()], "strides": (1, math.nan)},
    }.items():
        with pytest.raises(ValueError, match=message):
            DefaultBoxes([(1, 2), (2, 3)], **settings)
    with pytest.raises(ValueError, match="must be positive numbers"):
        DefaultBoxes([(-1, 2)], aspect_ratios=[()])
    with pytest.raises(ValueError, match="DefaultBoxes: got 1 feature levels, was built for 6"):
        ssd300()(grids(38), frame(300, 300))


def test_printing_shows_the_settings():
    text = repr(DefaultBoxes([(1, 2)], aspect_ratios=[(2,)], strides=(8,)))
    assert text == "DefaultBoxes(per_cell=(4,), strides=(8.0,), clip=False)"
