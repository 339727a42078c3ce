"""SyncBatchNorm: processes of unequal batches are one nn.BatchNorm on all of them; one process is it bit for bit."""

import copy
import functools
import itertools
import tempfile
from datetime import timedelta
from pathlib import Path

import processes
import pytest
import timm.layers
import torch
import torch.distributed as torch_dist
from strategies import assert_refused
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from detkit.detectors import small_yolo_v3
from detkit.tricks import SyncBatchNorm

KINDS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
SETTINGS = {
    "default": {},
    "cumulative": {"momentum": None},
    "without affine": {"affine": False},
    "without statistics": {"track_running_stats": False},
    "loose": {"eps": 0.5, "momentum": 0.7},
}
SPLITS = {2: [[3, 2], [4, 1], [5, 0]], 3: [[2, 1, 2], [0, 4, 1]]}
SHAPES = [(), (4,), (2, 3), (2, 1, 2)]
STEPS = 3


def case(shape: tuple[int, ...], *, dtype: torch.dtype = torch.float64) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Batches of 5 with 3 channels far from 0, and weights for the sum of outputs that is differentiated."""
    generator = torch.Generator().manual_seed(len(shape))
    scale, shift = torch.tensor([1.0, 1e-2, 30.0]), torch.tensor([0.0, 50.0, -2000.0])
    broad = (1, 3, *[1] * len(shape))
    batches = [
        (torch.randn(5, 3, *shape, generator=generator) * scale.view(broad) + shift.view(broad)).to(dtype)
        for _ in range(STEPS)
    ]
    return batches, torch.randn(5, 3, *shape, generator=generator).to(dtype)


def norm_of(dimensions: int, *, dtype: torch.dtype = torch.float64, **settings) -> nn.Module:
    norm = KINDS[dimensions](3, **settings).to(dtype)
    if norm.affine:
        nn.init.uniform_(norm.weight, 0.5, 2, generator=torch.Generator().manual_seed(1))
        nn.init.uniform_(norm.bias, -1, 1, generator=torch.Generator().manual_seed(2))
    return norm


def trained(norm: nn.Module, batches: list[torch.Tensor], weights: torch.Tensor) -> dict[str, torch.Tensor]:
    """Outputs, gradients and the state after a few batches, and what eval mode then says of the first one."""
    found = {}
    for step, batch in enumerate(batches):
        features = batch.clone().requires_grad_()
        outputs = norm(features)
        (outputs * weights).sin().sum().backward()
        found |= {f"output {step}": outputs.detach(), f"gradient {step}": features.grad}
    found |= {f"sum of gradients {name}": part.grad for name, part in norm.named_parameters()}
    found |= {f"state {name}": value.clone() for name, value in norm.state_dict().items()}
    if norm.track_running_stats:  # without them each process' batch is normalized by itself, as torch does
        found["eval"] = norm.eval()(batches[0]).detach()
    return found


def runs(world: int):
    return itertools.product(SETTINGS, SHAPES, range(len(SPLITS[world])))


def check_refusals(rank: int) -> dict[str, str]:
    """What is said of one value in the whole world, and what happens where no process has any."""
    said = {}
    norm = SyncBatchNorm(3).double()
    try:
        norm(torch.ones(1 - rank if rank < 2 else 0, 3, dtype=torch.float64))
    except ValueError as error:
        said["one"] = str(error)
    assert norm(torch.ones(0, 3, 4, 4, dtype=torch.float64)).shape == (0, 3, 4, 4)
    return said | {"state": [value.tolist() for value in norm.state_dict().values()][:4]}


def half_precision(part: torch.Tensor, weights: torch.Tensor) -> dict[str, torch.Tensor]:
    """A convolution and a norm under autocast: 16-bit features, summed in 32."""
    norm = SyncBatchNorm.convert(norm_of(4, dtype=torch.float32))
    features = part.to(torch.bfloat16).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = norm(features)
    (outputs.float() * weights).sin().sum().backward()
    return {"output": outputs.detach(), "gradient": features.grad, "mean": norm.running_mean, "var": norm.running_var}


def parallel(part: torch.Tensor) -> dict[str, torch.Tensor]:
    """DistributedDataParallel around a converted net whose loss is each process' mean."""
    model = DistributedDataParallel(SyncBatchNorm.convert(net()))
    model(part).square().mean().backward()
    return {name: value.grad for name, value in model.module.named_parameters()}


def net() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1)).double()


