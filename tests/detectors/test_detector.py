"""The fold: what a Detector hands to its stages, in training and in inference, and what it gives back."""

import inspect
from typing import Any

import pytest
import torch
from strategies import unhooked
from torch import Tensor, nn

from detkit import detectors
from detkit.backbones import SmallBackbone
from detkit.boxes import DeltaCoder, PyramidRoIAlign
from detkit.detectors import (
    Detector,
    KeypointStage,
    MaskStage,
    Postprocess,
    Preprocess,
    RegionFeatures,
    RegionStage,
    Stage,
    detr,
    fpn_ssd,
    small_detr,
    small_faster_rcnn,
    small_retinanet,
)
from detkit.detectors.detector import add_stages, branch_of
from detkit.heads.keypoint import KeypointHead
from detkit.heads.mask import MaskHead
from detkit.structures import DensePredictions, Detections, Images, Target, Targets, pad_targets

PREPROCESS = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


class Trunk(nn.Module):
    """One feature map: the images, doubled."""

    def forward(self, images: Tensor) -> list[Tensor]:
        return [images * 2]


class Branches(nn.Module):
    """Two branches: the images once as they are, once negated."""

    def forward(self, images: Tensor) -> dict[str, list[Tensor]]:
        return {"plain": [images], "negated": [-images]}


def one_box(scale: float, images: int) -> Detections:
    """One detection for every image, (0, 0, scale, scale)."""
    return Detections(
        boxes=torch.tensor([0.0, 0, scale, scale]).expand(images, 1, 4),
        scores=torch.full((images, 1), 0.5),
        labels=torch.zeros(images, 1, dtype=torch.int64),
        valid=torch.ones(images, 1, dtype=torch.bool),
    )


class Step(Stage):
    """Remembers what it was called with; outputs its scale; finds one box of that scale, learns on one twice as big."""

    def __init__(self, scale: float, *, branch: str | None = None, own_handover: bool = True) -> None:
        super().__init__(branch=branch)
        self.scale = nn.Parameter(torch.tensor(float(scale)))
        self.own_handover = own_handover
        self.calls: list[tuple[Any, ...]] = []

    def forward(
        self, features: list[Tensor], images: Images, detections: Detections | None, targets: Targets | None = None
    ) -> Tensor:
        self.calls.append((features, images, detections, targets))
        return self.scale * 1.0

    def loss(self, outputs: Tensor, targets: Targets) -> dict[str, Tensor]:
        return {"size": outputs * targets.valid.sum(), "twice": 2 * outputs}

    def detections(self, outputs: Tensor, images: Images) -> Detections:
        return one_box(outputs.item(), len(images.tensors))

    def handover(self, outputs: Tensor, images: Images, targets: Targets) -> Detections | None:
        if not self.own_handover:
            return super().handover(outputs, images, targets)
        return one_box(2 * outputs.item(), len(images.tensors))


def detector(trunk: nn.Module | None = None, **stages: Stage) -> Detector:
    return Detector(Trunk() if trunk is None else trunk, preprocess=Preprocess(None, **PREPROCESS), **stages)


def batch(count: int = 2) -> Images:
    return Images(torch.rand(count, 3, 8, 8), torch.tensor([[8, 8]] * count))


def target() -> Target:
    return Target(boxes=torch.tensor([[0.0, 0, 4, 4]]), labels=torch.tensor([0]))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"trunk": [Trunk(), nn.Identity()]}, r"trunk is a list; .* nn\.Sequential\(backbone, neck\)"),
        ({"preprocess": None}, r"preprocess is a NoneType; .* Preprocess\(None\)"),
    ],
)
def test_a_trunk_or_preprocess_that_is_no_module_is_refused_with_the_repair(changes, words):
    with pytest.raises(ValueError, match=rf"^Detector: {words}"):
        unhooked(Detector)(**{"trunk": Trunk(), "preprocess": Preprocess(None), "step": Step(1)} | changes)


def test_stages_run_in_the_order_they_were_given_and_each_sees_what_the_one_before_found():
    first, second, third = Step(1), Step(2), Step(3)
    model = detector(zeta=first, alpha=second, mid=third)
    images = batch()
    found = model(images)
    assert list(model.stages) == ["zeta", "alpha", "mid"]
    assert found.boxes[0, 0].tolist() == [0, 0, 3, 3]
    (features, seen, start, targets) = first.calls[0]
    assert torch.equal(features[0], images.tensors * 2)
    assert seen is images
    assert start is None
    assert targets is None
    assert second.calls[0][2].boxes[0, 0, 2] == 1
    assert third.calls[0][2].boxes[0, 0, 2] == 2


