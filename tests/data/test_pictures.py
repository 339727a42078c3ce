"""Pictures by name, inside their folder."""

import pytest

from detkit.data.pictures import EXTENSIONS, Pictures


@pytest.mark.parametrize("extension", sorted(EXTENSIONS) + [".JPG"])
def test_a_name_finds_the_picture_with_any_extension(tmp_path, extension):
    for name in (f"a{extension}", "a.xml", "a.txt", "ab.jpg", "a.b.jpg"):
        (tmp_path / name).touch()
    pictures = Pictures(tmp_path)
    for name in ("a", f"a{extension}", "a.xml", "a.webp" if extension != ".webp" else "a.png"):
        assert pictures.named(name, owner="o") == [f"a{extension}"]
    assert pictures.named("b", owner="o") == []


def test_a_name_finds_a_picture_without_extension(tmp_path):
    (tmp_path / "a").touch()
    assert Pictures(tmp_path).named("a", owner="o") == ["a"]


def test_all_pictures_of_a_name_are_found_unless_one_is_meant(tmp_path):
    for name in ("a.png", "a.jpg"):
        (tmp_path / name).touch()
    pictures = Pictures(tmp_path)
    assert pictures.named("a", owner="o") == pictures.named("a.gif", owner="o") == ["a.jpg", "a.png"]
    assert pictures.named("a.png", owner="o") == ["a.png"]


def test_a_backslash_is_a_slash_where_no_file_has_one(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("sub/a.jpg", "sub/b.jpg", "sub\\b.jpg"):
        (tmp_path / name).touch()
    pictures = Pictures(tmp_path)
    assert pictures.named("sub\\a.jpg", owner="o") == ["sub/a.jpg"]
    assert pictures.named("sub\\b.jpg", owner="o") == ["sub\\b.jpg"]


def test_a_name_may_begin_in_the_folder_itself(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("a.jpg", "sub/b.jpg"):
        (tmp_path / name).touch()
    assert Pictures(tmp_path).named("./a", owner="o") == ["a.jpg"]
    assert Pictures(tmp_path).named("sub//./b.png", owner="o") == ["sub/b.jpg"]


def test_a_folder_is_listed_once(tmp_path, monkeypatch):
    pictures = Pictures(tmp_path)
    assert pictures.named("a", owner="o") == []
    monkeypatch.setattr("os.scandir", lambda _: pytest.fail("listed again"))
    assert pictures.named("b", owner="o") == []
