"""The table of what recipes cost, of small ones."""

import re

import pytest
import torch

from detkit.inspect.recipes import least, main, measure, target


@pytest.mark.slow(3)
def test_a_row_for_each_recipe(capsys):
    before = torch.get_num_threads()
    main(["--recipes", "fpn_ssd", "small_detr", "--size", "64", "64", "--repeat", "1"])
    head, _, ssd, detr = capsys.readouterr().out.splitlines()
    assert head.count("|") == ssd.count("|") == detr.count("|") == 7
    assert re.fullmatch(r"\| `fpn_ssd` \| 64 x 64 \| 1\.\d M \| \d\.\d\d \| \d\.\d\d \| 1\d \|", ssd)
    assert detr.endswith("|  |")
    assert torch.get_num_threads() == before


@pytest.mark.slow
def test_recipes_without_a_size_keep_their_own():
    assert measure("tiny_ssd", (64, 64), repeat=1)[1] == "256 x 256"


def test_the_least_of_runs_leaves_out_the_first():
    runs = iter((3_000_000, 0, 200_000))
    assert least(lambda: sum(range(next(runs))), 2) < 0.02


def test_a_target_has_what_every_recipe_learns_from():
    found = target((48, 64), torch.Generator().manual_seed(0))
    assert found["masks"].shape == (5, 48, 64)
    assert found["keypoints"].shape == (5, 17, 3)
    assert (found["masks"].sum((1, 2)) > 0).all()
