"""Pictures: what is drawn where, what is refused, and what is saved."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from strategies import unhooked
from torchvision import tv_tensors
from torchvision.transforms import v2

from detkit.viz import (
    class_color,
    draw,
    draw_boxes,
    draw_detections,
    plot_curves,
    save_picture,
    side_by_side,
)

GREY = 100


def gray(height: int = 500, width: int = 500) -> torch.Tensor:
    """Large enough to be left at its size by default."""
    return torch.full((3, height, width), GREY, dtype=torch.uint8)


def objects(*boxes: tuple[float, ...], scores: list[float] | None = None, **entries: torch.Tensor) -> dict:
    """Boxes labeled 0, 1, 2, ..., with scores or without."""
    found = {"boxes": torch.tensor(boxes).reshape(-1, 4), "labels": torch.arange(len(boxes)), **entries}
    return found if scores is None else {**found, "scores": torch.tensor(scores)}


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture)


def has_color(picture: Image.Image, label: int) -> bool:
    return bool((pixels(picture) == class_color(label)).all(-1).any())


def extent(picture: Image.Image, label: int) -> tuple[int, int, int, int]:
    """First and last column and row (exclusive ends) that hold a class's color."""
    rows, columns = (pixels(picture) == class_color(label)).all(-1).nonzero()
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


# boxes


def test_a_box_is_drawn_along_the_pixels_inside_it():
    picture = draw_boxes(gray(), torch.tensor([[50.0, 60.0, 150.0, 260.0]]))
    assert extent(picture, 0) == (50, 60, 150, 260)
    assert (pixels(picture)[150, 50:53] == class_color(0)).all(), "three pixels thick"
    assert (pixels(picture)[150, 60:140] == GREY).all(), "hollow"
    assert (pixels(picture)[270:] == GREY).all()


