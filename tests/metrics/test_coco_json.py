"""Published ground truth and results reproduce pycocotools' and lvis's numbers; bad files are named."""

import contextlib
import copy
import io
import json
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detkit.data import CocoDataset
from detkit.metrics import CocoMetrics
from detkit.metrics.engines import ENGINES

ENTRIES = (
    "coco100_bbox",
    "coco100_segm",
    "coco100_segm_as_bbox",
    "coco100_bbox_class_agnostic",
    "coco100_bbox_maxdets_1_10_50",
    "small_bbox",
    "small_segm",
    "keypoints",
    "ignore_bbox",
    "coco_open_val_fastestdet_bbox",
    "coco_open_train_fastestdet_bbox",
    "lvis100_bbox_synthetic_dt",
)
ROUNDED = 5.1e-9  # the file holds eight decimals
DIVERGENCES = tomllib.loads((Path(__file__).parents[1] / "divergences.toml").read_text())["divergence"]


@pytest.fixture(scope="module")
def folder(detkit_data):
    return detkit_data / "evaluator_fixtures" / "annotations"


@pytest.fixture(scope="module")
def expected(folder):
    return json.loads((folder / "expected_pycocotools.json").read_text())


def settings_of(entry):
    params = entry["params"] if isinstance(entry.get("params"), dict) else {}
    return {
        "iou_types": (entry["iouType"],),
        "class_agnostic": params.get("useCats") == 0,
        "max_detections": params.get("maxDets"),
        "federated": entry["tool"].startswith("lvis"),
    }


def as_published(numbers, iou_type):
    """Our names as pycocotools' (AR1, AR10, AR100 whatever the k, AR for keypoints) and lvis's (ARs@300)."""
    plain = {name.removeprefix(f"{iou_type}/"): value for name, value in numbers.items()}
    recalls = [value for name, value in plain.items() if "@" in name]
    named = dict(zip(("AR1", "AR10", "AR100"), recalls, strict=False))
    return plain | named | {"AR": recalls[0]} | {f"AR{size}@300": plain.get(f"AR{size}") for size in "sml"}


def run_pycocotools(entry, folder):
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(folder / entry["gt_file"]))
        judge = COCOeval(truth, truth.loadRes(str(folder / entry["dt_file"])), entry["iouType"])
        params = entry["params"] if isinstance(entry["params"], dict) else {}
        for name, value in params.items():
            setattr(judge.params, name, value)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return dict(zip(entry["stats"], judge.stats.tolist(), strict=True))


def test_the_list_of_entries_is_complete(expected):
    assert sorted(ENTRIES) == sorted(expected)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ENTRIES)
def test_every_published_number_is_reproduced(name, engine, folder, expected):
    if engine == "hotcoco":
        pytest.importorskip("hotcoco")
    entry = expected[name]
    metrics = CocoMetrics.from_json(
        folder / entry["gt_file"], folder / entry["dt_file"], engine=engine, **settings_of(entry)
    )
    found = as_published(metrics.compute(), entry["iouType"])
    wanted = dict(entry["stats"])
    if name == "coco100_bbox_maxdets_1_10_50":
        assert any(row["id"] == "coco-largest-k" for row in DIVERGENCES)
        assert wanted.pop("AP") == -1
        assert found["AP"] == pytest.approx(expected["coco100_bbox"]["stats"]["AP"], abs=ROUNDED)
    for stat, value in wanted.items():
        assert found[stat] == pytest.approx(value, abs=ROUNDED), stat
    per_class = {row.name: row.AP for row in metrics.per_class()}
    for category, value in entry.get("AP_per_class", {}).items():
        assert per_class[category] == pytest.approx(value, abs=5.1e-7), category


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ENTRIES if not name.startswith("lvis") and "maxdets" not in name])
def test_numbers_equal_pycocotools_run_here_to_1e_9(name, folder, expected):
    entry = expected[name]
    metrics = CocoMetrics.from_json(folder / entry["gt_file"], folder / entry["dt_file"], **settings_of(entry))
    found = as_published(metrics.compute(), entry["iouType"])
    for stat, value in run_pycocotools(entry, folder).items():
        assert found[stat] == pytest.approx(value, abs=1e-9), stat