def process(rank: int, world: int, folder: str) -> None:
    torch_dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world, timeout=timedelta(seconds=120)
    )
    seen = {}
    for name, shape, split in runs(world):
        batches, weights = case(shape)
        sizes = SPLITS[world][split]
        norm = SyncBatchNorm.convert(norm_of(len(shape) + 2, **SETTINGS[name]))
        parts = [batch.split(sizes)[rank] for batch in batches]
        seen[name, shape, split] = trained(norm, parts, weights.split(sizes)[rank])
    batches, weights = case((4, 4), dtype=torch.float32)
    sizes = SPLITS[world][0]
    rest = {
        "refused": check_refusals(rank),
        "half": half_precision((batches[0] / 100).split(sizes)[rank], weights.split(sizes)[rank]),
        "parallel": parallel(torch.randn(2 * world, 3, 6, 6, generator=torch.Generator().manual_seed(4)).double()[
            2 * rank : 2 * rank + 2
        ]),
        "single": trained(SyncBatchNorm.convert(norm_of(4, dtype=torch.float32)),
                          [batch.split(sizes)[rank] for batch in batches], weights.split(sizes)[rank]),
    }  # fmt: skip
    torch.save([list(seen.items()), rest], Path(folder) / f"{rank}.pt")
    torch_dist.destroy_process_group()


@functools.cache
def seen_by(world: int) -> list[tuple[dict, dict]]:
    """What every process of a world saw."""
    with tempfile.TemporaryDirectory() as folder:
        printed = [Path(folder) / f"{rank}.txt" for rank in range(world)]
        processes.end(*(processes.start(process, r, world, folder, printed=printed[r]) for r in range(world)))
        loaded = [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(world)]
        return [(dict(seen), rest) for seen, rest in loaded]


@pytest.fixture(params=[2, 3])
def world(request) -> list[tuple[dict, dict]]:
    return seen_by(request.param)


def assert_one_norm(ranks: list[dict], expected: dict, **tolerance: float) -> None:
    for name, value in expected.items():
        parts = [rank[name] for rank in ranks]
        if name.startswith(("output", "gradient", "eval")):
            found = [torch.cat(parts)]
        else:
            found = [sum(parts)] if name.startswith("sum") else parts
        for one in found:
            torch.testing.assert_close(one, value, msg=lambda said, name=name: f"{name}: {said}", **tolerance)