@pytest.mark.parametrize(("size", "factor"), [(96, 5), (28, 18), (300, 2), (480, 1), (640, 1)])
def test_small_images_are_enlarged_by_a_whole_number_and_boxes_with_them(size, factor):
    image = torch.zeros(1, size, size)
    image[0, 0, 0] = 1.0
    picture = draw_boxes(image, torch.tensor([[size / 4, size / 2, size / 2, size - 4.0]]))
    assert picture.size == (size * factor, size * factor)
    assert extent(picture, 0) == (size // 4 * factor, size // 2 * factor, size // 2 * factor, (size - 4) * factor)
    corner = pixels(picture)[: factor + 1, : factor + 1, 0]
    assert (corner[:factor, :factor] == 255).all(), "one pixel becomes one square"
    assert (corner[factor] == 0).all()


def test_enlarging_can_be_chosen_and_switched_off():
    assert draw_boxes(torch.zeros(3, 20, 30), torch.zeros(0, 4), enlarge=1).size == (30, 20)
    assert draw_boxes(torch.zeros(3, 20, 30), torch.zeros(0, 4), enlarge=3).size == (90, 60)


def test_boxes_beyond_the_image_are_cut_at_its_edge():
    picture = draw_boxes(gray(), torch.tensor([[-50.0, 100.0, 1e30, 200.0]]))
    assert extent(picture, 0) == (0, 100, 500, 200)


def test_the_callers_image_is_left_alone():
    tensor, image = gray(), Image.new("RGB", (500, 500), "white")
    box = torch.tensor([[50.0, 60.0, 150.0, 260.0]])
    draw_boxes(tensor, box)
    draw_boxes(image, box)
    assert bool((tensor == GREY).all())
    assert (pixels(image) == 255).all()


@pytest.mark.parametrize(
    "image",
    [
        gray(),
        gray().float() / 255,
        (gray().double() / 255)[:1],
        Image.new("L", (500, 500), GREY),
        Image.new("RGBA", (500, 500), (GREY, GREY, GREY, 255)),
        gray().transpose(1, 2),
    ],
    ids=["uint8", "float", "one channel", "gray picture", "alpha picture", "strided"],
)
def test_every_kind_of_image_gives_the_same_picture(image):
    box = torch.tensor([[50.0, 60.0, 150.0, 260.0]])
    assert (pixels(draw_boxes(image, box)) == pixels(draw_boxes(gray(), box))).all()


# detections


def test_only_detections_from_the_threshold_up_are_drawn():
    found = objects((20, 50, 90, 150), (120, 50, 190, 150), (220, 50, 290, 150), scores=[0.49, 0.5, 0.9])
    picture = draw_detections(gray(), found, score_threshold=0.5)
    assert [has_color(picture, label) for label in range(3)] == [False, True, True]


def test_a_target_is_drawn_whole_because_it_has_no_scores():
    picture = draw_detections(gray(), objects((20, 50, 90, 150), (120, 50, 190, 150)), score_threshold=1.0)
    assert has_color(picture, 0)
    assert has_color(picture, 1)


def test_no_detections_leave_the_image_as_it_is():
    assert (pixels(draw_detections(gray(), objects(scores=[]))) == GREY).all()
    empty = {"boxes": torch.tensor([]), "labels": torch.tensor([], dtype=torch.int64)}
    assert (pixels(draw_detections(gray(), empty)) == GREY).all()


def test_the_best_detection_lies_on_top():
    box = (100, 100, 300, 300)
    for scores, winner in ([0.9, 0.5], 0), ([0.5, 0.9], 1):
        picture = draw_detections(gray(), objects(box, box, scores=scores))
        assert (pixels(picture)[200, 101] == class_color(winner)).all()


def test_text_stands_above_its_box_and_inside_the_picture_at_the_top():
    low = draw_detections(gray(), objects((100, 200, 300, 300)), categories=["cell"])
    left, top, _, bottom = extent(low, 0)
    assert (left, bottom) == (100, 300)
    assert 175 <= top < 190
    high = draw_detections(gray(), objects((460, 0, 500, 40)), categories=["a long category"])
    left, top, right, _ = extent(high, 0)
    assert left < 400
    assert (top, right) == (0, 500)


def test_texts_of_neighbors_do_not_cover_each_other():
    boxes = [(100, 200, 106, 206), (102, 201, 108, 207), (104, 202, 110, 208)]  # so small that text is what counts
    names = ["aaaaaaaaaa", "bbbbbbbbbb", "cccccccccc"]
    whole = [
        (pixels(draw_detections(gray(), objects(box), categories=[name])) == class_color(0)).all(-1).sum()
        for box, name in zip(boxes, names, strict=True)
    ]
    picture = draw_detections(gray(), objects(*boxes), categories=names)
    for label, alone in enumerate(whole):
        tag = (pixels(picture) == class_color(label)).all(-1)
        assert tag.sum() > 0.9 * alone


def test_text_differs_with_category_score_and_crowd():
    box = (100, 200, 300, 300)
    pictures = [
        draw_detections(gray(), objects(box, scores=[0.9]), categories=["cat"]),
        draw_detections(gray(), objects(box, scores=[0.8]), categories=["cat"]),
        draw_detections(gray(), objects(box, scores=[0.9]), categories=["dog"]),
        draw_detections(gray(), objects(box, scores=[0.9])),
        draw_detections(gray(), objects(box), categories=["cat"]),
        draw_detections(gray(), objects(box, iscrowd=torch.tensor([1])), categories=["cat"]),
    ]
    assert len({picture.tobytes() for picture in pictures}) == len(pictures)


def test_twenty_one_classes_have_colors_of_their_own():
    assert len({class_color(label) for label in range(21)}) == 21


def test_boxes_without_texts_need_no_place(monkeypatch):
    monkeypatch.setattr(draw, "find_places", lambda edges, *_: [] if not edges else pytest.fail("a place for nothing"))
    boxes = torch.rand(2000, 2).repeat(1, 2) * 400 + torch.tensor([0, 0, 20, 20])
    assert has_color(draw_boxes(gray(), boxes), 0)
    with monkeypatch.context() as patch:
        patch.setattr(draw, "find_places", lambda edges, sizes, *_: [(0, 0, *map(int, sizes[0]))] * len(edges))
        draw_boxes(gray(), boxes[:3], texts=["", "one", ""])


def test_texts_that_would_hide_small_objects_are_left_out_on_request():
    crowd = objects(*((x, y, x + 5, y + 5) for x in range(200, 300, 8) for y in range(200, 300, 8)))
    crowd["labels"] = torch.zeros_like(crowd["labels"])
    shown = {
        plates: draw_detections(gray(), crowd, plates=plates, categories=["cell"])
        for plates in ("all", "clear", "none")
    }
    inked = {plates: int((pixels(picture) == class_color(0)).all(-1).sum()) for plates, picture in shown.items()}
    assert inked["none"] <= inked["clear"] < inked["all"]
    alone = objects((100.0, 100, 300, 300))
    assert draw_detections(gray(), alone, plates="clear").tobytes() == draw_detections(gray(), alone).tobytes()
    assert draw_detections(gray(), alone, plates="none").tobytes() == draw_boxes(gray(), alone["boxes"]).tobytes()
    with pytest.raises(ValueError, match="plates='some'; allowed are 'all', 'clear' and 'none'"):
        unhooked(draw_detections)(gray(), alone, plates="some")


# masks


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float32])
def test_a_mask_tints_its_inside_and_borders_it(dtype):
    mask = torch.zeros(1, 500, 500, dtype=dtype)
    mask[0, 200:300, 200:300] = 1
    picture = draw_detections(gray(), objects((20, 20, 60, 60), masks=mask), mask_alpha=0.5)
    expected = np.round(GREY + 0.5 * (np.array(class_color(0)) - GREY))
    assert np.abs(pixels(picture)[250, 250].astype(float) - expected).max() <= 1
    assert (pixels(picture)[200, 200:300] == class_color(0)).all()
    assert (pixels(picture)[199, 200:300] == GREY).all()


