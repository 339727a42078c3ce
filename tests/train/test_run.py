"""The state of a run, saved and loaded."""

import pytest
import torch
from training import begun

from detkit.weights import save_checkpoint


@pytest.mark.slow
def test_a_run_of_the_same_options_goes_on_and_one_of_others_is_refused_as_it_is_loaded(tmp_path):
    begun(tmp_path).save(1)
    assert begun(tmp_path, "--resume").load() == 1
    with pytest.raises(
        ValueError, match=r"^--resume: .*checkpoint.pt is of another run: --recipe was 'small_tood', is 's"
    ):
        begun(tmp_path, "--resume", "--recipe", "small_fcos").load()


def test_a_checkpoint_of_an_older_script_is_refused(tmp_path):
    save_checkpoint({"epoch": 1}, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match=r"--resume: .* of another run: --data was None, is 'scenes'"):
        begun(tmp_path, "--resume").load()


def test_a_run_resumed_with_another_number_of_threads_says_that_it_is_not_the_same_bit_for_bit(tmp_path):
    begun(tmp_path).save(1)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        with pytest.warns(UserWarning, match=f"--resume with {threads} threads before and {threads + 1} now"):
            assert begun(tmp_path, "--resume").load() == 1
    finally:
        torch.set_num_threads(threads)


@pytest.mark.slow
def test_a_longer_run_goes_on_with_the_rates_of_its_length(tmp_path):
    short = begun(tmp_path)
    for _ in range(short.schedule.lr_lambdas[0].total_steps):
        short.optimizer.step()
        short.schedule.step()
    assert short.schedule.get_last_lr()[0] == 0
    short.save(2)
    longer, whole = begun(tmp_path, "--resume", "--epochs", "4"), begun(tmp_path / "other", "--epochs", "4")
    assert longer.load() == 2
    for _ in range(short.schedule.last_epoch):
        whole.optimizer.step()
        whole.schedule.step()
    assert longer.schedule.get_last_lr() == whole.schedule.get_last_lr()
    assert longer.optimizer.param_groups[0]["lr"] == whole.schedule.get_last_lr()[0] > 0


def test_early_stopping_counts_again_from_the_records_of_the_checkpoint(tmp_path):
    first = begun(tmp_path, "--early-stop", "2")
    for ap in (0.3, 0.2):
        first.records.append({"bbox/AP": ap})
        assert not first.judged(first.records[-1])
    assert not first.judged({"epoch": 3})
    first.save(1)
    again = begun(tmp_path, "--early-stop", "2", "--resume")
    again.load()
    assert again.judged({"bbox/AP": 0.1})