def test_in_training_a_stage_learns_on_the_handover_of_the_one_before():
    first, second, third = Step(1), Step(2, own_handover=False), Step(3)
    model = detector(first=first, second=second, third=third)
    targets = pad_targets([target(), target()])
    losses = model(batch(), targets)
    assert second.calls[0][2].boxes[0, 0, 2] == 2  # twice 1: its own handover
    assert third.calls[0][2].boxes[0, 0, 2] == 2  # by default the detections
    assert all(stage.calls[0][3] is targets for stage in (first, second, third))
    assert {name: loss.item() for name, loss in losses.items()} == {
        "first.size": 2,
        "first.twice": 2,
        "second.size": 4,
        "second.twice": 4,
        "third.size": 6,
        "third.twice": 6,
    }
    sum(losses.values()).backward()
    assert [stage.scale.grad.item() for stage in (first, second, third)] == [4, 4, 4]


def test_the_last_stage_hands_nothing_over():
    class Last(Step):
        def handover(self, outputs: Tensor, images: Images, targets: Targets) -> Detections | None:
            raise AssertionError("nobody comes after")

    assert detector(first=Step(1), last=Last(1))(batch(), pad_targets([target()] * 2))


@pytest.mark.parametrize("training", [True, False])
def test_proposals_enter_before_the_first_stage(training):
    stage, proposals = Step(1), one_box(7, 2)
    model = detector(only=stage)
    if training:
        model(batch(), pad_targets([target()] * 2), proposals)
        model([torch.rand(3, 8, 8)] * 2, [target()] * 2, proposals)
    else:
        model(batch(), proposals=proposals)
        model([torch.rand(3, 8, 8)] * 2, proposals=proposals)
    assert [call[2] is proposals for call in stage.calls] == [True, True]


@pytest.mark.parametrize("training", [True, False])
def test_proposals_as_dicts_are_padded_and_resized_with_their_images(training):
    stage = Step(1)
    model = Detector(Trunk(), preprocess=Preprocess((8, 16), **PREPROCESS), only=stage)
    images = [torch.rand(3, 4, 4), torch.rand(3, 16, 16)]
    given = [
        {"boxes": torch.tensor([[0.0, 1, 2, 3], [1, 1, 4, 4]]), "scores": torch.tensor([0.9, 0.8])},
        {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0)},
    ]
    model(images, [target()] * 2 if training else None, given)
    seen = stage.calls[0][2]
    assert isinstance(seen, Detections)
    assert seen.boxes[0, :2].tolist() == [[0, 2, 8, 6], [4, 2, 16, 8]]
    assert seen.valid[0, :2].all()
    assert not seen.valid[1].any()


def test_dicts_of_proposals_need_a_list_of_images_and_one_for_each():
    model, one = detector(only=Step(1)), {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0)}
    with pytest.raises(ValueError, match=r"Detector: images came as Images, so proposals must be Detections; see pad_"):
        model(batch(), proposals=[one, one])
    with pytest.raises(ValueError, match=r"2 images.*1 proposals"):
        model([torch.rand(3, 8, 8)] * 2, proposals=[one])


def test_each_stage_reads_its_branch():
    first, second = Step(1, branch="negated"), Step(2, branch="plain")
    images = batch()
    detector(Branches(), first=first, second=second)(images)
    assert torch.equal(first.calls[0][0][0], -images.tensors)
    assert torch.equal(second.calls[0][0][0], images.tensors)


def test_a_branch_that_is_not_there_is_named():
    with pytest.raises(ValueError, match=r"stage 'box' reads branch 'masks'; the trunk has \['negated', 'plain'\]"):
        detector(Branches(), box=Step(1, branch="masks"))(batch())
    with pytest.raises(ValueError, match=r"stage 'box' reads branch None; the trunk has"):
        detector(Branches(), box=Step(1))(batch())
    with pytest.raises(ValueError, match=r"stage 'box' reads branch 'masks', but the trunk returns no branches"):
        detector(box=Step(1, branch="masks"))(batch())


