"""Operators of many small steps leave the other threads alone, and torch's setting as it was."""

import threading
from collections.abc import Callable

import pytest
import torch

from detkit._threads import on_one_thread, threads_for_pieces
from detkit.boxes import batched_nms, suppression


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@on_one_thread
def seen(call=lambda: None):
    """Threads of torch, and those for pieces, before and after a call inside."""
    before = torch.get_num_threads(), threads_for_pieces()
    call()
    return before, (torch.get_num_threads(), threads_for_pieces())


def test_inside_there_is_one_thread_and_pieces_may_use_those_of_outside():
    assert seen() == ((1, 2), (1, 2))
    assert torch.get_num_threads() == threads_for_pieces() == 2


def test_one_inside_another_changes_nothing():
    assert seen(seen) == ((1, 2), (1, 2))
    assert torch.get_num_threads() == 2


def test_the_setting_comes_back_after_an_error():
    with pytest.raises(ZeroDivisionError):
        seen(lambda: 1 // 0)
    assert torch.get_num_threads() == threads_for_pieces() == 2


def test_another_thread_keeps_its_own_setting():
    inside, leave, found = threading.Event(), threading.Event(), []

    def wait() -> None:
        inside.set()
        leave.wait(10)

    found.append(torch.get_num_threads())
    worker = threading.Thread(target=seen, args=(wait,))
    worker.start()
    inside.wait(10)
    found.append(torch.get_num_threads())
    leave.set()
    worker.join()
    assert found == [2, 2]


def test_a_thread_born_meanwhile_does_not_hand_its_one_thread_on():
    born, leave, found = threading.Event(), threading.Event(), []

    def live() -> None:
        found.append(torch.get_num_threads())
        born.set()
        leave.wait(10)
        seen()

    def run(target: Callable[[], object]) -> threading.Thread:
        thread = threading.Thread(target=target)
        thread.start()
        return thread

    torch.get_num_threads()  # this thread has its number
    second = []
    run(lambda: seen(lambda: (second.append(run(live)), born.wait(10)))).join()
    leave.set()
    second[0].join()
    run(lambda: found.append(torch.get_num_threads())).join()
    assert found == [1, 2]


def test_an_operator_of_many_steps_runs_on_one_thread(monkeypatch):
    threads = []

    def kernel(*arguments: object) -> torch.Tensor:
        threads.append(torch.get_num_threads())
        return by_kernel(*arguments)

    by_kernel = suppression._by_kernel
    monkeypatch.setattr(suppression, "_by_kernel", kernel)
    batched_nms(torch.tensor([[0.0, 0, 9, 9]]), torch.ones(1), torch.zeros(1, dtype=torch.int64), 0.5)
    assert threads == [1]
