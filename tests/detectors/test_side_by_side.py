"""Stages side by side: two box tasks on one trunk, each as it would be alone."""

from typing import Any

import pytest
import torch
from contracts import assert_same_found, assert_same_losses, pictures, target
from torch import Tensor, nn

from detkit.detectors import Detector, SideBySide, Stage, fpn_ssd, small_faster_rcnn
from detkit.structures import Detections, Images, Targets

SIZE = (96, 128)
CLASSES = {"faces": 1, "cars": 4}


class Shared(nn.Module):
    """Two branches that are the same features."""

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk

    def forward(self, images: Tensor) -> dict[str, list[Tensor]]:
        levels = self.trunk(images)
        return dict.fromkeys(CLASSES, levels)


class Pixels(nn.Module):
    """A trunk that hands on what it is given."""

    def forward(self, images: Tensor) -> list[Tensor]:
        return [images]


def detectors() -> tuple[Detector, dict[str, Detector]]:
    """Two tasks on one trunk, and each of them alone on that trunk: the same modules."""
    torch.manual_seed(0)
    alone = {name: fpn_ssd(count, size=SIZE, channels=8).eval() for name, count in CLASSES.items()}
    trunk = alone["faces"].trunk
    alone["cars"].trunk = trunk
    stages = {name: model.dense for name, model in alone.items()}
    return Detector(trunk, preprocess=alone["faces"].preprocess, tasks=SideBySide(**stages)).eval(), alone


def truth() -> list[dict[str, Any]]:
    return [
        {
            "faces": target([[8, 8, 56, 56]], [0]),
            "cars": target([[40, 20, 100, 76], [10, 30, 50, 90]], [3, 1]),
        },
        {"faces": target([], []), "cars": target([[10, 30, 50, 90]], [2])},
    ]


IMAGES = pictures(SIZE, (70, 100))


def test_each_task_learns_what_it_learns_alone_on_targets_of_its_own():
    both, alone = detectors()
    losses = both(IMAGES, truth())
    expected = {
        f"tasks.{name}.{key.removeprefix('dense.')}": loss
        for name, model in alone.items()
        for key, loss in model(IMAGES, [one[name] for one in truth()]).items()
    }
    assert_same_losses(losses, expected)
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in both.parameters())


def test_each_task_finds_what_it_finds_alone():
    both, alone = detectors()
    found = both(IMAGES)
    assert [list(one) for one in found] == [["faces", "cars"]] * 2
    for name, model in alone.items():
        assert_same_found([one[name] for one in found], model(IMAGES))
        assert sum(len(one[name]["boxes"]) for one in found) > 0
        assert max(int(one[name]["labels"].max()) for one in found) < CLASSES[name]


def test_padded_batches_come_out_by_name_too():
    both, alone = detectors()
    images, targets = both.preprocess(IMAGES, truth())
    found = both(images)
    assert list(found) == list(targets) == ["faces", "cars"]
    for name, model in alone.items():
        for one, other in zip(found[name], model(images), strict=True):
            assert one is other is None or torch.equal(one, other)
    assert_same_losses(both(images, targets), both(IMAGES, truth()))


def test_plain_targets_are_for_all():
    both, alone = detectors()
    shared = [target([[8, 8, 56, 56]], [0]), target([], [])]
    losses = both(IMAGES, shared)
    for name, model in alone.items():
        own = {key: loss for key, loss in losses.items() if key.startswith(f"tasks.{name}.")}
        expected = {f"tasks.{name}.{key.removeprefix('dense.')}": loss for key, loss in model(IMAGES, shared).items()}
        assert_same_losses(own, expected)


def test_each_stage_reads_its_own_branch():
    both, _ = detectors()
    expected = both(IMAGES)
    for name, stage in both.tasks.stages.items():
        stage.on(name)
    split = Detector(Shared(both.trunk), preprocess=both.preprocess, tasks=both.tasks).eval()
    for one, other in zip(split(IMAGES), expected, strict=True):
        assert_same_found([one["cars"]], [other["cars"]])
    both.tasks.faces.branch = "elsewhere"
    with pytest.raises(ValueError, match=r"stage 'faces' reads branch 'elsewhere'; the trunk has \['cars', 'faces'\]"):
        split(IMAGES)


def test_the_state_names_task_and_stage():
    both, _ = detectors()
    names = {key.split(".")[0] + "." + key.split(".")[1] for key in both.state_dict() if not key.startswith("trunk")}
    assert names == {"tasks.faces", "tasks.cars"}


