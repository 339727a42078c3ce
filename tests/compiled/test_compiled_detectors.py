"""A whole detector compiles without a graph break, in inference and in training, and exports with dynamic sizes."""

from collections.abc import Callable

import pytest
import torch
from exported import FromTensors, images
from image_stages import small_localizer
from thorough import mostly
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.export import Dim

from detkit.anchors import BalancedSampler
from detkit.boxes import DeltaCoder
from detkit.detectors import Detector, Postprocess, ProposalPostprocess, fpn_ssd, small_hourglass_rpn, small_mask_rcnn
from detkit.detectors.levelwise import LevelwisePostprocess
from detkit.detectors.recipes.fcos import small_fcos
from detkit.detectors.recipes.retinanet import small_retinanet
from detkit.structures import Target, Targets, draw_segmentation, pad_targets

# (images, objects of each), which are padded to T = 4, 8, 4, 4: both change at once, which is one graph less.
BATCHES = ((2, 3), (3, 6), (5, 3), (3, 4))
# Above 64: torch exports no map whose side may be a single cell, which the hourglass reaches at stride 64.
SIZES = ((2, (96, 128)), (3, (130, 90)), (5, (72, 200)))


def two_stages() -> Detector:
    """A small Mask R-CNN that leaves no sampling to chance."""
    detector = small_mask_rcnn(3, size=(96, 128), channels=8)
    everything = BalancedSampler(10_000, positive_fraction=1.0)
    detector.rpn.sampler = detector.box.sampler = everything
    detector.rpn.postprocess = detector.rpn.training_postprocess = ProposalPostprocess(
        candidates_per_level=20, max_proposals=20
    )
    detector.box.postprocess = Postprocess(score_threshold=0.0, max_detections=10, candidates_per_class=None)
    return detector


def gray_anchors() -> Detector:
    """A small hourglass RPN that leaves no sampling to chance."""
    detector = small_hourglass_rpn(size=(96, 128), channels=8)
    detector.rpn.sampler = BalancedSampler(10_000, positive_fraction=1.0, gray_per_other=1.0)
    detector.rpn.postprocess = ProposalPostprocess(candidates_per_level=20, max_proposals=20)
    return detector


# What is behind the graph of Python takes half of the time: it need be seen of one detector only, and at inference,
# which is exported as well, of none.
BACKENDS = {"one stage": "aot_eager", "two stages": "eager", "whole images": "eager", "gray anchors": "eager"}
DETECTORS: dict[str, Callable[[], Detector]] = {
    "one stage": lambda: fpn_ssd(3, size=(96, 128), channels=8),
    "two stages": two_stages,
    "whole images": small_localizer,
    "gray anchors": gray_anchors,
}


SOME = "neither localizers nor gray anchors were compiled or exported, and others only in part"


@pytest.fixture
def detector(request: pytest.FixtureRequest) -> Detector:
    torch.manual_seed(0)
    torch.compiler.reset()
    return DETECTORS[request.param]().eval()


def objects(count: int, *, seed: int = 0, size: float = 96) -> Target:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(2, count, 2, generator=generator) * size
    return Target(
        boxes=torch.cat((corners.amin(0), corners.amax(0)), dim=1),
        labels=torch.randint(0, 3, (count,), generator=generator),
        masks=(torch.rand(count, 96, 128, generator=generator) > 0.5).to(torch.uint8),
    )


def targets(count: int, length: int) -> Targets:
    return pad_targets([objects(length, seed=i) for i in range(count)])


def counted(function, backend: str = "eager"):
    """The function compiled whole, and the counter of its compilations."""
    counter = CompileCounterWithBackend(backend)
    return torch.compile(function, backend=counter, fullgraph=True), counter


def assert_all_close(found, expected) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


# Of gray anchors nothing is left at inference but a softmax.
@pytest.mark.parametrize(
    "detector",
    mostly(("one stage", "two stages", "whole images"), ("two stages", "whole images"), SOME),
    indirect=True,
)
def test_inference_compiles_whole_and_finds_what_it_finds_eagerly(detector):
    compiled, counter = counted(FromTensors(detector))
    with torch.no_grad():
        for count, size in SIZES:
            batch = images(count, size)
            expected = detector(batch)
            assert expected.valid.any()
            assert_all_close(compiled(batch.tensors, batch.sizes), [part for part in expected if part is not None])
    assert counter.frame_count <= 3


@pytest.mark.parametrize("detector", mostly(DETECTORS, ("gray anchors", "whole images"), SOME), indirect=True)
def test_training_compiles_whole_and_learns_what_it_learns_eagerly(detector, request):
    compiled, counter = counted(detector, BACKENDS[request.node.callspec.params["detector"]])
    for count, length in BATCHES:
        batch, truth = images(count), targets(count, length)
        results = []
        for run in (detector, compiled):
            detector.zero_grad()
            losses = run(batch, truth)
            sum(losses.values()).backward()
            results.append([*losses.values(), *(parameter.grad.clone() for parameter in detector.parameters())])
        assert results[0][0] > 0
        assert_all_close(results[1], results[0])
    assert counter.frame_count <= 3


def assert_exports(detector: Detector) -> None:
    dynamic = ({0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}, {0: Dim.DYNAMIC})
    model = FromTensors(detector)
    program = torch.export.export(model, tuple(images(2)[:2]), dynamic_shapes=dynamic).module()
    with torch.no_grad():
        for count, size in SIZES:
            batch = images(count, size)
            expected = model(batch.tensors, batch.sizes)
            assert expected[3].any()
            assert_all_close(program(batch.tensors, batch.sizes), expected)


@pytest.mark.parametrize(
    "detector", mostly(DETECTORS, ("one stage", "gray anchors", "whole images"), SOME), indirect=True
)
def test_a_detector_exports_with_dynamic_batch_height_and_width(detector):
    assert_exports(detector)


@pytest.mark.parametrize("recipe", mostly((small_retinanet, small_fcos), (small_retinanet,), SOME))
def test_a_detector_that_ranks_each_level_exports_as_well(recipe):
    torch.manual_seed(0)
    detector = recipe(3, size=(96, 128), channels=8).eval()
    nn.init.normal_(detector.dense.head.class_head.logits.weight)  # scores far enough apart for one order only
    # More candidates than the coarse levels have anchors, fewer than the fine ones.
    detector.dense.postprocess = LevelwisePostprocess(score_threshold=0.0, max_detections=10, candidates_per_level=40)
    assert_exports(detector)


def test_classes_of_pixels_export_for_any_number_of_objects():
    class Drawing(nn.Module):
        def forward(self, masks: Tensor, labels: Tensor, objects: Tensor) -> Tensor:
            return draw_segmentation(masks, labels, objects, ~objects)

    def given(count: int) -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(count)
        masks = torch.rand(count, 9, 10, generator=generator) > 1 - 1 / count
        return masks, torch.arange(count) % 9, torch.arange(count) % 4 > 0

    free = {0: Dim("T", min=2, max=1000)}
    program = torch.export.export(Drawing(), given(5), dynamic_shapes=(free, free, free)).module()
    for count in (2, 254, 255, 256, 900):
        assert torch.equal(program(*given(count)), Drawing()(*given(count)))


def test_a_part_can_be_built_while_it_is_compiled():
    def decode(deltas: Tensor) -> Tensor:
        return DeltaCoder().decode(deltas, torch.tensor([[0.0, 0, 4, 4]]))

    compiled = torch.compile(decode, backend="eager", fullgraph=True)
    assert compiled(torch.zeros(1, 4)).tolist() == [[0.0, 0, 4, 4]]
