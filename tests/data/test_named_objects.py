"""What VOC's XML and Kaggle's table have in common."""

import numpy as np
import pytest
from PIL import Image

from detkit.data import CsvDataset, VocDataset
from detkit.data.named_objects import NamedObjects

OBJECTS = [("cat", 1, 2, 5, 4), ("dog", 0, 0, 3, 3)]


@pytest.fixture
def both(tmp_path):
    """The same image in both forms."""
    for folder in ("Annotations", "JPEGImages"):
        (tmp_path / folder).mkdir()
    Image.new("RGB", (6, 4)).save(tmp_path / "JPEGImages/one.png")
    edges = ("xmin", "ymin", "xmax", "ymax")
    entries = "".join(
        f"<object><name>{name}</name><bndbox>"
        + "".join(f"<{edge}>{value}</{edge}>" for edge, value in zip(edges, box, strict=True))
        + "</bndbox></object>"
        for name, *box in OBJECTS
    )
    (tmp_path / "Annotations/one.xml").write_text(f"<annotation>{entries}</annotation>")
    words = " ".join(" ".join(map(str, row)) for row in OBJECTS)
    (tmp_path / "train.csv").write_text(f"ImageId,PredictionString\none,{words}")
    return VocDataset(tmp_path, None), CsvDataset(tmp_path / "JPEGImages", tmp_path / "train.csv")


def test_one_image_is_the_same_in_both_forms(both):
    voc, table = both
    assert voc.categories == table.categories == ["cat", "dog"]
    assert voc.category_ids == table.category_ids == [0, 1]
    assert voc.image_size(0) == table.image_size(0) == (4, 6)
    (image, target), (other, same) = voc[0], table[0]
    assert (image == other).all()
    assert target.keys() == same.keys()
    for key in ("boxes", "labels", "area", "iscrowd"):
        assert target[key].tolist() == same[key].tolist()


def test_errors_name_the_data_set_the_image_and_its_place(both):
    for dataset in both:
        Image.new("RGB", (9, 9)).save(dataset.image_folder / "one.png")
        with pytest.raises(ValueError, match=rf"{type(dataset).__name__}: image id=0 \(one\): 'one.png' is 9 x 9"):
            dataset[0]


def test_objects_that_are_taken_keep_their_columns_and_no_fault():
    objects = NamedObjects(
        names=["a", "b", "c"],
        boxes=np.arange(12, dtype=np.float32).reshape(3, 4),
        difficult=np.array([0, 1, 1]),
        unread={1: ("no box", "xmin is missing")},
    )
    taken = objects.take(np.array([True, False, True]))
    assert taken.names == ["a", "c"]
    assert taken.boxes[:, 0].tolist() == [0, 8]
    assert taken.difficult.tolist() == [0, 1]
    assert taken.unread == {}
