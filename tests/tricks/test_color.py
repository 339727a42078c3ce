"""ColorDistortion: each part alone is what torchvision does, or turns the hue and leaves the luma; cut once."""

import colorsys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import assert_refused
from torchvision.transforms.v2 import functional as v2

from detkit.tricks import ColorDistortion

NOTHING = {"brightness": (1, 1), "contrast": (1, 1), "saturation": (1, 1), "hue": (0, 0)}
LUMA = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)


def recolored(image, **settings):
    color = ColorDistortion(
        **NOTHING | {name: (value, value) for name, value in settings.items()}, part_probability=1.0
    )
    return color([image], [{"image_id": 1}])[0][0]


def picture(seed=0, size=(70, 9)):
    return 0.3 + 0.4 * torch.rand(3, *size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("factor", [0.5, 0.9, 1.4])
@pytest.mark.parametrize("part", ["brightness", "contrast", "saturation"])
def test_a_part_alone_is_that_of_torchvision(part, factor):
    expected = getattr(v2, f"adjust_{part}")(picture(), factor)
    torch.testing.assert_close(recolored(picture(), **{part: factor}), expected, atol=3e-4, rtol=0)  # its luma: .2989


@pytest.mark.parametrize("hue", [-0.5, -0.05, 0.05, 0.3])
def test_the_hue_turns_and_the_luma_stays(hue):
    image, turned = picture(), recolored(picture(), hue=hue)
    torch.testing.assert_close(torch.einsum("c,chw->hw", LUMA, turned), torch.einsum("c,chw->hw", LUMA, image))
    back = recolored(turned, hue=-hue)
    torch.testing.assert_close(back, image, atol=1e-9, rtol=0)


@pytest.mark.parametrize("color", [(1.0, 0, 0), (0, 1.0, 0), (0, 0, 1.0)])
def test_the_hue_turns_as_far_and_in_the_direction_of_hsv(color):
    pale = torch.tensor(color, dtype=torch.float64).reshape(3, 1, 1) * 0.1 + 0.5
    for hue in (0.05, -0.05, 1 / 3):
        before, after = (
            colorsys.rgb_to_hsv(*values.flatten().tolist())[0] for values in (pale, recolored(pale, hue=hue))
        )
        turn = (after - before + 0.5) % 1 - 0.5
        assert turn == pytest.approx(hue, abs=0.1)
        assert turn * hue > 0


def test_gray_stays_gray():
    gray = torch.full((3, 5, 5), 0.4)
    for settings in ({"hue": 0.3}, {"saturation": 3.0}, {"contrast": 0.2}):
        torch.testing.assert_close(recolored(gray, **settings), gray, atol=1e-6, rtol=0)


@given(
    seed=st.integers(0, 99),
    factors=st.tuples(*[st.floats(0, 2)] * 3, st.floats(-0.5, 0.5)),
    dtype=st.sampled_from([torch.uint8, torch.uint16, torch.float32]),
)
def test_all_parts_at_once_are_one_after_the_other_cut_at_the_end(seed, factors, dtype):
    brightness, contrast, saturation, hue = factors
    image, white = picture(seed), {torch.uint8: 255, torch.uint16: 65535}.get(dtype, 1)
    image = (image * white).round().to(torch.int32).to(dtype) if white > 1 else image.to(dtype)
    colors = image.double() * brightness
    mean = torch.einsum("c,chw->hw", LUMA, colors).mean()
    colors = mean + contrast * (colors - mean)
    gray = torch.einsum("c,chw->hw", LUMA, colors)
    colors = gray + saturation * (colors - gray)
    turned = recolored((colors / white / 1e3 + 0.5), hue=hue)  # small enough that nothing is cut
    expected = ((turned - 0.5) * 1e3 * white).clamp(0, white)
    found = recolored(image, brightness=brightness, contrast=contrast, saturation=saturation, hue=hue)
    assert found.dtype == dtype
    assert (found.double() - expected).abs().max() <= (0.51 if white > 1 else 1e-5) + white * 1e-6


@pytest.mark.slow
def test_parts_are_drawn_each_by_itself_in_their_ranges():
    image, generator = torch.full((3, 4, 4), 0.5), torch.Generator().manual_seed(0)
    color = ColorDistortion(brightness=(0.5, 1.5))
    means = [color([image], [{"image_id": 1}], generator=generator)[0][0].mean().item() for _ in range(300)]
    changed = [mean for mean in means if abs(mean - 0.5) > 1e-6]
    assert 110 < len(changed) < 190
    assert 0.25 <= min(changed) < 0.27
    assert 0.73 < max(changed) <= 0.75


def test_targets_stay_and_all_they_hold():
    target = {"boxes": torch.tensor([[0.0, 0, 3, 3]]), "labels": torch.tensor([1]), "image_labels": torch.tensor(2)}
    _, (found,) = ColorDistortion()([torch.zeros(3, 4, 4)], [target])
    assert found.keys() == target.keys()
    assert all(torch.equal(found[key], target[key]) for key in target)


def test_other_than_three_channels_are_refused():
    assert_refused(
        "ColorDistortion: images have 1 channels", ColorDistortion(), [torch.zeros(1, 4, 4)], [{"image_id": 1}]
    )
