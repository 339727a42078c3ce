"""VocDataset on real data and on bad files."""

import warnings

import pytest
from PIL import Image

from detkit.data import CocoDataset, VocDataset, VocFolders, voc

BCCD = VocFolders(annotations="annotations/voc_xml", images="images", splits="annotations/voc_splits")
BOX = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>4</xmax><ymax>3</ymax></bndbox>"


def entry(name="cat", *, box=BOX, difficult=""):
    return f"<object><name>{name}</name>{difficult}{box}</object>"


def box(x1, y1, x2, y2):
    return f"<bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox>"


def write(root, *objects, head="", file_name="one.png", size="<size><width>6</width><height>4</height></size>"):
    """A data set of one image in VOC's layout."""
    for folder in VocFolders():
        (root / folder).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4)).save(root / "JPEGImages" / "one.png")
    (root / "ImageSets/Main/train.txt").write_text("one\n\n")
    document = f"{head}<annotation><filename>{file_name}</filename>{size}{''.join(objects)}</annotation>"
    (root / "Annotations/one.xml").write_text(document)
    return root


def quiet(*arguments, **settings):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return VocDataset(*arguments, **settings)


@pytest.mark.slow
@pytest.mark.parametrize(("split", "boxes"), [("train", 2804), ("val", 1137), ("test", 945)])
def test_bccd_has_the_same_boxes_in_both_formats(detkit_data, split, boxes):
    folder = detkit_data / "bccd"
    dataset = quiet(folder, split, classes=["RBC", "WBC", "Platelets"], folders=BCCD)
    peer = CocoDataset(folder / "images", folder / "annotations" / f"instances_{split}.json")
    assert dataset.categories == peer.categories
    peers = {name: peer.target(index) for index, name in enumerate(peer.records.file_names)}
    found = 0
    for index, name in enumerate(dataset.names):
        target, other = dataset.target(index), peers[f"{name}.jpg"]
        assert (target["boxes"] == other["boxes"]).all()
        assert (target["labels"] == other["labels"]).all()
        assert (target["area"] == other["area"]).all()
        assert dataset.image_size(index) == (480, 640)
        found += len(target["boxes"])
    assert found == boxes


@pytest.mark.slow
@pytest.mark.parametrize(("split", "image", "position"), [("train", "00343", 3), ("val", "00338", 12)])
def test_the_zero_size_boxes_of_bccd_are_counted_or_refused_by_name(detkit_data, split, image, position):
    with pytest.warns(
        UserWarning, match=rf"BloodImage_{image}\.xml: object {position}: .*; 1 of \d+ boxes were dropped"
    ):
        VocDataset(detkit_data / "bccd", split, folders=BCCD)
    with pytest.raises(ValueError, match=rf"BloodImage_{image}\.xml: object {position}: .*no width"):
        VocDataset(detkit_data / "bccd", split, folders=BCCD, degenerate="raise")


def test_classes_are_the_sorted_names_and_an_item_is_an_image_with_its_target(detkit_data):
    dataset = quiet(detkit_data / "bccd", "test", folders=BCCD)
    assert dataset.categories == ["Platelets", "RBC", "WBC"]
    image, target = dataset[5]
    assert image.shape == (3, 480, 640)
    assert target["image_id"] == 5


def test_difficult_objects_are_marked_or_left_out(tmp_path):
    write(tmp_path, entry("dog", difficult="<difficult>1</difficult>"), entry("cat"))
    target = VocDataset(tmp_path, "train").target(0)
    assert target["iscrowd"].tolist() == [1, 0]
    assert target["labels"].tolist() == [1, 0]
    dataset = VocDataset(tmp_path, "train", keep_difficult=False)
    assert dataset.target(0)["labels"].tolist() == [0]
    assert dataset.categories == ["cat", "dog"]


def test_minus_one_makes_inclusive_boxes_continuous_before_their_size_is_judged(tmp_path):
    write(tmp_path, entry(box=box(1, 2, 4, 3)), entry(box=box(2, 2, 2, 2)))
    dataset = VocDataset(tmp_path, "train", minus_one=True, degenerate="raise")
    assert dataset.target(0)["boxes"].tolist() == [[0, 1, 4, 3], [1, 1, 2, 2]]
    assert dataset.target(0)["area"].tolist() == [8, 1]


def test_boxes_of_parts_within_an_object_are_not_taken(tmp_path):
    write(tmp_path, f"<object><name>cat</name><part><name>head</name>{box(0, 0, 1, 1)}</part>{BOX}</object>")
    assert VocDataset(tmp_path, "train").target(0)["boxes"].tolist() == [[1, 2, 4, 3]]


def test_an_image_without_objects_stays_with_no_boxes(tmp_path):
    dataset = VocDataset(write(tmp_path), "train", classes=["cat"])
    image, target = dataset[0]
    assert image.shape == (3, 4, 6)
    assert target["boxes"].shape == (0, 4)
    assert len(list(dataset)) == 1


