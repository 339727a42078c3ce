"""VocDataset on real data and on bad files."""

import warnings

import pytest
from PIL import Image
from strategies import assert_refused

from detkit.data import CocoDataset, VocDataset, VocFolders

BCCD = VocFolders(annotations="annotations/voc_xml", images="images", splits="annotations/voc_splits")
BOX = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>4</xmax><ymax>3</ymax></bndbox>"


def entry(name="cat", *, box=BOX, difficult=""):
    return f"<object><name>{name}</name>{difficult}{box}</object>"


def box(x1, y1, x2, y2):
    return f"<bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox>"


def sizes(width, height):
    return [f"<size><width>{width}</width><height>{height}</height></size>"]


def more(root, name, document, picture=True):
    """One more image in the train split."""
    if picture:
        Image.new("RGB", (6, 4)).save(root / "JPEGImages" / f"{name}.png")
    if document is not None:
        (root / f"Annotations/{name}.xml").write_text(document)
    with open(root / "ImageSets/Main/train.txt", "a") as file:
        file.write(f"{name}\n")


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


@pytest.mark.slow
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


NONE = {
    "inverted in x": entry(box=box(4, 2, 1, 3)),
    "inverted in y": entry(box=box(1, 3, 4, 2)),
    "no width": entry(box=box(1, 2, 1, 3)),
    "nan": entry(box=box("nan", 2, 4, 3)),
    "inf": entry(box=box(1, "inf", 4, 3)),
    "huge": entry(box=box(1, 2, "1e300", 3)),
    "text": entry(box=box(1, 2, 4, "x")),
    "empty": entry(box=box(1, 2, 4, "")),
    "no box": entry(box=""),
    "right of the picture": entry(box=box(6, 1, 9, 3)),
    "below the picture": entry(box=box(1, 4, 3, 9)),
    "left of the picture": entry(box=box(-3, 1, 0, 3)),
    "no name": f"<object>{BOX}</object>",
    "no flag": entry(difficult="<difficult>maybe</difficult>"),
}


@pytest.mark.parametrize("bad", NONE.values(), ids=NONE)
def test_an_object_that_is_none_is_dropped_with_one_warning_or_refused_by_file_and_object(tmp_path, bad):
    write(tmp_path, entry("dog"), bad, entry("cat"))
    with pytest.warns(UserWarning, match=r"VocDataset: .*one\.xml: object 1: .*1 of 3 boxes were dropped") as warned:
        dataset = VocDataset(tmp_path, "train")
    assert len(warned) == 1
    assert dataset.target(0)["labels"].tolist() == [1, 0]
    assert dataset.target(0)["boxes"].tolist() == [[1, 2, 4, 3]] * 2
    with pytest.raises(ValueError, match=r"VocDataset: .*one\.xml: object 1: .*degenerate='drop'"):
        VocDataset(tmp_path, "train", degenerate="raise")


def test_all_kinds_of_objects_that_are_none_are_counted_in_one_warning(tmp_path):
    write(tmp_path, *NONE.values(), entry())
    with pytest.warns(UserWarning, match="14 of 15 boxes were dropped") as warned:
        assert len(VocDataset(tmp_path, "train").target(0)["boxes"]) == 1
    (words,) = [str(warning.message) for warning in warned]
    assert "object 3: xmin='nan'; allowed is a finite number within 2.14748e+09 (4 such)" in words
    assert "object 7: ymax is missing or empty (2 such)" in words
    assert "object 12: name is missing or empty" in words
    assert "object 13: difficult='maybe'; allowed are 0 and 1" in words
    assert "object 0: the box [4.0, 2.0, 1.0, 3.0] (xyxy) is inverted" in words
    assert "object 9: the box [6.0, 1.0, 9.0, 3.0] (xyxy) lies outside its picture of 4 x 6 (3 such)" in words


def test_a_box_that_touches_its_picture_stays_as_it_is(tmp_path):
    write(tmp_path, entry(box=box(-3, -2, 0.5, 1)), entry(box=box(5.5, 3, 9, 9)))
    dataset = VocDataset(tmp_path, "train", degenerate="raise")
    assert dataset.target(0)["boxes"].tolist() == [[-3, -2, 0.5, 1], [5.5, 3, 9, 9]]


