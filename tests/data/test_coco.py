"""CocoDataset on real data and on bad files."""

import json
import os
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from torchvision import tv_tensors

from detkit.data import CocoDataset, collate


def coco(folder, split, **settings):
    return CocoDataset(folder / "images", folder / "annotations" / f"instances_{split}.json", **settings)


def one_image(root, **entries):
    """A data set of one image, a.png of 4 x 6, with the entries of its record changed."""
    Image.new("RGB", (6, 4)).save(root / "a.png")
    image = {"id": 7, "file_name": "a.png", "height": 4, "width": 6} | entries
    path = root / "a.json"
    path.write_text(json.dumps({"images": [image], "categories": []}))
    return path


@pytest.mark.parametrize(("split", "boxes", "crowds", "empty"), [("train", 437, 4, 1), ("val", 323, 5, 2)])
def test_coco_open_has_the_boxes_crowds_and_empty_images_that_its_source_counts(
    detkit_data, split, boxes, crowds, empty
):
    dataset = coco(detkit_data / "coco_open", split)
    targets = [dataset.target(index) for index in range(len(dataset))]
    assert sum(len(target["boxes"]) for target in targets) == boxes
    assert sum(int(target["iscrowd"].sum()) for target in targets) == crowds
    assert sum(target["boxes"].shape == (0, 4) for target in targets) == empty
    assert dataset.image_ids == sorted(dataset.image_ids) == [target["image_id"] for target in targets]


def test_sparse_category_ids_are_mapped_both_ways(detkit_data):
    dataset = coco(detkit_data / "coco_open", "val")
    assert len(dataset.categories) == 80
    assert (dataset.categories[0], dataset.categories[79]) == ("person", "toothbrush")
    assert (dataset.category_ids[79], dataset.label_to_id[79], dataset.id_to_label[90]) == (90, 90, 79)
    assert all(dataset.id_to_label[dataset.label_to_id[label]] == label for label in range(80))


@pytest.mark.slow
def test_boxes_labels_areas_and_masks_equal_pycocotools(detkit_data):
    dataset = coco(detkit_data / "coco_open", "val", masks=True)
    peer = COCO(detkit_data / "coco_open" / "annotations" / "instances_val.json")
    for index, image_id in enumerate(dataset.image_ids):
        target = dataset.target(index)
        records = peer.imgToAnns[image_id]
        assert len(target["boxes"]) == len(target["masks"]) == len(records)
        for t, record in enumerate(records):
            x, y, width, height = record["bbox"]
            assert target["boxes"][t].tolist() == pytest.approx([x, y, x + width, y + height], rel=1e-6)
            assert dataset.label_to_id[int(target["labels"][t])] == record["category_id"]
            assert float(target["area"][t]) == pytest.approx(record["area"])
            assert (target["masks"][t].numpy() == peer.annToMask(record)).all()


def test_every_real_image_becomes_uint8_rgb_and_the_gray_one_too(detkit_data):
    dataset = coco(detkit_data / "coco_open", "train")
    gray = 0
    for index, name in enumerate(dataset.records.file_names):
        with Image.open(detkit_data / "coco_open" / "images" / name) as picture:
            if picture.mode != "L":
                continue
        gray += 1
        image, _ = dataset[index]
        assert image.shape == (3, *dataset.image_size(index))
        assert (image[0] == image[1]).all()
        assert (image[0] == image[2]).all()
    image, target = dataset[0]
    assert type(image) is tv_tensors.Image
    assert image.dtype == torch.uint8
    assert type(target["boxes"]) is tv_tensors.BoundingBoxes
    assert target["boxes"].canvas_size == tuple(image.shape[1:])
    val = coco(detkit_data / "coco_open", "val").records.file_names
    modes = [Image.open(detkit_data / "coco_open" / "images" / name).mode for name in val]
    assert gray + modes.count("L") == 1


