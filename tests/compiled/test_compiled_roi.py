"""RoIAlign, mask and keypoint stages compile without a graph break, learn and find what they do eagerly, and export."""

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.export import Dim

from detkit.boxes import PyramidRoIAlign, align, roi_align
from detkit.detectors import keypoint as keypoint_module
from detkit.detectors.detector import Stage
from detkit.detectors.keypoint import KeypointStage, decode_heatmaps
from detkit.detectors.mask import MaskStage
from detkit.heads.keypoint import KeypointHead
from detkit.heads.mask import MaskHead
from detkit.losses.keypoint import keypoint_loss, keypoint_targets
from detkit.losses.mask import mask_loss, mask_targets
from detkit.structures import Detections, Images, Targets

# (images, boxes of each, height, width)
SHAPES = ((2, 6, 64, 96), (3, 9, 48, 80), (5, 7, 96, 64))
STAGES = ["mask", "keypoint"]


def stage(kind: str) -> Stage:
    torch.manual_seed(0)
    torch.compiler.reset()
    if kind == "mask":
        return MaskStage(PyramidRoIAlign(4, strides=(4, 8)), MaskHead(6, 3, channels=(8,)))
    return KeypointStage(PyramidRoIAlign(4, strides=(4, 8)), KeypointHead(6, 5, channels=(8,)))