class Look(Stage):
    """Finds one box of its size; hands it over with the segmentation that it was told to make."""

    def __init__(self, size: float, *, segmentation: int | None = None) -> None:
        super().__init__()
        self.size, self.segmentation = size, segmentation
        self.seen: list[Any] = []

    def forward(
        self, features: Any, images: Images, detections: Detections | None, targets: Targets | None = None
    ) -> int:
        self.seen.append((detections, targets))
        return len(images.tensors)

    def loss(self, outputs: int, targets: Targets) -> dict[str, Tensor]:
        return {"count": targets.valid.sum().float()}

    def detections(self, outputs: int, images: Images) -> Detections:
        rows = torch.ones(outputs, 1)
        boxes = torch.tensor([0.0, 0, self.size, self.size]).expand(outputs, 1, 4)
        found = Detections(boxes, rows, rows.long(), rows.bool())
        if self.segmentation is None:
            return found
        return found._replace(segmentation=torch.full((outputs, 8, 8), self.segmentation))


def looking(**stages: Stage) -> Detector:
    both, _ = detectors()
    return Detector(Pixels(), preprocess=both.preprocess, **stages)


def batch() -> Images:
    return Images(torch.rand(2, 3, 8, 8), torch.tensor([[8, 8]] * 2))


@pytest.mark.parametrize("training", [True, False])
def test_stages_of_the_same_names_follow_each_other(training):
    seconds = {"a": Look(3), "b": Look(4)}
    model = looking(first=SideBySide(a=Look(1), b=Look(2)), second=SideBySide(**seconds))
    images, targets = model.preprocess([torch.zeros(3, 8, 8)] * 2, [{"a": target([[0, 0, 4, 4]], [0]), "b": {}}] * 2)
    result = model(images, targets if training else None)
    for size, (name, stage) in enumerate(seconds.items(), start=1):
        detections, own = stage.seen[0]
        assert detections.boxes[0, 0, 2] == size
        assert own is (targets[name] if training else None)
    if training:
        assert {name: loss.item() for name, loss in result.items()} == {
            "first.a.count": 2,
            "first.b.count": 0,
            "second.a.count": 2,
            "second.b.count": 0,
        }


def test_what_was_found_in_the_whole_image_before_is_kept_for_each():
    model = looking(before=Look(1, segmentation=7), both=SideBySide(a=Look(2), b=Look(3, segmentation=8)))
    found = model(batch())
    assert (found["a"].segmentation == 7).all()
    assert (found["b"].segmentation == 8).all()
    assert [part.boxes[0, 0, 2].item() for part in found.values()] == [2, 3]


def test_a_stage_that_takes_one_for_all_is_told_so():
    with pytest.raises(ValueError, match=r"detections come by name, \['a', 'b'\], but stage 'last' takes one for all"):
        looking(both=SideBySide(a=Look(1), b=Look(2)), last=Look(3))(batch())
    model = looking(only=Look(1))
    with pytest.raises(ValueError, match=r"targets come by name, \['a', 'b'\], but stage 'only' takes one for all"):
        model([torch.zeros(3, 8, 8)], [{"a": {}, "b": {}}])


def test_names_that_are_missing_are_named():
    model = looking(first=SideBySide(a=Look(1), b=Look(2)), second=SideBySide(a=Look(3), c=Look(4)))
    with pytest.raises(ValueError, match=r"SideBySide: detections come by name, \['a', 'b'\]; stage 'c' needs its own"):
        model(batch())
    with pytest.raises(ValueError, match=r"SideBySide: targets come by name, \['a'\]; stage 'b' needs its own"):
        model([torch.zeros(3, 8, 8)], [{"a": {}}])


def test_without_stages_or_under_a_name_that_modules_have_there_is_none():
    with pytest.raises(ValueError, match="SideBySide: needs at least one stage, given by name"):
        SideBySide()
    with pytest.raises(ValueError, match="SideBySide: a stage cannot be called 'branch'"):
        SideBySide(branch=Look(1))


def test_two_second_stages_share_the_proposals_of_one_network():
    torch.manual_seed(0)
    first, second = (small_faster_rcnn(count, size=SIZE, channels=8).eval() for count in (2, 5))
    model = Detector(
        first.trunk, preprocess=first.preprocess, rpn=first.rpn, boxes=SideBySide(a=first.box, b=second.box)
    ).eval()
    found, alone = model(IMAGES), first(IMAGES)
    assert_same_found([one["a"] for one in found], alone)
    assert {*model(IMAGES, [target([[8, 8, 56, 56]], [0]), target([], [])])} >= {
        "rpn.objectness",
        "boxes.a.box",
        "boxes.b.box",
    }
