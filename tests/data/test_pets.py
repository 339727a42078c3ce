"""PetDataset on a tiny tree in the published layout, with the holes that it has."""

import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from strategies import assert_refused

from detkit.data import PetDataset, flip_augmentation
from detkit.structures import VOID

HEADER = "#Image CLASS-ID SPECIES BREED ID\n#ID: 1:37 Class ids\n"
PETS = ["Abyssinian_1 1 1 1", "saint_bernard_2 30 2 20", "Abyssinian_3 1 1 1"]
BOX = "<object><name>{}</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>4</xmax><ymax>3</ymax></bndbox></object>"
TRIMAP = np.array([[2, 2, 2, 2, 2, 2], [2, 3, 3, 3, 2, 2], [2, 3, 1, 3, 2, 2], [2, 3, 3, 3, 2, 2]], np.uint8)


def write(root, lines=PETS, *, boxes=("Abyssinian_1", "saint_bernard_2")):
    """The data set; junk that the published archive has is there, too."""
    for folder in ("images", "annotations/xmls", "annotations/trimaps"):
        (root / folder).mkdir(parents=True)
    (root / "annotations/trainval.txt").write_text(HEADER + "\n".join(lines) + "\n\n")
    for line in lines:
        name, _, species, _ = line.split()
        Image.new("RGB", (6, 4), (200, 10, 30)).save(root / f"images/{name}.jpg")
        Image.fromarray(TRIMAP).save(root / f"annotations/trimaps/{name}.png")
        if name in boxes:
            text = BOX.format(("cat", "dog")[int(species) - 1])
            wrong = "<filename>other.jpg</filename><size><width>9</width><height>9</height></size>"
            (root / f"annotations/xmls/{name}.xml").write_text(f"<annotation>{wrong}{text}</annotation>")
    (root / "images/Abyssinian_1.mat").touch()
    (root / "annotations/trimaps/._Abyssinian_1.png").touch()
    return root


def quiet(*arguments, **settings):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return PetDataset(*arguments, **settings)


def test_an_item_has_a_head_a_species_and_the_class_of_each_pixel(tmp_path):
    dataset = quiet(write(tmp_path), "trainval")
    assert dataset.names == ["Abyssinian_1", "saint_bernard_2", "Abyssinian_3"]
    assert (dataset.categories, dataset.image_classes) == (["cat", "dog"], ["cat", "dog"])
    image, target = dataset[1]
    assert image.shape == (3, 4, 6)
    assert target["boxes"].tolist() == [[1, 1, 4, 3]]
    assert (target["labels"].tolist(), target["image_labels"].item(), target["iscrowd"].tolist()) == ([1], 1, [0])
    expected = torch.tensor(
        [[0] * 6, [0, VOID, VOID, VOID, 0, 0], [0, VOID, 1, VOID, 0, 0], [0, VOID, VOID, VOID, 0, 0]]
    )
    assert torch.equal(target["segmentation"], expected)
    assert target["image_id"] == 1
    assert dataset.target(-1)["image_id"] == 2


def test_the_border_can_be_pet_and_the_class_the_breed(tmp_path):
    dataset = quiet(write(tmp_path), "trainval", border="pet", classes="breeds")
    assert dataset.target(0)["segmentation"].sum() == 9
    assert [int(dataset.target(i)["image_labels"]) for i in range(3)] == [0, 29, 0]
    assert len(dataset.image_classes) == 37
    assert (dataset.image_classes[0], dataset.image_classes[29]) == ("Abyssinian", "saint_bernard")
    assert dataset.image_classes[1] == "2"  # a breed that the list does not have


def test_a_segmentation_moves_with_the_image(tmp_path):
    dataset = quiet(write(tmp_path), "trainval", transforms=flip_augmentation())
    flipped = quiet(tmp_path, "trainval")
    torch.manual_seed(0)
    seen = {dataset[0][1]["segmentation"][2, 2].item() for _ in range(20)}
    assert seen == {1, VOID}
    assert flipped[0][1]["segmentation"][2, 2] == 1


def test_a_missing_head_box_is_a_crowd_over_all_or_the_image_goes_or_is_refused(tmp_path):
    root = write(tmp_path)
    with pytest.warns(UserWarning, match=r"1 of 3 images have no XML.*'Abyssinian_3'.*nothing is learned or judged"):
        dataset = PetDataset(root, "trainval")
    target = dataset.target(2)
    assert (target["boxes"].tolist(), target["iscrowd"].tolist()) == ([[0, 0, 6, 4]], [1])
    assert target["image_labels"] == 0
    with pytest.warns(UserWarning, match=r"1 of 3 images have no XML.*they are dropped"):
        assert PetDataset(root, "trainval", without_box="drop").names == ["Abyssinian_1", "saint_bernard_2"]
    said = "PetDataset: 1 of 3 images have no XML file with a head box, 'Abyssinian_3' first; without_box='crowd'"
    assert_refused(said, PetDataset, root, "trainval", without_box="raise")


def test_a_list_without_any_box_is_read_as_test_is(tmp_path):
    dataset = quiet(write(tmp_path, boxes=()), "trainval")
    assert all(dataset.target(i)["iscrowd"].tolist() == [1] for i in range(3))


