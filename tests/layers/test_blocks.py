"""Shared blocks: shapes, the norm of SSD, frozen batch norms."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.ops import FrozenBatchNorm2d

from detkit.layers import (
    ConvNormActivation,
    L2Norm,
    SeparableConv,
    conv_tower,
    freeze_batch_norm,
    init_convolutions,
)
from detkit.layers.blocks import lean_norms


@pytest.mark.parametrize(("kernel_size", "dilation"), [(1, 1), (3, 1), (3, 6), (5, 2)])
@pytest.mark.parametrize(("stride", "size"), [(1, (7, 10)), (2, (4, 5))])
def test_odd_kernels_keep_the_size_and_strides_round_it_up(kernel_size, dilation, stride, size):
    block = ConvNormActivation(3, 4, kernel_size=kernel_size, stride=stride, dilation=dilation)
    assert block(torch.rand(2, 3, 7, 10)).shape == (2, 4, *size)


def test_an_even_kernel_without_padding_is_refused_and_with_padding_taken():
    with pytest.raises(ValueError, match="kernel_size=4 is even"):
        ConvNormActivation(3, 4, kernel_size=4)
    assert ConvNormActivation(3, 4, kernel_size=4, padding=1)(torch.rand(2, 3, 4, 4)).shape == (2, 4, 3, 3)


def test_the_convolution_has_a_bias_only_without_a_norm():
    assert ConvNormActivation(3, 4)[0].bias is None
    assert ConvNormActivation(3, 4, norm=None)[0].bias is not None


def test_norm_and_activation_are_the_ones_handed_over():
    block = ConvNormActivation(3, 4, norm=partial(nn.GroupNorm, 2), activation=partial(nn.LeakyReLU, 0.1))
    assert [type(step) for step in block] == [nn.Conv2d, nn.GroupNorm, nn.LeakyReLU]
    assert (block[1].num_groups, block[1].num_channels, block[2].negative_slope) == (2, 4, 0.1)
    assert len(ConvNormActivation(3, 4, norm=None, activation=None)) == 1


@pytest.mark.parametrize(("stride", "size"), [(1, (7, 10)), (2, (4, 5))])
def test_a_separable_convolution_filters_each_channel_then_mixes_them(stride, size):
    block = SeparableConv(3, 4, kernel_size=5, stride=stride, norm=None, activation=None)
    assert block(torch.rand(2, 3, 7, 10)).shape == (2, 4, *size)
    depthwise, pointwise = block[0][0], block[1][0]
    images = torch.rand(2, 3, 7, 10)
    channels = [
        F.conv2d(images[:, i : i + 1], depthwise.weight[i : i + 1], depthwise.bias[i : i + 1], stride, padding=2)
        for i in range(3)
    ]
    mixed = torch.einsum("bchw,dc->bdhw", torch.cat(channels, 1), pointwise.weight[:, :, 0, 0])
    torch.testing.assert_close(block(images), mixed + pointwise.bias[:, None, None])


def test_norm_and_activation_follow_both_convolutions_or_only_the_first_of_a_linear_one():
    settings = {"norm": partial(nn.GroupNorm, 1), "activation": nn.SiLU}
    whole, linear = (SeparableConv(3, 4, **settings, linear=linear) for linear in (False, True))
    assert [[type(step) for step in part] for part in whole] == [[nn.Conv2d, nn.GroupNorm, nn.SiLU]] * 2
    assert [whole[0][1].num_channels, whole[1][1].num_channels] == [3, 4]
    assert [type(step) for step in linear[0]] == [nn.Conv2d, nn.GroupNorm, nn.SiLU]
    assert type(linear[1]) is nn.Conv2d
    assert [conv.bias is None for conv in (whole[0][0], whole[1][0], linear[0][0], linear[1])] == [True] * 3 + [False]
    assert [type(step) for step in SeparableConv(3, 4)[1]] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU6]


def test_a_separable_convolution_of_an_even_kernel_needs_its_padding():
    with pytest.raises(ValueError, match="SeparableConv: kernel_size=4 is even; give its padding"):
        SeparableConv(3, 4, kernel_size=4)
    assert SeparableConv(3, 4, kernel_size=4, padding=1)(torch.rand(2, 3, 4, 4)).shape == (2, 4, 3, 3)


def test_l2_norm_scales_each_position_to_the_learned_length():
    norm = L2Norm(512, scale=20.0)
    features = torch.rand(2, 512, 3, 5)
    torch.testing.assert_close(norm(features), 20 * F.normalize(features, dim=1))
    with torch.no_grad():
        norm.weight[7] = 0
    assert norm(features)[:, 7].abs().max() == 0


def test_l2_norm_of_a_zero_vector_is_zero_with_a_small_gradient():
    features = torch.zeros(1, 4, 2, 2)
    features[0, :, 0, 0] = torch.tensor([1.0, 2.0, 3.0, 4.0])
    features.requires_grad_()
    scaled = L2Norm(4)(features)
    scaled.sum().backward()
    assert scaled[0, :, 1, 1].tolist() == [0, 0, 0, 0]
    assert features.grad.isfinite().all()
    assert features.grad.abs().max() <= 20


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_l2_norm_keeps_the_dtype_and_survives_squares_beyond_half_precision(dtype):
    features = torch.full((1, 512, 1, 1), 300.0, dtype=dtype)
    scaled = L2Norm(512)(features)
    assert scaled.dtype == dtype
    torch.testing.assert_close(scaled.double(), torch.full_like(scaled, 20 / 512**0.5).double(), rtol=1e-2, atol=0)


def test_l2_norm_has_the_right_gradient():
    norm = L2Norm(3, scale=2.0).double()
    features = torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(norm, features)


def trained_norm(channels: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels, eps=1e-3)
    nn.init.uniform_(norm.weight)
    nn.init.uniform_(norm.bias)
    norm(torch.randn(4, channels, 5, 5) * 3 + 1)
    return norm


def test_a_frozen_norm_computes_what_the_norm_computed_in_eval_mode():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(trained_norm(4), nn.ReLU()))
    images = torch.rand(2, 3, 5, 5)
    expected = net.eval()(images)
    keys = [key for key in net.state_dict() if "num_batches" not in key]
    frozen = freeze_batch_norm(net)
    assert frozen is net
    assert list(frozen.state_dict()) == keys
    torch.testing.assert_close(frozen.train()(images), expected)


def test_a_frozen_norm_learns_nothing_in_training_mode():
    net = freeze_batch_norm(nn.Sequential(nn.Conv2d(3, 4, 1), trained_norm(4))).train()
    before = {key: value.clone() for key, value in net[1].state_dict().items()}
    net(torch.rand(2, 3, 5, 5) * 100).sum().backward()
    assert not list(net[1].parameters())
    assert net[0].weight.grad.abs().sum() > 0
    for key, value in net[1].state_dict().items():
        assert torch.equal(value, before[key]), key


def test_a_batch_norm_itself_and_one_without_affine_terms_can_be_frozen():
    norm = nn.BatchNorm2d(4, affine=False)
    norm(torch.randn(4, 4, 5, 5) * 3 + 1)
    features = torch.rand(2, 4, 3, 3)
    torch.testing.assert_close(freeze_batch_norm(norm)(features), norm.eval()(features))


def test_a_lean_frozen_norm_is_torchvisions_and_shares_its_buffers():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(FrozenBatchNorm2d(4, eps=0.1)), nn.BatchNorm2d(4)).double()
    for value in net[1].buffers():
        value.uniform_(0.5, 2)
    images, before = torch.rand(2, 3, 5, 5, dtype=torch.float64), dict(net.named_buffers())
    expected = net[1](net[0](images))
    wanted = torch.autograd.grad(expected.square().sum(), net[0].weight)
    assert lean_norms(net) is net
    assert type(net[1][0]) is not FrozenBatchNorm2d
    assert isinstance(net[1][0], FrozenBatchNorm2d)
    assert type(net[2]) is nn.BatchNorm2d
    assert all(value is before[name] for name, value in net.named_buffers())
    found = net[1](net[0](images))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    torch.testing.assert_close(torch.autograd.grad(found.square().sum(), net[0].weight), wanted, rtol=0, atol=0)


def test_a_frozen_norm_leaves_what_it_is_given_and_promotes_it():
    norm, features = freeze_batch_norm(trained_norm(4)), torch.rand(2, 4, 3, 3)
    before = features.clone()
    assert norm(features).data_ptr() != features.data_ptr()
    assert torch.equal(features, before)
    assert norm(features.half()).dtype == torch.float32


def test_a_lean_frozen_norm_takes_one_set_of_statistics_for_each_member():
    norm, features = freeze_batch_norm(trained_norm(4)), torch.rand(2, 4, 3, 3)
    means, buffers = torch.rand(3, 4), dict(norm.named_buffers())

    def run(mean):
        return torch.func.functional_call(norm, {**buffers, "running_mean": mean}, (features,))

    torch.testing.assert_close(torch.func.vmap(run)(means), torch.stack([run(mean) for mean in means]))


def test_a_frozen_norm_with_hooks_stays_as_it_is():
    seen, net = [], nn.Sequential(FrozenBatchNorm2d(4))
    net[0].register_forward_hook(lambda *_: seen.append(1))
    lean_norms(net)(torch.rand(1, 4, 2, 2))
    assert seen == [1]


class NormAndMore(nn.BatchNorm2d):
    """A subclass, as timm's BatchNormAct2d, that also activates."""