def test_nuclei_masks_equal_the_instance_maps_and_the_areas(detkit_data):
    folder = detkit_data / "nuclei_multitask"
    dataset = coco(folder, "val", masks=True)
    records = json.loads((folder / "annotations" / "instances_val.json").read_text())["annotations"]
    for index in range(0, len(dataset), 6):
        image, target = dataset[index]
        name = dataset.records.file_names[index]
        instances = np.array(Image.open(folder / "instance_maps" / name)).astype(np.int64)
        values = [record["instance_value"] for record in records if record["image_id"] == target["image_id"]]
        assert image.shape == target["masks"].shape[:0] + (3, *instances.shape)
        assert target["masks"].dtype == torch.uint8
        assert (target["masks"].numpy() == (instances == np.array(values)[:, None, None])).all()
        assert target["masks"].sum((1, 2)).tolist() == target["area"].tolist()


def test_masks_of_an_image_without_objects_have_its_size(detkit_data):
    dataset = coco(detkit_data / "coco_open", "val", masks=True)
    index = next(i for i in range(len(dataset)) if not len(dataset.target(i)["labels"]))
    assert dataset.target(index)["masks"].shape == (0, *dataset.image_size(index))


def with_pictures(folder, file):
    """The folder with an empty file for each picture that the annotation file names."""
    for image in json.loads(file.read_text())["images"]:
        (folder / image["file_name"]).touch()
    return folder


def test_keypoints_of_a_real_file_come_as_seventeen_triples(detkit_data, tmp_path):
    file = detkit_data / "evaluator_fixtures" / "annotations" / "keypoints_gt.json"
    with_pictures(tmp_path, file)
    target = CocoDataset(tmp_path, file, keypoints=True).target(0)
    record = json.loads(file.read_text())["annotations"][0]
    assert target["keypoints"].shape == (14, 17, 3)
    assert target["keypoints"][0].reshape(-1).tolist() == record["keypoints"]


def test_text_image_ids_are_refused_as_the_real_fixture_has_them(detkit_data, tmp_path):
    folder = detkit_data / "evaluator_fixtures" / "annotations"
    with_pictures(tmp_path, folder / "ignore_gt_int_ids.json")
    with pytest.raises(ValueError, match=r"ignore_gt\.json: image id='2299': id='2299'.*integer"):
        CocoDataset(tmp_path, folder / "ignore_gt.json")
    assert int(CocoDataset(tmp_path, folder / "ignore_gt_int_ids.json").target(0)["iscrowd"].sum()) > 0


@pytest.mark.parametrize(
    "name", ["../a.png", "/etc/passwd", "a\0.png", "x" * 5000, "file:///etc/passwd", "file://a.png"]
)
def test_a_file_name_that_leads_out_is_refused_when_built(tmp_path, monkeypatch, name):
    file = one_image(tmp_path, file_name=name, coco_url="file:///etc/passwd")
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("opened"))
    with pytest.raises(ValueError, match=r"image id=7: file_name="):
        CocoDataset(tmp_path, file)


def test_a_link_out_of_the_root_is_refused_when_built_and_when_put_there_later(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    file = one_image(root)
    dataset = CocoDataset(root, file)
    os.rename(root / "a.png", tmp_path / "outside.png")
    (root / "a.png").symlink_to(tmp_path / "outside.png")
    with pytest.raises(ValueError, match=r"image id=7: file_name='a\.png' leads out"):
        dataset[0]
    with pytest.raises(ValueError, match=r"image id=7: file_name='a\.png' leads out"):
        CocoDataset(root, file)


def test_an_image_of_another_size_than_declared_is_refused_by_id(tmp_path):
    dataset = CocoDataset(tmp_path, one_image(tmp_path, height=6, width=4))
    with pytest.raises(ValueError, match=r"image id=7: 'a\.png' is 4 x 6"):
        dataset[0]


NO_SIZES = [{"height": -1}, {"width": None}, {"height": 0, "width": 0}, {"height": "309 px"}, {"height": 4.5}]


@pytest.mark.parametrize("sizes", [*NO_SIZES, {"height": "4", "width": 6.0}], ids=str)
def test_a_size_that_the_file_does_not_give_is_the_pictures_own(tmp_path, monkeypatch, sizes):
    file = one_image(tmp_path, **sizes)
    monkeypatch.setattr(Image.Image, "convert", lambda *_: pytest.fail("decoded"))
    dataset = CocoDataset(tmp_path, file)
    assert dataset.image_size(0) == dataset.target(0)["boxes"].canvas_size == (4, 6)


def test_a_size_that_the_file_gives_opens_no_picture(tmp_path, monkeypatch):
    file = one_image(tmp_path, height="4", width=6.0)
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("opened"))
    assert CocoDataset(tmp_path, file).image_size(0) == (4, 6)


