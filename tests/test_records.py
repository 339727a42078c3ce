"""What holds for every operation on boxes and every elementary loss, run over every record in tests/records.py."""

import inspect
import re
from collections.abc import Iterable
from types import ModuleType

import numpy as np
import pytest
import torch
from records import FLOATS, RECORDS, OpSpec
from strategies import in_order
from torch import Tensor

from detkit import boxes, losses
from detkit._inputs import promote

SIZE = 7
# Parts that work on sides of boxes: the operations made of them have the records.
WRAPPED = {"DistributionCoder", "EdgeCoder"}  # of distributions: tests/boxes/test_coding.py and test_edges.py
SUMMED = {"box_costs", "mean_count", "sigmoid_scores", "softmax_scores"}  # what criteria share: tests/losses
SUMMED |= {"grid_cost"}  # weighs a box by the area of all cells, not row by row: tests/losses/test_yolo.py
PARTS = {"ciou", "diou", "giou", "hull", "intersection_and_union", "iou", "ratio", "unsquared_diou"}
every_record = pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.name)


def results(record: OpSpec, arguments: Iterable[Tensor]) -> tuple[Tensor, ...]:
    found = record.op(*arguments)
    return found if isinstance(found, tuple) else (found,)


def expected(record: OpSpec, arguments: Iterable[Tensor]) -> tuple[np.ndarray, ...]:
    found = record.reference(*(a.double().tolist() if a.is_floating_point() else a.tolist() for a in arguments))
    return tuple(np.array(column, dtype=np.float64) for column in (found if isinstance(found, tuple) else (found,)))


def assert_as_reference(record: OpSpec, arguments: tuple[Tensor, ...]) -> None:
    found, wanted = results(record, arguments), expected(record, arguments)
    assert len(found) == len(wanted)
    for column, truth in zip(found, wanted, strict=True):
        tolerance = 1e-5 if column.dtype == torch.float32 else 1e-9
        assert column.shape == truth.shape or column.numel() == truth.size == 0
        scale = max(1.0, float(np.abs(truth).max(initial=0)))
        np.testing.assert_allclose(
            column.detach().double().numpy(), truth.reshape(column.shape), rtol=tolerance, atol=tolerance * scale
        )


def assert_identical(found: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> None:
    for one, two in zip(found, other, strict=True):
        assert one.dtype == two.dtype
        assert torch.equal(one, two)


def transposed(rows: Tensor) -> Tensor:
    return rows.transpose(0, -1).contiguous().transpose(0, -1)


def strided(rows: Tensor) -> Tensor:
    """Every second row of a larger tensor."""
    return rows.repeat_interleave(2, dim=0)[::2]


def offset(rows: Tensor) -> Tensor:
    """The middle columns of a wider tensor."""
    return torch.cat((rows[..., :1], rows, rows[..., :1]), dim=-1)[..., 1:-1]


def expanded(rows: Tensor) -> Tensor:
    """The first row again and again, at a stride of 0."""
    return rows[:1].expand_as(rows)


def followed(record: OpSpec, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """``arguments``, those that may have a gradient asking for one."""
    return tuple(a.requires_grad_(a.is_floating_point() and i not in record.constants) for i, a in enumerate(arguments))


def classes_of(unit: ModuleType) -> set[str]:
    return {name for name in unit.__all__ if inspect.isclass(getattr(unit, name))}


def test_every_operation_has_its_record():
    coders = {name for name in classes_of(boxes) if hasattr(getattr(boxes, name), "encode")} - WRAPPED
    coded = {f"{coder}.{method}" for coder in coders for method in ("encode", "decode")}
    functions = {name for unit in (boxes, losses) for name in set(unit.__all__) - classes_of(unit) - PARTS - SUMMED}
    assert {record.name.split()[0] for record in RECORDS} == functions | coded
    assert len({record.name for record in RECORDS}) == len(RECORDS)


@every_record
@pytest.mark.parametrize("count", [1, 2, SIZE, 30])
def test_every_type_gives_what_the_slow_reference_gives(record, count):
    for dtype in record.dtypes:
        assert_as_reference(record, record.make(count, dtype))


# Masks are counted in float32, whatever their type.
@pytest.mark.parametrize("record", [r for r in RECORDS if r.name != "mask_iou"], ids=lambda record: record.name)
def test_results_have_the_promoted_type(record):
    for dtype in record.dtypes:
        arguments = record.make(SIZE, dtype)
        allowed = {promote(a[:0]).dtype for a in arguments} | {torch.int64, torch.bool}
        assert {column.dtype for column in results(record, arguments)} <= allowed


@every_record
@pytest.mark.parametrize("layout", [transposed, strided, offset, expanded])
def test_every_memory_layout_gives_what_contiguous_numbers_give(record, layout):
    for dtype in record.dtypes:
        views = tuple(layout(argument) for argument in record.make(SIZE, dtype))
        assert any(not view.is_contiguous() for view in views) or layout is transposed
        found, wanted = results(record, views), results(record, [view.clone().contiguous() for view in views])
        if record.sums:
            torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)
        else:
            assert_identical(found, wanted)


@every_record
def test_no_rows_give_what_the_slow_reference_gives(record):
    for dtype in record.dtypes:
        assert_as_reference(record, record.make(0, dtype))
        assert_as_reference(record, tuple(argument[:0] for argument in record.make(SIZE, dtype)))


@every_record
def test_arguments_are_left_as_they_were(record):
    for dtype in record.dtypes:
        arguments = record.make(SIZE, dtype)
        before = [argument.clone() for argument in arguments]
        for column in results(record, arguments):
            column.detach().zero_()  # nor is a result a view of them
        assert_identical(arguments, tuple(before))


@every_record
def test_one_thread_and_two_give_the_same_bits(record):
    arguments = record.make(1000, torch.float32)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = results(record, arguments)
        torch.set_num_threads(2)
        assert_identical(results(record, arguments), alone)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.parametrize("record", [r for r in RECORDS if r.gradient == "checked"], ids=lambda record: record.name)
def test_gradients_equal_finite_differences(record):
    arguments = followed(record, record.make(3, torch.float64))
    assert torch.autograd.gradcheck(lambda *args: results(record, args), arguments)


@every_record
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_finite_numbers_give_finite_results_and_gradients(record, dtype):
    arguments = followed(record, record.make(SIZE, dtype))
    found = results(record, arguments)
    assert all(torch.isfinite(column).all() for column in found)
    if record.gradient == "none":
        return
    sum(column.sum() for column in found).backward()
    learning = [argument for argument in arguments if argument.requires_grad]
    assert learning
    for argument in learning:
        assert argument.grad is not None
        assert torch.isfinite(argument.grad).all()


@every_record
def test_what_is_wrong_is_refused_in_words_that_name_it(record):
    assert record.errors
    for said, call in record.errors.items():
        with pytest.raises(ValueError, match=in_order(said)):
            call()


def test_what_a_message_says_is_found_whole_and_in_order():
    said = in_order("nms: scores (2,) 3")
    assert re.search(said, "nms: scores has shape (2,); allowed is one for each of 3 boxes")
    for other in ("soft_nms: scores (2,) 3", "nms: scores (2,) 13", "nms: 3 scores (2,)", "nms: my_scores (2,) 3"):
        assert not re.search(said, other)