@pytest.mark.parametrize(
    ("norm", "message"),
    [
        (NormAndMore(4), "cannot replace a NormAndMore"),
        (nn.BatchNorm1d(4), "cannot replace a BatchNorm1d"),
        (nn.BatchNorm2d(4, track_running_stats=False), "no running statistics"),
    ],
)
def test_a_norm_that_cannot_be_frozen_is_refused_by_name(norm, message):
    with pytest.raises(ValueError, match=message):
        freeze_batch_norm(nn.Sequential(norm))


def test_initialization_reaches_every_convolution_and_nothing_else():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.Conv2d(4, 4, 1, bias=False)), nn.Linear(4, 4))
    linear = net[2].weight.clone()
    init_convolutions(net, partial(nn.init.constant_, val=0.5))
    assert net[0].weight.unique().tolist() == net[1][0].weight.unique().tolist() == [0.5]
    assert net[0].bias.abs().max() == 0
    assert torch.equal(net[2].weight, linear)


def test_a_tower_keeps_the_size_and_repeats_what_it_is_given():
    tower = conv_tower(8, depth=3, norm=None, activation=nn.SiLU)
    assert tower(torch.zeros(1, 8, 5, 7)).shape == (1, 8, 5, 7)
    assert [[type(layer) for layer in block] for block in tower] == [[nn.Conv2d, nn.SiLU]] * 3
    assert all(0.005 < float(block[0].weight.detach().std()) < 0.015 for block in tower)
    assert conv_tower(16)[0][1].num_groups == 8
    with pytest.raises(ValueError, match=r"^conv_tower: channels=12 has no 8 groups; allowed are multiples of 8"):
        conv_tower(12)