def test_stage_names_prefix_the_keys_of_the_state():
    model = detector(first=Step(1), second=Step(2))
    assert sorted(model.state_dict()) == ["first.scale", "second.scale"]


@pytest.mark.parametrize("name", ["forward", "training", "stages", "stage_names", "train"])
def test_a_stage_name_that_every_module_has_is_refused(name):
    with pytest.raises(ValueError, match=f"a stage cannot be called '{name}'"):
        detector(**{name: Step(1)})


def test_a_detector_without_stages_is_refused():
    with pytest.raises(ValueError, match="needs at least one stage, given by name"):
        detector()


def test_a_list_comes_back_as_a_list_in_the_pixels_of_its_images():
    model = Detector(Trunk(), preprocess=Preprocess((10, 40), **PREPROCESS), only=Step(5))
    found = model([torch.rand(3, 20, 20), torch.rand(3, 10, 40)])
    assert [one["boxes"].tolist() for one in found] == [[[0, 0, 2.5, 10]], [[0, 0, 5, 5]]]
    assert [one["scores"].tolist() for one in found] == [[0.5], [0.5]]


def test_a_tuple_of_images_is_a_sequence_not_a_batch():
    assert len(detector(only=Step(5))((torch.rand(3, 8, 8), torch.rand(3, 8, 8)))) == 2


def test_a_stage_that_leaves_a_method_out_is_told_which():
    class Empty(Stage):
        pass

    targets = pad_targets([target()])
    calls = {
        "forward": lambda: Empty()([], batch(), None),
        "loss": lambda: Empty().loss(None, targets),
        "detections": lambda: Empty().handover(None, batch(), targets),
    }
    for method, call in calls.items():
        with pytest.raises(NotImplementedError, match=rf"Empty must define {method}\(\)"):
            call()


# What an earlier stage found


class Paint(Stage):
    """A segmentation of one class, beside the boxes found so far; with ``found`` other boxes too."""

    def __init__(self, number: int, *, scores: bool = False) -> None:
        super().__init__()
        self.number, self.scores = number, scores

    def forward(
        self, features: list[Tensor], images: Images, detections: Detections | None, targets: Targets | None = None
    ) -> Detections | None:
        return detections

    def loss(self, outputs: Any, targets: Targets) -> dict[str, Tensor]:
        return {"none": torch.zeros(())}

    def detections(self, outputs: Detections | None, images: Images) -> Detections:
        found = one_box(1, len(images.tensors)) if outputs is None else outputs
        found = found._replace(segmentation=torch.full((len(images.tensors), 8, 8), self.number))
        return found._replace(image_scores=torch.full((len(images.tensors), 2), 0.5)) if self.scores else found


@pytest.mark.parametrize("training", [True, False])
def test_a_box_stage_keeps_the_segmentation_that_was_made_before_it(training):
    last = Step(3)
    model = detector(paint=Paint(7, scores=True), boxes=Step(2), last=last)
    found = model(batch(), pad_targets([target()] * 2) if training else None)
    seen = last.calls[0][2]
    assert (seen.segmentation == 7).all()
    assert seen.image_scores.shape == (2, 2)
    if not training:
        assert found.boxes[0, 0].tolist() == [0, 0, 3, 3]
        assert (found.segmentation == 7).all()


def test_a_later_segmentation_counts_and_leaves_the_boxes():
    found = detector(first=Paint(7, scores=True), boxes=Step(2), second=Paint(8))([torch.rand(3, 8, 8)] * 2)
    for one in found:
        assert one["boxes"].tolist() == [[0, 0, 2, 2]]
        assert (one["segmentation"] == 8).all()
        assert one["image_scores"].tolist() == [0.5, 0.5]


def test_what_there_is_of_each_object_goes_with_rows_that_are_not_kept():
    start = one_box(1, 2)._replace(embeddings=torch.ones(2, 1, 5), class_scores=torch.ones(2, 1, 3))
    kept = detector(only=Paint(7))(batch(), proposals=start)
    assert kept.embeddings is start.embeddings
    assert kept.class_scores is start.class_scores
    assert detector(only=Step(2))(batch(), proposals=start).embeddings is None


# Branches


