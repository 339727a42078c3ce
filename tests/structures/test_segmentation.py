"""Pixels take the class of the first object that covers them: against a loop over pixels."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import assert_refused

from detkit.structures import VOID, draw_segmentation
from detkit.structures.segmentation import pixel_owners


def slow(masks, labels, objects, crowds):
    classes = torch.zeros(masks.shape[1:], dtype=torch.int64)
    for y in range(masks.shape[1]):
        for x in range(masks.shape[2]):
            covering = [t for t in range(len(masks)) if masks[t, y, x]]
            own = [t for t in covering if objects[t]]
            if own:
                classes[y, x] = labels[own[0]] + 1
            elif any(crowds[t] for t in covering):
                classes[y, x] = VOID
    return classes


@given(st.integers(0, 5), st.integers(0, 2**31))
def test_it_is_the_loop_over_pixels(count, seed):
    generator = torch.Generator().manual_seed(seed)
    masks = torch.randint(0, 2, (2, count, 4, 5), generator=generator).to(torch.uint8)
    labels = torch.randint(0, 7, (2, count), generator=generator)
    kind = torch.randint(0, 3, (2, count), generator=generator)  # padding, object, crowd
    drawn = draw_segmentation(masks, labels, kind == 1, kind == 2)
    for i in range(2):
        assert torch.equal(drawn[i], slow(masks[i], labels[i], kind[i] == 1, kind[i] == 2))
    assert torch.equal(draw_segmentation(masks.float(), labels, kind == 1, kind == 2), drawn)
    assert torch.equal(draw_segmentation(masks.bool(), labels, kind == 1, kind == 2), drawn)


@pytest.mark.parametrize("count", [1, 254, 255, 256, 32_766, 32_767, 32_768])
def test_of_any_number_of_objects_the_first_owns_a_pixel(count):
    masks = torch.zeros(count, 1, 3, dtype=torch.bool)
    masks[:, 0, 0] = masks[count - 1, 0, 1] = True
    objects = torch.ones(count, dtype=torch.bool)
    labels = (torch.arange(count) % 7).flip(0)
    assert pixel_owners(masks, objects).tolist() == [[0, count - 1, -1]]
    assert draw_segmentation(masks, labels, objects, ~objects).tolist() == [[(count - 1) % 7 + 1, 1, 0]]
    assert draw_segmentation(masks, labels, ~objects, objects).tolist() == [[VOID, VOID, 0]]


def test_whatever_byte_is_not_zero_is_inside():
    masks = torch.tensor([[[0, 255, 0, 2]], [[0, 0, 255, 1]]], dtype=torch.uint8)
    both = torch.tensor([True, True])
    expected = draw_segmentation(masks, torch.tensor([1, 2]), both, ~both)
    assert expected.tolist() == [[0, 2, 3, 2]]
    assert torch.equal(draw_segmentation(masks.view(torch.bool), torch.tensor([1, 2]), both, ~both), expected)


@pytest.mark.parametrize("label", [-1, 254, 255])
def test_a_label_that_would_be_background_or_void_is_refused(label):
    masks, labels, yes = torch.ones(1, 2, 2), torch.tensor([label]), torch.tensor([True])
    said = f"draw_segmentation: labels[0]={label} must lie in 0..253"
    assert_refused(said, draw_segmentation, masks, labels, yes, ~yes)
    assert (draw_segmentation(masks, labels, ~yes, yes) == VOID).all()  # a crowd has any label
