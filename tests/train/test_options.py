"""The command line: what does not fit together is refused before anything is read."""

import importlib.util

import pytest
import torch
from training import claimed

from detkit.train.options import arguments


@pytest.mark.parametrize("scale", [("1.5", "0.5"), ("nan", "1"), ("0.5", "inf"), ("-1", "1"), ("0", "1")])
def test_a_scale_that_is_none_is_refused(tmp_path, capsys, scale):
    with pytest.raises(SystemExit):
        claimed(tmp_path, "--random-scale", *scale)
    assert "allowed are two numbers between 0 and 100, the lower first" in capsys.readouterr().err


def test_folders_that_fit_no_number_of_files_are_refused(tmp_path, capsys):
    words = ["--data", "coco", "--train-json", "a", "b", "c", "--val-json", "d", "--output", str(tmp_path)]
    with pytest.raises(SystemExit):
        arguments([*words, "--train-images", "x", "y"])
    assert "--train-images names 2 folders for 3 files of --train-json" in capsys.readouterr().err


def test_a_share_that_is_none_is_refused(tmp_path, capsys):
    for options in (("--val-fraction", "0.5"), ("--val-fraction", "1", "--data", "voc", "--root", "x")):
        with pytest.raises(SystemExit):
            claimed(tmp_path, *options)
        assert "allowed is a number above 0 and below 1, with data other than scenes" in capsys.readouterr().err


def test_weights_of_a_trunk_that_are_no_file_are_refused_at_once(tmp_path, capsys):
    with pytest.raises(SystemExit):
        claimed(tmp_path, "--trunk", str(tmp_path))
    assert f"--trunk {tmp_path} is no regular file" in capsys.readouterr().err


def test_help_shows_every_option_and_the_ways_to_begin(capsys):
    with pytest.raises(SystemExit):
        arguments(["--help"])
    shown = capsys.readouterr().out
    assert "torchrun --nproc-per-node 2 -m detkit.train" in shown
    assert "--early-stop N" in shown


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--early-stop", "0"), "--early-stop 0: allowed is a whole number of at least 1"),
        (("--epochs", "-3"), "--epochs -3: allowed is a whole number of at least 1"),
        (("--data", "csv", "--train-csv", "a.csv"), "--data csv needs --train-csv and --val-csv or --val-fraction"),
        (("--data", "coco", "--train-json", "a.json"), "--val-json or --val-fraction, or --root"),
        (("--data", "coco", "--root", "nowhere"), "there is no train/_annotations.coco.json"),
        (("--data", "coco", "--train-json", "a", "--val-json", "b", "--val-fraction", "0.1"), "--val-json already"),
        (("--recipe", "fpn_sdd"), "there is no recipe 'fpn_sdd' to train; did you mean fpn_ssd?"),
        (("--recipe", "17"), "there is no recipe '17' to train. All: d_fine, "),
        (("--module", "nowhere.py"), "--module nowhere.py is no regular file"),
        (("--data", "coco", "--train-json", "a", "--val-json", "b"), "--train-json a is no regular file"),
        (("--data", "csv", "--train-csv", "a.csv", "--val-fraction", "0.1"), "--train-csv a.csv is no regular file"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_option(options, complaint, tmp_path, capsys):
    with pytest.raises(SystemExit):
        arguments([*options, "--output", str(tmp_path)])
    told = capsys.readouterr().err
    assert complaint in told
    assert len(told.splitlines()) == 2, "the usage would bury the complaint"


def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch, capsys):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tensorboard" else found(name))
    with pytest.raises(SystemExit):
        claimed(tmp_path, "--tensorboard")
    assert '--tensorboard needs tensorboard: pip install "torch-detkit[tensorboard]"' in capsys.readouterr().err


def test_a_coco_export_of_roboflow_is_found_by_its_folder(tmp_path):
    for folder in ("train", "valid"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "_annotations.coco.json").touch()
    args = arguments(["--data", "coco", "--root", str(tmp_path), "--output", str(tmp_path)])
    assert args.train_json == [tmp_path / "train" / "_annotations.coco.json"]
    assert args.val_json == [tmp_path / "valid" / "_annotations.coco.json"]
    assert args.test_json is None
    assert args.tidy_categories


@pytest.mark.parametrize(
    ("known", "fast"), [({}, False), ({"avx512_bf16": True}, True), ({"avx512_bf16": False, "amx_bf16": True}, True)]
)
def test_half_precision_is_taken_where_the_processor_has_instructions_for_it(monkeypatch, tmp_path, known, fast):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known, raising=False)
    given = ["--output", str(tmp_path)]
    assert arguments(given).bf16 == fast
    assert arguments([*given, "--bf16"]).bf16
    assert not arguments([*given, "--no-bf16"]).bf16


def test_scenes_of_digits_are_not_mirrored_unless_asked_for(tmp_path):
    assert arguments(["--output", str(tmp_path)]).augment == "none"
    assert arguments(["--data", "yolo", "--root", str(tmp_path), "--output", str(tmp_path)]).augment == "jitter"
    assert arguments(["--augment", "flip", "--output", str(tmp_path)]).augment == "flip"