def region_stages() -> dict[str, Stage]:
    """A stage of each kind whose parts need no more than to be there."""
    part = nn.Identity()
    coder, postprocess = DeltaCoder(), Postprocess(score_threshold=0.0)
    return {
        "mask": MaskStage(PyramidRoIAlign(2, strides=(1,)), MaskHead(3, 2, channels=(4,)), branch="negated"),
        "keypoint": KeypointStage(
            PyramidRoIAlign(2, strides=(1,)), KeypointHead(3, 2, channels=(4,)), branch="negated"
        ),
        "region": RegionStage(
            RegionFeatures(part, feature_size=3, size=8, context=0),
            num_classes=2,
            coder=coder,
            postprocess=postprocess,
            branch="negated",
        ),
    }


@pytest.mark.parametrize("name", region_stages())
def test_a_stage_of_the_library_reads_the_branch_that_its_constructor_names(name):
    torch.manual_seed(0)
    stage, images = region_stages()[name].eval(), batch()
    start = one_box(6, 2)
    found = detector(Branches(), only=stage)(images, proposals=start)
    alone = stage.detections(stage([-images.tensors], images, start), images)
    for one, other in zip(found, alone, strict=True):
        assert one is other is None or torch.equal(one, other)


def test_every_stage_has_a_branch_and_no_constructor_more_than_eight_arguments():
    stages = [kind for kind in vars(detectors).values() if isinstance(kind, type) and issubclass(kind, Stage)]
    assert len(stages) > 8
    without = []
    for kind in stages:
        parameters = inspect.signature(kind).parameters
        assert len(parameters) <= 8, kind
        if "branch" not in parameters:
            without.append(kind.__name__)
    assert {*without} <= {"BoxQueryStage", "RPNStage", "SetPredictionStage", "SideBySide"}, "of eight arguments: on()"


def test_a_stage_may_be_put_on_a_branch():
    step = Step(1)
    assert step.on("negated") is step
    images = batch()
    detector(Branches(), only=step)(images)
    assert torch.equal(step.calls[0][0][0], -images.tensors)


def test_what_is_no_stage_no_list_of_features_and_no_list_of_images_is_refused():
    detector = fpn_ssd(2, size=(32, 32), channels=8)
    with pytest.raises(ValueError, match="Module: stage 'dense' is a Linear"):
        unhooked(add_stages)(nn.Module(), {"dense": nn.Linear(1, 1)})
    with pytest.raises(TypeError, match="images is a Tensor; give a list"):
        unhooked(type(detector.preprocess).forward)(detector.preprocess, torch.zeros(3, 32, 32))
    with pytest.raises(TypeError, match=r"images\[0\] is a ndarray"):
        unhooked(type(detector.preprocess)._prepare)(detector.preprocess, 0, torch.zeros(3, 8, 8).numpy())
    with pytest.raises(ValueError, match="the trunk returns a tensor; allowed is a list of feature maps"):
        unhooked(branch_of)(torch.zeros(1, 8, 4, 4), "dense", detector.dense)


def test_a_batch_too_small_for_batch_norm_is_named_with_its_sizes():
    detector = detectors.small_retinanet(2, size=(32, 32), channels=8).train()
    target = {"boxes": torch.tensor([[0.0, 0, 9, 9]]), "labels": torch.tensor([0])}
    with pytest.raises(ValueError, match=r"^Detector: images of a batch of 1 are 32 x 32 pixels.*batch norm"):
        detector([torch.zeros(3, 32, 32)], [target])
    assert detector.eval()([torch.zeros(3, 32, 32)], [target])


def test_scores_say_which_pixels_they_come_from_on_request():
    detector = detectors.tiny_ssd(2).eval()
    detector.dense.postprocess.gradients = True
    image = torch.rand(3, 64, 64, requires_grad=True)
    detector([image])[0]["scores"].max().backward()
    assert image.grad.abs().sum() > 0


# What stands beside an image in its batch


