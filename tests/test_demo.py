"""The demo, run short: what it prints and writes, and that a seed fixes the result. Its full length is timed apart."""

import re

import pytest
import torch

from detkit import demo
from detkit.data import DigitScenes
from detkit.weights import load_weights


@pytest.mark.slow(7)
def test_the_last_line_names_ap_and_picture_and_the_same_seed_gives_the_same_line(tmp_path, capsys):
    lines = []
    for _ in range(2):
        demo.main(["--steps", "3", "--output", str(tmp_path)])
        lines.append(capsys.readouterr().out.splitlines()[-1])
    assert lines[0] == lines[1]
    assert re.fullmatch(rf"AP=0\.\d{{3}} AP50=0\.\d{{3}} picture={tmp_path}/predictions\.png", lines[0])
    assert (tmp_path / "predictions.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow(3)
def test_the_saved_weights_are_those_of_the_detector_that_was_judged(tmp_path):
    demo.main(["--steps", "1", "--output", str(tmp_path)])
    detector = demo.digit_detector().eval()
    load_weights(detector, tmp_path / "weights.safetensors")
    metrics = demo.evaluate(detector, DigitScenes(20, split="test"))
    assert 0 <= metrics.compute()["bbox/AP"] <= 1


@pytest.mark.slow(6)
def test_training_lowers_the_loss():
    torch.manual_seed(0)
    detector = demo.digit_detector()
    images, targets = zip(*(DigitScenes(8, split="val")[i] for i in range(8)), strict=True)
    before = sum(detector(list(images), list(targets)).values()).item()
    demo.train(detector, steps=30)
    after = sum(detector(list(images), list(targets)).values()).item()
    assert after < before / 3


def test_the_weights_in_the_package_find_the_digits_of_unseen_scenes():
    metrics = demo.evaluate(demo.trained_digit_detector(), DigitScenes(40, split="test"))
    assert metrics.compute()["bbox/AP"] > 0.75