def test_float_masks_are_cut_at_one_half_and_may_have_a_channel():
    mask = torch.full((1, 1, 500, 500), 0.5)
    mask[..., 200:300, 200:300] = 0.51
    picture = draw_detections(gray(), objects((20, 20, 60, 60), masks=mask))
    assert (pixels(picture)[400, 400] == GREY).all()
    assert not (pixels(picture)[250, 250] == GREY).all()


def test_masks_are_enlarged_with_their_image():
    mask = torch.zeros(1, 96, 96, dtype=torch.bool)
    mask[0, 40:60, 30:50] = True
    picture = draw_detections(gray(96, 96), objects((2, 2, 9, 9), masks=mask))
    changed = (pixels(picture) != GREY).any(-1)[100:]
    rows, columns = changed.nonzero()
    assert (rows.min() + 100, rows.max() + 101, columns.min(), columns.max() + 1) == (200, 300, 150, 250)


def test_masks_of_another_size_are_refused_not_resized():
    found = objects((2, 2, 9, 9), masks=torch.zeros(1, 28, 28))
    with pytest.raises(ValueError, match=r"masks of height and width \(28, 28\) for an image of \(96, 90\)"):
        draw_detections(gray(96, 90), found)


# keypoints


def test_visible_keypoints_are_dotted_and_joined():
    keypoints = torch.tensor([[[100.0, 300.0, 2.0], [200.0, 300.0, 1.0], [300.0, 300.0, 0.0]]])
    found = objects((20, 20, 60, 60), keypoints=keypoints)
    alone = pixels(draw_detections(gray(), found))
    joined = pixels(draw_detections(gray(), found, skeleton=[(0, 1), (1, 2)]))
    for x, shown in ((100, True), (200, True), (300, False)):
        assert bool((alone[300, x] == class_color(0)).all()) is shown
    assert (alone[300, 150] == GREY).all()
    assert (joined[300, 150] == class_color(0)).all()
    assert (joined[300, 250] == GREY).all(), "a hidden end is not joined"


# bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"boxes": torch.tensor([[9.0, 1, 5, 5]])},
            r"boxes\[0\] = \[9.0, 1.0, 5.0, 5.0\] \(1 such\); allowed: finite x1",
        ),
        ({"boxes": torch.tensor([[0.0, 1, float("nan"), 5]])}, r"boxes\[0\] = \[0.0, 1.0, nan, 5.0\]"),
        ({"boxes": torch.zeros(1, 5)}, r"detections: boxes have shape \(1, 5\); allowed is \(T, 4\)"),
        ({"labels": torch.tensor([0, 1])}, r"detections: boxes have shape \(1, 4\) and labels \(2,\); each box needs"),
        ({"labels": torch.tensor([2])}, r"label 2 \(1 such\) is outside 0\.\.1 \(the categories\)"),
        ({"labels": torch.tensor([-1])}, r"label -1 "),
        ({"scores": torch.tensor([float("nan")])}, r"scores\[0\] = nan"),
        ({"scores": torch.ones(1, 1)}, r"detections: scores have shape \(1, 1\); allowed is \(T,\)"),
        ({"keypoints": torch.zeros(1, 5, 2)}, r"detections: keypoints have shape \(1, 5, 2\)"),
        ({"keypoints": torch.full((1, 5, 3), float("inf"))}, r"keypoints\[0\] = "),
    ],
)
def test_bad_detections_are_named(change, message):
    found = {**objects((1, 1, 5, 5), scores=[0.9]), **change}
    with pytest.raises(ValueError, match="draw_detections: " + message):
        draw_detections(gray(), found, categories=["a", "b"])