@pytest.mark.parametrize("size", ["", "<size/>", "<size><width>6</width></size>"] + sizes(0, 0) + sizes(-1, -1))
def test_a_size_that_the_file_does_not_give_is_the_pictures_own_and_nothing_is_decoded(tmp_path, size, monkeypatch):
    write(tmp_path, entry(), entry(box=box(6, 1, 9, 3)), size=size)
    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "load", lambda *_: pytest.fail("decoded"))
        dataset = quiet(tmp_path, "train")
    assert dataset.image_size(0) == (4, 6)
    image, target = dataset[0]
    assert image.shape == (3, 4, 6)
    assert target["boxes"].canvas_size == (4, 6)
    assert len(target["boxes"]) == 1


def test_a_size_as_a_whole_float_is_taken(tmp_path):
    assert VocDataset(write(tmp_path, entry(), size=sizes("6.0", " 4.00 ")[0]), "train").image_size(0) == (4, 6)


@pytest.mark.parametrize("width", ["6.5", "1e8", "nan", "1e400", "six"])
def test_a_size_that_is_none_is_refused_by_file_and_value(tmp_path, width):
    with pytest.raises(ValueError, match=rf"VocDataset: 'one\.xml': .*({width}|width=100000000)"):
        VocDataset(write(tmp_path, size=sizes(width, 4)[0]), "train")


@pytest.mark.parametrize("text", ["0", "", "Unspecified", "False", "false", " 0 ", "no", "0.0", "None"])
def test_a_flag_that_says_nothing_is_not_set(tmp_path, text):
    write(tmp_path, entry(difficult=f"<pose>?</pose><truncated>Yes?</truncated><difficult>{text}</difficult>"))
    assert VocDataset(tmp_path, "train").target(0)["iscrowd"].tolist() == [0]


@pytest.mark.filterwarnings("ignore:.*difficult")
@pytest.mark.parametrize("text", ["1", "True", "yes", "1.0"])
def test_a_flag_in_words_is_set(tmp_path, text):
    write(tmp_path, entry(difficult=f"<difficult>{text}</difficult>"))
    assert VocDataset(tmp_path, "train").target(0)["iscrowd"].tolist() == [1]


def test_a_broken_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"'one\.xml'.*cannot be read as XML"):
        VocDataset(write(tmp_path, "<object>"), "train")


def test_an_error_tells_every_kind_of_fault_with_its_count_and_first_file(tmp_path):
    write(tmp_path, entry("dog"), entry("dog"), entry("cow", difficult="<difficult>maybe</difficult>"))
    more(tmp_path, "two", "<annotation><object>")
    more(tmp_path, "three", "<annotations/>")
    more(tmp_path, "four", f"<annotation>{sizes(1.5, 4)[0]}</annotation>")
    with pytest.raises(ValueError, match="5 kinds") as raised:
        VocDataset(tmp_path, "train", classes=["cat"])
    for words in (
        "'two.xml': cannot be read as XML: ",
        "(2 such)",
        "'four.xml': size is '4' x '1.5'",
        "one.xml: object 2: difficult='maybe'",
        "one.xml: object 0: name='dog'; allowed are ['cat'] (2 such)",
        "one.xml: object 2: name='cow'",
    ):
        assert words in str(raised.value)


def test_a_name_outside_the_classes_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"one\.xml: object 1: name='dog'; allowed are \['cat'\]"):
        VocDataset(write(tmp_path, entry(), entry("dog")), "train", classes=["cat"])


def test_classes_that_are_no_list_of_distinct_names_are_refused(tmp_path):
    for classes in (["cat", "cat"], iter(["cat"]), {"cat"}, {"cat": 0}, [0], 1):
        said = "VocDataset: classes allowed is a list of distinct names"
        assert_refused(said, VocDataset, write(tmp_path, entry()), "train", classes=classes)


def test_folders_without_their_names_are_refused(tmp_path):
    said = "VocDataset: folders 'Annotations' allowed is VocFolders annotations images splits"
    assert_refused(said, VocDataset, write(tmp_path, entry()), "train", folders=tuple(VocFolders()))


@pytest.mark.parametrize("name", ["../one.png", "/etc/passwd", "file:///etc/passwd", "x" * 5000])
def test_an_image_name_that_leads_out_is_refused_when_it_counts(tmp_path, name):
    write(tmp_path, entry(), file_name=name)
    assert VocDataset(tmp_path, "train")[0][0].shape == (3, 4, 6)
    (tmp_path / "JPEGImages/one.png").rename(tmp_path / "JPEGImages/two.png")
    with pytest.raises(ValueError, match=r"VocDataset: image id=0 \(one\): file_name="):
        VocDataset(tmp_path, "train")