DAMAGES = {
    "no picture": (lambda root: (root / "images/Abyssinian_1.jpg").unlink(), "there is no picture"),
    "no image": (lambda root: (root / "images/Abyssinian_1.jpg").write_bytes(b"GIF89"), "cannot be read as an image"),
    "no trimap": (lambda root: (root / "annotations/trimaps/Abyssinian_1.png").unlink(), "there is no file"),
    "other size": (
        lambda root: Image.new("L", (5, 4), 1).save(root / "annotations/trimaps/Abyssinian_1.png"),
        "the trimap is 4 x 5, the picture 4 x 6",
    ),
    "broken XML": (lambda root: (root / "annotations/xmls/Abyssinian_1.xml").write_text("<annotation>"), "as XML"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_an_image_that_is_spoiled_is_dropped_with_a_warning_or_refused(damage, tmp_path):
    root, (spoil, words) = write(tmp_path), DAMAGES[damage]
    spoil(root)
    with pytest.warns(UserWarning, match="images") as caught:
        dataset = PetDataset(root, "trainval")
    assert dataset.names == ["saint_bernard_2", "Abyssinian_3"]
    (warning,) = (str(one.message) for one in caught if "dropped for this" in str(one.message))
    assert words in warning
    assert "1 of 3 images were dropped for this" in warning
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        quiet(root, "trainval", degenerate="raise")


def test_damaged_pixels_are_found_where_they_are_read_or_before_with_thorough(tmp_path):
    root = write(tmp_path)
    Image.fromarray(np.full((4, 6), 7, np.uint8)).save(root / "annotations/trimaps/Abyssinian_1.png")
    noise = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    Image.fromarray(noise).save(root / "images/saint_bernard_2.png")
    (root / "images/saint_bernard_2.jpg").write_bytes((root / "images/saint_bernard_2.png").read_bytes()[:60])
    (root / "images/saint_bernard_2.png").unlink()
    dataset = quiet(root, "trainval")
    assert len(dataset) == 3
    said = "PetDataset: image id=0 (Abyssinian_1): the trimap holds 7..7; allowed are 1 (pet), 2"
    assert_refused(said, dataset.target, 0)
    with pytest.raises(ValueError, match="saint_bernard_2"):
        dataset[1]
    with pytest.warns(UserWarning, match=r"2 of 3 images were dropped"):
        assert PetDataset(root, "trainval", thorough=True).names == ["Abyssinian_3"]


def test_a_box_that_is_none_is_dropped_and_the_image_stays(tmp_path):
    root = write(tmp_path)
    path = root / "annotations/xmls/Abyssinian_1.xml"
    path.write_text(path.read_text().replace("<xmax>4", "<xmax>1"))
    with pytest.warns(UserWarning, match=r"has no width.*1 of 3 boxes were dropped"):
        dataset = PetDataset(root, "trainval")
    assert len(dataset.target(0)["boxes"]) == 0
    with pytest.raises(ValueError, match="has no width"):
        quiet(root, "trainval", degenerate="raise")


@pytest.mark.parametrize("line", ["one 1 1", "one 0 1 1", "one 38 1 1", "one 1 3 1", "one x 1 1", "one -1 1 1"])
def test_a_line_that_is_none_is_refused_by_number(line, tmp_path):
    root = write(tmp_path)
    (root / "annotations/trainval.txt").write_text(f"{HEADER}{PETS[0]}\n{line}\n")
    place = root / "annotations/trainval.txt"
    assert_refused(
        f"PetDataset: {place}: line 4: '{line}'; allowed is a name, a breed 1..37", PetDataset, root, "trainval"
    )


def test_names_that_occur_twice_lists_that_are_missing_and_options_are_refused(tmp_path):
    root = write(tmp_path)
    (root / "annotations/twice.txt").write_text("\n".join(PETS + PETS[:1]))
    assert_refused(
        f"PetDataset: {root}/annotations/twice.txt: 'Abyssinian_1' stands there more than once",
        PetDataset,
        root,
        "twice",
    )
    with pytest.raises(FileNotFoundError, match="split='test': there is no file"):
        PetDataset(root, "test")
    with pytest.raises(ValueError, match="has a part"):
        PetDataset(root, "../trainval")
    for option, value in {"classes": "x", "border": "x", "without_box": "x", "degenerate": "x"}.items():
        assert_refused(f"PetDataset: {option}='x'; allowed are", PetDataset, root, "trainval", **{option: value})


def test_nothing_outside_is_opened(tmp_path):
    root = write(tmp_path / "root", ["../../outside 1 1 1"][:0] + PETS)
    Image.new("RGB", (6, 4)).save(tmp_path / "outside.jpg")
    (root / "annotations/bad.txt").write_text("../../outside 1 1 1\n")
    with pytest.raises(ValueError, match=r"has a part '\.\.'"):
        PetDataset(root, "bad", degenerate="raise")


def test_xml_without_an_object_is_as_good_as_none(tmp_path):
    """Else the image would teach that a pet has no head."""
    root = write(tmp_path)
    (root / "annotations/xmls/Abyssinian_1.xml").write_text("<annotation></annotation>")
    with pytest.warns(UserWarning, match=r"2 of 3 images have no XML file with a head box, 'Abyssinian_1' first"):
        target = PetDataset(root, "trainval").target(0)
    assert (target["boxes"].tolist(), target["iscrowd"].tolist()) == ([[0, 0, 6, 4]], [1])


def test_names_and_numbers_too_long_for_the_disk_are_refused_by_line(tmp_path):
    root = write(tmp_path)
    text = (root / "annotations/trainval.txt").read_text()
    (root / "annotations/trainval.txt").write_text(f"{text}{'a' * 300} 1 1 1\n")
    assert quiet(root, "trainval").names == ["Abyssinian_1", "saint_bernard_2", "Abyssinian_3"]
    (root / "annotations/trainval.txt").write_text(f"Abyssinian_1 {'9' * 5000} 1 1\n")
    assert_refused("PetDataset: trainval.txt: line 1", PetDataset, root, "trainval")