def cut_off(sizes: list[list[int]], frame: list[int]):
    """A hook that zeros what a convolution would read behind the end of each image, as it is for the image alone."""

    def hook(module: nn.Module, args: tuple) -> tuple | None:
        values = args[0]
        if values.ndim != 4 or len(values) != len(sizes):
            return None
        inside = torch.zeros(len(values), 1, *values.shape[2:])
        for i, size in enumerate(sizes):
            rows, columns = (-(-size[d] * values.shape[d + 2] // frame[d]) for d in (0, 1))
            inside[i, :, :rows, :columns] = 1
        return (values * inside,)

    return hook


def without_anchors_behind(sizes: list[list[int]], stage: nn.Module, frame: list[int]):
    """A hook on a dense head: no anchor whose center lies behind the end of its image predicts anything."""

    def hook(head: nn.Module, args: tuple, found: DensePredictions) -> DensePredictions:
        images = Images(torch.zeros(len(sizes), 3, *frame), torch.tensor(sizes))
        boxes = stage.anchors(args[0], images).boxes
        centers = (boxes[:, 2:] + boxes[:, :2]).flip(1) / 2
        behind = (centers >= torch.tensor(sizes)[:, None]).any(-1, keepdim=True)
        return found._replace(logits=torch.where(behind, -torch.inf, found.logits))

    return hook


def carried_on(sizes: list[list[int]]):
    """A hook on RoIAlign: the last cell of each image goes on in the padding, as at the end of a map."""

    def hook(pool: PyramidRoIAlign, args: tuple) -> tuple:
        levels = []
        for level, stride in zip(args[0], pool.strides, strict=False):
            ends = [[-(-side // stride) - 1 for side in size] for size in sizes]
            rows, columns = (
                torch.stack([torch.arange(level.shape[d + 2]).clamp(max=end[d]) for end in ends]) for d in (0, 1)
            )
            level = level.gather(2, rows[:, None, :, None].expand_as(level))
            levels.append(level.gather(3, columns[:, None, None, :].expand_as(level)))
        return (levels, *args[1:])

    return hook


@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe",
    [
        lambda: small_detr(3, channels=32, depth=1, queries=9),
        lambda: detr(3, backbone=SmallBackbone((8, 16), levels=(1,))),
        lambda: small_retinanet(3, channels=8),
        lambda: small_faster_rcnn(3, channels=8),
    ],
    ids=["small_detr", "detr", "small_retinanet", "small_faster_rcnn"],
)
def test_a_larger_image_beside_an_image_is_seen_by_convolutions_anchors_and_roi_align_only(recipe):
    """With zeros behind the image in every convolution, no anchors there, and RoIAlign ended at its border, it is as
    alone: nothing else looks at the padding."""
    torch.manual_seed(0)
    detector = recipe().eval().double()  # in float32 the sums of each kind of processor differ
    detector.preprocess = Preprocess(None, multiple_of=32)
    for stage in detector.stages.values():
        stage.postprocess.score_threshold = 0.0
    with torch.no_grad():
        for parameter in detector.parameters():  # scores that differ, and biases, which padding turns into features
            parameter.add_(torch.randn_like(parameter) * 0.05)
    small, large = torch.rand(3, 64, 96), torch.rand(3, 128, 160)

    def found(images: list[torch.Tensor], *, ended: bool) -> Detections:
        batch, _ = detector.preprocess(images)
        batch = batch._replace(tensors=batch.tensors.double())
        sizes, frame = batch.sizes.tolist(), list(batch.tensors.shape[2:])
        kinds = {nn.Conv2d: cut_off(sizes, frame), nn.MaxPool2d: cut_off(sizes, frame)}
        kinds[PyramidRoIAlign] = carried_on(sizes)
        hooks = [
            module.register_forward_pre_hook(kinds[type(module)])
            for module in detector.modules()
            if ended and type(module) in kinds
        ]
        stages = [stage for stage in detector.stages.values() if ended and hasattr(stage, "anchors")]
        hooks += [s.head.register_forward_hook(without_anchors_behind(sizes, s, frame)) for s in stages]
        with torch.no_grad():
            result = detector(batch)
        for hook in hooks:
            hook.remove()
        return result

    alone, together = found([small], ended=True), found([small, large], ended=True)
    real = int(alone.valid.sum())
    assert 5 < real == together.valid[0].sum()
    torch.testing.assert_close(together.scores[0, :real], alone.scores[0, :real], rtol=0, atol=1e-9)
    torch.testing.assert_close(together.boxes[0, :real], alone.boxes[0, :real], rtol=0, atol=1e-7)
    moved = found([small, large], ended=False).scores[0, :5] - found([small], ended=False).scores[0, :5]
    assert moved.abs().max() > 1e-4, "without the hooks they differ: the test sees something"