def test_the_picture_is_that_of_the_listed_name_whatever_the_file_says(tmp_path):
    write(tmp_path, entry(), file_name="old.png")
    Image.new("RGB", (6, 4), (9, 9, 9)).save(tmp_path / "JPEGImages/old.png")
    with pytest.warns(UserWarning, match=r"'one' has <filename>old\.png</filename>, which is another picture \(1 such"):
        dataset = VocDataset(tmp_path, "train")
    assert (dataset[0][0] == 0).all()


def test_without_a_split_every_xml_is_taken_sorted(tmp_path):
    write(tmp_path, entry(), file_name="one")
    for name in ("b", "a"):
        more(tmp_path, name, "<annotation/>")
    (tmp_path / "ImageSets/Main/train.txt").unlink()
    dataset = VocDataset(tmp_path, None)
    assert dataset.names == ["a", "b", "one"]
    assert [len(target["boxes"]) for _, target in dataset] == [0, 0, 1]
    with pytest.raises(FileNotFoundError, match=r"split='train': there is no file .*split=None"):
        VocDataset(tmp_path, "train")


def test_pictures_and_xml_may_lie_in_one_folder(tmp_path):
    Image.new("RGB", (6, 4)).save(tmp_path / "a.rf.1b.jpg")
    (tmp_path / "a.rf.1b.xml").write_text(f"<annotation>{entry()}</annotation>")
    dataset = VocDataset(tmp_path, None, folders=VocFolders(".", "."))
    assert dataset[0][1]["boxes"].tolist() == [[1, 2, 4, 3]]


def test_a_listed_image_without_xml_is_one_without_objects_on_request(tmp_path):
    write(tmp_path, entry())
    for name in ("two", "three"):
        more(tmp_path, name, None)
    with pytest.raises(FileNotFoundError, match=r"no XML file below .* 'two', 'three'; unlabeled=True"):
        VocDataset(tmp_path, "train")
    dataset = VocDataset(tmp_path, "train", unlabeled=True)
    assert [len(target["boxes"]) for _, target in dataset] == [1, 0, 0]
    assert dataset.image_size(2) == (4, 6)


def test_all_missing_pictures_are_named_when_it_is_built(tmp_path):
    write(tmp_path, entry())
    for name in ("two", "three"):
        more(tmp_path, name, "<annotation/>", picture=False)
    with pytest.raises(FileNotFoundError, match=r"no picture below .*JPEGImages for 'two', 'three'"):
        VocDataset(tmp_path, "train")


def test_a_data_set_without_objects_or_with_difficult_ones_only_warns(tmp_path):
    with pytest.warns(UserWarning, match=r"VocDataset: .*split='train': holds no object"):
        VocDataset(write(tmp_path), "train")
    with pytest.warns(UserWarning, match=r"'dog' \(1\); they are marked difficult"):
        VocDataset(write(tmp_path, entry("dog", difficult="<difficult>1</difficult>"), entry("cat")), "train")


def test_names_in_the_split_file_are_guarded_too(tmp_path):
    write(tmp_path)
    (tmp_path / "ImageSets/Main/train.txt").write_text("../../../etc/passwd")
    with pytest.raises(ValueError, match=r"file_name='\.\./\.\./\.\./etc/passwd\.xml' has a part '\.\.'"):
        VocDataset(tmp_path, "train")
    with pytest.raises(ValueError, match=r"split='\.\./train': file_name="):
        VocDataset(tmp_path, "../train")


def test_an_image_of_another_size_than_the_xml_says_is_refused(tmp_path):
    dataset = VocDataset(write(tmp_path, size="<size><width>4</width><height>6</height></size>"), "train")
    with pytest.raises(ValueError, match=r"image id=0 \(one\): 'one\.png' is 4 x 6"):
        dataset[0]


def test_targets_do_not_share_memory_with_the_data_set(tmp_path):
    dataset = VocDataset(write(tmp_path, entry()), "train")
    dataset.target(0)["boxes"].zero_()
    assert dataset.target(0)["boxes"].any()
