"""Where texts stand: by the rule, written out slowly."""

import pytest
import torch

from detkit.viz.plates import check_plates, find_places, hidden_shares, is_clear


def shared(one, other):
    sides = [min(one[i + 2], other[i + 2]) - max(one[i], other[i]) + 1 for i in (0, 1)]
    return max(0, sides[0]) * max(0, sides[1])


def area(box):
    return (box[2] - box[0] + 1) * (box[3] - box[1] + 1)


def slow_places(edges, sizes, size, boxes):
    """The rule, with the overlap of every two texts, and of every text with every box."""
    placed = []
    for (x1, y1, x2, y2), (width, height) in zip(edges, sizes, strict=True):
        corners = [(x1, y1 - height), (x2 - width, y1 - height), (x1, y2 + 1), (x2 - width, y2 + 1)]
        corners += [(x1, y1), (x2 - width, y1), (x1, y2 - height), (x2 - width, y2 - height)]
        inside = [(max(0, min(x, size[0] - width)), max(0, min(y, size[1] - height))) for x, y in corners]
        choices = [(x, y, x + width - 1, y + height - 1) for x, y in inside]

        def lost(choice, own=width * height):
            hidden = max(shared(choice, box) / area(box) for box in boxes)
            return hidden + sum(shared(choice, other) for other in placed) / own

        placed.append(min(choices, key=lost))
    return placed


@pytest.mark.parametrize("size", [(200, 160), (30, 200), (12, 9)], ids=str)
def test_a_text_stands_where_least_is_lost_of_earlier_ones_and_of_objects(size):
    generator = torch.Generator().manual_seed(0)
    low = (torch.rand(60, 2, generator=generator) * torch.tensor(size)).long()
    high = low + torch.randint(0, 40, (60, 2), generator=generator)
    edges = [tuple(edge) for edge in torch.cat((low, high), 1).tolist()]
    sizes = [(20 + i % 7, 8 + i % 3) for i in range(60)]
    assert find_places(edges, sizes, size, edges) == slow_places(edges, sizes, size, edges)


def test_a_text_moves_away_from_a_small_object_above_its_box():
    large, small = (50, 50, 150, 150), (52, 42, 58, 48)
    (alone,) = find_places([large], [(30, 10)], (300, 300), [large])
    (beside,) = find_places([large], [(30, 10)], (300, 300), [large, small])
    assert alone == (50, 40, 79, 49)
    assert shared(beside, small) == 0
    assert is_clear([alone, beside], [large, small]) == [False, True]


def test_nothing_hides_nothing():
    assert hidden_shares([], []).shape == (0, 0)
    assert is_clear([], [(0, 0, 1, 1)]) == []
    assert find_places([], [], (5, 5), []) == []


def test_another_choice_of_texts_is_refused():
    check_plates("none", function="f")
    with pytest.raises(ValueError, match="f: plates=None; allowed are"):
        check_plates(None, function="f")


def test_a_text_is_compared_with_the_boxes_around_it_only(monkeypatch):
    edges = [(30 * x, 40 * y, 30 * x + 9, 40 * y + 9) for x in range(20) for y in range(20)]
    compared = 0

    def counted(places, boxes):
        nonlocal compared
        compared += len(boxes)
        return hidden_shares(places, boxes)

    monkeypatch.setattr("detkit.viz.plates.hidden_shares", counted)
    places = find_places(edges, [(12, 8)] * len(edges), (620, 820), edges)
    assert is_clear(places, edges) == [True] * len(edges)
    assert compared < 20 * len(edges)  # not all 400 for each of 400 texts
