"""Every small detector trains and detects on a device as on a CPU, and waits for it no more often than the table says.

The table is tests/host_syncs.toml. Of each detector it holds three pairs: the waits with kernels, and in the torch
form, where an operator that has a kernel runs its torch form instead.
"""

import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import pretend
import pytest
import torch
from small_detectors import DETECTORS, FROM_OUTSIDE, proposals_of, small_detector, two_scenes
from torch import Tensor

from detkit.detectors import Detector, recipes

TABLE: dict[str, Any] = tomllib.loads((Path(__file__).parent.parent / "host_syncs.toml").read_text())["detectors"]
every_detector = pytest.mark.parametrize("name", DETECTORS)


def trained(detector: Detector, *arguments: Any, **proposals: Any) -> dict[str, Tensor | None]:
    """The losses, and the gradients of all parameters, by name."""
    torch.manual_seed(7)
    losses = detector(*arguments, **proposals)
    sum(losses.values()).backward()
    found = {name: parameter.grad for name, parameter in detector.named_parameters()}
    return {name: loss.detach() for name, loss in losses.items()} | found


def assert_counted(name: str, what: str, waits: list[pretend.Wait]) -> None:
    """As often as the table says; less often is an error as well, so that the table is lowered."""
    found = [sum(wait.inside is None for wait in waits), len(waits)]
    allowed = TABLE[name][what]
    seen = "; ".join(f"{count} x {wait.what} at {wait.place}" for wait, count in Counter(waits).items())
    assert max(found[0] - allowed[0], found[1] - allowed[1]) <= 0, f"{name}, {what}: {found} host syncs: {seen}"
    assert found == allowed, f"{name}, {what}: {found} host syncs: lower the numbers in tests/host_syncs.toml"


@every_detector
def test_a_training_step_gives_the_losses_and_gradients_of_a_cpu(name: str):
    if name == "rcnn":
        pytest.skip("R-CNN is fitted, not trained by gradients")
    images, targets = two_scenes()
    proposals = proposals_of(name, targets)
    detector = pretend.on_device(small_detector(name))
    arguments = pretend.on_device((images, targets, proposals))
    with pretend.counted() as waits:
        found = trained(detector, *arguments[:2], **arguments[2])
    wanted = trained(small_detector(name), images, targets, **proposals)
    torch.testing.assert_close(pretend.on_host(found), wanted, rtol=1e-4, atol=1e-5)
    assert_counted(name, "train", waits)


@every_detector
def test_detections_are_those_of_a_cpu(name: str):
    images, targets = two_scenes()
    proposals = proposals_of(name, targets)
    detector, there = small_detector(name), pretend.on_device(small_detector(name))
    with pretend.counted() as waits, torch.no_grad():
        found = there(pretend.on_device(images), **pretend.on_device(proposals))
    with torch.no_grad():
        wanted = detector(images, **proposals)
    torch.testing.assert_close(pretend.on_host(found), wanted, rtol=1e-4, atol=1e-4)
    assert_counted(name, "detect in images", waits)
    if name not in FROM_OUTSIDE:
        batch, _ = detector.preprocess(images)
        with pretend.counted() as waits, torch.no_grad():
            there(pretend.on_device(batch))
        assert_counted(name, "detect in a batch", waits)


@pytest.mark.parametrize("name", ["ssd", "mask rcnn"])
def test_small_images_and_targets_of_the_host_are_sent_without_a_wait(name: str):
    images, targets = two_scenes()
    detector = pretend.on_device(small_detector(name))
    with pretend.counted() as waits:
        found = trained(detector, images, targets)
    torch.testing.assert_close(
        pretend.on_host(found), trained(small_detector(name), images, targets), rtol=1e-4, atol=1e-5
    )
    assert_counted(name, "train", waits)


def test_only_matching_by_scipy_makes_a_training_step_wait():
    """With kernels: one copy of all costs, layers and images for each call of a matcher."""
    waiting = {name: counts["train"][0] for name, counts in TABLE.items() if counts.get("train", [0])[0]}
    others = dict.fromkeys(("deformable detr", "rt detr", "d fine"), 1)
    assert waiting == {"detr": 1, "denoising detr": 1, "detr + embedding": 2, **others}


def test_every_recipe_has_a_small_form_in_the_table():
    assert list(TABLE) == list(DETECTORS)
    counted = [recipe for counts in TABLE.values() for recipe in counts["recipes"]]
    parts = ("_stage", "_anchors", "_scales", "_neck")  # what is no detector: parts of one, and views of one
    assert sorted(counted) == sorted(name for name in recipes.__all__ if not name.endswith(parts))
