"""Denoising queries: how far noise goes, who sees whom, and that a decoder learns from them without being told."""

import pytest
import torch
from strategies import unhooked
from torch import Tensor, nn

from detkit.detectors.denoising import DenoisingQueries, NoisedQueries
from detkit.layers.transformer import DecoderLayer, TransformerDecoder
from detkit.losses.set_prediction import SetPredictionLoss
from detkit.structures import Target, Targets, pad_targets

SIZES = torch.tensor([[100, 200], [64, 64]])


def truth() -> Targets:
    """Three objects, the last a crowd, and one."""
    boxes = torch.tensor([[20.0, 10, 60, 50], [100, 40, 180, 90], [0, 0, 30, 30]])
    first = Target(boxes=boxes, labels=torch.tensor([0, 2, 1]), iscrowd=torch.tensor([0, 0, 1]))
    return pad_targets([first, Target(boxes=torch.tensor([[8.0, 8, 40, 56]]), labels=torch.tensor([1]))])


def noised(groups: int = 3, generator=None, **settings: float) -> tuple[DenoisingQueries, NoisedQueries]:
    torch.manual_seed(0)
    queries = DenoisingQueries(3, 8, groups=groups, max_queries=20_000, **settings)
    return queries, queries(truth(), SIZES, generator=generator)


def test_without_noise_queries_are_the_objects():
    queries, found = noised(label_noise=0.0, box_noise=0.0)
    assert found.assignment.matched.tolist() == [[0, 1, -2, -2] * 3, [0, -2, -2, -2] * 3]
    expected = torch.tensor([[0.2, 0.3, 0.2, 0.4], [0.7, 0.65, 0.4, 0.5]]).repeat(3, 1)
    kept = found.assignment.matched[0] >= 0
    torch.testing.assert_close(found.boxes[0][kept], expected)
    assert torch.equal(found.embeddings[0][kept], queries.labels.weight[[0, 2] * 3])
    assert torch.equal(found.embeddings[1, ::4], queries.labels.weight[[1] * 3])


def test_boxes_move_and_stretch_within_their_noise(generator):
    _, found = noised(groups=500, generator=generator, box_noise=0.4)
    original = torch.tensor([0.2, 0.3, 0.2, 0.4])
    moved = found.boxes[0, ::4]
    apart = (moved - original) / original[[2, 3, 2, 3]]
    for column, limit in enumerate([0.2, 0.2, 0.4, 0.4]):
        assert apart[:, column].abs().max() <= limit + 1e-5
        assert apart[:, column].abs().max() > 0.95 * limit
        assert abs(apart[:, column].mean()) < 0.1 * limit


def test_boxes_stay_in_the_image(generator):
    queries = DenoisingQueries(3, 8, groups=200, box_noise=1.0, max_queries=200)
    whole = pad_targets([Target(boxes=torch.tensor([[0.0, 0, 200, 100]]), labels=torch.tensor([0]))])
    boxes = queries(whole, SIZES[:1], generator=generator).boxes[0]
    corners = torch.cat((boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2), 1)
    assert corners.min() > -1e-6
    assert corners.max() < 1 + 1e-6
    assert (boxes[:, 2:] >= 0).all()


def test_labels_are_drawn_anew_as_often_as_asked(generator):
    queries, found = noised(groups=3000, generator=generator, label_noise=0.6)
    same = (found.embeddings[0, ::4] == queries.labels.weight[0]).all(-1).float().mean()
    assert same.item() == pytest.approx(0.4 + 0.6 / 3, abs=0.03)
    for label in (1, 2):
        share = (found.embeddings[0, ::4] == queries.labels.weight[label]).all(-1).float().mean()
        assert share.item() == pytest.approx(0.2, abs=0.03)


def test_one_generator_state_gives_one_result():
    first, second = (noised(generator=torch.Generator().manual_seed(3))[1] for _ in range(2))
    assert torch.equal(first.boxes, second.boxes)
    assert not torch.equal(first.boxes, noised(generator=torch.Generator().manual_seed(4))[1].boxes)


def test_the_mask_keeps_groups_apart_and_the_truth_from_plain_queries():
    queries, found = noised(groups=2)
    mask = queries.mask(found, 3)
    real = found.assignment.matched >= 0
    for image in range(2):
        for row in range(11):
            for column in range(11):
                if row == column or column >= 8:
                    expected = True
                else:
                    expected = row < 8 and row // 4 == column // 4 and bool(real[image, column])
                assert mask[image, row, column].item() is expected


def decoded(embeddings: Tensor, mask: Tensor | None) -> Tensor:
    torch.manual_seed(1)
    decoder = TransformerDecoder([DecoderLayer(8, 2, hidden=16) for _ in range(2)], norm=nn.LayerNorm(8)).eval()
    return decoder(embeddings, torch.rand(len(embeddings), 5, 8), mask=mask)[-1]


