"""Where queries come from: the most certain cells and their anchors, padding last, no gradient into the decoder."""

import pytest
import torch
from torch import nn

from detkit.heads import RefinementHead
from detkit.layers import LevelMemory, PointQueries, QuerySelection

D, SHAPES = 4, [(4, 4), (2, 2)]


def memory(*, inside: torch.Tensor | None = None, shares: torch.Tensor | None = None) -> LevelMemory:
    cells = torch.randn(2, 20, D, generator=torch.Generator().manual_seed(0))
    inside = torch.ones(2, 20, dtype=torch.bool) if inside is None else inside
    return LevelMemory(cells, inside, SHAPES, torch.ones(2, 2, 2) if shares is None else shares)


def selection(count: int = 3, **settings) -> QuerySelection:
    torch.manual_seed(1)
    built = QuerySelection(
        nn.Linear(D, D), RefinementHead(D, num_classes=2, background=False, edge=1e-5), count, **settings
    )
    nn.init.normal_(built.head.boxes[-1].weight, std=0.1)
    return built


def test_the_most_certain_cells_are_queries_with_boxes_around_them():
    built, given = selection(), memory()
    found = built(given)
    embeddings = built.embed(given.cells)
    logits = built.head.logits(embeddings)
    for image in range(2):
        best = logits[image].amax(-1).argsort(descending=True)[:3]
        torch.testing.assert_close(found.embeddings[image], embeddings[image, best])
        torch.testing.assert_close(found.logits[image], logits[image, best])
        for row, cell in enumerate(best.tolist()):
            columns, place, side = (4, cell, 0.05) if cell < 16 else (2, cell - 16, 0.1)
            center = [(place % columns + 0.5) / columns, (place // columns + 0.5) / columns]
            _, box = built.head(embeddings[image, cell], torch.tensor([*center, side, side]))
            torch.testing.assert_close(found.proposals[image, row], box)


def test_the_decoder_teaches_nothing_of_the_choice_but_the_losses_of_cells_do():
    found = selection()(memory())
    assert not found.embeddings.requires_grad
    assert not found.boxes.requires_grad
    assert found.logits.requires_grad
    assert found.proposals.requires_grad
    assert torch.equal(found.boxes, found.proposals)


def test_anchors_at_the_border_and_too_large_ones_read_zeros():
    built = selection(20, side=0.6)  # on the second level larger than the image
    found = built(memory())
    nothing = built.embed(torch.zeros(D))
    same = (found.embeddings[0] - nothing).abs().amax(-1) < 1e-6
    assert same.sum() == 4
    assert (found.boxes[0][same] == 1).all()


def test_cells_outside_their_image_are_chosen_last_and_anchors_are_fractions_of_the_image():
    inside = torch.ones(2, 20, dtype=torch.bool)
    inside[1, torch.tensor([2, 3, 6, 7, 10, 11, 14, 15, 17, 19])] = False  # the right half
    shares = torch.ones(2, 2, 2)
    shares[1, :, 0] = 0.5
    given = memory(inside=inside, shares=shares)
    found, all_of_them = selection(10)(given), selection(20)(given)
    assert (found.boxes[1] < 1).all()
    assert (all_of_them.boxes[1, 10:] == 1).all()
    half = LevelMemory(
        *(given.cells[1:, torch.tensor([0, 1, 4, 5, 8, 9, 12, 13, 16, 18])], torch.ones(1, 10, dtype=torch.bool)),
        *([(4, 2), (2, 1)], torch.ones(1, 2, 2)),
    )
    torch.testing.assert_close(selection(10)(half).boxes[0], found.boxes[1])


def test_there_are_no_more_queries_than_cells_and_nan_is_chosen_last():
    assert selection(30)(memory()).boxes.shape == (2, 20, 4)
    given = memory()
    given.cells[0, 5] = torch.nan
    found = selection(19)(given)
    assert torch.isfinite(found.embeddings[0]).all()


def test_with_boxes_queries_come_from_these():
    built = selection(boxes=nn.Linear(4, 2 * D))
    found = built(memory())
    positions, embeddings = built.boxes(found.boxes).chunk(2, -1)
    torch.testing.assert_close(found.positions, positions)
    torch.testing.assert_close(found.embeddings, embeddings)


def test_point_queries_are_the_same_for_each_image():
    found = PointQueries(3, D)(memory())
    assert torch.equal(found.embeddings[0], found.embeddings[1])
    assert found.boxes.shape == (2, 3, 2)
    assert found.logits is None


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"QuerySelection: side=1.0 must lie in \(0, 1\)"):
        selection(side=1.0)
    assert "count=3, side=0.05" in repr(selection())
