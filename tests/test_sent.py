"""What the host sends arrives as torch makes it; that nobody waits for it is seen in tests/on_device."""

import pytest
import torch

from detkit._sent import numbers_like, sent, sent_numbers


@pytest.mark.parametrize("values", [[[4, 6], [1, 2]], [0.5], 3, (1.5, 2), []])
def test_numbers_arrive_as_torch_makes_them(values):
    torch.testing.assert_close(sent_numbers(values, torch.device("cpu")), torch.tensor(values))
    for like in (torch.zeros(1), torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.int64)):
        torch.testing.assert_close(numbers_like(values, like), like.new_tensor(values))


def test_what_is_there_already_is_not_copied():
    values = torch.ones(3)
    assert sent(values, torch.device("cpu")) is values


def test_numbers_go_where_they_are_sent_whatever_the_default_device():
    assert sent_numbers([1.0], torch.device("meta")).is_meta
    with torch.device("meta"):
        assert not sent_numbers([1.0], torch.device("cpu")).is_meta