def test_plain_queries_come_out_as_without_noised_ones():
    queries, found = noised()
    plain = torch.rand(2, 3, 8)
    together = decoded(torch.cat((found.embeddings, plain), 1), queries.mask(found, 3))
    torch.testing.assert_close(together[:, -3:], decoded(plain, None))


def test_a_loss_with_the_given_assignment_trains_the_labels():
    queries, found = noised()
    out = decoded(torch.cat((found.embeddings, torch.rand(2, 3, 8)), 1), queries.mask(found, 3))[:, :12]
    losses = SetPredictionLoss()(out[None, :, :, :4], found.boxes[None], truth(), found.assignment)
    matched = found.assignment.matched
    columns = truth().labels.gather(1, matched.clamp(min=0))[matched >= 0]
    entropy = nn.functional.cross_entropy(out[..., :4][matched >= 0], columns)
    torch.testing.assert_close(losses["classification"], entropy)
    sum(losses.values()).backward()
    assert queries.labels.weight.grad.abs().sum() > 0
    assert torch.isfinite(queries.labels.weight.grad).all()


def test_a_batch_without_objects_keeps_a_gradient():
    queries = DenoisingQueries(3, 8)
    nothing = pad_targets([Target(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64))])
    found = queries(nothing, SIZES[:1])
    assert (found.assignment.matched == -2).all()
    decoded(found.embeddings, queries.mask(found, 0)).sum().backward()
    assert torch.isfinite(queries.labels.weight.grad).all()


def test_rows_that_are_no_object_leave_no_trace():
    """Whatever stands in padding and crowds, in labels that are no class and in boxes that are not finite."""
    queries, clean = noised(generator=torch.Generator().manual_seed(1))
    junk = truth()
    junk.boxes[0, 2:], junk.labels[0, 2:], junk.boxes[1, 1:] = torch.nan, 99, torch.inf
    found = queries(junk, SIZES, generator=torch.Generator().manual_seed(1))
    assert torch.equal(found.boxes[clean.assignment.matched >= 0], clean.boxes[clean.assignment.matched >= 0])
    plain = torch.rand(2, 3, 8)
    positions = torch.cat((found.boxes.repeat(1, 1, 2), plain), 1)
    out = decoded(torch.cat((found.embeddings, plain), 1) + positions, queries.mask(found, 3))
    assert torch.isfinite(out).all()
    junk.labels[0, 0], junk.labels[0, 1], junk.boxes[1, 0, 2] = 3, -1, torch.nan
    assert (queries(junk, SIZES).assignment.matched == -2).all()


def test_the_mask_needs_no_objects():
    none = torch.zeros(1, 0, dtype=torch.bool)
    found = DenoisingQueries(3, 8)(Targets(torch.zeros(1, 0, 4), none.long(), none, none), SIZES[:1])
    assert DenoisingQueries(3, 8).mask(found, 2).all()


def many(count: int, *, crowd: int = 0) -> Targets:
    """One image of objects of one pixel, object i at column i, the last of them crowds."""
    left = torch.arange(count).float()
    boxes = torch.stack((left, torch.zeros(count), left + 1, torch.ones(count)), 1)
    iscrowd = (torch.arange(count) >= count - crowd).long()
    return pad_targets([Target(boxes=boxes, labels=torch.zeros(count, dtype=torch.int64), iscrowd=iscrowd)])


@pytest.mark.parametrize(("count", "groups", "kept"), [(16, 5, 16), (32, 3, 32), (60, 1, 64), (65, 1, 100)])
def test_the_more_objects_the_fewer_groups(count, groups, kept):
    queries = DenoisingQueries(3, 8, groups=5, max_queries=100)
    found = queries(many(count), torch.tensor([[100, 100]]))
    assert found.groups == groups
    assert found.boxes.shape == (1, groups * kept, 4)
    mask = queries.mask(found, 2)
    owner = torch.arange(groups).repeat_interleave(kept)
    apart = owner[:, None] != owner
    assert not mask[0, :-2, :-2][apart].any()
    assert mask[0, : len(owner), -2:].all()


def test_of_too_many_objects_some_are_drawn_anew_in_every_step(generator):
    queries = DenoisingQueries(3, 8, label_noise=0.0, box_noise=0.0, max_queries=40)
    sizes, seen = torch.tensor([[100, 100]]), torch.zeros(128, dtype=torch.int64)
    for _ in range(50):
        found = queries(many(90, crowd=10), sizes, generator=generator)
        matched = found.assignment.matched[0]
        assert matched.unique().numel() == matched.numel() == 40
        torch.testing.assert_close(found.boxes[0, :, 0], (matched + 0.5) / 100)
        seen[matched] += 1
    assert (seen[:80] > 8).all(), "each is drawn in half the steps"
    assert (seen[80:] == 0).all(), "crowds and padding never"


