"""Recomputed steps: the same values and gradients, from less that is kept."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

from detkit.layers import conv_tower
from detkit.layers.recomputation import in_pieces, lean_tower, recomputed


def test_gradients_dropout_and_running_statistics_are_those_of_a_plain_pass():
    for momentum in (0.1, None):
        plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=momentum), nn.ReLU(True), nn.Dropout(0.3))
        other = copy.deepcopy(plain)
        again = partial(recomputed, other, parts=[*other.modules()])
        for run in (plain, again):
            for seed in range(2):
                torch.manual_seed(seed)
                run(torch.rand(2, 3, 8, 8)).square().sum().backward()
        for ours, theirs in zip(other.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=0)
        for name, value in plain.named_buffers():
            assert torch.equal(value, other.get_buffer(name)), name
        assert other[1].momentum == momentum


def kept_maps(shape):
    """A pack hook, and what it has seen: storages of tensors of this shape, whatever their number of rows."""
    kept = {}

    def pack(tensor):
        if tensor.shape[1:] == shape[1:]:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    return pack, kept


def both_ways(plain, lean, given, parameters):
    """Results, gradients and the number of kept maps of either way, each run on a copy of what is given."""
    for run in (plain, lean):
        pack, kept = kept_maps(given.shape)
        features = given.clone().requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            results = run(features)
        loss = sum((result.square() * (i + 1)).sum() for i, result in enumerate(results))
        yield [*results, *torch.autograd.grad(loss, [features, *parameters])], len(kept)


@pytest.mark.parametrize("norm", [partial(nn.GroupNorm, 2), nn.BatchNorm2d])
@pytest.mark.parametrize("batch", [0, 1, 3])
def test_a_lean_tower_learns_the_same_and_keeps_the_outputs_of_its_convolutions_alone(batch, norm):
    torch.manual_seed(0)
    tower, features = conv_tower(8, depth=3, norm=norm).double(), torch.rand(batch, 8, 16, 16, dtype=torch.float64)
    if not batch and norm is nn.BatchNorm2d:
        tower.eval()
    heads = [nn.Conv2d(8, 4, 3, padding=1).double(), nn.Conv2d(8, 1, 1).double()]
    parameters = [*tower.parameters(), *(value for head in heads for value in head.parameters())]
    (theirs, before), (ours, kept) = both_ways(
        lambda values: [head(tower(values)) for head in heads],
        lambda values: lean_tower(tower, values, *heads),
        features,
        parameters,
    )
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    if batch == 1:
        assert kept == 4 < before  # features, and the outputs of three convolutions


def test_a_lean_tower_of_hooked_or_image_wide_layers_sees_all_images_at_once():
    seen, batch = [], torch.rand(3, 8, 4, 4, requires_grad=True)
    tower, head = conv_tower(8, depth=1), nn.Conv2d(8, 1, 1)
    watch = head.register_forward_hook(lambda _, __, result: seen.append(len(result)))
    lean_tower(tower, batch, head)
    watch.remove()
    part = tower[0][0]
    part.forward = lambda values, run=part.forward: seen.append(len(values)) or run(values)
    lean_tower(tower, batch, head)
    tower[0][1] = nn.BatchNorm2d(8)
    lean_tower(tower, batch, head)
    assert seen == [3, 1, 1, 1, 3]


class Counting(nn.Conv2d):
    """What counts how often it runs, and what it was given."""

    def forward(self, features):
        self.seen = [*getattr(self, "seen", []), len(features)]
        return super().forward(features)


def test_layers_of_ones_own_run_once_on_all_images():
    tower, head, features = conv_tower(8, depth=1), Counting(8, 1, 1), torch.rand(3, 8, 4, 4)
    lean_tower(tower, features, head)[0].sum().backward()
    in_pieces(lambda values: head(values), 2, features, parts=[nn.Sequential(head)]).sum().backward()
    tower[0][0] = Counting(8, 8, 1)
    lean_tower(tower, features, nn.Identity())
    assert head.seen == [3, 3]
    assert tower[0][0].seen == [3]


@pytest.mark.parametrize("layer", [nn.Dropout(0.5), nn.BatchNorm2d(4), nn.utils.parametrizations.spectral_norm])
def test_what_runs_in_pieces_may_be_exchanged(layer):
    conv = nn.Conv2d(4, 4, 1)
    plain = nn.Sequential(layer, conv) if isinstance(layer, nn.Module) else nn.Sequential(layer(conv))
    pieces, features = copy.deepcopy(plain), torch.rand(5, 4, 3, 3)
    for run in (plain, lambda values: in_pieces(pieces, 2, values, parts=[pieces])):
        torch.manual_seed(1)
        run(features).square().sum().backward()
        torch.rand(9)
    for ours, theirs in zip(pieces.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs)
    for ours, theirs in zip(pieces.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.slow
def test_gradients_of_pieces_are_added_in_the_type_of_the_weights():
    torch.manual_seed(0)
    conv, features, found = nn.Conv2d(4, 4, 1), torch.rand(512, 4, 2, 2), []
    for autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            result = in_pieces(conv, 1, features, parts=[conv])
            assert torch.is_autocast_cache_enabled()
        found.append(torch.autograd.grad(result.float().square().sum(), conv.weight)[0])
    assert (found[1] - found[0]).norm() < 0.01 * found[0].norm()  # added in bfloat16 they are off by a seventh


@pytest.mark.parametrize("count", [0, 1, 5, 8])
def test_what_runs_in_pieces_learns_the_same_and_holds_one_piece(count):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.ConvTranspose2d(4, 4, 2, stride=2)).double()
    sizes = []

    def step(values, others):
        sizes.append(len(values))
        return net(values * others)

    others = torch.rand(count, 4, 5, 5, dtype=torch.float64)
    (theirs, before), (ours, kept) = both_ways(
        lambda values: [step(values, others)],
        lambda values: [in_pieces(step, 3, values, others, parts=[net])],
        torch.rand(count, 4, 5, 5, dtype=torch.float64),
        [*net.parameters()],
    )
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    assert max(sizes[1:]) == min(count, 3)
    assert kept < before or not count


class Doubled(nn.Sequential):
    """A chain that does something beside."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) * 2


