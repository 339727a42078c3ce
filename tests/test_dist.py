"""Collective operations with 2 and 3 gloo processes: N processes equal one, with a rank that sees no objects too."""

import tempfile
from datetime import timedelta
from pathlib import Path

import processes
import pytest
import torch
import torch.distributed as torch_dist
from dense_rows import judge

from detkit import dist
from detkit.anchors import Assigned
from detkit.boxes import GridCoder
from detkit.losses import MultiBoxLoss, YOLOLoss
from detkit.retrieval import (
    BruteForceIndex,
    ContrastiveLoss,
    CrossBatchMemory,
    GatheredLoss,
    ShardedIndex,
    SupervisedContrastiveLoss,
    TripletLoss,
)
from detkit.structures import Anchors, DensePredictions


def test_one_process_is_its_own_world():
    value = torch.tensor([1.0, 2.0], requires_grad=True)
    assert (dist.world_size(), dist.rank()) == (1, 0)
    assert dist.all_reduce_mean(value) is value
    assert dist.gather(value) is value
    assert dist.gather_objects({"a": 1}) == [{"a": 1}]


def batch():
    """Six images; the last two, which are the last rank's in both worlds, hold no object."""
    generator = torch.Generator().manual_seed(0)
    logits, deltas = torch.randn(6, 12, 4, generator=generator), torch.randn(6, 12, 4, generator=generator)
    labels = torch.randint(-2, 3, (6, 12), generator=generator)
    labels[3, 1:], labels[4:] = -1, -1
    return logits.double(), deltas.double(), labels, torch.randn(6, 12, 4, generator=generator).double()


SPLITS = {2: [4, 2], 3: [1, 3, 2]}


def learn(logits, deltas, labels, wanted) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The losses of a batch, and the gradients of two parameters that all its rows share."""
    scale, shift = (torch.ones(4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    losses = judge(MultiBoxLoss(), logits * scale, deltas + shift, labels, wanted)
    sum(losses.values()).backward()
    return torch.stack(list(losses.values())).detach(), scale.grad, shift.grad


METRIC_LOSSES = ContrastiveLoss(), TripletLoss(), SupervisedContrastiveLoss()
METRIC_SPLITS = {2: [9, 0], 3: [2, 4, 3]}


def embedded(part: int | None = None, *, world: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Nine rows of three labels and padding, or the share of one process; one of two has none."""
    rows = torch.randn(9, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, -1, 0, 1, 1, 2, 0])
    if part is None:
        return rows, labels
    return rows.split(METRIC_SPLITS[world])[part], labels.split(METRIC_SPLITS[world])[part]


def learn_distances(rows: torch.Tensor, labels: torch.Tensor) -> list[torch.Tensor]:
    """Of each gathered loss its value, and the gradient of a parameter that all rows share."""
    found = []
    for loss in METRIC_LOSSES:
        scale = torch.ones(4, dtype=torch.float64, requires_grad=True)
        cost = GatheredLoss(loss)(rows * scale, labels)
        cost.backward()
        found += [torch.cat((cost.detach()[None], scale.grad))]
    return found


