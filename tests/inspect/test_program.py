"""The program, from its command line."""

import pytest

from detkit.inspect.program import arguments, main


@pytest.mark.slow
def test_it_prints_a_report_and_draws_what_is_hardest(tmp_path, capsys):
    lines = main(["scenes", "--recipe", "fpn_ssd", "--size", "32", "32", "--most", "9", "--output", str(tmp_path)])
    assert capsys.readouterr().out.splitlines() == lines
    assert [line.split()[0] for line in lines] == [
        *("images", "objects", "classes", "sides", "suits", "detector", "at", "smallest", "no", "suggested", "picture")
    ]
    assert (tmp_path / "hardest.png").read_bytes().startswith(b"\x89PNG")


def test_a_detector_without_anchors_has_a_report_of_the_data():
    assert main(["scenes", "--recipe", "small_detr", "--most", "2"])[-1].startswith("anchors     a detector")


def test_what_does_not_fit_is_refused(capsys):
    with pytest.raises(ValueError, match="recipe tiny_ssd does not take --size"):
        main(["scenes", "--recipe", "tiny_ssd", "--size", "64", "64", "--most", "1"])
    with pytest.raises(SystemExit):
        arguments(["scenes", "--count", "0"])
    assert "--count 0: allowed is a whole number of at least 1" in capsys.readouterr().err