TOWERS = {
    "dropout": lambda: nn.Sequential(nn.Conv2d(4, 4, 1), nn.GroupNorm(2, 4), nn.Dropout(0.5), nn.Conv2d(4, 4, 1)),
    "in place first": lambda: nn.Sequential(
        nn.Conv2d(4, 4, 1), nn.ReLU(inplace=True), nn.GroupNorm(2, 4), nn.Conv2d(4, 4, 1)
    ),
    "in place at once": lambda: nn.Sequential(
        nn.ReLU(inplace=True), nn.Conv2d(4, 4, 1), nn.GroupNorm(2, 4), nn.ReLU(), nn.Conv2d(4, 4, 1)
    ),
    "spectral norm": lambda: nn.Sequential(
        nn.Conv2d(4, 4, 1), nn.GroupNorm(2, 4), nn.utils.parametrizations.spectral_norm(nn.Conv2d(4, 4, 1))
    ),
    "own forward": lambda: Doubled(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)),
    "own forward inside": lambda: nn.Sequential(Doubled(nn.BatchNorm2d(4)), nn.GroupNorm(2, 4), nn.Conv2d(4, 4, 1)),
}


@pytest.mark.parametrize("kind", TOWERS)
def test_a_lean_tower_may_be_of_any_chain(kind):
    torch.manual_seed(0)
    plain = TOWERS[kind]()
    lean, features = copy.deepcopy(plain), torch.rand(2, 4, 5, 5)
    for run in (plain, lambda values: lean_tower(lean, values, nn.Identity())[0]):
        torch.manual_seed(1)
        run(features.clone()).square().sum().backward()
        torch.rand(9)  # between two steps others draw, too
    for ours, theirs in zip(lean.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)
    for ours, theirs in zip(lean.buffers(), plain.buffers(), strict=True):
        assert torch.equal(ours, theirs)


def test_hooks_of_a_lean_tower_run():
    tower, ran = conv_tower(8, depth=1), []
    tower.register_full_backward_hook(lambda *_: ran.append("backward"))
    lean_tower(tower, torch.rand(1, 8, 4, 4, requires_grad=True), nn.Identity())[0].sum().backward()
    assert ran == ["backward"]


def test_a_graph_that_is_retained_is_walked_twice():
    norm = nn.BatchNorm2d(3)
    loss = recomputed(norm, torch.rand(2, 3, 4, 4, requires_grad=True), parts=[norm]).square().sum()
    first, second = (torch.autograd.grad(loss, norm.weight, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    assert norm.num_batches_tracked == 1


class Lean(nn.Module):
    """A chain that is computed again."""

    def __init__(self) -> None:
        super().__init__()
        self.chain = nn.Sequential(nn.Conv2d(3, 4, 1), nn.SiLU(), nn.Conv2d(4, 2, 1))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return recomputed(self.chain, features, parts=self.modules())


def test_borrowed_parameters_learn_in_the_place_of_the_own():
    lean, features = Lean(), torch.rand(2, 3, 4, 4)
    borrowed = {name: torch.rand_like(value, requires_grad=True) for name, value in lean.named_parameters()}
    result = torch.func.functional_call(lean, borrowed, (features,))
    ours = torch.autograd.grad(result.square().sum(), [*borrowed.values()])
    lean.load_state_dict(borrowed)
    theirs = torch.autograd.grad(lean.chain(features).square().sum(), [*lean.parameters()])
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one, other)
