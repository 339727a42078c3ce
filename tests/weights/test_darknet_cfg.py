"""Darknet's cfg files: what counts as a section, a key, a number; every fault is named with its line."""

import os
import warnings
from pathlib import Path

import pytest
from strategies import assert_refused

from detkit.weights.darknet_cfg import Section, read_cfg


def written(folder: Path, content: bytes) -> Path:
    path = folder / "net.cfg"
    path.write_bytes(content)
    return path


def test_spaces_comments_and_line_ends_do_not_count(tmp_path):
    path = written(
        tmp_path, b"\xef\xbb\xbf# first\r\n\r\n [net]\r\nwid th = 3 2\r\n;off=1\r\n[conv]\r\nfilters=\t4 \r\n[max]"
    )
    content, (net, conv, pool) = read_cfg(path)
    assert content == path.read_bytes()
    assert [(own.kind, own.line, own.number) for own in (net, conv, pool)] == [
        ("net", 3, -1),
        ("convolutional", 6, 0),
        ("maxpool", 8, 1),
    ]
    assert net.entries == {"width": (4, "32")}
    assert conv.whole("filters") == 4


def test_of_a_key_that_is_given_twice_the_first_value_counts_and_it_is_said(tmp_path):
    _, (net, _) = read_cfg(written(tmp_path, b"[net]\nwidth=32\nwidth=64\n[route]"))
    assert net.whole("width") == 32
    assert net.unread() == ["line 3: width of [net] is given again; the first value counts"]


def test_keys_about_darknets_own_training_pass_and_others_are_said(tmp_path):
    _, (net, layer) = read_cfg(written(tmp_path, b"[net]\nmomentum=0.9\nletter_box=1\n[maxpool]\nsize=2\nmomentum=1"))
    layer.whole("size")
    assert net.unread() == ["line 3: letter_box of [net] is not known"]
    assert layer.unread() == ["line 6: momentum of [maxpool] is not known"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "does not begin with the section [net]"),
        (b"width=32\n[net]", "does not begin with the section [net]"),
        (bytes(range(256)) * 4, "does not begin with the section [net]"),
        (b"[maxpool]\nsize=2", "line 1: [maxpool]: allowed is one section [net], the first"),
        (b"[net]\n[net]", "line 2: [net]: allowed is one section [net], the first"),
        (b"[net]\n[connected]\n", "line 2: the section [connected] is not known; allowed are [net] [convolutional]"),
        (b"[net]\n\n[route\n", "line 3: the section [route is not known"),
        (b"[net]\nwidth 32", "line 2: 'width32' is neither a section nor key=value"),
        (b"[net]\n=32", "line 2: '=32' is neither a section nor key=value"),
    ],
)
def test_what_is_no_cfg_is_refused(content, said, tmp_path):
    assert_refused(f"from_darknet: net.cfg {said}", read_cfg, written(tmp_path, content))


def test_a_cfg_of_very_many_sections_is_refused(tmp_path):
    path = written(tmp_path, b"[net]\n" + b"[route]\n" * 1024)
    assert_refused("from_darknet: net.cfg line 1025: a further section; allowed are 1024", read_cfg, path)


def test_a_file_of_any_size_and_a_pipe_are_refused_at_once(tmp_path):
    path = tmp_path / "huge.cfg"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    assert_refused("from_darknet: huge.cfg has more than 16777216 bytes", read_cfg, path)
    os.mkfifo(tmp_path / "pipe.cfg")
    assert_refused("from_darknet: pipe.cfg is a pipe", read_cfg, tmp_path / "pipe.cfg")


def section(kind: str = "route", **entries: str) -> Section:
    made = Section(Path("a.cfg"), kind, line=4, number=2)
    made.entries.update({key: (5 + i, value) for i, (key, value) in enumerate(entries.items())})
    return made


@pytest.mark.parametrize("value", ["", "two", "1.5", "1_0", "1e2", "-1", "65537", "٣", "1,2", "0x10"])
def test_whole_numbers_are_digits_in_range(value):
    said = f"from_darknet: a.cfg line 5: size={value} of [route]; allowed are whole numbers from 0 to 65536"
    assert_refused(said, section(size=value).whole, "size")


@pytest.mark.parametrize("value", ["", "nan", "inf", "1e999", "-.1", "1,2", "1..2", "1_0", "one"])
def test_numbers_are_finite_and_not_negative(value):
    said = f"from_darknet: a.cfg line 5: scale={value} of [route]; allowed are finite numbers"
    assert_refused(said, section(scale=value).number_of, "scale", 1.0)


def test_lists_have_commas_and_layers_may_be_negative():
    assert section(layers="-1,61").wholes("layers") == [-1, 61]
    assert section(anchors="10,13.5,.5").numbers("anchors") == [10, 13.5, 0.5]
    for value in ("1,", ",1", "1;2", "1,,2"):
        assert_refused("from_darknet: a.cfg line 5: of [route]; allowed", section(layers=value).wholes, "layers")
        assert_refused("from_darknet: a.cfg line 5: of [route]; allowed", section(anchors=value).numbers, "anchors")


def test_a_long_value_is_cut_in_the_message():
    with pytest.raises(ValueError, match=r"size=1{57}\.\.\. of") as caught:
        section(size="1" * 5000).whole("size")
    assert len(str(caught.value)) < 200


def test_a_missing_key_has_its_default_or_is_named_with_the_section():
    assert section().whole("size", 2) == 2
    assert section().number_of("scale", 0.5) == 0.5
    assert section().text("activation", "linear") == "linear"
    assert_refused("from_darknet: a.cfg line 4: [route] has no layers; allowed are", section().wholes, "layers")


def test_keys_that_would_make_another_network_have_one_value():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        section(groups="1").check_only()
    assert_refused("from_darknet: a.cfg line 5: groups=2 of [route]; allowed is 1", section(groups="2").check_only)
    for kind, key, value, allowed in (
        ("shortcut", "alpha", ".5", "1"),
        ("shortcut", "beta", "2", "1"),
        ("convolutional", "stride_x", "2", "to leave it out"),
        ("maxpool", "stride_y", "1", "to leave it out"),
        ("region", "tree", "9k.tree", "to leave it out"),
    ):
        said = f"from_darknet: a.cfg line 5: {key}={value} of [{kind}]; allowed is {allowed}"
        assert_refused(said, section(kind, **{key: value}).check_only)