def inputs(images: int, rows: int, height: int, width: int) -> tuple[list[Tensor], Images, Detections, Targets]:
    """Features, images, boxes of which some are padding, and what they learn."""
    generator = torch.Generator().manual_seed(rows)
    features = [torch.randn(images, 6, height // s, width // s, generator=generator) for s in (4, 8)]
    scale = torch.tensor([width, height]).float()
    corners = torch.rand(2, images, rows, 2, generator=generator) * scale
    valid = torch.arange(rows) < torch.arange(1, images + 1)[:, None] * 2
    boxes = torch.where(valid[..., None], torch.cat((corners.amin(0), corners.amax(0)), dim=-1), 0)
    labels = torch.randint(0, 3, (images, rows), generator=generator)
    matched = torch.where(valid, torch.randint(0, 4, (images, rows), generator=generator), -2)
    found = Detections(boxes, valid.float(), labels, valid, matched=matched)
    keypoints = torch.rand(images, 4, 5, 3, generator=generator) * torch.tensor([width, height, 2.0])
    targets = Targets(
        boxes=boxes[:, :4],
        labels=torch.randint(0, 3, (images, 4), generator=generator),
        valid=torch.ones(images, 4, dtype=torch.bool),
        ignore=torch.zeros(images, 4, dtype=torch.bool),
        masks=torch.randint(0, 2, (images, 4, height, width), generator=generator, dtype=torch.uint8),
        keypoints=keypoints.ceil() if rows % 2 else keypoints,
    )
    sizes = torch.tensor([height, width]) - torch.arange(images)[:, None]
    return features, Images(torch.zeros(images, 3, height, width), sizes), found, targets


class Found(nn.Module):
    """A stage at inference, in plain tensors."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.stage = stage

    def forward(
        self, fine: Tensor, coarse: Tensor, images: Tensor, sizes: Tensor, boxes: Tensor, labels: Tensor, valid: Tensor
    ) -> list[Tensor]:
        batch = Images(images, sizes)
        before = Detections(boxes, valid.to(boxes), labels, valid)
        found = self.stage.detections(self.stage([fine, coarse], batch, before), batch)
        return [part for part in (found.boxes, found.masks, found.keypoints, found.keypoint_scores) if part is not None]


def plain(shape: tuple[int, int, int, int]) -> tuple[Tensor, ...]:
    features, images, found, _ = inputs(*shape)
    return *features, images.tensors, images.sizes, found.boxes, found.labels, found.valid


def assert_all_close(found: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", STAGES)
def test_a_stage_compiles_whole_and_learns_what_it_learns_eagerly(kind):
    own = stage(kind)

    def losses(features: list[Tensor], images: Images, found: Detections, targets: Targets) -> Tensor:
        return own.loss(own(features, images, found, targets), targets)[kind]

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(losses, backend=counter, fullgraph=True)
    for shape in SHAPES:
        results = []
        for run in (losses, compiled):
            own.zero_grad()
            features, *rest = inputs(*shape)
            loss = run([level.requires_grad_() for level in features], *rest)
            loss.backward()
            results.append([loss.detach(), *(p.grad.clone() for p in own.parameters()), *(f.grad for f in features)])
        assert results[0][0] > 0
        assert_all_close(results[1], results[0])
    assert counter.frame_count <= 3


@pytest.mark.parametrize("kind", STAGES)
def test_a_stage_compiles_whole_and_finds_what_it_finds_eagerly(kind):
    model = Found(stage(kind))
    counter = CompileCounterWithBackend("eager")  # what is behind it: see the export
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    with torch.no_grad():
        for shape in SHAPES:
            assert_all_close(compiled(*plain(shape)), model(*plain(shape)))
    assert counter.frame_count <= 3


@pytest.mark.parametrize("kind", STAGES)
def test_a_stage_without_positives_learns_zeros_when_compiled(kind):
    own = stage(kind)
    features, images, found, targets = inputs(*SHAPES[0])
    found = found._replace(valid=torch.zeros_like(found.valid))

    def losses() -> Tensor:
        return own.loss(own(features, images, found, targets), targets)[kind]

    loss = torch.compile(losses, backend="eager", fullgraph=True)()
    loss.backward()
    assert loss == 0
    assert all(not parameter.grad.any() for parameter in own.parameters())


@pytest.mark.parametrize("kind", STAGES)
def test_a_stage_exports_with_dynamic_batch_height_and_width(kind):
    model = Found(stage(kind)).eval()
    dynamic = ({0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC},) * 3 + ({0: Dim.DYNAMIC},) * 4
    shapes = [(images, 7, height, width) for images, _, height, width in SHAPES]
    program = torch.export.export(model, plain(shapes[1]), dynamic_shapes=dynamic).module()
    with torch.no_grad():
        for shape in shapes:
            assert_all_close(program(*plain(shape)), model(*plain(shape)))


def test_what_inductor_makes_of_the_losses_is_the_loss():
    _, images, found, targets = inputs(*SHAPES[0])
    matched, count = found.matched.clamp(min=0), found.boxes.shape[:2].numel()

    def costs(masks: Tensor, heatmaps: Tensor) -> tuple[Tensor, Tensor]:
        wanted = mask_targets(targets.masks, found.boxes, matched, 8, sizes=images.sizes)
        cells, usable = keypoint_targets(targets.keypoints, found.boxes, matched, 8)
        labels = targets.labels.gather(1, matched).flatten()
        return mask_loss(masks, wanted.flatten(0, 1), labels), keypoint_loss(heatmaps, *map(_rows, (cells, usable)))

    torch.compiler.reset()
    arguments = torch.randn(count, 3, 8, 8), torch.randn(count, 5, 8, 8)
    expected = costs(*arguments)
    assert_all_close(list(torch.compile(costs, fullgraph=True)(*arguments)), list(expected))
    assert all(cost.any() for cost in expected)


def _rows(values: Tensor) -> Tensor:
    return values.flatten(0, 1)


def test_missing_masks_are_refused_while_compiling():
    own = stage("mask")
    features, images, found, targets = inputs(*SHAPES[0])
    targets = targets._replace(masks=None)
    compiled = torch.compile(lambda: own.loss(own(features, images, found, targets), targets), backend="eager")
    with pytest.raises(Exception, match="targets have no masks"):
        compiled()


def test_the_fake_kernel_tells_the_truth_about_decoding():
    _, _, found, _ = inputs(*SHAPES[0])
    arguments = torch.randn(12, 5, 8, 8), found.boxes.flatten(0, 1), found.valid.flatten()
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(keypoint_module._decode, arguments, test_utils=checks)
    torch.library.opcheck(keypoint_module._decode, (arguments[0].double(), *arguments[1:]), test_utils=checks)


def test_decoding_follows_the_number_of_boxes():
    counter = CompileCounterWithBackend("eager")
    torch.compiler.reset()
    compiled = torch.compile(decode_heatmaps, backend=counter, fullgraph=True)
    for count in (0, 1, 2, 7, 100, 101):
        logits, boxes = torch.randn(count, 3, 6, 6), torch.rand(count, 4) * 20
        assert_all_close(list(compiled(logits, boxes)), list(decode_heatmaps(logits, boxes)))
    assert counter.frame_count <= 3


@pytest.mark.parametrize("way", ["the kernel", "the matrix"])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_roi_align_compiles_with_its_gradient(order, way, monkeypatch):
    torch.compiler.reset()
    monkeypatch.setattr(align._Reading, "by_matrix", lambda *_, **__: way == "the matrix")
    boxes = [torch.tensor([[0.0, 0, 20, 20]]), torch.tensor([[3.0, 3, 30, 30]])]

    def mean(level: Tensor) -> Tensor:
        return (roi_align(level * 2, boxes, (2, 3), 0.5, 2, True) ** 2).mean()

    compiled = torch.compile(mean, fullgraph=True)
    for channels in (5, 4):  # of the second size the graph is compiled anew, with free ones
        drawn = torch.randn(2, channels, 24, 32, generator=torch.Generator().manual_seed(0))
        level = drawn.to(memory_format=order).requires_grad_()
        found, expected = (torch.autograd.grad(function(level), level)[0] for function in (compiled, mean))
        torch.testing.assert_close(found, expected)
