"""TokenCoder: the goldens of both vocabularies, the bound of a round trip, and what is no box."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import boxes as hostile_boxes
from strategies import random_boxes, unhooked
from torch import Tensor

from detkit.boxes import clip_boxes_to_image
from detkit.boxes.tokens import TokenCoder

BOTH = pytest.mark.parametrize("vocabulary", ["code", "paper"])
SIZE = torch.tensor([60, 80])


def yxyx(*fractions: float) -> Tensor:
    """One box (1, 1, 4), as fractions of an image of 1 x 1: ymin, xmin, ymax, xmax."""
    return torch.tensor(fractions)[[1, 0, 3, 2]].reshape(1, 1, 4)


@pytest.mark.parametrize(
    ("fractions", "label", "vocabulary", "tokens"),
    [
        ((0.1, 0.2, 0.5, 0.6), 1, "code", [1100, 1200, 1500, 1599, 101]),
        ((0.1, 0.2, 0.5, 0.6), 1, "paper", [101, 201, 501, 600, 1001]),
        ((0, 0, 1, 1), 3, "code", [1000, 1000, 1999, 1999, 103]),
        ((0, 0, 1, 1), 3, "paper", [1, 1, 1000, 1000, 1003]),
    ],
)
def test_goldens_of_both_vocabularies(fractions, label, vocabulary, tokens):
    """Published labels count from 1."""
    coder = TokenCoder(3, vocabulary=vocabulary)
    found = coder.encode(yxyx(*fractions), torch.tensor([[label - 1]]), torch.tensor([[1, 1]]))
    assert found.tolist() == [[tokens]]


def test_special_tokens_and_sizes_are_those_of_the_release():
    coder = TokenCoder(80)
    assert (coder.end, coder.start, coder.noise, coder.size) == (0, 10, 30, 3000)


@BOTH
@pytest.mark.parametrize(("num_classes", "bins"), [(1, 2), (5, 7), (899, 2000)])
def test_no_token_means_two_things(vocabulary, num_classes, bins):
    coder = TokenCoder(num_classes, bins=bins, vocabulary=vocabulary)
    meanings = [
        coder.end,
        coder.start,
        coder.noise,
        *range(coder.first_coordinate, coder.first_coordinate + bins),
        *range(coder.first_class, coder.first_class + num_classes),
    ]
    assert len(set(meanings)) == len(meanings)
    assert min(meanings) == 0
    assert max(meanings) < coder.size
    assert vocabulary == "code" or max(meanings) == coder.size - 1


def test_halves_go_to_the_even_bin():
    """Of 2 bins, .5 lies between 0 and 1; of 4, it is 1.5."""
    half, size, label = torch.full((1, 4), 0.5), torch.tensor([1, 1]), torch.tensor([0])
    for bins, nearest in ((2, 0), (4, 2)):
        coder = TokenCoder(1, bins=bins, vocabulary="paper")
        assert coder.encode(half, label, size).tolist() == [[nearest + 1] * 4 + [bins + 1]]


@BOTH
@given(boxes=hostile_boxes(inverted=False), bins=st.integers(2, 2000), broken=st.booleans())
def test_a_round_trip_is_off_by_at_most_half_a_bin(vocabulary, boxes, bins, broken):
    """Boxes outside the image are held to its border; NaN counts as 0."""
    if broken and len(boxes):
        boxes[0, 0], boxes[-1, 1] = torch.nan, -torch.inf
    coder, labels = TokenCoder(4, bins=bins, vocabulary=vocabulary), torch.arange(len(boxes)) % 4
    found = coder.decode(coder.encode(boxes, labels, SIZE), SIZE)
    expected = clip_boxes_to_image(boxes.nan_to_num(0, neginf=0), SIZE)
    bound = 0.5 / (bins - 1) * torch.tensor([80.0, 60, 80, 60])
    assert found.valid.all()
    assert ((found.boxes - expected).abs() <= bound + 2e-5).all()
    assert torch.equal(found.labels, labels)


@BOTH
@given(boxes=hostile_boxes())
def test_what_was_decoded_is_encoded_as_it_was(vocabulary, boxes):
    coder, labels = TokenCoder(1, vocabulary=vocabulary), torch.zeros(len(boxes), dtype=torch.int64)
    tokens = coder.encode(boxes, labels, SIZE)
    found = coder.decode(tokens, SIZE)
    again = coder.encode(found.boxes, labels, SIZE)
    assert torch.equal(again[found.valid], tokens[found.valid])
    assert ((found.boxes[:, 2:] >= found.boxes[:, :2]).all(-1) | ~found.valid).all()
    assert not found.boxes[~found.valid].any()


def test_a_padded_batch_equals_its_images_and_padding_is_the_end_token():
    coder, sizes = TokenCoder(3), torch.tensor([[100, 50], [70, 120]])
    boxes, labels = random_boxes(8).reshape(2, 4, 4), torch.tensor([[0, 1, 2, 99], [2, 77, -5, 99]])
    valid = torch.tensor([[True, True, True, False], [True, False, False, False]])
    tokens = coder.encode(boxes, labels, sizes, valid=valid)
    for i, count in enumerate((3, 1)):
        alone = coder.encode(boxes[i, :count], labels[i, :count], sizes[i])
        assert torch.equal(tokens[i, :count], alone)
        assert (tokens[i, count:] == coder.end).all()
    found = coder.decode(tokens, sizes)
    assert torch.equal(found.valid, valid)
    assert torch.equal(found.labels, torch.where(valid, labels, 0))


@BOTH
def test_noise_is_a_class_that_decodes_to_nothing(vocabulary):
    coder = TokenCoder(3, bins=11, vocabulary=vocabulary)
    tokens = coder.encode(yxyx(0, 0, 1, 1), torch.tensor([[-1]]), torch.tensor([[1, 1]]))
    assert tokens[0, 0, 4] == coder.noise
    assert not coder.decode(tokens, torch.tensor([[1, 1]])).valid.any()


@BOTH
@pytest.mark.parametrize("place", range(5))
def test_a_box_with_any_token_out_of_place_is_not_valid(vocabulary, place):
    coder, size = TokenCoder(3, bins=11, vocabulary=vocabulary), torch.tensor([10, 10])
    good = coder.encode(torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([2]), size)
    low, high = (
        (coder.first_class, coder.first_class + 2)
        if place == 4
        else (coder.first_coordinate, coder.first_coordinate + 10)
    )
    tokens = good.repeat(coder.size, 1)
    tokens[:, place] = torch.arange(coder.size)
    found = coder.decode(tokens, size).valid
    allowed = range(low, high + 1)
    if place in (2, 3):  # the lower corner is at bin 0: every coordinate is above
        assert good[0, place - 2] == low
    assert found.nonzero().flatten().tolist() == list(allowed)


def test_an_inverted_box_is_not_valid():
    coder, size = TokenCoder(1), torch.tensor([10, 10])
    tokens = coder.encode(torch.tensor([[5.0, 0, 4, 9], [0, 5, 9, 4], [5, 5, 5, 5]]), torch.tensor([0, 0, 0]), size)
    assert coder.decode(tokens, size).valid.tolist() == [False, False, True]


def test_an_image_without_objects_has_no_tokens():
    coder = TokenCoder(2)
    assert coder.encode(torch.zeros(2, 0, 4), torch.zeros(2, 0, dtype=torch.int64), torch.ones(2, 2)).shape == (2, 0, 5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.uint8, torch.int64, torch.float64])
def test_boxes_of_any_type_are_promoted(dtype):
    coder, box = TokenCoder(1), torch.tensor([[8, 16, 64, 128]])
    expected = coder.encode(box.float(), torch.tensor([0]), torch.tensor([128, 128]))
    assert torch.equal(coder.encode(box.to(dtype), torch.tensor([0]), torch.tensor([128, 128])), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64, torch.int64])
def test_decoded_boxes_are_float64_only_for_sizes_in_float64(dtype):
    """Whole pixels are what sizes are counted in: float32 does for them."""
    coder, size = TokenCoder(1, bins=7, vocabulary="paper"), torch.tensor([10, 30], dtype=dtype)
    found = coder.decode(torch.tensor([[1, 2, 5, 4, 8]]), size).boxes
    expected = torch.tensor([[30 / 6, 0, 3 * 30 / 6, 4 * 10 / 6]], dtype=torch.float64)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(found, expected.to(found.dtype), rtol=1e-15 if dtype == torch.float64 else 1e-6, atol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 0}, "num_classes=0 must be at least 1"),
        ({"num_classes": 1, "bins": 1}, "bins=1"),
        ({"num_classes": 900}, "vocabulary 'code' holds at most 899 classes and 2000 bins"),
        ({"num_classes": 1, "bins": 2001}, "'paper' any number"),
        ({"num_classes": 1, "vocabulary": "latin"}, "vocabulary='latin'; allowed is 'code' or 'paper'"),
    ],
)
def test_settings_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        unhooked(TokenCoder.__init__)(torch.nn.Module.__new__(TokenCoder), **arguments)


def test_a_label_out_of_range_is_named():
    with pytest.raises(ValueError, match=r"labels\[1\]=3.*0..2.*NEGATIVE \(-1\).*1.*2"):
        TokenCoder(3).encode(torch.zeros(2, 4), torch.tensor([2, 3]), torch.tensor([1, 1]))


def test_print_shows_the_settings():
    assert repr(TokenCoder(3, bins=7)) == "TokenCoder(3, bins=7, vocabulary='code')"


def test_coordinates_without_end_lie_at_the_border_and_nan_at_0():
    coder = TokenCoder(1, bins=11, vocabulary="paper")
    box = torch.tensor([[-torch.inf, torch.nan, torch.inf, torch.inf]])
    assert coder.encode(box, torch.tensor([0]), torch.tensor([10, 10])).tolist() == [[1, 1, 11, 11, 12]]