def test_half_a_size_that_is_not_the_pictures_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"image id=7: height=None, width=5; allowed is the picture's own .*\[4, 6\]"):
        CocoDataset(tmp_path, one_image(tmp_path, height=None, width=5))


def test_a_picture_without_a_readable_header_is_named_where_its_size_is_needed(tmp_path):
    file = one_image(tmp_path, height=None)
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"a\.json: image id=7: 'a\.png' cannot be read as an image"):
        CocoDataset(tmp_path, file)


def test_all_missing_pictures_are_named_in_one_error_when_built(tmp_path):
    file = one_image(tmp_path)
    document = json.loads(file.read_text())
    document["images"] += [{"id": i, "file_name": f"{i}.png", "height": 4, "width": 6} for i in (8, 9)]
    file.write_text(json.dumps(document))
    with pytest.raises(FileNotFoundError, match=r"a\.json: image id=8: .*missing are '8\.png', '9\.png' \(2 such\)"):
        CocoDataset(tmp_path, file)


def test_windows_separators_are_read_where_only_that_file_exists(tmp_path):
    (tmp_path / "images").mkdir()
    file = one_image(tmp_path, file_name="images\\a.png")
    os.rename(tmp_path / "a.png", tmp_path / "images" / "a.png")
    assert CocoDataset(tmp_path, file)[0][0].shape == (3, 4, 6)


@pytest.mark.parametrize("folder", ["val2017", ""])
def test_the_picture_of_lvis_is_named_by_its_url(tmp_path, folder):
    file = one_image(tmp_path, coco_url="http://images.cocodataset.org/val2017/a.png")
    document = json.loads(file.read_text())
    del document["images"][0]["file_name"]
    file.write_text(json.dumps(document))
    (tmp_path / folder).mkdir(exist_ok=True)
    os.rename(tmp_path / "a.png", tmp_path / folder / "a.png")
    assert CocoDataset(tmp_path, file)[0][0].shape == (3, 4, 6)


def test_no_mask_of_polygons_warns_where_warnings_are_errors(tmp_path, monkeypatch):
    file = one_image(tmp_path)
    document = json.loads(file.read_text())
    entry = {"id": 1, "image_id": 7, "category_id": 2, "bbox": [0, 0, 4, 4], "segmentation": [[0, 0, 4, 0, 4, 4, 0, 4]]}
    file.write_text(json.dumps(document | {"annotations": [entry], "categories": [{"id": 2, "name": "cat"}]}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert CocoDataset(tmp_path, file, masks=True)[0][1]["masks"].sum() == 16


def test_transforms_get_image_and_target_and_a_loader_takes_the_items(tmp_path):
    dataset = CocoDataset(tmp_path, one_image(tmp_path), transforms=lambda image, target: (image + 1, target))
    images, targets = next(iter(torch.utils.data.DataLoader(dataset, collate_fn=collate)))
    assert images[0].unique().tolist() == [1]
    assert targets[0]["boxes"].shape == (0, 4)
    assert targets[0]["image_id"] == 7


def test_an_index_past_the_end_is_an_index_error_and_negative_ones_count_from_it(tmp_path):
    dataset = CocoDataset(tmp_path, one_image(tmp_path))
    assert dataset.target(-1)["image_id"] == 7
    with pytest.raises(IndexError):
        dataset[1]
    assert len(list(dataset)) == 1


def test_an_unknown_policy_is_refused(tmp_path):
    policy: object = "keep"
    with pytest.raises(Exception, match="degenerate"):
        CocoDataset(tmp_path, one_image(tmp_path), degenerate=policy)