def test_detections_without_labels_are_named():
    with pytest.raises(ValueError, match=r"draw_detections: detections: no 'labels' among \['boxes'\]"):
        draw_detections(gray(), {"boxes": torch.zeros(0, 4)})


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.randn(3, 50, 50) * 3, r"image has values from -.* \(undo the normalization first\)"),
        (torch.full((3, 5, 5), float("nan")), "image has values from nan"),
        (torch.zeros(3, 5, 5, dtype=torch.int64), r"image has type torch.int64; allowed are floats"),
        (torch.zeros(4, 5, 5), r"image has shape \(4, 5, 5\); allowed is \(1 or 3, H, W\)"),
        (torch.zeros(3, 0, 5), r"image has shape \(3, 0, 5\)"),
    ],
)
def test_bad_images_are_named(image, message):
    with pytest.raises(ValueError, match=message):
        draw_detections(image, objects())


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match=r"score_threshold=1.5.*\[0, 1\]"):
        draw_detections(gray(), objects(), score_threshold=1.5)
    with pytest.raises(ValueError, match=r"mask_alpha=-1.0.*\[0, 1\]"):
        draw_detections(gray(), objects(), mask_alpha=-1.0)
    with pytest.raises(ValueError, match=r"enlarge=0.*1"):
        draw_detections(gray(), objects(), enlarge=0)
    with pytest.raises(ValueError, match=r"draw_boxes: 2 texts for 1 boxes"):
        draw_boxes(gray(), torch.zeros(1, 4), texts=["a", "b"])


# side by side


def test_truth_stands_left_and_prediction_right_of_each_image():
    truth, found = objects((20, 50, 90, 150)), objects((20, 50, 90, 150), scores=[0.9])
    found["labels"] = torch.tensor([1])
    sheet = side_by_side([gray()], [truth], [found])
    left, right = sheet.crop((0, 0, 510, sheet.height)), sheet.crop((510, 0, *sheet.size))
    assert (has_color(left, 0), has_color(left, 1)) == (True, False)
    assert (has_color(right, 0), has_color(right, 1)) == (False, True)


def test_images_of_several_sizes_share_a_sheet_and_columns_count_pairs():
    images = [gray(500, 600), gray(700, 500), gray(500, 500)]
    truths, found = [objects()] * 3, [objects(scores=[])] * 3
    tall = side_by_side(images, truths, found)
    wide = side_by_side(images, truths, found, columns=2)
    assert tall.width == 600 * 2 + 8 * 3
    assert wide.width == 600 * 2 + 500 * 2 + 8 * 5
    assert 1700 < tall.height < 1850
    assert 1200 < wide.height < 1300
    for sheet in (tall, wide):
        shown = (pixels(sheet) == GREY).all(-1).sum()
        assert 0 <= shown - 2 * (300000 + 350000 + 250000) < 500, "every image whole; the rest is text"


@pytest.mark.parametrize(("images", "truths", "columns"), [([], [], 1), ([gray()], [objects()] * 2, 1)])
def test_lists_of_other_lengths_are_refused(images, truths, columns):
    found = [objects(scores=[])] * len(images)
    with pytest.raises(ValueError, match=rf"side_by_side: {len(images)} images, {len(truths)} truths"):
        side_by_side(images, truths, found, columns=columns)


def test_detections_without_scores_are_refused_by_name():
    with pytest.raises(ValueError, match=r"side_by_side: detections has no 'scores' among \['boxes', 'labels'\]"):
        side_by_side([gray()], [objects((2, 2, 9, 9))], [objects((2, 2, 9, 9))])