@pytest.mark.slow
def test_the_federated_rules_each_matter_on_lvis(folder):
    files = [json.loads((folder / f"lvis_val_100_{part}.json").read_text()) for part in ("gt", "dt_bbox_synthetic")]

    def score(truth):
        return CocoMetrics.from_json(truth, files[1], federated=True).compute()["bbox/AP"]

    full = score(files[0])
    strict = copy.deepcopy(files[0])
    for image in strict["images"]:
        image["not_exhaustive_category_ids"] = []
    assert score(strict) < full
    everything = copy.deepcopy(files[0])
    for image in everything["images"]:
        image["neg_category_ids"] = [category["id"] for category in everything["categories"]]
    assert score(everything) < full


def test_ids_in_federated_lists_are_read_like_all_others():
    rows = [{"id": 3, "name": "cat"}, {"id": 4, "name": "dog"}]
    image = {"id": 5, "neg_category_ids": ["4", 4.0, 77], "not_exhaustive_category_ids": None}
    metrics = CocoMetrics.from_json(truth(categories=rows, images=[image]), [], federated=True)
    (record,) = metrics.gathered()
    assert (record.negative, record.not_exhaustive) == (frozenset({1}), frozenset())
    for value in (4, "4", ["dog"], [None]):
        with pytest.raises(ValueError, match=r"image id=5: neg_category_ids=.*; allowed is a list of integer ids"):
            CocoMetrics.from_json(truth(images=[{"id": 5, "neg_category_ids": value}]), [], federated=True)


def test_string_image_ids_are_refused_by_name(folder):
    with pytest.raises(ValueError, match=r"ignore_gt\.json: image id='2299': id='2299'.*integer"):
        CocoMetrics.from_json(folder / "ignore_gt.json", folder / "ignore_dt.json")


def truth(**changes):
    annotation = {"id": 1, "image_id": 5, "category_id": 3, "bbox": [0, 0, 50, 50], "area": 2500, "iscrowd": 0}
    image = {"id": 5, "height": 100, "width": 100}
    return {"images": [image], "categories": [{"id": 3, "name": "cat"}], "annotations": [annotation]} | changes


def annotation(**changes):
    return truth()["annotations"][0] | changes


def result(**changes):
    return {"image_id": 5, "category_id": 3, "bbox": [0, 0, 50, 50], "score": 0.9} | changes


def score(ground_truth, results, name="AP", **settings):
    return CocoMetrics.from_json(ground_truth, results, **settings).compute()[f"bbox/{name}"]


def test_an_annotation_with_id_0_can_be_found():
    assert score(truth(annotations=[annotation(id=0)]), [result()]) == pytest.approx(1)


@pytest.mark.parametrize("table", ["annotations", "images"])
def test_ids_given_twice_are_refused(table):
    rows = truth()[table]
    with pytest.raises(ValueError, match=rf"{table[:-1]} id=\d stands there 2 times; allowed is each id once"):
        score(truth(**{table: rows * 2}), [])


def test_categories_given_twice_are_one_and_two_of_one_id_are_refused():
    rows = truth()["categories"]
    assert score(truth(categories=rows * 3), [result()]) == pytest.approx(1)
    with pytest.raises(ValueError, match="category id=3 stands there 2 times"):
        score(truth(categories=[*rows, {"id": 3, "name": "dog"}]), [])


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("iou_type", ["bbox", "segm", "keypoints"])
def test_ignored_objects_are_neither_found_nor_missed(iou_type, engine):
    if engine == "hotcoco":
        pytest.importorskip("hotcoco")
    points = {"keypoints": [60, 60, 2] * 17, "num_keypoints": 17}
    square = {"segmentation": [[0, 0, 50, 0, 50, 50, 0, 50]], "keypoints": [20, 20, 2] * 17, "num_keypoints": 17}
    other = {"bbox": [60, 60, 30, 30], "segmentation": [[60, 60, 90, 60, 90, 90, 60, 90]]} | points
    rows = [annotation(**square), annotation(id=2, ignore=1, area=900, **other)]
    settings = {"iou_types": (iou_type,), "engine": engine}
    for results in ([result(**square)], [result(**square), result(**other)]):
        metrics = CocoMetrics.from_json(truth(annotations=rows), results, **settings)
        assert metrics.compute()[f"{iou_type}/AP"] == pytest.approx(1)
        assert metrics.per_class()[0].objects == 1
    unmarked = [row | {"ignore": 0} for row in rows]
    assert CocoMetrics.from_json(truth(annotations=unmarked), [result(**square)], **settings).compute()[
        f"{iou_type}/AP"
    ] == pytest.approx(51 / 101)