@pytest.mark.slow(4)
def test_unequal_processes_are_one_batch_norm_on_all_of_them(world):
    assert len(world[0][0]) == len(SETTINGS) * len(SHAPES) * len(SPLITS[len(world)])
    for setting, shape, split in runs(len(world)):
        expected = trained(norm_of(len(shape) + 2, **SETTINGS[setting]), *case(shape))
        ranks = [seen[setting, shape, split] for seen, _ in world]
        assert_one_norm(ranks, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.slow(4)
def test_single_precision_far_from_zero_is_exact_too(world):
    batches, weights = case((4, 4), dtype=torch.float32)
    expected = trained(norm_of(4, dtype=torch.float32), batches, weights)
    double = trained(norm_of(4), [batch.double() for batch in batches], weights.double())
    ranks = [rest["single"] for _, rest in world]
    for name, value in expected.items():
        parts = [rank[name].double() for rank in ranks]
        joined = name.startswith(("output", "gradient", "eval"))
        ours = torch.cat(parts) if joined else sum(parts) if name.startswith("sum") else parts[0]
        peers = (value.double() - double[name]).abs().max()
        assert (ours - double[name]).abs().max() <= 2 * peers + 1e-6 * double[name].abs().max(), name


@pytest.mark.slow(4)
def test_half_precision_is_summed_in_float32(world):
    batches, weights = case((4, 4), dtype=torch.float32)
    features = (batches[0] / 100).to(torch.bfloat16)
    norm, wide = norm_of(4, dtype=torch.float32), features.float().requires_grad_()
    outputs = norm(wide)
    (outputs.to(torch.bfloat16).float() * weights).sin().sum().backward()
    ranks = [rest["half"] for _, rest in world]
    assert {rank["output"].dtype for rank in ranks} == {rank["gradient"].dtype for rank in ranks} == {torch.bfloat16}
    joined = torch.cat([rank["output"] for rank in ranks]).float()
    torch.testing.assert_close(joined, outputs.to(torch.bfloat16).float(), rtol=8e-3, atol=1e-3)
    joined = torch.cat([rank["gradient"] for rank in ranks]).float()
    torch.testing.assert_close(joined, wide.grad, rtol=2e-2, atol=2e-2 * float(wide.grad.abs().max()))
    for rank in ranks:
        torch.testing.assert_close(rank["mean"], norm.running_mean, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(rank["var"], norm.running_var, rtol=1e-6, atol=1e-7)


@pytest.mark.slow(4)
def test_distributed_data_parallel_gets_the_gradients_of_one_process(world):
    one = net()
    one(
        torch.randn(2 * len(world), 3, 6, 6, generator=torch.Generator().manual_seed(4)).double()
    ).square().mean().backward()
    for _, rest in world:
        for name, value in one.named_parameters():
            torch.testing.assert_close(rest["parallel"][name], value.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.slow(4)
def test_one_value_in_all_processes_is_refused_and_none_moves_nothing(world):
    for _, rest in world:
        assert rest["refused"]["one"].startswith("SyncBatchNorm: features hold 1 value per channel in all processes")
        weight, bias, mean, variance = rest["refused"]["state"]
        assert (weight, bias, mean, variance) == ([1.0] * 3, [0.0] * 3, [0.0] * 3, [1.0] * 3)


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("shape", SHAPES)
def test_one_process_is_batch_norm_bit_for_bit(name, shape):
    plain = norm_of(len(shape) + 2, **SETTINGS[name])
    ours = SyncBatchNorm.convert(copy.deepcopy(plain))
    assert isinstance(ours, SyncBatchNorm)
    first, second = trained(plain, *case(shape)), trained(ours, *case(shape))
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert torch.equal(value, second[key]), key


def test_one_value_is_refused_in_one_process_too():
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        SyncBatchNorm(3)(torch.ones(1, 3))


def test_converted_models_share_values_with_what_was_made_before_and_convert_back():
    model = small_yolo_v3(num_classes=2, channels=16)
    norms = [norm for norm in model.modules() if isinstance(norm, nn.BatchNorm2d)]
    parameters, keys = list(model.parameters()), list(model.state_dict())
    assert norms
    assert SyncBatchNorm.convert(model) is model is SyncBatchNorm.convert(model)
    ours = [norm for norm in model.modules() if isinstance(norm, SyncBatchNorm)]
    assert len(ours) == len(norms)
    assert not [norm for norm in model.modules() if isinstance(norm, nn.BatchNorm2d)]
    assert [first is second for first, second in zip(parameters, model.parameters(), strict=True)] == [True] * len(
        parameters
    )
    assert all(own.running_mean is norm.running_mean for own, norm in zip(ours, norms, strict=True))
    assert list(model.state_dict()) == keys
    SyncBatchNorm.revert(model)
    assert [type(norm) for norm in model.modules() if isinstance(norm, nn.modules.batchnorm._BatchNorm)] == [
        nn.BatchNorm2d
    ] * len(norms)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d])
def test_conversion_and_its_way_back_keep_class_settings_and_mode(kind, training):
    norm = kind(3, eps=0.1, momentum=None, affine=False).train(training)
    there = SyncBatchNorm.convert(norm)
    back = SyncBatchNorm.revert(there)
    for one in (there, back):
        assert (one.eps, one.momentum, one.affine, one.track_running_stats) == (0.1, None, False, True)
        assert one.training is training
    assert (type(there), type(back)) == (SyncBatchNorm, kind)
    assert type(SyncBatchNorm.revert(SyncBatchNorm.convert(nn.SyncBatchNorm(3)))) is nn.BatchNorm2d


def test_a_shared_norm_stays_shared():
    norm = nn.BatchNorm2d(3)
    model = SyncBatchNorm.convert(nn.Sequential(norm, nn.Sequential(norm)))
    assert model[0] is model[1][0]
    assert isinstance(model[0], SyncBatchNorm)


def test_weights_go_both_ways():
    plain, ours = norm_of(4), SyncBatchNorm(3).double()
    plain(case((2, 2))[0][0])
    ours.load_state_dict(plain.state_dict())
    assert torch.equal(ours.eval()(case((2, 2))[0][1]), plain.eval()(case((2, 2))[0][1]))


def test_a_norm_that_does_more_is_refused_by_name():
    model = nn.Sequential(nn.BatchNorm2d(3), timm.layers.BatchNormAct2d(3))
    assert_refused("SyncBatchNorm.convert: cannot replace a BatchNormAct2d", SyncBatchNorm.convert, model)


@pytest.mark.parametrize("shape", [(3,), (2, 4), (2, 4, 3, 3)])
def test_another_shape_is_refused(shape):
    assert_refused(f"SyncBatchNorm: features {shape} (B, 3, ...)", SyncBatchNorm(3), torch.zeros(shape))
