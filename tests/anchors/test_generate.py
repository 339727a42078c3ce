"""Default boxes, grid anchors and multibox anchors: the published grids, their counts, order and clipping."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import assert_refused
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList

from detkit.anchors import DefaultBoxes
from detkit.anchors.generate import GridAnchors, lay_on_grid, multibox_anchors
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
    anchors = ssd300()(grids(*GRIDS300), frame(300, 300)).boxes
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
    torch.testing.assert_close(ssd300()(grids(*GRIDS300), frame(300, 300)).boxes, theirs, rtol=0, atol=1e-3)


def test_ssd512_has_24564_boxes():
    sizes = [(20, 51), (51, 133), (133, 215), (215, 297), (297, 379), (379, 461), (461, 543)]
    anchors = DefaultBoxes(sizes, aspect_ratios=[(2,), *[(2, 3)] * 4, (2,), (2,)])
    assert anchors.per_cell == (4, 6, 6, 6, 6, 4, 4)
    assert anchors(grids(64, 32, 16, 8, 4, 2, 1), frame(512, 512)).boxes.shape == (24564, 4)


def test_tiny_ssd_has_5444_boxes_in_the_order_of_its_chapter():
    pairs = [(0.2, 0.272), (0.37, 0.447), (0.54, 0.619), (0.71, 0.79), (0.88, 0.961)]
    # The chapter names both squares; here the second is the root of the first and the next size.
    anchors = DefaultBoxes([(256 * s, 256 * t * t / s) for s, t in pairs], aspect_ratios=[(2,)] * 5)
    boxes = anchors(grids(32, 16, 8, 4, 1), frame(256, 256)).boxes
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
    boxes = DefaultBoxes([(10, 10)], aspect_ratios=[()])(grids((2, 3)), frame(100, 300)).boxes
    centers = (boxes[:, :2] + boxes[:, 2:])[::2] / 2
    expected = [[50.0, 25], [150, 25], [250, 25], [50, 75], [150, 75], [250, 75]]
    assert centers.tolist() == expected
    assert ((boxes[:, 2:] - boxes[:, :2]) == 10).all()


def test_ratios_are_width_over_height_at_equal_area():
    sides = DefaultBoxes([(12, 48)], aspect_ratios=[(4,)])(grids(1), frame(100, 100)).boxes
    sides = (sides[:, 2:] - sides[:, :2]).tolist()
    assert sides == [[12, 12], [24, 24], [24, 6], [6, 24]]


def test_the_longest_side_cuts_widths_and_heights_and_moves_no_center():
    loose, cut = (DefaultBoxes([(12, 48)], aspect_ratios=[(4,)], **most) for most in ({}, {"max_side": 20}))
    loose, cut = (anchors(grids(1), frame(100, 100)).boxes for anchors in (loose, cut))
    assert (cut[:, 2:] - cut[:, :2]).tolist() == [[12, 12], [20, 20], [20, 6], [6, 20]]
    assert torch.equal(cut[:, :2] + cut[:, 2:], loose[:, :2] + loose[:, 2:])


def test_clipping_keeps_boxes_in_the_frame():
    loose, clipped = (ssd300(clip=clip)(grids(*GRIDS300), frame(300, 297)).boxes for clip in (False, True))
    limit = torch.tensor([297.0, 300, 297, 300])
    torch.testing.assert_close(clipped, loose.clamp(min=0).minimum(limit), rtol=0, atol=0)
    assert loose.min() < 0


def test_every_image_of_a_batch_has_the_same_boxes():
    one, three = (ssd300()(grids(*GRIDS300, batch=n), frame(300, 300, n)).boxes for n in (1, 3))
    assert torch.equal(one, three)


def test_shapes_are_no_weights_and_follow_a_half_precision_model():
    anchors = ssd300()
    assert dict(anchors.state_dict()) == {}
    expected = anchors(grids(*GRIDS300), frame(300, 300)).boxes
    assert anchors.half()(grids(*GRIDS300), frame(300, 300)).boxes.dtype == torch.float32
    assert expected.shape == (8732, 4)


def test_settings_that_do_not_fit_are_refused():
    two = {"sizes": [(1, 2), (2, 3)], "aspect_ratios": [(), ()]}
    for message, options in {
        "1 aspect_ratios 2 sizes level": {"aspect_ratios": [()]},
        "3 strides 2 sizes level": {"strides": (1, 2, 3)},
        "sizes -1": {"sizes": [(1, 2), (-1, 2)]},
        "sizes inf": {"sizes": [(1, 2), (1, math.inf)]},
        "aspect_ratios 0": {"aspect_ratios": [(0,), ()]},
        "strides nan": {"strides": (1, math.nan)},
        "max_side=0 above 0": {"max_side": 0},
        "max_side=nan above 0": {"max_side": math.nan},
    }.items():
        assert_refused(f"DefaultBoxes: {message}", DefaultBoxes, **{**two, **options})
    assert_refused("DefaultBoxes: got 1 feature levels, was built for 6", ssd300(), grids(38), frame(300, 300))


def test_printing_shows_the_settings():
    text = repr(DefaultBoxes([(1, 2)], aspect_ratios=[(2,)], strides=(8,)))
    assert text == "DefaultBoxes(per_cell=(4,), strides=(8.0,), clip=False)"


# Grid anchors


def grid_anchors(*, sizes=((32, 64), (128,)), **settings) -> GridAnchors:
    return GridAnchors(sizes, **settings)


def sides(boxes: torch.Tensor) -> torch.Tensor:
    return boxes[:, 2:] - boxes[:, :2]


def centers(boxes: torch.Tensor) -> torch.Tensor:
    return (boxes[:, 2:] + boxes[:, :2]) / 2


TORCHVISION = {"ratio_is": "h/w", "centered": False, "whole_pixels": True}
FASTER_RCNN = [(-91, -45, 91, 45), (-181, -91, 181, 91), (-362, -181, 362, 181)]
FASTER_RCNN += [(-64, -64, 64, 64), (-128, -128, 128, 128), (-256, -256, 256, 256)]
FASTER_RCNN += [(-45, -91, 45, 91), (-91, -181, 91, 181), (-181, -362, 181, 362)]


def test_torchvisions_anchors_of_faster_rcnn_are_the_published_ones():
    anchors = GridAnchors([(128, 256, 512)], **TORCHVISION)(grids(2), frame(32, 32)).boxes
    assert anchors[:9].tolist() == [list(map(float, box)) for box in FASTER_RCNN]
    assert torch.equal(anchors[9:18], anchors[:9] + torch.tensor([16.0, 0, 16, 0]))
    assert torch.equal(anchors[18:27], anchors[:9] + torch.tensor([0.0, 16, 0, 16]))


@pytest.mark.parametrize("size", [(800, 1088), (801, 1333), (64, 64), (333, 500)])
def test_every_anchor_of_a_torchvision_retinanet_is_equal(size):
    sizes = tuple((x, int(x * 2 ** (1 / 3)), int(x * 2 ** (2 / 3))) for x in (32, 64, 128, 256, 512))
    features = grids(*[tuple(-(-side // stride) for side in size) for stride in (8, 16, 32, 64, 128)])
    peer = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 5)
    theirs = peer(ImageList(torch.zeros(1, 3, *size), [size]), features)[0]
    ours = GridAnchors(sizes, **TORCHVISION)
    assert list(ours.per_cell) == peer.num_anchors_per_location()
    assert torch.equal(ours(features, frame(*size)).boxes, theirs)


@given(
    sizes=st.lists(st.integers(1, 600), min_size=1, max_size=3),
    ratios=st.lists(st.floats(0.1, 10), min_size=1, max_size=3),
    grid=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    image=st.tuples(st.integers(5, 70), st.integers(5, 70)),
)
def test_any_sizes_ratios_and_grids_equal_torchvision(sizes, ratios, grid, image):
    theirs = AnchorGenerator((tuple(sizes),), (tuple(ratios),))(
        ImageList(torch.zeros(1, 3, *image), [image]), grids(grid)
    )[0]
    ours = GridAnchors([sizes], aspect_ratios=ratios, **TORCHVISION)(grids(grid), frame(*image)).boxes
    assert torch.equal(ours, theirs)


def test_the_anchors_of_py_faster_rcnn_are_shapes_that_it_rounded_at_its_base_of_16_pixels():
    base = [(23, 12), (16, 16), (11, 22)]
    shapes = [(w * scale, h * scale) for w, h in base for scale in (8, 16, 32)]
    boxes = GridAnchors(shapes=[shapes], strides=(16,))(grids(1), frame(16, 16)).boxes
    inclusive_from_one = boxes + torch.tensor([1.0, 1, 0, 0])  # its list counts pixels from 1, both ends included
    expected = [(-83, -39, 100, 56), (-175, -87, 192, 104), (-359, -183, 376, 200)]
    expected += [(-55, -55, 72, 72), (-119, -119, 136, 136), (-247, -247, 264, 264)]
    expected += [(-35, -79, 52, 96), (-79, -167, 96, 184), (-167, -343, 184, 360)]
    assert inclusive_from_one.tolist() == [list(map(float, box)) for box in expected]


def test_the_hourglass_rpn_has_30_anchor_shapes():
    ratios = (0.15, 0.5, 1, 2, 6.7)
    anchors = GridAnchors([(16, 32), (64, 128), (256, 512)], aspect_ratios=ratios, strides=(8, 16, 32))
    assert anchors.per_cell == (10, 10, 10)
    boxes = anchors(grids(1, 1, 1), frame(8, 8)).boxes
    torch.testing.assert_close(sides(boxes)[0], torch.tensor([6.20, 41.31]), rtol=0, atol=5e-3)
    slow = [
        (s * math.sqrt(r), s / math.sqrt(r)) for pair in ((16, 32), (64, 128), (256, 512)) for r in ratios for s in pair
    ]
    torch.testing.assert_close(sides(boxes), torch.tensor(slow), rtol=1e-5, atol=1e-4)


def test_yolo_v3_lays_three_given_shapes_at_the_center_of_every_cell():
    shapes = [[(10, 13), (16, 30), (33, 23)], [(30, 61), (62, 45), (59, 119)], [(116, 90), (156, 198), (373, 326)]]
    anchors = GridAnchors(shapes=shapes)
    boxes = anchors(grids(52, 26, 13), frame(416, 416)).boxes
    assert boxes.shape == (10647, 4)
    assert sides(boxes)[:3].tolist() == [[10, 13], [16, 30], [33, 23]]
    assert centers(boxes)[[0, 3, 52 * 3, -1]].tolist() == [[4, 4], [12, 4], [4, 12], [400, 400]]
    tensors = GridAnchors(shapes=[torch.tensor(level) for level in shapes])
    assert torch.equal(tensors(grids(52, 26, 13), frame(416, 416)).boxes, boxes)


@given(
    sizes=st.lists(st.floats(1, 600), min_size=1, max_size=3),
    ratios=st.lists(st.floats(0.05, 20), min_size=1, max_size=4),
    grid=st.tuples(st.integers(0, 5), st.integers(0, 5)),
)
def test_every_anchor_has_the_area_and_ratio_asked_for_and_every_cell_has_them_all(sizes, ratios, grid):
    anchors = GridAnchors([sizes], aspect_ratios=ratios, strides=(16,))
    boxes = anchors(grids(grid), frame(16 * grid[0], 16 * grid[1])).boxes
    assert len(boxes) == grid[0] * grid[1] * len(sizes) * len(ratios)
    width, height = sides(boxes.double()).unbind(1)
    area = torch.tensor([s * s for _ in ratios for s in sizes], dtype=torch.float64).repeat(grid[0] * grid[1])
    ratio = torch.tensor([r for r in ratios for _ in sizes], dtype=torch.float64).repeat(grid[0] * grid[1])
    torch.testing.assert_close(width * height, area, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(width / height, ratio, rtol=1e-3, atol=0)


@given(
    grid=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    by=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    stride=st.sampled_from([1, 4, 7.5, 32]),
    centered=st.booleans(),
)
def test_a_larger_grid_continues_the_smaller_one_and_a_shift_by_cells_shifts_the_anchors(grid, by, stride, centered):
    anchors = GridAnchors([(20,)], strides=(stride,), centered=centered)
    larger = (grid[0] + by[0], grid[1] + by[1])
    whole, part = (
        anchors(grids(cells), frame(*(int(side * stride) for side in cells))).boxes.reshape(*cells, 3, 4)
        for cells in (larger, grid)
    )
    assert torch.equal(whole[: grid[0], : grid[1]], part)
    shift = torch.tensor([by[1] * stride, by[0] * stride] * 2)
    torch.testing.assert_close(whole[by[0] :, by[1] :], part + shift, rtol=0, atol=1e-3)


@given(sizes=st.lists(st.floats(1, 300), min_size=1, max_size=3), ratio=st.floats(0.1, 10))
def test_a_ratio_read_as_height_over_width_transposes_every_anchor(sizes, ratio):
    wide, high = (
        GridAnchors([sizes], aspect_ratios=(ratio,), strides=(8,), ratio_is=ratio_is)(grids(1), frame(8, 8)).boxes
        for ratio_is in ("w/h", "h/w")
    )
    assert torch.equal(wide[:, [1, 0, 3, 2]], high)


def test_half_cell_centers_are_the_default_and_corners_the_other_choice():
    default, corner = (
        GridAnchors([(4,)], strides=(8,), **s)(grids(2), frame(16, 16)).boxes for s in ({}, {"centered": False})
    )
    assert centers(default)[::3].tolist() == [[4, 4], [12, 4], [4, 12], [12, 12]]
    assert centers(corner)[::3].tolist() == [[0, 0], [8, 0], [0, 8], [8, 8]]


def test_without_strides_the_frame_is_divided_and_whole_pixels_rounds_that_down():
    loose, whole = (GridAnchors([(3,)], aspect_ratios=(1,), whole_pixels=w) for w in (False, True))
    assert centers(loose(grids((2, 4)), frame(9, 10)).boxes).tolist()[-1] == [8.75, 6.75]
    assert centers(whole(grids((2, 4)), frame(9, 10)).boxes).tolist()[-1] == [7, 6]
    assert sides(loose(grids(1), frame(9, 9)).boxes).tolist() == [[3, 3]]
    assert sides(whole(grids(1), frame(9, 9)).boxes).tolist() == [[4, 4]]  # a corner at 1.5 goes to the even number


def test_each_level_may_have_its_own_ratios():
    anchors = grid_anchors(aspect_ratios=((1,), (0.5, 1, 2)), strides=(8, 16))
    assert anchors.per_cell == (2, 3)
    boxes = anchors(grids(1, 1), frame(8, 8)).boxes
    assert sides(boxes)[[0, 1, 3]].tolist() == [[32, 32], [64, 64], [128, 128]]
    torch.testing.assert_close(sides(boxes)[2], torch.tensor([128 / 2**0.5, 128 * 2**0.5]))


def test_grid_anchors_clip_and_hold_for_every_image_of_a_batch():
    loose, clipped = (
        grid_anchors(strides=(8, 16), clip=clip)(grids((4, 3), 2), frame(32, 24)).boxes for clip in (False, True)
    )
    assert torch.equal(clipped, loose.clamp(min=0).minimum(torch.tensor([24.0, 32, 24, 32])))
    assert not torch.equal(clipped, loose)
    assert torch.equal(grid_anchors(strides=(8, 16))(grids((4, 3), 2, batch=3), frame(32, 24, 3)).boxes, loose)


def test_anchors_know_the_cell_that_they_stand_in_and_how_many_each_level_has():
    features, image = grids((2, 3), (1, 1)), frame(32, 96)
    anchors = GridAnchors([(8,), (16,)], aspect_ratios=(1, 2))
    strides = anchors(features, image).strides
    assert strides.tolist() == [[32, 16]] * 12 + [[96, 32]] * 2
    given_strides = GridAnchors([(8,), (16,)], aspect_ratios=(1, 2), strides=(28, 50))(features, frame(50, 90)).strides
    assert given_strides.tolist() == [[28, 28]] * 12 + [[50, 50]] * 2
    assert strides.dtype == torch.float32
    assert anchors(features, image).counts == (12, 2)
    whole = GridAnchors([(8,)], aspect_ratios=(1,), whole_pixels=True)(grids((2, 4)), frame(9, 10)).strides
    assert whole[0].tolist() == [2, 4]


def test_strides_that_do_not_lay_the_cells_over_the_image_are_refused_but_a_cell_of_rounding_is_not():
    anchors = GridAnchors([(8,), (16,)], strides=(8, 16))
    for cells in (37, 38):  # rounded down and up
        anchors(grids(cells, 19), frame(300, 300))
    with pytest.raises(ValueError, match=r"^GridAnchors: strides\[1\]=16 lays 38 x 38 cells on images of 300 x 300"):
        anchors(grids(38, 38), frame(300, 300))
    for cells in ((36, 38), (38, 39)):  # too few in one direction, too many in the other
        with pytest.raises(ValueError, match=r"strides\[0\]=8 lays .*strides=None"):
            anchors(grids(cells, 19), frame(300, 300))
    for cells in (1, 3):  # by a whole cell
        with pytest.raises(ValueError, match=r"strides\[0\]=8 lays .*to less than one cell"):
            anchors(grids(cells, 1), frame(16, 16))
    with pytest.raises(ValueError, match=r"^DefaultBoxes: strides\[5\]=300 lays 3 x 3 cells"):
        ssd300()(grids(56, 28, 14, 7, 5, 3), frame(448, 448))


def test_a_feature_map_without_cells_has_no_anchors():
    for anchors in (
        GridAnchors([(8,)]),
        GridAnchors([(8,)], whole_pixels=True),
        DefaultBoxes([(1, 2)], aspect_ratios=[()]),
        DefaultBoxes([(1, 2)], aspect_ratios=[()], strides=(3,)),
    ):
        assert anchors(grids((0, 3)), frame(8, 8)).boxes.shape == (0, 4)
        assert anchors(grids((0, 3)), frame(8, 8)).strides.shape == (0, 2)


def test_positions_keep_their_precision_in_a_half_precision_model():
    anchors = GridAnchors([(32,)], aspect_ratios=(1,), strides=(1,))
    expected = anchors(grids((1, 3000)), frame(1, 3000)).boxes
    assert torch.equal(anchors.half()(grids((1, 3000)), frame(1, 3000)).boxes, expected)
    assert anchors(grids((1, 2)), frame(1, 2)).strides.dtype == torch.float32
    assert dict(anchors.state_dict()) == {}


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("GridAnchors: sizes shapes both", {}),
        ("GridAnchors: sizes shapes both", {"sizes": [(8,)], "shapes": [[(1, 2)]]}),
        ("GridAnchors: ratio_is='x' 'w/h' 'h/w'", {"sizes": [(8,)], "ratio_is": "x"}),
        ("GridAnchors: 3 strides 1 sizes level", {"sizes": [(8,)], "strides": (1, 2, 3)}),
        ("GridAnchors: strides 0", {"sizes": [(8,)], "strides": (0,)}),
        ("GridAnchors: sizes[1] -1", {"sizes": [(8,), (-1,)]}),
        (
            "GridAnchors: aspect_ratios inf",
            {"sizes": [(8,)], "aspect_ratios": (1.0, math.inf)},
        ),
        (
            "GridAnchors: 1 aspect_ratios 2 sizes level",
            {"sizes": [(8,), (9,)], "aspect_ratios": [(1,)]},
        ),
        (
            "GridAnchors: shapes[1] (1, 3) (S, 2)",
            {"shapes": [torch.ones(1, 2), torch.ones(1, 3)]},
        ),
        ("GridAnchors: shapes[0] (2,) (S, 2)", {"shapes": [torch.ones(2)]}),
        (
            "GridAnchors: shapes[0] nan",
            {"shapes": [torch.tensor([[1, math.nan]])]},
        ),
        ("GridAnchors: level 1 no shapes", {"sizes": [(8,), ()]}),
        ("GridAnchors: level 0 no shapes", {"shapes": [torch.zeros(0, 2)]}),
    ],
)
def test_anchors_that_make_no_sense_are_refused(message, options):
    assert_refused(message, GridAnchors.__init__, GridAnchors.__new__(GridAnchors), **options)


def test_another_number_of_feature_levels_is_refused():
    anchors = GridAnchors([(8,)])
    assert_refused(
        "GridAnchors: got 2 feature levels, was built for 1", GridAnchors.forward, anchors, grids(1, 1), frame(8, 8)
    )


def test_printing_grid_anchors_shows_the_settings():
    for centered in (True, False):
        text = repr(GridAnchors([(8,)], strides=(4,), centered=centered))
        assert (
            text == f"GridAnchors(per_cell=(3,), strides=(4.0,), clip=False, centered={centered}, whole_pixels=False)"
        )


# The n + m - 1 anchors of the anchor chapter


def test_two_million_anchors_of_the_chapters_photograph():
    boxes = multibox_anchors(561, 728, [0.75, 0.5, 0.25], [1, 2, 0.5])
    assert boxes.shape == (2_042_040, 4)
    expected = torch.tensor([0.0551168, 0.0715241, 0.6330701, 0.8215240])
    torch.testing.assert_close(boxes.reshape(561, 728, 5, 4)[250, 250, 0], expected, rtol=0, atol=1e-6)


def test_a_grid_of_two_by_three():
    boxes = multibox_anchors(2, 3, [0.5, 0.25], [1, 2])
    expected = [[0, 0, 0.3333333, 0.5], [0.0833333, 0.125, 0.25, 0.375], [-0.0690356, 0.0732233, 0.4023689, 0.4267767]]
    torch.testing.assert_close(boxes[:3], torch.tensor(expected), rtol=0, atol=1e-6)
    assert boxes.shape == (18, 4)
    assert boxes.dtype == torch.float32


def slow_multibox(height, width, sizes, ratios):
    pairs = [(s, ratios[0]) for s in sizes] + [(sizes[0], r) for r in ratios[1:]]
    rows = []
    for y in range(height):
        for x in range(width):
            for s, r in pairs:
                w, h = s * math.sqrt(r) * height / width, s / math.sqrt(r)
                cx, cy = (x + 0.5) / width, (y + 0.5) / height
                rows.append([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2])
    return torch.tensor(rows, dtype=torch.float64).reshape(-1, 4)


@given(
    grid=st.tuples(st.integers(0, 5), st.integers(0, 5)),
    sizes=st.lists(st.floats(0.01, 1), min_size=1, max_size=3),
    ratios=st.lists(st.floats(0.1, 10), min_size=1, max_size=3),
)
def test_multibox_anchors_equal_the_loop_over_cells(grid, sizes, ratios):
    boxes = multibox_anchors(*grid, sizes, ratios)
    torch.testing.assert_close(boxes.double(), slow_multibox(*grid, sizes, ratios), rtol=0, atol=1e-5)
    assert len(boxes) == grid[0] * grid[1] * (len(sizes) + len(ratios) - 1)


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("multibox_anchors: sizes 0", (2, 2, [0], [1])),
        ("multibox_anchors: ratios nan", (2, 2, [1], [math.nan])),
        ("multibox_anchors: got no sizes; at least one is needed", (2, 2, [], [1])),
        ("multibox_anchors: got no ratios; at least one is needed", (2, 2, [1], [])),
        ("multibox_anchors: height=-1 0", (-1, 2, [1], [1])),
        ("multibox_anchors: width=-2 0", (1, -2, [1], [1])),
    ],
)
def test_multibox_anchors_that_make_no_sense_are_refused(message, arguments):
    assert_refused(message, multibox_anchors, *arguments)


def test_laying_starts_half_a_cell_in_unless_told():
    shapes = torch.tensor([[4.0, 2], [2, 4]])
    assert lay_on_grid(shapes, (1, 2), (6, 10)).tolist() == [[3, 2, 7, 4], [4, 1, 6, 5], [13, 2, 17, 4], [14, 1, 16, 5]]
    assert lay_on_grid(shapes[:1], (2, 1), (6, 10), start=0.0).tolist() == [[-2, -1, 2, 1], [-2, 5, 2, 7]]