def test_no_detections_score_0_and_no_objects_score_minus_1():
    numbers = CocoMetrics.from_json(truth(), []).compute()
    assert numbers["bbox/AP"] == numbers["bbox/AR@100"] == 0
    assert score(truth(annotations=[]), [result()]) == -1


def test_any_number_of_any_k_gives_ap():
    for ks in ([1, 10, 300], [7], [1, 2, 3, 4, 5]):
        numbers = CocoMetrics.from_json(truth(), [result()], max_detections=ks).compute()
        assert numbers["bbox/AP"] == pytest.approx(1)
        assert [name for name in numbers if "@" in name] == [f"bbox/AR@{k}" for k in ks]


def test_the_callers_lists_are_left_as_they_were():
    ground_truth, results = truth(), [result(), result(score=0.5)]
    before = copy.deepcopy((ground_truth, results))
    for iou_types in (("bbox",), ("bbox", "segm")):
        rows = [row | {"segmentation": [[0, 0, 50, 0, 50, 50]]} for row in results]
        full = truth(annotations=[annotation(segmentation=[[0, 0, 50, 0, 50, 50]])])
        kept = copy.deepcopy((full, rows))
        CocoMetrics.from_json(full, rows, iou_types=iou_types).compute()
        assert (full, rows) == kept
    CocoMetrics.from_json(ground_truth, results).compute()
    assert (ground_truth, results) == before


def test_nothing_is_printed(capfd):
    score(truth(), [result()], engine="pycocotools")
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_id": 6}, r"results\[1\]: image_id=6; allowed is the integer id of one of the 1 images"),
        ({"image_id": "five"}, r"results\[1\]: image_id='five'"),
        ({"category_id": 4}, r"results\[1\]: category_id=4"),
        ({"category_id": None}, r"results\[1\]: category_id=None"),
        ({"score": float("nan")}, r"results\[1\]: score=nan; allowed is a finite number"),
        ({"score": None}, r"results\[1\]: score=None"),
        ({"bbox": [float("nan")] * 4}, r"results\[1\]: bbox=\[nan"),
        ({"bbox": [0, 0, 5]}, r"results\[1\]: bbox=\[0, 0, 5\]; allowed is 4 finite numbers"),
        ({"bbox": [0, 0, -5, 5]}, r"results\[1\]: bbox=.*width and height >= 0"),
        ({"bbox": [0, 0, 1e200, 1e200]}, r"results\[1\]: bbox=\[0, 0, 1e\+200"),
        ({"bbox": "abcd"}, r"results\[1\]: bbox='abcd'"),
    ],
)
def test_bad_results_are_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        score(truth(), [result(), result(**changes)])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"annotations": [annotation(area=-1)]}, r"annotation id=1: area=-1; allowed is a finite number >= 0"),
        ({"annotations": [annotation(image_id=9)]}, r"annotation id=1: image_id=9"),
        ({"annotations": [annotation(bbox=[0, 0, float("inf"), 1])]}, r"annotation id=1: bbox=\[0, 0, inf, 1\]"),
        ({"annotations": [7]}, r"annotations\[0\] is 7"),
        ({"annotations": None}, r"annotations is None; allowed is a list"),
        ({"categories": []}, r"annotation id=1: category_id=3"),
    ],
)
def test_bad_ground_truth_is_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=f"CocoMetrics.from_json: ground truth: {message}"):
        score(truth(**changes), [], degenerate="raise")


def test_masks_that_lie_about_their_size_are_refused():
    lying = {"size": [100, 100], "counts": [1, 2, 3]}
    with pytest.raises(ValueError, match=r"results\[0\]: runs add up to 6; allowed are runs >= 0 that add up to 10000"):
        CocoMetrics.from_json(
            truth(annotations=[annotation(segmentation=[[0, 0, 9, 0, 9, 9]])]),
            [result(segmentation=lying)],
            iou_types=("segm",),
        )


