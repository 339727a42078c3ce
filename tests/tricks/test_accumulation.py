"""Gradients of a batch in parts are those of the batch, in every family; what is random or of pairs is named."""

import itertools

import processes
import pytest
import torch
import torch.distributed as torch_dist
from families import FAMILIES, losses_and_gradients, scene, small_family
from strategies import assert_refused
from torch import Tensor, nn

from detkit import dist
from detkit.anchors import HardNegativeSampler
from detkit.detectors import BoxQueryStage, Detector, EmbeddingStage, SelectedQueryStage
from detkit.detectors.sequence_targets import SequenceTargetBuilder
from detkit.structures import Target
from detkit.tricks import accumulate_gradients

CHANCE = "denoising detr", "rt detr", "d fine", "pix2seq"
QUICK = "ssd", "retinanet", "detr + embedding"
EVERY = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]


def exact_family(name: str) -> Detector:
    """In float64, without what is drawn and without losses of pairs."""
    detector = small_family(name).double()
    for module in detector.modules():
        if isinstance(module, BoxQueryStage | SelectedQueryStage):
            module.denoising = None
        elif isinstance(module, SequenceTargetBuilder):
            module.order, module.noise = "area", False
        elif isinstance(module, EmbeddingStage):
            module.criterion = None
    return detector


def batch() -> tuple[list[Tensor], list[Target]]:
    """Five images of four to no objects, with weights."""
    images, targets = zip(*(scene(count, seed=count) for count in (4, 0, 1, 3, 2)), strict=True)
    weighted = [Target(**one, weights=torch.linspace(0, 2, len(one["boxes"]))) for one in targets]
    return list(images), weighted


def parts(*counts: int) -> list[tuple[list[Tensor], list[Target]]]:
    images, targets = batch()
    starts = torch.tensor([0, *counts]).cumsum(0).tolist()
    return [(images[a:b], targets[a:b]) for a, b in itertools.pairwise(starts)]


def accumulated(model: nn.Module, split: list) -> dict[str, Tensor]:
    torch.manual_seed(7)
    model.zero_grad(set_to_none=True)
    losses = accumulate_gradients(model, split)
    return losses | {name: part.grad.clone() for name, part in model.named_parameters() if part.grad is not None}


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-13, msg=name)


@pytest.mark.parametrize("family", EVERY)
@pytest.mark.slow
def test_parts_of_any_size_have_the_losses_and_the_gradients_of_the_whole(family):
    detector = exact_family(family)
    whole = losses_and_gradients(detector, *batch())
    assert_close(accumulated(detector, parts(2, 1, 2)), whole)
    assert_close(accumulated(detector, parts(5)), whole)


def test_without_it_the_parts_have_others():
    """Or the test above would prove nothing."""
    detector = small_family("ssd")
    whole = losses_and_gradients(detector, *batch())
    detector.zero_grad(set_to_none=True)
    for part in parts(2, 1, 2):
        (sum(detector(*part).values()) / 3).backward()
    gradients = {name: part.grad for name, part in detector.named_parameters()}
    assert max(float((whole[name] - value).norm() / whole[name].norm()) for name, value in gradients.items()) > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("family", CHANCE)
def test_what_is_drawn_is_drawn_alike_in_both_runs_and_anew_for_each_part(family):
    detector = small_family(family)
    found, again = (accumulated(detector, parts(2, 3)) for _ in range(2))
    assert all(torch.equal(found[name], value) for name, value in again.items())
    torch.manual_seed(7)
    detector.zero_grad(set_to_none=True)
    totals: list[list[Tensor]] = []
    for part in parts(2, 3):
        totals.append([])
        with dist.means_answered(lambda mean, own=totals[-1]: own.append(mean) or mean):
            detector(*part)
    sums = [one + other for one, other in zip(*totals, strict=True)]
    torch.manual_seed(7)
    for part in parts(2, 3):
        answers = iter(sums)
        with dist.means_answered(lambda mean, answers=answers: next(answers)):
            losses = detector(*part)
        sum(losses.values()).backward()
    for name, parameter in detector.named_parameters():
        assert torch.equal(found[name], parameter.grad)


def one_rank(rank: int, folder: str) -> None:
    torch_dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    detector = exact_family("ssd")
    accumulate_gradients(detector, (parts(1, 1, 3)[:2], parts(2, 1, 2)[1:])[rank])
    gradients = {name: parameter.grad for name, parameter in detector.named_parameters()}
    for gradient in gradients.values():
        torch_dist.all_reduce(gradient)
        gradient /= 2  # as DistributedDataParallel does
    torch_dist.destroy_process_group()
    torch.save(gradients, f"{folder}/{rank}.pt")


@pytest.mark.slow(5)
def test_two_processes_with_two_parts_each_equal_one_batch(tmp_path):
    processes.end(
        *(processes.start(one_rank, rank, str(tmp_path), printed=tmp_path / f"{rank}.txt") for rank in range(2))
    )
    whole = losses_and_gradients(exact_family("ssd"), *batch())
    for rank in range(2):
        gradients = torch.load(tmp_path / f"{rank}.pt")
        assert_close(gradients, {name: whole[name] for name in gradients})


@pytest.mark.slow
def test_gradients_are_added_to_those_that_are_there_and_backward_is_the_callers():
    detector = small_family("ssd")
    once = accumulated(detector, parts(2, 3))
    accumulate_gradients(detector, parts(2, 3), backward=lambda loss: (2 * loss).backward())
    for name, parameter in detector.named_parameters():
        torch.testing.assert_close(parameter.grad, 3 * once[name])


def test_statistics_of_batch_norm_move_once_for_each_part():
    detector, plain = (small_family("ssd").train() for _ in range(2))
    accumulate_gradients(detector, parts(2, 3))
    for part in parts(2, 3):
        plain(*part)
    found, expected = dict(detector.named_buffers()), dict(plain.named_buffers())
    assert any("running" in name for name in found)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_images_that_yolo_has_seen_are_counted_once():
    detector = small_family("yolo v3").train()
    detector.dense.criterion.prior_images = 100
    accumulate_gradients(detector, parts(2, 3))
    assert detector.dense.criterion.seen == 5


def test_after_it_and_after_an_error_in_it_losses_divide_as_before():
    class Broken(nn.Linear):
        def forward(self, images, targets):
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        accumulate_gradients(Broken(1, 1), parts(5))
    accumulate_gradients(small_family("ssd"), parts(2, 3))
    assert dist.all_reduce_mean(torch.tensor(3.0)) == 3


def test_what_cannot_be_done_is_refused():
    class Counts(nn.Linear):
        def forward(self, count):
            return {"box": sum(dist.all_reduce_mean(self.weight.sum()) for _ in range(count))}

    assert_refused("accumulate_gradients: parts at least one", accumulate_gradients, nn.Linear(1, 1), [])
    assert_refused("accumulate_gradients: Tensor dict", accumulate_gradients, nn.Linear(1, 1), [[torch.ones(1)]])
    assert_refused("accumulate_gradients: parts[1] 2 parts[0] 1", accumulate_gradients, Counts(1, 1), [[1], [2]])


def test_hard_negatives_of_a_batch_are_those_of_each_part():
    """As its docstring says: the count of a part's positives, not the whole's, bounds how many are mined."""
    detector = exact_family("ssd")
    detector.dense.criterion.sampler = HardNegativeSampler(3.0, scope="batch")
    whole, found = losses_and_gradients(detector, *batch()), accumulated(detector, parts(2, 3))
    assert found["dense.classification"] < whole["dense.classification"]
    torch.testing.assert_close(found["dense.box"], whole["dense.box"])