def test_entities_are_refused_before_they_grow(tmp_path):
    laughs = "".join(f'<!ENTITY l{i + 1} "{f"&l{i};" * 10}">' for i in range(9))
    head = f'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY l0 "ha">{laughs}]>'
    with pytest.raises(ValueError, match=r"'one\.xml': cannot be read as XML: has a DOCTYPE"):
        VocDataset(write(tmp_path, entry("&l9;"), head=head), "train")


def test_a_doctype_in_another_encoding_is_refused_too(tmp_path):
    write(tmp_path)
    text = '<?xml version="1.0" encoding="UTF-16"?><!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><a>&x;</a>'
    (tmp_path / "Annotations/one.xml").write_bytes(text.encode("utf-16"))
    with pytest.raises(ValueError, match="has a DOCTYPE"):
        VocDataset(tmp_path, "train")


@pytest.mark.parametrize(
    ("edges", "key"),
    [((4, 2, 1, 3), "box"), ((1, 3, 4, 2), "box"), (("nan", 2, 4, 3), "xmin"), ((1, "inf", 4, 3), "ymin")]
    + [((1, 2, "1e300", 3), "xmax"), ((1, 2, 4, "x"), "ymax"), ((1, 2, 4, ""), "ymax")],
    ids=str,
)
def test_bad_boxes_are_refused_by_file_and_object(tmp_path, edges, key):
    write(tmp_path, entry(), entry("dog", box=box(*edges)))
    with pytest.raises(ValueError, match=rf"VocDataset: 'one\.xml': object 1 \('dog'\): {key}"):
        VocDataset(tmp_path, "train")


@pytest.mark.parametrize(
    ("objects", "words"),
    [
        ("<object><name>cat</name></object>", "object 0 .*: xmin is missing"),
        (f"<object>{BOX}</object>", "object 0 .*: name is missing"),
        (entry(difficult="<difficult>maybe</difficult>"), "difficult='maybe'; allowed are 0 and 1"),
        ("<object>", "cannot be read as XML"),
    ],
)
def test_missing_and_ill_typed_entries_are_refused(tmp_path, objects, words):
    with pytest.raises(ValueError, match=rf"'one\.xml'.*{words}"):
        VocDataset(write(tmp_path, objects), "train")


@pytest.mark.parametrize(
    "size",
    ["", "<size><width>6</width></size>"]
    + [f"<size><width>{w}</width><height>4</height></size>" for w in ("0", "-6", "6.5", "1e8", "nan", "1e400")],
)
def test_a_bad_size_is_refused(tmp_path, size):
    with pytest.raises(ValueError, match=r"VocDataset: 'one\.xml'"):
        VocDataset(write(tmp_path, size=size), "train")


def test_a_name_outside_the_classes_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"one\.xml: object 1: name='dog'; allowed are \['cat'\]"):
        VocDataset(write(tmp_path, entry(), entry("dog")), "train", classes=["cat"])


@pytest.mark.parametrize("name", ["../one.png", "/etc/passwd", "file:///etc/passwd", "", "x" * 5000])
def test_an_image_name_that_leads_out_is_refused_when_built(tmp_path, name):
    with pytest.raises(ValueError, match=r"VocDataset: image id=0 \(one\): file_name="):
        VocDataset(write(tmp_path, file_name=name), "train")


def test_names_in_the_split_file_are_guarded_too(tmp_path):
    write(tmp_path)
    (tmp_path / "ImageSets/Main/train.txt").write_text("../../../etc/passwd")
    with pytest.raises(ValueError, match=r"file_name='\.\./\.\./\.\./etc/passwd\.xml' has a part '\.\.'"):
        VocDataset(tmp_path, "train")
    with pytest.raises(ValueError, match=r"split='\.\./train': file_name="):
        VocDataset(tmp_path, "../train")


def test_a_name_twice_in_the_split_file_is_refused(tmp_path):
    write(tmp_path)
    (tmp_path / "ImageSets/Main/train.txt").write_text("one\none\n")
    with pytest.raises(ValueError, match="'one' stands there more than once"):
        VocDataset(tmp_path, "train")


def test_xml_over_the_bound_is_not_parsed(tmp_path, monkeypatch):
    monkeypatch.setattr(voc, "MAX_XML_BYTES", 50)
    with pytest.raises(ValueError, match=r"has \d+ bytes; allowed are 50"):
        VocDataset(write(tmp_path), "train")


def test_an_image_of_another_size_than_the_xml_says_is_refused(tmp_path):
    dataset = VocDataset(write(tmp_path, size="<size><width>4</width><height>6</height></size>"), "train")
    with pytest.raises(ValueError, match=r"image id=0 \(one\): 'one\.png' is 4 x 6"):
        dataset[0]


def test_targets_do_not_share_memory_with_the_data_set(tmp_path):
    dataset = VocDataset(write(tmp_path, entry()), "train")
    dataset.target(0)["boxes"].zero_()
    assert dataset.target(0)["boxes"].any()
