"""One XML file as a record; what is wrong with files and objects is shown in test_voc.py."""

import numpy as np
import pytest

from detkit._faults import Faults
from detkit.data import voc_xml
from detkit.data.voc_xml import read_voc

OBJECT = (
    "<object><name> cat </name><part><name>head</name></part><bndbox><xmax>4</xmax><xmin>1</xmin>"
    "<ymin>2.25</ymin><ymax>3</ymax></bndbox><difficult/></object>"
)


def read(folder, text, **settings):
    (folder / "one.xml").write_text(text)
    faults = Faults("VocDataset")
    (record,) = read_voc(folder, ["one.xml"], faults, **settings)
    faults.settle()
    return record


def test_a_record_holds_what_the_file_says(tmp_path):
    size = "<size><width>6</width><height>4</height></size>"
    record = read(tmp_path, f"<annotation><filename>a.jpg</filename>{size}{OBJECT}</annotation>")
    assert (record.file_name, record.size, record.names) == ("a.jpg", (4, 6), ["cat"])
    assert record.boxes.tolist() == [[1, 2.25, 4, 3]]
    assert record.boxes.dtype == np.float32
    assert record.difficult.tolist() == [0]
    assert not record.unread


def test_minus_one_moves_the_upper_left_corner(tmp_path):
    assert read(tmp_path, f"<annotation>{OBJECT}</annotation>", minus_one=True).boxes.tolist() == [[0, 1.25, 4, 3]]


def test_an_image_without_a_file_has_an_empty_record(tmp_path):
    (record,) = read_voc(tmp_path, [None], Faults("VocDataset"))
    assert record.size == (0, 0)
    assert record.boxes.shape == (0, 4)


def test_xml_over_the_bound_is_not_parsed(tmp_path, monkeypatch):
    monkeypatch.setattr(voc_xml, "MAX_XML_BYTES", 50)
    with pytest.raises(ValueError, match=r"'one\.xml': .*has \d+ bytes; allowed are 50"):
        read(tmp_path, f"<annotation>{OBJECT}</annotation>")


def test_xml_of_something_else_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"'one\.xml': .*the root is <annotations>; allowed is <annotation>"):
        read(tmp_path, "<annotations/>")


def test_tags_are_read_in_any_case_and_without_their_namespace(tmp_path):
    plain = f"<annotation><size><width>6</width><height>4</height></size>{OBJECT}</annotation>"
    expected = read(tmp_path, plain)
    for text in (
        plain.replace("object", "Object").replace("bndbox", "bndBox").replace("xmin", "XMin"),
        plain.replace("<annotation>", '<annotation xmlns="http://example.org/voc">'),
        plain.replace("<annotation>", '<v:annotation xmlns:v="u">').replace("</annotation>", "</v:annotation>"),
    ):
        found = read(tmp_path, text)
        assert (found.size, found.names, found.boxes.tolist()) == (expected.size, ["cat"], expected.boxes.tolist())


def test_a_flag_that_means_nothing_is_a_fault_of_its_object(tmp_path):
    unclear = OBJECT.replace("<difficult/>", "<difficult>2</difficult>")
    record = read(tmp_path, f"<annotation>{OBJECT}{unclear}</annotation>")
    assert record.unread == {1: ("no flag", "difficult='2'; allowed are 0 and 1")}