def remembered(rows: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A memory of 10 rows after two batches."""
    memory = CrossBatchMemory(ContrastiveLoss(), 10, 4)
    for _ in range(2):
        memory(rows, labels)
    return memory.embeddings, memory.labels


def shard(part: int | None = None, world: int = 1) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Queries, and the rows that a process holds with their ids, many at equal distances; one of two holds none."""
    queries, _ = embedded(part, world=world)
    rows, ids = (torch.arange(36.0) % 3).reshape(9, 4), list(range(20, 29))
    if part is None:
        return queries, rows, ids
    return queries, rows.split(METRIC_SPLITS[world])[part], torch.tensor(ids).split(METRIC_SPLITS[world])[part].tolist()


def searched(queries: torch.Tensor, rows: torch.Tensor, ids: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Neighbors of this process' queries among the rows of all, of which it holds some."""
    index = BruteForceIndex(4)
    index.add(rows, ids)
    return tuple(ShardedIndex(index).search(queries, 5))


def counted(images: int) -> int:
    """How many images a loss says were seen after a batch of so many in this process."""
    criterion, ones, labels = YOLOLoss(prior_images=9), torch.ones(images, 1), torch.zeros(images, 1, dtype=torch.int64)
    anchors = Anchors(torch.tensor([[0.0, 0, 1, 1]]), torch.ones(1, 2), (1,))
    boxes = anchors.boxes.expand(images, 1, 4)
    predictions, assigned = DensePredictions(ones[..., None], boxes, ones), Assigned(labels, boxes, ones, ones)
    criterion(predictions, assigned, anchors, GridCoder())
    return int(criterion.seen)


def process(rank: int, world: int, folder: str) -> None:
    torch_dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world, timeout=timedelta(seconds=60)
    )
    rows = torch.arange(rank * 2, dtype=torch.float64).reshape(rank, 2).requires_grad_()  # rank 0 has no rows
    gathered = dist.gather(rows)
    weights = torch.arange(1.0, gathered.numel() + 1, dtype=torch.float64).reshape(gathered.shape)
    (gathered * weights).sum().backward()
    seen = {
        "place": (dist.rank(), dist.world_size()),
        "mean": dist.all_reduce_mean(torch.tensor(float(rank))),
        "count": dist.all_reduce_mean(torch.tensor(rank)),
        "objects": dist.gather_objects({"rank": rank}),
        "gathered": gathered.detach(),
        "gradient": rows.grad,
        "learned": learn(*(part.split(SPLITS[world])[rank] for part in batch())),
        "counted": counted(SPLITS[world][rank]),
        "distances": learn_distances(*embedded(rank, world=world)),
        "searched": searched(*shard(rank, world)),
        "remembered": remembered(*embedded(rank, world=world)),
    }
    torch.save(seen, Path(folder) / f"{rank}.pt")
    torch_dist.destroy_process_group()


@pytest.fixture(scope="module", params=[2, 3])
def world(request) -> list[dict]:
    """What every process of a world saw."""
    with tempfile.TemporaryDirectory() as folder:
        processes.end(
            *(
                processes.start(process, rank, request.param, folder, printed=Path(folder) / f"{rank}.txt")
                for rank in range(request.param)
            )
        )
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(request.param)]


@pytest.mark.slow(2)
def test_every_process_knows_its_place(world):
    assert [seen["place"] for seen in world] == [(rank, len(world)) for rank in range(len(world))]


@pytest.mark.slow(2)
def test_the_mean_is_over_all_processes(world):
    for seen in world:
        assert seen["mean"].item() == (len(world) - 1) / 2
        assert seen["count"].item() == (len(world) - 1) / 2


@pytest.mark.slow(2)
def test_objects_come_in_order_of_rank(world):
    assert all(seen["objects"] == [{"rank": rank} for rank in range(len(world))] for seen in world)


@pytest.mark.slow(2)
def test_every_process_counts_the_images_of_all(world):
    assert [seen["counted"] for seen in world] == [counted(6)] * len(world) == [6] * len(world)


@pytest.mark.slow(2)
def test_rows_of_uneven_processes_are_gathered_with_gradient(world):
    expected = torch.cat([torch.arange(r * 2, dtype=torch.float64).reshape(r, 2) for r in range(len(world))])
    weights = torch.arange(1.0, expected.numel() + 1, dtype=torch.float64).reshape(expected.shape)
    shares = weights.split(list(range(len(world))))
    for seen, share in zip(world, shares, strict=True):
        assert torch.equal(seen["gathered"], expected)
        # Every process weighed the same rows, so each row's gradient comes once from each.
        assert torch.equal(seen["gradient"], share * len(world))


@pytest.mark.slow(2)
def test_the_mean_over_processes_of_losses_and_gradients_equals_one_process(world):
    assert (batch()[2][-2:] < 0).all()  # the last process sees no objects
    for ours, expected in zip(zip(*(seen["learned"] for seen in world), strict=True), learn(*batch()), strict=True):
        torch.testing.assert_close(torch.stack(ours).mean(0), expected, rtol=0, atol=1e-6)
        assert expected.abs().min() > 0


@pytest.mark.slow(2)
def test_gathered_metric_losses_and_their_gradients_equal_one_process(world):
    for ours, expected in zip(
        zip(*(seen["distances"] for seen in world), strict=True), learn_distances(*embedded()), strict=True
    ):
        torch.testing.assert_close(torch.stack(ours).mean(0), expected, rtol=0, atol=1e-6)


@pytest.mark.slow(2)
def test_every_process_remembers_the_same_rows(world):
    rows, labels = remembered(*embedded())
    for seen in world:
        assert torch.equal(seen["remembered"][0], rows)
        assert torch.equal(seen["remembered"][1], labels)


@pytest.mark.slow(2)
def test_a_search_over_shards_is_that_of_one_index(world):
    distances, ids = searched(*shard())
    assert torch.equal(torch.cat([seen["searched"][0] for seen in world]), distances)
    assert torch.equal(torch.cat([seen["searched"][1] for seen in world]), ids)