@pytest.mark.slow
def test_real_images_with_their_annotations_make_a_sheet(detkit_data, tmp_path):
    folder = detkit_data / "bccd"
    truth = json.loads((folder / "annotations" / "instances_val.json").read_text())
    names = [category["name"] for category in truth["categories"]]
    label_of = {category["id"]: i for i, category in enumerate(truth["categories"])}
    images, targets = [], []
    for record in truth["images"][:2]:
        rows = [row for row in truth["annotations"] if row["image_id"] == record["id"]]
        boxes = torch.tensor([row["bbox"] for row in rows])
        boxes[:, 2:] += boxes[:, :2]
        targets.append({"boxes": boxes, "labels": torch.tensor([label_of[row["category_id"]] for row in rows])})
        images.append(Image.open(folder / "images" / record["file_name"]))
    found = [{**target, "scores": torch.full((len(target["labels"]),), 0.8)} for target in targets]
    sheet = side_by_side(images, targets, found, categories=names)
    save_picture(tmp_path / "sheet.png", sheet)
    assert sheet.width == 2 * images[0].width + 3 * 8
    for label in {int(label) for target in targets for label in target["labels"]}:
        assert has_color(Image.open(tmp_path / "sheet.png"), label)


# files


@pytest.mark.slow
def test_pictures_and_figures_are_saved_as_png(tmp_path):
    picture = draw_boxes(torch.zeros(3, 96, 96), torch.zeros(0, 4))
    save_picture(tmp_path / "a.png", picture)
    save_picture(str(tmp_path / "b.PNG"), plot_curves([{"epoch": 1, "loss": 1.0}]))
    assert (pixels(Image.open(tmp_path / "a.png")) == pixels(picture)).all()
    assert Image.open(tmp_path / "b.PNG").format == "PNG"
    with pytest.raises(ValueError, match=r"save_picture: path '.*a\.svg' must end in \.png, \.jpg, \.jpeg, \.pdf"):
        save_picture(tmp_path / "a.svg", picture)
    with pytest.raises(FileNotFoundError):
        save_picture(tmp_path / "nowhere" / "a.png", picture)


@pytest.mark.slow
def test_a_picture_and_a_figure_are_written_as_jpeg_and_pdf_too(tmp_path):
    picture, figure = draw_boxes(torch.zeros(3, 96, 96), torch.zeros(0, 4)), plot_curves([{"epoch": 1, "loss": 1.0}])
    for name, begins in {"jpg": b"\xff\xd8\xff", "JPEG": b"\xff\xd8\xff", "pdf": b"%PDF"}.items():
        for drawn in (picture, figure):
            save_picture(tmp_path / f"a.{name}", drawn)
            assert (tmp_path / f"a.{name}").read_bytes().startswith(begins)


# what the border takes


@pytest.mark.parametrize("form", ["XYWH", "CXCYWH"])
def test_tv_tensors_of_other_formats_are_drawn_where_they_are(form):
    corners = tv_tensors.BoundingBoxes([[50.0, 60, 150, 260]], format="XYXY", canvas_size=(500, 500))
    boxes = v2.functional.convert_bounding_box_format(corners, new_format=form)
    assert extent(draw_boxes(gray(), boxes), 0) == (50, 60, 150, 260)


def test_boxes_on_another_canvas_than_the_image_are_refused():
    boxes = tv_tensors.BoundingBoxes([[50.0, 60, 150, 260]], format="XYXY", canvas_size=(600, 500))
    with pytest.raises(ValueError, match=r"boxes of height and width \(600, 500\) for an image of \(500, 500\)"):
        draw_boxes(gray(), boxes)
    with pytest.raises(ValueError, match=r"detections: boxes of height and width \(600, 500\)"):
        draw_detections(gray(), {"boxes": boxes, "labels": [0]})


def test_arrays_lists_and_none_are_taken():
    given = {"boxes": [[50, 60, 150, 260]], "labels": np.array([0]), "scores": None, "masks": None}
    assert extent(draw_detections(gray(), given), 0)[2:] == (150, 260)
    with pytest.raises(TypeError, match=r"^draw_detections: detections: labels: a list that holds no numbers"):
        draw_detections(gray(), {**given, "labels": ["cat"]})
    with pytest.raises(ValueError, match=r"^draw_detections: detections: unknown key 'mask'; did you mean 'masks'\?"):
        draw_detections(gray(), {**given, "mask": torch.zeros(1, 500, 500)})


def test_a_truth_of_its_image_alone_has_nothing_to_draw():
    found = {"boxes": [[50.0, 60, 150, 260]], "labels": [0], "scores": [0.9]}
    alone = side_by_side([gray()], [{"image_id": 3}], [found])
    assert (pixels(alone) == pixels(side_by_side([gray()], [{"boxes": [], "labels": []}], [found]))).all()
