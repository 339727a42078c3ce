"""Batches of a run, and the precision they are computed in."""

import torch
from training import begun

from detkit.data import DigitScenes
from detkit.train.batches import autocast, loader, progress


def test_a_loader_has_what_is_left_of_the_epoch_and_leaves_the_global_generator_alone(tmp_path):
    run = begun(tmp_path)
    data = DigitScenes(24, size=(64, 64))
    run.sampler.advance(20)
    before = torch.get_rng_state()
    batches = list(progress(loader(run, data), 0, done=5, total=6))
    assert [len(images) for images, _ in batches] == [4]
    assert torch.equal(torch.get_rng_state(), before)


def test_half_precision_is_asked_for(tmp_path):
    for options, kind in ((("--no-bf16",), torch.float32), (("--bf16",), torch.bfloat16)):
        with autocast(begun(tmp_path, *options)):
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == kind