@pytest.mark.parametrize(("ground_truth", "results"), [([], []), (truth(), {}), (truth(), "x" * 9), (7, [])])
def test_other_things_than_a_data_set_and_results_are_refused(ground_truth, results, tmp_path):
    paths = tmp_path / "truth.json", tmp_path / "results.json"
    for path, content in zip(paths, (ground_truth, results), strict=True):
        path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="allowed are COCO's dict and a list of detections"):
        score(*paths)


def test_of_a_dict_of_results_the_message_names_the_lists_in_it(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"info": {}, "annotations": [result()]}))
    with pytest.raises(ValueError, match=r"a\.json a dict; .* one of its values: 'annotations'$"):
        score(truth(), tmp_path / "a.json")


def test_files_beyond_the_limit_are_not_read(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    path.write_text(json.dumps([result()]))
    monkeypatch.setattr("detkit._regular_file.MAX_JSON_BYTES", 10)
    with pytest.raises(ValueError, match=r"results:.*results.json.*\d+ bytes.*10"):
        score(truth(), path)


def test_areas_and_crowds_may_be_missing_and_are_derived():
    bare = {"id": 1, "image_id": 5, "category_id": 3, "bbox": [0, 0, 50, 50]}
    numbers = CocoMetrics.from_json(truth(annotations=[bare]), [result()]).compute()
    assert (numbers["bbox/APm"], numbers["bbox/APs"]) == (pytest.approx(1), -1)


def test_keypoint_results_without_a_box_take_the_hull_of_their_points():
    points = np.array([[x, 2 * x, 2] for x in range(10, 27)], dtype=float).reshape(-1).tolist()
    row = result(keypoints=points)
    del row["bbox"]
    metrics = CocoMetrics.from_json(truth(annotations=[annotation(keypoints=points)]), [row], iou_types=("keypoints",))
    assert metrics.gathered()[0].detections.boxes.tolist() == [[10, 20, 16, 32]]
    assert metrics.compute()["keypoints/AP"] == pytest.approx(1)


@pytest.mark.parametrize("flag", [0, "0", False, "False", "", None, 0.0])
@pytest.mark.parametrize("key", ["iscrowd", "ignore"])
def test_a_flag_that_is_not_set_loses_no_object_however_it_is_written(key, flag):
    rows = [annotation(**{key: flag}), annotation(id=2, bbox=[60, 60, 30, 30], **{key: flag})]
    assert score(truth(annotations=rows), [result()]) == pytest.approx(51 / 101)


@pytest.mark.parametrize("flag", [1, "1", True, "true", 1.0])
def test_a_flag_that_is_set_is_read_however_it_is_written(flag):
    rows = [annotation(), annotation(id=2, bbox=[60, 60, 30, 30], ignore=flag)]
    assert score(truth(annotations=rows), [result()]) == pytest.approx(1)


def test_a_number_of_keypoints_written_as_text_is_a_number():
    points = {"keypoints": [20, 20, 2] * 17}
    rows = [annotation(num_keypoints="17", **points), annotation(id=2, num_keypoints="0", **points)]
    metrics = CocoMetrics.from_json(truth(annotations=rows), [result(**points)], iou_types=("keypoints",))
    assert metrics.per_class()[0].objects == 1


@pytest.mark.parametrize("size", [{}, {"height": "9", "width": None}, {"height": -1, "width": 0}], ids=str)
def test_boxes_need_no_size_of_their_image(size):
    assert score(truth(images=[{"id": 5, **size}]), [result()]) == pytest.approx(1)


def test_run_lengths_bring_the_size_that_the_image_lacks_and_polygons_need_it():
    runs = {"size": [100, 100], "counts": [0, 5000, 5000]}
    truths = truth(images=[{"id": 5}], annotations=[annotation(segmentation=runs)])
    metrics = CocoMetrics.from_json(truths, [result(segmentation=runs)], iou_types=("segm",))
    assert metrics.compute()["segm/AP"] == pytest.approx(1)
    polygons = truth(images=[{"id": 5}], annotations=[annotation(segmentation=[[0, 0, 9, 0, 9, 9]])])
    with pytest.raises(ValueError, match="annotation id=1: segmentation needs the height and width of its image"):
        CocoMetrics.from_json(polygons, [], iou_types=("segm",), degenerate="raise")


NO_OBJECTS = {
    "no width": [10, 10, 0, 20],
    "no height": [10, 10, 20, 0],
    "null": None,
    "empty": [],
    "NaN": [float("nan"), 1, 2, 3],
    "outside": [200, 0, 9, 9],
}


@pytest.mark.parametrize("box", NO_OBJECTS.values(), ids=NO_OBJECTS)
def test_the_metrics_drop_what_the_data_set_drops_and_get_the_same_numbers(box, tmp_path):
    rows = [annotation(), annotation(id=2, bbox=box)]
    document = truth(annotations=rows, images=[{"id": 5, "file_name": "a.png", "height": 100, "width": 100}])
    (tmp_path / "a.json").write_text(json.dumps(document))
    (tmp_path / "a.png").touch()
    with pytest.warns(UserWarning, match="from_json: .*annotation id=2: .*1 of 2 boxes were dropped"):
        from_json = CocoMetrics.from_json(tmp_path / "a.json", [result()])
    with pytest.warns(UserWarning, match="CocoDataset: .*annotation id=2: .*1 of 2 boxes were dropped"):
        dataset = CocoDataset(tmp_path, tmp_path / "a.json")
    metrics = CocoMetrics(dataset.categories)
    found = {"boxes": [[0.0, 0, 50, 50]], "scores": [0.9], "labels": [0]}
    metrics.update([found], [dataset.target(0)])
    assert from_json.compute() == metrics.compute()
    assert from_json.compute()["bbox/AP"] == pytest.approx(1)
    with pytest.raises(ValueError, match=r"annotation id=2: .*degenerate='drop'"):
        CocoMetrics.from_json(tmp_path / "a.json", [result()], degenerate="raise")


def test_a_mask_that_is_drawn_as_no_pixel_is_neither_found_nor_missed():
    square, speck = [[0, 0, 50, 0, 50, 50, 0, 50]], [[9.1, 9.1, 9.3, 9.1, 9.3, 9.3, 9.1, 9.3]]
    rows = [annotation(segmentation=square), annotation(id=2, segmentation=speck)]
    with pytest.warns(UserWarning, match=r"annotation id=2: segmentation has no pixel.*1 of 2 boxes were dropped"):
        metrics = CocoMetrics.from_json(
            truth(annotations=rows), [result(segmentation=square)], iou_types=("bbox", "segm")
        )
    assert metrics.compute()["segm/AP"] == pytest.approx(1)


def test_numbers_as_text_and_floats_are_read_as_the_data_set_reads_them():
    rows = [annotation(bbox=["0", "0.0", 50, 50.0], area="2500", category_id=3.0, image_id="5")]
    assert score(truth(annotations=rows), [result(image_id=5.0, score="0.9")]) == pytest.approx(1)


def test_an_unknown_policy_is_refused():
    policy: object = "keep"
    with pytest.raises(Exception, match="degenerate"):
        score(truth(), [], degenerate=policy)


def test_all_kinds_of_faults_of_results_are_told_at_once():
    rows = [result(), result(score=None), result(bbox=[1]), result(image_id=9), result(score="x")]
    with pytest.raises(ValueError, match="results: 3 kinds of faults") as error:
        score(truth(), rows)
    for line in (
        "results[3]: image_id=9",
        "results[1]: score=None; allowed is a finite number (2 such)",
        "results[2]: bbox=[1]",
    ):
        assert line in str(error.value)


def test_classes_of_crowds_only_and_files_without_objects_warn():
    with pytest.warns(UserWarning, match=r"all objects of 1 class are crowds .*'cat' \(1\)"):
        score(truth(annotations=[annotation(iscrowd=1)]), [])
    with pytest.warns(UserWarning, match="ground truth: holds no object"):
        score(truth(annotations=[]), [])


def test_many_masks_of_one_image_are_evaluated():
    masks = torch.zeros(300, 20, 20, dtype=torch.bool)
    masks[:, 2:8, 2:8] = True
    objects = {
        "boxes": torch.tensor([[2.0, 2, 8, 8]]).repeat(300, 1),
        "labels": torch.zeros(300).long(),
        "masks": masks,
    }
    metrics = CocoMetrics(1, iou_types=("segm",), max_detections=(300,))
    metrics.update([{**objects, "scores": torch.rand(300)}], [objects])
    assert metrics.compute()["segm/AP"] == pytest.approx(1)