def test_what_is_drawn_has_room_for_every_object_of_an_image_with_few(generator):
    queries = DenoisingQueries(3, 8, max_queries=40)
    found = queries(many(70, crowd=50), torch.tensor([[100, 100]]), generator=generator).assignment.matched[0]
    assert found[found >= 0].sort().values.tolist() == list(range(20))
    assert (found == -2).sum() == 20


def test_ten_thousand_objects_have_no_more_queries_than_a_hundred():
    queries = DenoisingQueries(3, 8)
    found = queries(many(10_000), torch.tensor([[10_000, 10_000]]))
    assert found.boxes.shape[1] == 640 == queries(many(100), SIZES[:1]).boxes.shape[1]


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="max_queries=0 must be at least 1"):
        DenoisingQueries(3, 8, max_queries=0)
    with pytest.raises(ValueError, match="groups=0 must be at least 1"):
        DenoisingQueries(3, 8, groups=0)
    with pytest.raises(ValueError, match=r"box_noise=1.5.*\[0, 1\]"):
        unhooked(DenoisingQueries.__init__)(DenoisingQueries(3, 8), 3, 8, box_noise=1.5)
    assert "groups=5, label_noise=0.2, box_noise=0.4, max_queries=640" in repr(DenoisingQueries(3, 8))


def contrasted(groups: int = 3, generator=None, **settings: float) -> tuple[DenoisingQueries, NoisedQueries]:
    torch.manual_seed(0)
    queries = DenoisingQueries(3, 8, groups=groups, max_queries=20_000, contrastive=True, **settings)
    return queries, queries(truth(), SIZES, generator=generator)


def test_every_object_is_a_positive_and_a_negative_query_of_each_group():
    queries, found = contrasted(label_noise=0.0, box_noise=0.0)
    group = [0, 1, -2, -2, -1, -1, -2, -2]
    assert found.assignment.matched.tolist() == [group * 3, [0, -2, -2, -2, -1, -2, -2, -2] * 3]
    expected = torch.tensor([[0.2, 0.3, 0.2, 0.4], [0.7, 0.65, 0.4, 0.5]])
    for start in range(0, 24, 4):
        torch.testing.assert_close(found.boxes[0, start : start + 2], expected)
        assert torch.equal(found.embeddings[0, start : start + 2], queries.labels.weight[[0, 2]])


@pytest.mark.parametrize(("start", "nearest", "farthest"), [(0, 0.0, 1.0), (4, 1.0, 2.0)])
def test_corners_of_negatives_move_as_much_again(generator, start, nearest, farthest):
    _, found = contrasted(groups=500, generator=generator, box_noise=0.5)
    boxes = found.boxes[0, start::8]
    corners = torch.cat((boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2), 1)
    original = torch.tensor([0.1, 0.1, 0.3, 0.5])
    moved = ((corners - original) / torch.tensor([0.2, 0.4, 0.2, 0.4]) / 0.25).abs()
    free = (corners > 0.001).all(1)  # what is clipped moved less
    assert moved[free].max() <= farthest + 1e-3
    assert moved[free].max() > farthest - 0.1
    assert moved[free].min() >= nearest - 1e-3
    assert moved[free].mean() == pytest.approx((nearest + farthest) / 2, abs=0.05)


def test_negatives_are_seen_by_their_group_and_padding_by_nobody():
    queries, found = contrasted(groups=2)
    mask = queries.mask(found, 3)[0]
    group = torch.tensor([0] * 8 + [1] * 8)
    real = torch.tensor(([True] * 2 + [False] * 2) * 4)
    expected = (group[:, None] == group) & real | torch.eye(16, dtype=torch.bool)
    assert torch.equal(mask[:16, :16], expected)
    assert mask[:16, 16:].all()
    assert not mask[16:, :16].any()


@pytest.mark.parametrize(("count", "groups", "kept"), [(4, 12, 4), (16, 3, 16), (60, 1, 50)])
def test_pairs_are_bounded_as_single_queries_are(count, groups, kept):
    queries = DenoisingQueries(3, 8, groups=100, max_queries=100, contrastive=True)
    found = queries(many(count), torch.tensor([[100, 100]]))
    assert found.groups == groups
    assert found.boxes.shape == (1, 2 * groups * kept, 4)
    with pytest.raises(ValueError, match="max_queries=1 must be at least 2 for contrastive queries"):
        DenoisingQueries(3, 8, max_queries=1, contrastive=True)


def test_boxes_of_contrastive_queries_lie_inside_even_where_corners_passed_each_other(generator):
    _, found = contrasted(groups=500, generator=generator, box_noise=1.0)
    assert (found.boxes > 0).all()
    assert (found.boxes < 1).all()
